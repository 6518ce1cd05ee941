"""The zag in ComfyUI's sigma space: docs/method.md, section 4, in ComfyUI's coordinates.

The method writes latents variance-preserving, ComfyUI (noise and v models) variance-exploding. With

    σ² = (1-ᾱ)/ᾱ,   so ᾱ = 1/(σ²+1):     x_vp = √ᾱ·x_ve
    x_vp = √ᾱ·x_0 + √(1-ᾱ)·ε   ⇔   x_ve = x_0 + σ·ε

all steps are the same steps: LCM's √ᾱ'·f + √(1-ᾱ')·z is f + σ'·z (`sample_lcm`), DDIM's η = 0 is Euler's
x + (σ'-σ)·ε (`sample_euler`), and DDIM's variance with η = 1, over ᾱ', is
σ'²·(σ²-σ'²)/σ² (`sample_euler_ancestral`), because (σ²-σ'²)/σ² = (1-ᾱ/ᾱ')/(1-ᾱ).

The zag asks the network at the *later* latent but the *earlier* time: (x_{t'}, t). ComfyUI derives both from
one σ: the network gets c_in(σ)·x. So x_{t'} is first scaled such that c_in at σ_t leaves it unchanged:

    shown = x_{t'}·c_in(σ')/c_in(σ),   D = model(shown, σ)

For every kind of model D is affine in the network's output, D = keep(σ)·shown + take(σ)·output, which gives
the output (the guided one, too: guidance is a sum with weights that add up to 1). It is then read at the
latent's own level t':

    f = keep(σ')·x_{t'} + take(σ')·output,   ε from the output,   x̃_t = f + σ·ε

A noise model has keep = 1, take = -σ; an LCM model keep = c_out + c_skip, take = -c_out·σ; ε is the output.
(ComfyUI's LCM weighs x_ve, the method x_vp, by c_skip: a difference of at most 7e-6 from t = 19 on.)
A v model has v = √ᾱ·ε - √(1-ᾱ)·x_0, hence ε = √ᾱ·v + √(1-ᾱ)·x_vp at t': a rotation back. An ε read at t would
not depend on the prediction where ᾱ_t = 0; this one does.
A flow model has x = (1-σ)·x_0 + σ·ε, c_in = 1, output = ε - x_0, hence ε = x + (1-σ')·output, and
x̃_t = (1-σ)·f + σ·ε, which is x + (σ-σ')·output: Euler's step backwards with the velocity at (x_{t'}, t).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Family = Literal["noise", "velocity", "flow"]
"""What the network predicts: ε, v (both on x_0 + σ·ε), or ε - x_0 on (1-σ)·x_0 + σ·ε."""


@dataclass(frozen=True)
class NoiseLevel:
    """One σ and a model's weights there.

    Attributes:
        sigma: σ ≥ 0; ≤ 1 for flow models.
        input_scale: c_in(σ): the network is shown input_scale·x.
        keep: weight of the latents in the model's clean latents.
        take: weight of the network's output there.
        sigma_data: of v models, the standard deviation in the definition of v; 1 in practice.
    """

    sigma: float
    input_scale: float
    keep: float
    take: float
    sigma_data: float = 1.0


def read_level(model_sampling: Any, sigma: Tensor) -> NoiseLevel:
    """Return a noise level of a model; zeros and ones as latents and output give its weights.

    Args:
        model_sampling: the model's "model_sampling", of a kind that `read_family` knows.
        sigma: one number.
    """
    at = sigma.reshape(1).float()
    one, zero = at.new_ones(1, 1, 1, 1), at.new_zeros(1, 1, 1, 1)
    return NoiseLevel(
        sigma=float(at),
        input_scale=float(model_sampling.calculate_input(at, one)),
        keep=float(model_sampling.calculate_denoised(at, zero, one)),
        take=float(model_sampling.calculate_denoised(at, one, zero)),
        sigma_data=float(getattr(model_sampling, "sigma_data", 1.0)),
    )


def shown_latents(x: Tensor, own: NoiseLevel, asked: NoiseLevel) -> Tensor:
    """Scale latents of level `own` so that a model asked at `asked` shows its network the same numbers."""
    return x * (own.input_scale / asked.input_scale)


def network_output(denoised: Tensor, shown: Tensor, asked: NoiseLevel) -> Tensor:
    """Return the (guided) network's output, given the model's clean latents D = model(shown, σ) at σ > 0."""
    return (denoised - asked.keep * shown) / asked.take


def predicted_noise(family: Family, output: Tensor, x: Tensor, own: NoiseLevel) -> Tensor:
    """Return ε by this output at the latents' own level; finite at σ = 0, too."""
    if family == "noise":
        return output
    if family == "flow":
        return x + (1.0 - own.sigma) * output
    scale = 1.0 / (own.sigma**2 + own.sigma_data**2)
    return own.sigma * scale * x + own.sigma_data * scale**0.5 * output


def invert(
    family: Family, output: Tensor, x_next: Tensor, own: NoiseLevel, back_to: NoiseLevel
) -> tuple[Tensor, Tensor]:
    """Go back deterministically from x_{t'} to x̃_t: the zag.

    Args:
        family: what the network predicts.
        output: the network's weakly guided output at (x_{t'}, t).
        x_next: x_{t'} in ComfyUI's space, same shape.
        own: level of x_{t'}.
        back_to: level of t.

    Returns:
        x̃_t, and the clean latents, for a preview.
    """
    clean = own.keep * x_next + own.take * output  # f of docs/method.md, section 3
    noise = predicted_noise(family, output, x_next, own)
    kept = 1.0 - back_to.sigma if family == "flow" else 1.0
    return kept * clean + back_to.sigma * noise, clean
