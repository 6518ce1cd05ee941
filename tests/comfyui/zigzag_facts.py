"""Run by `test_zigzag.py` in a process like ComfyUI's, behind LOAD_PACK; prints what it found as JSON.

The network is a formula of latents, time, text and view scale, inside ComfyUI's real BaseModel, ModelPatcher,
guiders and samplers; the oracle is the pack's own core, in the same process.
"""

# ruff: noqa: E402, T201
import json
from types import SimpleNamespace

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import comfy.supported_models
import comfy.utils
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.k_diffusion.sampling import default_noise_sampler
from comfy_extras.nodes_custom_sampler import BasicScheduler, Guider_Basic, Guider_DualCFG
from comfy_extras.nodes_model_advanced import LCM, ModelSamplingDiscrete, ModelSamplingDiscreteDistilled
from pack.nodes.native.patch import VIEW_SCALE_OPTION
from pack.nodes.native.zigzag.loop import ZigzagSettings
from pack.nodes.native.zigzag.node import ZigzagSampler
from pack.t2mv_core import policy
from pack.t2mv_core.samplers import SamplingSettings, sample_standard, sample_zmv
from pack.t2mv_core.samplers import loop as rollout
from pack.t2mv_core.schedule import NoiseSchedule, scaled_linear_alpha_bar, shift_snr

V, SIZE, SEED, OWN_VIEW_SCALE = 3, 8, 11, 1.5
ALPHA_BAR = shift_snr(scaled_linear_alpha_bar(0.00085, 0.012, 1000))


def formula(x, timestep, text, view_scale):
    """Any function: what the network predicts; text is 1 with the prompt and 0 without."""
    x = x.float()
    return (
        torch.sin(1.3 * x + timestep / 300) + 0.1 * text * torch.cos(x) + 0.3 * view_scale * torch.sin(2 * x)
    )


def posterior_noise(x, timestep, text, view_scale):
    """ε of a denoiser near that of normal data, so that a trajectory does not amplify rounding errors."""
    alpha_bar = ALPHA_BAR[torch.as_tensor(timestep).long()].float()
    mean = 0.4 * text * torch.linspace(-1, 1, SIZE) + 0.3 * view_scale * torch.linspace(1, -1, SIZE)[:, None]
    bend = 0.2 * text * torch.sin(2 * x.float())
    clean = mean + alpha_bar.sqrt() * (x.float() - alpha_bar.sqrt() * mean) + bend
    return (x.float() - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()


class Network(torch.nn.Module):
    """The formula where ComfyUI expects a UNet; it notes how it was asked."""

    def __init__(self, **_):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.dtype, self.asked, self.predict = torch.float32, [], formula

    def forward(self, x, t, context=None, transformer_options=None, **_):
        view_scale = transformer_options.get(VIEW_SCALE_OPTION)
        self.asked.append(
            (len(transformer_options["cond_or_uncond"]), view_scale, float(transformer_options["sigmas"][0]))
        )
        text, timestep = context[:, 0, 0].reshape(-1, 1, 1, 1), t.reshape(-1, 1, 1, 1)
        return self.predict(x, timestep, text, OWN_VIEW_SCALE if view_scale is None else view_scale)


def make_model(model_type="EPS"):
    config = comfy.supported_models.SDXL({"image_model": None})
    config.unet_config = {"disable_unet_model_creation": True}
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType[model_type])
    model.diffusion_model = Network()
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, comfy.model_management.get_torch_device(), torch.device("cpu"))


def shifted_model(is_distilled):
    """The analytic denoiser with the multiview noise schedule, as a noise or an LCM model."""
    bases = (ModelSamplingDiscreteDistilled, LCM) if is_distilled else (
        comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS
    )  # fmt: skip
    model = make_model()
    model.model.diffusion_model.predict = posterior_noise
    sampling = type("ModelSamplingAdvanced", bases, {})(model.model.model_config)
    sigmas = ((1 - ALPHA_BAR) / ALPHA_BAR).sqrt()
    sampling.set_sigmas(sigmas[19::20] if is_distilled else sigmas)
    model.add_object_patch("model_sampling", sampling)
    return model


def conditioning(text):
    return [[torch.full((1, 1, 1), float(text)), {}]]


def make_guider(model, cfg):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning(1), conditioning(0))
    guider.set_cfg(cfg)
    return guider


def make_noise(seed=0):
    return torch.randn((V, 4, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))


def zigzag(name="lcm", steps=1, repeats=1, guidance=1.0, view_scale=0.25):
    return ZigzagSampler(ZigzagSettings(name, steps, repeats, guidance, view_scale))


def run(guider, sampler, sigmas, seed=SEED, callback=None, latent=None, mask=None):
    latent = torch.zeros((V, 4, SIZE, SIZE)) if latent is None else latent
    out = guider.sample(
        make_noise(),
        latent,
        sampler,
        sigmas,
        denoise_mask=mask,
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )
    return guider.model_patcher.model.process_latent_in(out)


def sigmas_of(model, num_steps, scheduler="simple"):
    return BasicScheduler().get_sigmas(model, scheduler, num_steps, 1.0)[0]


MODELS = {"noise": make_model(), "velocity": make_model("V_PREDICTION"), "flow": make_model("FLOW")}


def plain():
    found = {}
    for kind, model in MODELS.items():
        for name in ("lcm", "euler", "euler_ancestral"):
            guider, sigmas = make_guider(model, 5.0), sigmas_of(model, 5)
            ours = run(guider, zigzag(name, 0), sigmas)
            theirs = run(guider, comfy.samplers.sampler_object(name), sigmas)
            found[f"{kind} {name}"] = (
                "equal" if torch.equal(ours, theirs) else float((ours - theirs).abs().max())
            )
    return found


def comfy_noise():
    """What ComfyUI's samplers draw with this seed, which newer versions raise by one on the CPU."""
    return default_noise_sampler(make_noise(), seed=SEED)


class CoreNoise:
    """The numbers that ComfyUI draws, in the core's shape."""

    def __init__(self):
        self.first, self.draw = True, comfy_noise()

    def __call__(self, shape):
        if self.first:
            self.first = False
            return make_noise().reshape(shape)
        return self.draw(None, None)[None]


def core_predict(bundle, x, timestep, condition, cameras, guidance_scale, view_scale, reference):
    with_text, without = (posterior_noise(x, timestep, text, view_scale) for text in (1, 0))
    return without + guidance_scale * (with_text - without)


def core_latents(schedule, settings, sample):
    bundle = SimpleNamespace(
        schedule=schedule, latent_channels=4, latent_px=SIZE, device=torch.device("cpu"), dtype=torch.float32,
        tasks=("text-to-multiview",),
    )  # fmt: skip
    rollout.predict_noise = core_predict
    return sample(bundle, ["prompt"], SimpleNamespace(num_views=V), CoreNoise(), settings).denoised[0]


def core():
    cases = {
        "lcm K=1": ("lcm", 1, 1), "lcm K=2 R=2": ("lcm", 2, 2), "lcm K=4 (all)": ("lcm", 4, 1),
        "euler_ancestral K=2": ("euler_ancestral", 2, 1), "euler K=2 R=2": ("euler", 2, 2),
    }  # fmt: skip
    found = {}
    for case, (name, steps, repeats) in cases.items():
        schedule = NoiseSchedule(
            ALPHA_BAR, "lcm" if name == "lcm" else "ddim", 1.0, timestep_spacing="trailing"
        )
        policy.DDIM_ETA, policy.MIN_VARIANCE = (0.0, 0.0) if name == "euler" else (1.0, 1e-8)
        model = shifted_model(is_distilled=name == "lcm")
        visited = ((1 - ALPHA_BAR) / ALPHA_BAR).sqrt()[schedule.timesteps(4)]
        sigmas = torch.cat([visited, torch.zeros(1)]).float()
        settings = SamplingSettings(4, 5.0, OWN_VIEW_SCALE, steps, repeats, 0.5, 0.25)
        expected = core_latents(schedule, settings, sample_zmv)
        ours = run(make_guider(model, 5.0), zigzag(name, steps, repeats, 0.5), sigmas)
        standard = core_latents(schedule, settings, sample_standard)
        found[case] = {
            "difference": float((ours - expected).abs().max()),
            "effect of the zigzag": float((expected - standard).abs().mean()),
        }
    return found


def timesteps():
    """ModelSamplingDiscrete (lcm) with BasicScheduler (simple), as a graph has them."""
    (model,) = ModelSamplingDiscrete().patch(MODELS["noise"], "lcm", False)
    sampling = model.get_model_object("model_sampling")
    return sampling.timestep(sigmas_of(model, 8)[:-1]).long().tolist()


def asked():
    model = make_model()
    guider, options = make_guider(model, 5.0), json.dumps(model.model_options)
    progress, args.preview_method = [], LatentPreviewMethod.Latent2RGB
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, **_: progress.append([value, total, preview is not None])
    )
    network = model.model.diffusion_model
    run(guider, zigzag(), sigmas_of(model, 3), callback=latent_preview.prepare_callback(model, 3))
    comfy.utils.set_progress_bar_global_hook(None)
    return {
        "calls": [[passes, view_scale] for passes, view_scale, _ in network.asked],
        "sigmas asked": [sigma for _, _, sigma in network.asked],
        "progress": progress,
        "guider": {"cfg": guider.cfg, "options": json.dumps(model.model_options) == options},
    }


def seeds():
    guider, sigmas = make_guider(MODELS["noise"], 5.0), sigmas_of(MODELS["noise"], 3)
    first, again, other = (run(guider, zigzag(), sigmas, seed) for seed in (SEED, SEED, SEED + 1))
    return {"same": torch.equal(first, again), "other": torch.equal(first, other)}


def mask():
    model, latent = MODELS["noise"], make_noise(5)
    changed = torch.zeros((1, SIZE, SIZE))
    changed[:, :, SIZE // 2 :] = 1.0
    sampler = zigzag("euler", 2)
    out = run(make_guider(model, 5.0), sampler, sigmas_of(model, 4), latent=latent, mask=changed)
    kept = model.model.process_latent_in(latent)
    error = (out - kept).abs()
    return {
        "protected part": bool(error[..., : SIZE // 2].max() < 1e-5),
        "other part changed": bool(error[..., SIZE // 2 :].mean() > 0.1),
        "finite": bool(out.isfinite().all()),
    }


def flow():
    """By hand, x = (1-σ)·x_0 + σ·z: forth by Euler or LCM, back by x' + (σ-σ')·velocity."""
    model = MODELS["flow"]
    sigmas, found = sigmas_of(model, 3), {}
    times = model.get_model_object("model_sampling").timestep(sigmas)

    def velocity(x, step, guidance, view_scale):
        with_text, without = (formula(x, times[step], text, view_scale) for text in (1, 0))
        return without + guidance * (with_text - without)

    for name in ("euler", "lcm"):
        x, draw = make_noise() * sigmas[0], comfy_noise()

        def forth(x, step, name=name, draw=draw):
            v = velocity(x, step, 5.0, OWN_VIEW_SCALE)
            if name == "euler":
                return x + (sigmas[step + 1] - sigmas[step]) * v
            clean = x - sigmas[step] * v
            if sigmas[step + 1] == 0:
                return clean
            z = draw(None, None)
            return (1 - sigmas[step + 1]) * clean + sigmas[step + 1] * z

        for step in range(3):
            if step == 0:
                x = forth(x, step)
                x = x + (sigmas[step] - sigmas[step + 1]) * velocity(x, step, 0.5, 0.25)
            x = forth(x, step)
        ours = run(make_guider(model, 5.0), zigzag(name, 1, 1, 0.5), sigmas)
        found[name] = float((ours - x).abs().max())
    return found


def velocity():
    """By hand in the method's space, x = √ᾱ·x_0 + √(1-ᾱ)·ε: DDIM forth, the same rotation back."""
    model = MODELS["velocity"]
    sigmas = sigmas_of(model, 3)
    times = model.get_model_object("model_sampling").timestep(sigmas[:-1])
    alpha_bar = 1 / (sigmas**2 + 1)
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def move(x, asked, own, to, guidance, view_scale):
        with_text, without = (formula(x, times[asked], text, view_scale) for text in (1, 0))
        v = without + guidance * (with_text - without)
        return signal[to] * (signal[own] * x - noise[own] * v) + noise[to] * (
            noise[own] * x + signal[own] * v
        )

    x = make_noise()
    for step in range(3):
        if step < 2:
            x = move(x, step, step, step + 1, 5.0, OWN_VIEW_SCALE)
            x = move(x, step, step + 1, step, 0.5, 0.25)
        x = move(x, step, step, step + 1, 5.0, OWN_VIEW_SCALE)
    ours = run(make_guider(model, 5.0), zigzag("euler", 2, 1, 0.5), sigmas)
    return float((ours - x).abs().max())


def cfg_1():
    guider, sigmas = make_guider(MODELS["noise"], 1.0), sigmas_of(MODELS["noise"], 3)
    weaker = run(guider, zigzag("lcm", 1, 1, 0.0, OWN_VIEW_SCALE), sigmas)
    same = run(guider, zigzag("lcm", 1, 1, 1.0, OWN_VIEW_SCALE), sigmas)
    return {"changes": not torch.equal(weaker, same), "finite": bool(weaker.isfinite().all())}


def overridden():
    """A node that sets the guidance around each evaluation, as CFG Override does."""

    def override(executor, *args, **named):
        guider = executor.class_obj
        before, guider.cfg = guider.cfg, 5.0
        try:
            return executor(*args, **named)
        finally:
            guider.cfg = before

    model, sigmas = make_model(), sigmas_of(MODELS["noise"], 3)
    model.add_wrapper(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, override)
    plain = run(make_guider(MODELS["noise"], 5.0), zigzag("euler", 1, 1, 0.5), sigmas)
    ours = run(make_guider(model, 2.0), zigzag("euler", 1, 1, 0.5), sigmas)
    other = run(make_guider(model, 2.0), zigzag("euler", 1, 1, 5.0), sigmas)
    return {"same": torch.equal(ours, plain), "no zigzag": torch.equal(other, plain)}


def interrupted():
    guider, sigmas = make_guider(MODELS["noise"], 5.0), sigmas_of(MODELS["noise"], 3)
    before, raised = run(guider, zigzag(), sigmas), False

    def stop(index, *_):
        if index == 1:  # at the zag
            raise InterruptedError

    try:
        run(guider, zigzag(), sigmas, callback=stop)
    except InterruptedError:
        raised = True
    return {"raised": raised, "same afterwards": torch.equal(before, run(guider, zigzag(), sigmas))}


def basic_guider(model):
    guider = Guider_Basic(model)
    guider.set_conds(conditioning(1))
    return guider


def dual_guider(model):
    guider = Guider_DualCFG(model)
    guider.set_conds(conditioning(1), conditioning(1), conditioning(0))
    guider.set_cfg(5.0, 3.0)
    return guider


def x0_model():
    return ModelSamplingDiscrete().patch(make_model(), "x0", False)[0]


def img_to_img_model(name):
    """A model of one of ComfyUI's newer kinds, which an older ComfyUI gets from here."""
    model, inherited = make_model(), comfy.model_sampling.CONST
    kind = getattr(comfy.model_sampling, name, None) or type(
        name, (inherited,), {"__module__": inherited.__module__}
    )
    bases = (comfy.model_sampling.ModelSamplingDiscrete, kind)
    model.add_object_patch(
        "model_sampling", type("ModelSamplingAdvanced", bases, {})(model.model.model_config)
    )
    return model


def refusals():
    found = {}

    def refuse(case, guider, sampler, sigmas):
        network, message = guider.model_patcher.model.diffusion_model, "nothing was raised"
        network.asked.clear()
        try:
            run(guider, sampler, sigmas)
        except ValueError as error:
            message = str(error)
        found[case] = {"message": message, "evaluations": len(network.asked)}

    model, cosmos = make_model(), make_model("FLOW_COSMOS")
    sigmas = sigmas_of(model, 3)
    refuse("basic guider", basic_guider(model), zigzag(guidance=0.0), sigmas)
    refuse("dual guider", dual_guider(model), zigzag(), sigmas)
    refuse("too many", make_guider(model, 5.0), zigzag(steps=5), sigmas)
    refuse("flipped", make_guider(model, 5.0), zigzag(), sigmas[:-1].flip(0))
    refuse("cosmos", make_guider(cosmos, 5.0), zigzag(), sigmas_of(cosmos, 3))
    refuse("x0", make_guider(x0_model(), 5.0), zigzag(), sigmas)
    refuse("IMG_TO_IMG_FLOW", make_guider(img_to_img_model("IMG_TO_IMG_FLOW"), 5.0), zigzag(), sigmas)
    return found


def allowed():
    cosmos = make_model("FLOW_COSMOS")
    outputs = {
        "basic guider": run(basic_guider(MODELS["noise"]), zigzag(), sigmas_of(MODELS["noise"], 3)),
        "cosmos K=0": run(make_guider(cosmos, 5.0), zigzag(steps=0), sigmas_of(cosmos, 3)),
        "dual guider K=0": run(dual_guider(MODELS["noise"]), zigzag(steps=0), sigmas_of(MODELS["noise"], 3)),
    }
    return {case: bool(x.isfinite().all()) for case, x in outputs.items()}


torch.set_num_threads(1)
with torch.inference_mode():  # as ComfyUI runs nodes
    facts = {
        "plain": plain(), "core": core(), "timesteps": timesteps(), **asked(), "seeds": seeds(),
        "mask": mask(), "flow": flow(), "velocity": velocity(), "cfg 1": cfg_1(), "overridden": overridden(),
        "interrupted": interrupted(), "refusals": refusals(), "allowed": allowed(),
    }  # fmt: skip
print(json.dumps(facts))
