"""What to sample each model with where nobody names a number: one table, which nodes and presets read.

To change a number, change it here: tooltips, presets and new nodes follow. `python -m training.config` writes
the table into docs/configuration.md; tests hold help pages and translations to it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class ModelDefaults:
    """The numbers of one model, in the words of `samplers.SamplingSettings`.

    Attributes:
        solver: the model's own, a word of `schedule.SOLVERS`.
        num_steps: denoising steps.
        guidance_scale: text guidance w; 1 is none.
        zigzag_steps: how many of the first steps zigzag in ZMV.
        inverse_guidance_scale: w_inv of the zag.
        inverse_view_scale: s_inv of the zag; 0 drops the cameras.
        ref_scale: factor on the reference attention, of a model of image to multiview.
        source: "measured" here (t2mv_core/toybox/MODEL_CARD.md, docs/results), or "published" by the authors
            of the method (docs/method.md, sections 2, 4 and 7) or of the weights (docs/native.md).
    """

    solver: str
    num_steps: int
    guidance_scale: float
    zigzag_steps: int
    inverse_guidance_scale: float
    inverse_view_scale: float
    source: Literal["measured", "published"]
    ref_scale: float = 1.0

    @property
    def has_guidance_embedding(self) -> bool:
        """Whether guidance is an input of the model's UNet (LCM) instead of a second pass."""
        return self.solver == "lcm"

    def numbers(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return {name: value for name, value in asdict(self).items() if name not in ("solver", "source")}


DEFAULTS = {
    # solver, steps, w, zigzag steps, w_inv, s_inv
    "toybox": ModelDefaults("lcm", 4, 3.0, 1, 1.0, 1.0, "measured"),
    "toybox-teacher": ModelDefaults("ddim-trailing", 25, 2.0, 1, 1.0, 1.0, "measured"),
    "lcm-sdxl": ModelDefaults("lcm", 8, 7.0, 1, 1.0, 1.0, "published"),
    "sdxl": ModelDefaults("ddim", 16, 7.0, 1, 1.0, 1.0, "published"),
}
"""By the preset names of `formats.sources`; toybox-image-teacher has its text model's."""
FEW_STEP = ModelDefaults("ddim-trailing", 4, 1.0, 1, 1.0, 1.0, "published")
"""Few-step weights for SDXL without a guidance input: LCM-LoRA, DMD2, Turbo, Lightning, Hyper-SD."""
OF_PICTURE = ModelDefaults("ddim", 50, 3.0, 1, 1.0, 1.0, "published")
"""SDXL with MV-Adapter's weights for image to multiview (arXiv:2412.03632); zigzags as of text."""
_OF_PICTURE = "toybox-image"  # how the names of the bundled models of image to multiview begin
TOYBOX_OF_PICTURE = replace(DEFAULTS["toybox"], ref_scale=1.5)
"""toybox-image: its guidance is an input that means the text alone, so it needs more of the picture."""


def find_defaults(
    model: str, has_guidance_embedding: bool, solver: str, is_of_picture: bool = False
) -> ModelDefaults:
    """Return a model's own numbers, or those of its kind.

    Args:
        model: its name; a file or folder is of no row.
        has_guidance_embedding: whether guidance is an input of its UNet.
        solver: a word of `schedule.SOLVERS`.
        is_of_picture: whether its MV-Adapter is the one of image to multiview.
    """
    own = _row(model)
    if own is None or own.has_guidance_embedding != has_guidance_embedding:
        own = DEFAULTS["lcm-sdxl" if has_guidance_embedding else "sdxl"]
    if not has_guidance_embedding and solver not in ("ddim", own.solver):
        return FEW_STEP
    of_picture = {"sdxl": OF_PICTURE, "toybox": TOYBOX_OF_PICTURE} if is_of_picture else {}
    return next((record for name, record in of_picture.items() if own is DEFAULTS[name]), own)


def _row(model: str) -> ModelDefaults | None:
    return DEFAULTS.get(model.replace(_OF_PICTURE, "toybox"))


def find_named_defaults(model: str, solver: str | None, is_of_picture: bool = False) -> ModelDefaults | None:
    """Return the numbers of a model that the table names; no file is read, so others have none.

    Args:
        model: its name.
        solver: a word of `schedule.SOLVERS`; None is the model's own.
        is_of_picture: as for `find_defaults`; some names say it.
    """
    own, is_of_picture = _row(model), is_of_picture or model.startswith(_OF_PICTURE)
    return own and find_defaults(model, own.has_guidance_embedding, solver or own.solver, is_of_picture)
