"""What a folder's configuration files say is followed, or the folder is refused by its right name."""

import json
import shutil

import pytest
import torch

from t2mv_core.denoiser import encode_cameras, predict_noise
from t2mv_core.formats.configs import read_config, read_index
from t2mv_core.formats.sources import ModelSources
from t2mv_core.formats.tokens import settle_tokens
from t2mv_core.loading import load_bundle, with_schedule_of
from t2mv_core.text import encode_text
from t2mv_core.toybox import toybox_path

SD15_VAE = {"scaling_factor": 0.18215, "block_out_channels": [128, 256, 512, 512], "latent_channels": 4}
EDM = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_min": 0.002, "sigma_max": 80.0}


@pytest.fixture
def edit(own_folder):
    """Changes a configuration of the tiny model; "-" takes a key out."""

    def change(file, **values):
        path = own_folder / file
        config = json.loads(path.read_text()) if path.is_file() else {}
        config = {
            key: value for key, value in {**config, **values}.items() if key not in values or value != "-"
        }
        path.write_text(json.dumps(config))
        return str(own_folder)

    return change


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("scheduler/scheduler_config.json", EDM, r"is an EDM model's \(Playground 2.5\)"),
        (
            "vae/config.json",
            {
                "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
                "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
            },
            r"latents_mean=.* is not supported; it is an EDM model's \(Playground 2.5\)",
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "is a flow-matching model's",
        ),
    ],
)
def test_the_toybox_with_anothers_configuration_is_refused_by_name(tmp_path, file, values, words):
    folder = shutil.copytree(toybox_path("model"), tmp_path / "model")
    shutil.copy(toybox_path("mvadapter.safetensors"), folder)
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**config, **values}))
    with pytest.raises(ValueError, match=words):
        load_bundle(str(folder))


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type='timestep' is not"),
        ("unet/config.json", {"encoder_hid_dim_type": "ip_image_proj"}, "belongs to an IP-Adapter or Kolors"),
        ("unet/config.json", {"addition_embed_type": "text"}, "with addition_embed_type='text_time'"),
        ("unet/config.json", {"attention_type": "gated"}, "attention_type='gated' is not supported"),
        ("unet/config.json", {"only_cross_attention": [False, True, True]}, "only_cross_attention="),
        ("unet/config.json", {"_class_name": "UNetMotionModel"}, "is no unet of SDXL"),
        ("unet/config.json", {"quantization_config": {"quant_method": "torchao"}}, "is quantised .torchao"),
        ("vae/config.json", SD15_VAE, "is the VAE of Stable Diffusion 1.x"),
        ("vae/config.json", {**SD15_VAE, "scaling_factor": "-"}, "is the VAE of Stable Diffusion 1.x"),
        ("vae/config.json", {"shift_factor": 0.1159}, "shift_factor=0.1159 is not supported"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "is no vae of SDXL ._class_name"),
        ("text_encoder_2/config.json", {"model_type": "t5"}, "is no text_encoder_2 of SDXL .model_type 't5'"),
        ("text_encoder/config.json", {"bos_token_id": 3}, "are not the last two tokens"),
        ("model_index.json", {"requires_aesthetics_score": True}, "is an SDXL refiner"),
    ],
)  # fmt: skip
def test_keys_that_need_more_than_we_have_are_refused(edit, file, values, words):
    with pytest.raises(ValueError, match=words):
        load_bundle(edit(file, **values))


def test_keys_nobody_knows_are_named_and_harmless_ones_are_not(edit, caplog):
    edit("unet/config.json", sample_gain=2, decay=0.999, class_embed_type=None, use_something=False)
    edit("text_encoder/config.json", torch_dtype="float16", architectures=["CLIPTextModel"], torsion=1)
    edit("scheduler/scheduler_config.json", sigma_churn=0.5, _diffusers_version="9", skip_prk_steps=True)
    folder = edit("model_index.json", controlnet=["diffusers", "ControlNetModel"], image_encoder=[None, None])
    bundle = load_bundle(folder)
    said = [*bundle.notices, *bundle.schedule.notices]
    assert [notice.partition(folder)[2] or notice for notice in said] == [
        "/model_index.json names controlnet; T2MV ignores it.",
        "/unet/config.json: T2MV does not know sample_gain, and ignores it.",
        "/text_encoder/config.json: T2MV does not know torsion, and ignores it.",
        "T2MV does not know the scheduler's sigma_churn, and ignores it.",
    ]
    assert all(notice in caplog.text for notice in said)


def test_the_ordinary_case_says_nothing(lcm_folder, ddim_folder, caplog):
    for model in ("toybox", "toybox-teacher", str(lcm_folder), str(ddim_folder)):
        bundle = load_bundle(model)
        assert (bundle.notices, bundle.schedule.notices) == ((), ())
    assert caplog.text == ""


def test_the_scaling_of_the_vae_is_the_files(edit):
    assert load_bundle(edit("vae/config.json", scaling_factor=0.75)).vae.config["scaling_factor"] == 0.75


@pytest.mark.parametrize("zeros", [True, False])
def test_no_negative_prompt_is_zeros_or_the_empty_text_as_the_index_says(edit, zeros):
    bundle = load_bundle(edit("model_index.json", force_zeros_for_empty_prompt=zeros))
    condition = encode_text(bundle, ["a red mug"])
    ids = torch.tensor([[598, 599, *([599] * 10)], [598, 599, *([0] * 10)]])
    with torch.no_grad():
        first = bundle.text_encoder(ids[:1], output_hidden_states=True).hidden_states[-2]
        second = bundle.text_encoder_2(ids[1:], output_hidden_states=True)
    expected = torch.cat([first, second.hidden_states[-2]], dim=-1)
    pooled = second.text_embeds
    torch.testing.assert_close(condition.negative_embeds, torch.zeros_like(expected) if zeros else expected)
    torch.testing.assert_close(condition.negative_pooled, torch.zeros_like(pooled) if zeros else pooled)


def test_linspace_gives_way_to_a_solver_that_is_named(ddim_folder, tmp_path, rig):
    folder = shutil.copytree(ddim_folder, tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace"}))
    with pytest.raises(ValueError, match="timestep_spacing='linspace' .* or choose a solver"):
        load_bundle(str(folder))
    for solver, steps in {
        "ddim": [751, 501, 251, 1],
        "ddim-trailing": [999, 749, 499, 249],
        "lcm": [999, 759, 499, 259],
    }.items():
        bundle = load_bundle(ModelSources(str(folder), solver=solver))
        assert bundle.schedule.timesteps(4).tolist() == steps
        (notice,) = bundle.schedule.notices
        assert "timestep_spacing='linspace' has no effect" in notice
        assert with_schedule_of(bundle, "lcm").schedule.solver == "lcm"
    with pytest.raises(ValueError, match="linspace"):
        with_schedule_of(bundle, None)


def test_a_unet_with_a_guidance_input_needs_no_spacing(edit, rig, prompts):
    folder = edit(
        "scheduler/scheduler_config.json", _class_name="EulerDiscreteScheduler", timestep_spacing="linspace"
    )
    bundle = load_bundle(folder)
    assert bundle.schedule.solver == "lcm"
    x = torch.randn(2, 3, 4, 8, 8)
    assert (
        predict_noise(bundle, x, 500, encode_text(bundle, prompts), encode_cameras(bundle, rig), 4.0)
        .isfinite()
        .all()
    )


def test_another_solver_of_loaded_weights_is_what_loading_with_it_gives(lcm_folder, ddim_folder):
    for folder in map(str, (lcm_folder, ddim_folder)):
        plain = load_bundle(folder)
        for solver in ("lcm", "ddim", "ddim-trailing", None):
            loaded, changed = (
                load_bundle(ModelSources(folder, solver=solver)),
                with_schedule_of(plain, solver),
            )
            assert (changed.sources, changed.unet) == (loaded.sources, plain.unet)
            assert solver in (None, loaded.schedule.solver_name)
            assert repr(changed.schedule) == repr(loaded.schedule)
            assert torch.equal(changed.schedule.alpha_bar, loaded.schedule.alpha_bar)


OTHERS = {
    "StableDiffusionPipeline": (768, "a Stable Diffusion 1.x model"),
    "StableDiffusionInpaintPipeline": (1024, "a Stable Diffusion 2.x model"),
    "LatentConsistencyModelPipeline": (768, "a Stable Diffusion 1.x model"),
    "StableDiffusion3Pipeline": (None, "a Stable Diffusion 3 model"),
    "FluxPipeline": (None, "a Flux model"),
    "PixArtSigmaPipeline": (None, "a PixArt model"),
    "KolorsPipeline": (2048, "a Kolors model"),
    "WanPipeline": (None, r"a model of another kind \(WanPipeline\)"),
}


@pytest.mark.parametrize("class_name", OTHERS)
def test_folders_of_other_models_are_named_by_their_index(tmp_path, class_name, lcm_folder):
    width, words = OTHERS[class_name]
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    for part in ("text_encoder", "text_encoder_2", "vae", "transformer"):  # as in a folder of Flux
        (tmp_path / part).mkdir()
    if width:
        (tmp_path / "text_encoder_2").rmdir()
        (tmp_path / "unet").mkdir()
        (tmp_path / "unet" / "config.json").write_text(json.dumps({"cross_attention_dim": width}))
    with pytest.raises(ValueError, match=f"is {words}; T2MV needs an SDXL model"):
        load_bundle(ModelSources(str(tmp_path), adapter=str(lcm_folder / "mvadapter.safetensors")))


@pytest.mark.parametrize(
    ("channels", "width", "has_sizes", "words"),
    [
        (9, None, True, "an inpainting model"),
        (8, None, True, r"an image-editing model \(InstructPix2Pix\)"),
        (4, 1280, True, "an SDXL refiner"),
        (4, 768, False, "a Stable Diffusion 1.x model"),
        (4, 1024, False, "a Stable Diffusion 2.x model"),
    ],
)
def test_folders_are_recognised_by_their_unet_as_files_are(
    own_folder, edit_weights, channels, width, has_sizes, words
):
    def change(tensors):
        tensors["conv_in.weight"] = torch.ones(32, channels, 3, 3)
        for key in list(tensors):
            if width and key.endswith("attn2.to_k.weight"):
                tensors[key] = torch.ones(32, width)
            if not has_sizes and key.startswith("add_embedding."):
                del tensors[key]

    edit_weights(own_folder / "unet" / "diffusion_pytorch_model.safetensors", change)
    with pytest.raises(ValueError, match=f"is {words}; T2MV needs an SDXL model"):
        load_bundle(str(own_folder))


PUBLISHED = {  # keys of stabilityai/stable-diffusion-xl-base-1.0 beyond those of benchmarks.sdxl_files
    "unet": {
        "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.19.0.dev0", "act_fn": "silu",
        "addition_embed_type_num_heads": 64, "center_input_sample": False, "class_embed_type": None,
        "class_embeddings_concat": False, "cross_attention_norm": None, "dual_cross_attention": False,
        "encoder_hid_dim": None, "encoder_hid_dim_type": None, "mid_block_only_cross_attention": None,
        "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": None, "num_class_embeds": None,
        "only_cross_attention": False, "resnet_time_scale_shift": "default", "upcast_attention": None,
    },
    "vae": {"_class_name": "AutoencoderKL", "_name_or_path": "../sdxl-vae/", "act_fn": "silu"},
    "text_encoder": {
        "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0,
        "eos_token_id": 2, "initializer_factor": 1.0, "model_type": "clip_text_model", "pad_token_id": 1,
        "torch_dtype": "float16", "transformers_version": "4.32.0.dev0",
    },
}  # fmt: skip


def test_sdxls_published_folder_is_read_without_a_word(tmp_path):
    from benchmarks.sdxl_files import FULL, text_settings, unet_settings, vae_settings

    settings = {
        "unet": unet_settings(FULL),
        "vae": vae_settings(FULL),
        "text_encoder": text_settings(FULL, 0),
    }
    notices = []
    for part, values in settings.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps({**values, **PUBLISHED[part]}))
        config = read_config(part, tmp_path / part / "config.json", notices)
    (tmp_path / "tokenizer").mkdir()
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", "model_max_length": 77,
                 "bos_token": {"__type": "AddedToken", "content": "<|startoftext|>"}}  # fmt: skip
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    settled = settle_tokens(config, "text_encoder", tmp_path / "text_encoder", notices)
    assert (settled["bos_token_id"], settled["eos_token_id"]) == (49406, 49407)
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True,
             "add_watermarker": None, "tokenizer_2": ["transformers", "CLIPTokenizer"],
             "image_encoder": [None, None], "feature_extractor": [None, None]}  # fmt: skip
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert read_index(tmp_path, notices) is True
    assert notices == []


def test_another_padding_is_named_and_another_tokenizer_refused(own_folder):
    folder = own_folder / "tokenizer_2"
    folder.mkdir()
    (folder / "special_tokens_map.json").write_text('{"pad_token": {"content": "<|endoftext|>"}}')
    (notice,) = load_bundle(str(own_folder)).notices
    assert notice == f"{folder} pads with '<|endoftext|>'; T2MV pads with '!', as SDXL does."
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    with pytest.raises(ValueError, match="tokenizer_2 is a T5Tokenizer, not CLIP's tokenizer"):
        load_bundle(str(own_folder))


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("unet/config.json", {"down_block_types": None}),
        ("unet/config.json", {"block_out_channels": "x"}),
        ("vae/config.json", {"block_out_channels": None}),
        ("text_encoder/config.json", {"hidden_act": "nonsense"}),
        ("text_encoder/config.json", {"eos_token_id": "x"}),
        ("text_encoder/config.json", {"eos_token_id": [1, 2]}),
    ],
)
def test_values_that_no_part_can_be_made_from_get_a_sentence(edit, file, values):
    with pytest.raises(ValueError, match=r"text_encoder|text encoder|unet|vae"):
        load_bundle(edit(file, **values))


def test_a_configuration_is_read_behind_a_byte_order_mark(own_folder):
    path = own_folder / "unet" / "config.json"
    before = load_bundle(str(own_folder)).unet.config
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert load_bundle(str(own_folder)).unet.config == before
