"""The zigzag around ComfyUI's own samplers: every zig is one step of theirs, unchanged.

Order of method.md, section 4, as in `t2mv_core.samplers.zmv`: zig, then `zigzag_repeats` times zag and zig.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.k_diffusion.sampling as k_diffusion
import comfy.samplers
import torch
from tqdm.auto import trange

from .model import check_cache, check_sigmas, read_family, read_level, weaken
from .sigma_space import invert, network_output, shown_latents

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# Samplers that take one step from one evaluation and remember nothing -> whether they draw noise.
SAMPLERS = {"lcm": True, "euler": False, "euler_ancestral": True}


@dataclass(frozen=True)
class ZigzagSettings:
    """Settings of the zigzag, checked by the node.

    Attributes:
        sampler: a name of SAMPLERS.
        zigzag_steps: K, the number of first steps that zigzag.
        zigzag_repeats: zag-zig pairs per zigzag step, at least 1.
        inverse_guidance: cfg of the zag.
        inverse_view_scale: view scale of the zag.
    """

    sampler: str
    zigzag_steps: int
    zigzag_repeats: int
    inverse_guidance: float
    inverse_view_scale: float

    def count_evaluations(self, num_steps: int) -> int:
        """Evaluations of a run (two passes under guidance count as one)."""
        return num_steps + 2 * min(self.zigzag_steps, num_steps) * self.zigzag_repeats


class ZigzagSampler(comfy.samplers.KSAMPLER):
    """A SAMPLER whose progress counts evaluations, zags included."""

    def __init__(self, settings: ZigzagSettings) -> None:
        super().__init__(sample_zigzag, {"settings": settings})

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., None] | None,
        *others: Any,
        **named: Any,
    ) -> Tensor:
        """As ComfyUI's; its callback is told the number of evaluations in place of the number of steps."""
        total = self.extra_options["settings"].count_evaluations(len(sigmas) - 1)

        def tell(index: int, denoised: Tensor, x: Tensor, num_steps: int) -> None:
            callback(index, denoised, x, total)

        told = None if callback is None else tell
        return super().sample(model_wrap, sigmas, extra_args, told, *others, **named)


@torch.no_grad()
def sample_zigzag(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    settings: ZigzagSettings,
) -> Tensor:
    """A sampler function as ComfyUI's `sample_lcm`: from noise at sigmas[0] to latents at sigmas[-1].

    Args:
        model: clean latents from (latents, σ per latent), with guidance and inpainting inside.
        x: latents at sigmas[0], in ComfyUI's space.
        sigmas: falling noise levels, [steps + 1].
        extra_args: handed to every evaluation; its "seed" seeds the noise.
        callback: told of every evaluation; "i" counts evaluations.
        disable: whether the console shows no bar.
        settings: of the zigzag.

    Raises:
        ValueError: the model, its guider or the sigmas do not allow the zigzag; before the first evaluation.
    """
    loop = _Loop(model, x, sigmas, extra_args or {}, callback, settings)
    for step in trange(len(sigmas) - 1, disable=disable):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        if step < settings.zigzag_steps:
            turn = loop.turning_point(sigma, sigma_next)
            for _ in range(settings.zigzag_repeats):
                x = loop.zag(loop.zig(x, sigma, turn), sigma, turn)
        x = loop.zig(x, sigma, sigma_next)
    return x


class _Loop:
    """One run: what zig and zag share."""

    def __init__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[[dict[str, Any]], None] | None,
        settings: ZigzagSettings,
    ) -> None:
        self._model, self._extra_args, self._callback = model, extra_args, callback
        self._sampler, self._draws_noise = settings.sampler, SAMPLERS[settings.sampler]
        self._evaluations = 0
        # One for the whole run: a sampler that made its own would draw the same noise at every step.
        self._noise_sampler = k_diffusion.default_noise_sampler(x, seed=extra_args.get("seed"))
        if settings.zigzag_steps:
            check_sigmas(sigmas, settings.zigzag_steps)
            check_cache(extra_args, sigmas, settings.zigzag_steps)
            self._model_sampling = model.inner_model.inner_model.model_sampling
            self._family = read_family(self._model_sampling)
            self._weak_model, self._weak_args = weaken(
                model, extra_args, settings.inverse_guidance, settings.inverse_view_scale
            )

    def turning_point(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The level a zag goes back from: the next one; at LCM's last step its own (method.md, section 3)."""
        return sigma if self._sampler == "lcm" and sigma_next == 0 else sigma_next

    def zig(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """One step of ComfyUI's sampler."""
        options = {"noise_sampler": self._noise_sampler} if self._draws_noise else {}
        return getattr(k_diffusion, f"sample_{self._sampler}")(
            self._model,
            x,
            torch.stack([sigma, sigma_next]),
            extra_args=self._extra_args,
            callback=lambda event: self._tell(event["x"], sigma, event["denoised"]),
            disable=True,
            **options,
        )

    def zag(self, x_next: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Back from σ' to σ, with the weaker guidance and the other view scale."""
        own, back_to = (read_level(self._model_sampling, level) for level in (sigma_next, sigma))
        shown = shown_latents(x_next, own, back_to)
        denoised = self._weak_model(shown, sigma * shown.new_ones([len(shown)]), **self._weak_args)
        output = network_output(denoised, shown, back_to)
        x, clean = invert(self._family, output, x_next, own, back_to)
        self._tell(x_next, sigma, clean)
        return x

    def _tell(self, x: Tensor, sigma: Tensor, denoised: Tensor) -> None:
        index, self._evaluations = self._evaluations, self._evaluations + 1
        if self._callback is not None:
            event = {"x": x, "i": index, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised}
            self._callback(event)
