"""The MV-Adapter as a patch of a ComfyUI MODEL: which of ComfyUI's hooks do what, and what they refuse.

* `attn1_patch` keeps the normalised hidden states that the self-attention is about to see;
  `attn1_output_patch` adds multiview attention over them to that attention's output.
* `input_block_patch` adds a level's camera residual before ComfyUI stores the skip connection;
  `output_block_patch` of the first output block adds the last one to what the middle block gave.
* An `OUTER_SAMPLE` wrapper refuses a batch that is no multiple of the views before anything is loaded.

The hooks are closures over the adapter's module, never objects: ComfyUI copies what hooks hold, deeply.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .blocks import residual_blocks

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from ...t2mv_core.cameras import CameraRig
    from .modules import NativeAdapter

ADAPTER_KEY = "t2mv_adapter"
"""Under which a patched model keeps its adapter: `additional_models`, wrappers."""
VIEW_SCALE_OPTION = "t2mv_view_scale"
"""In `transformer_options`: a view scale for this evaluation instead of the node's."""
_HIDDEN_STATES = "t2mv_hidden_states"


@dataclass(frozen=True)
class AdapterSettings:
    """How strongly an adapter acts.

    Attributes:
        mv_scale: factor on multiview attention.
        view_scale: factor on the camera residuals.
    """

    mv_scale: float = 1.0
    view_scale: float = 1.0


def apply_adapter(
    model: ModelPatcher, adapter: ModelPatcher, rig: CameraRig, settings: AdapterSettings
) -> ModelPatcher:
    """A clone of the model on which the adapter acts; the model that was given stays as it is.

    Args:
        model: of an SDXL UNet.
        adapter: patcher of a `NativeAdapter` for that UNet.
        rig: the cameras; their number is the number of views.
        settings: strengths.

    Raises:
        ValueError: the model has an adapter already.
    """
    refuse_second_adapter(model)
    patched = model.clone()
    patched.set_additional_models(ADAPTER_KEY, [adapter])
    module: NativeAdapter = adapter.model
    _patch_attention(patched, module, rig.num_views, settings.mv_scale)
    _patch_residuals(patched, module, rig, settings.view_scale)
    return patched


def adapter_of(model: ModelPatcher) -> ModelPatcher | None:
    """The patcher of the adapter that acts on a model; None without one."""
    return next(iter(model.get_additional_models_with_key(ADAPTER_KEY)), None)


def refuse_second_adapter(model: ModelPatcher) -> None:
    """Refuse a model that has an adapter already, before another one is read.

    Raises:
        ValueError: it has one.
    """
    if adapter_of(model) is not None:
        raise ValueError(
            "This model already has an MV-Adapter; connect the model from before the other Apply MV-Adapter."
        )


def check_batch(batch: int, num_views: int) -> None:
    """Refuse a latent batch that does not hold whole sets of views.

    Raises:
        ValueError: with both numbers and the cure.
    """
    if batch % num_views:
        raise ValueError(
            f"The latent has a batch of {batch}, which is no multiple of the {num_views} views of the rig; "
            "make it with Empty Multiview Latent (T2MV) and the same rig, or change its batch size."
        )


def check_size(height: int, width: int) -> None:
    """Refuse latents the camera encoder has no residuals for.

    Raises:
        ValueError: an odd height or width.
    """
    if height % 2 or width % 2:
        raise ValueError(
            f"Latents of {width}x{height} are pictures of {8 * width}x{8 * height} px; the MV-Adapter needs "
            "a width and height that are multiples of 16 px."
        )


def _patch_attention(model: ModelPatcher, module: NativeAdapter, num_views: int, mv_scale: float) -> None:
    def keep(n: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        options[_HIDDEN_STATES] = n  # this dictionary lives as long as one transformer block's evaluation
        return n, context, value

    def add(out: Tensor, options: dict[str, Any]) -> Tensor:
        hidden_states = options.pop(_HIDDEN_STATES)
        attention = module.attention_at(options)
        if attention is None or mv_scale == 0.0:
            return out
        rows, columns = options["activations_shape"][-2:]
        if out.shape != hidden_states.shape or hidden_states.shape[1] != rows * columns:
            raise ValueError(
                f"Another patch (HyperTile or Token Merging, for example) changed the tokens of a "
                f"{columns}x{rows} level to {tuple(hidden_states.shape)}; multiview attention needs every "
                "row of every view. Remove that node."
            )
        return out + mv_scale * attention(hidden_states, num_views, rows, options)

    model.set_model_attn1_patch(keep)
    model.set_model_attn1_output_patch(add)


def _patch_residuals(model: ModelPatcher, module: NativeAdapter, rig: CameraRig, view_scale: float) -> None:
    blocks = {number: level for level, number in enumerate(residual_blocks(model.model.diffusion_model))}
    known: dict[tuple[int, int], list[Tensor]] = {}  # latent's size -> residuals, during one sampling

    def add_residual(h: Tensor, index: int, options: dict[str, Any]) -> Tensor:
        size = tuple(options["original_shape"][-2:])
        if size not in known:
            check_size(*size)
            known[size] = module.adapter(rig.embedding().to(h.device, h.dtype), *size)
        residual = known[size][index].to(h.device, h.dtype)
        scale = float(options.get(VIEW_SCALE_OPTION, view_scale))
        return h + (scale * residual).repeat(len(h) // len(residual), 1, 1, 1)

    def after_input_block(h: Tensor, options: dict[str, Any]) -> Tensor:
        number = options["block"][1]
        if number == 0:
            # Conditions that are evaluated together are chunks of the batch, each with every view.
            check_batch(len(h) // max(len(options.get("cond_or_uncond", ())), 1), rig.num_views)
        return add_residual(h, blocks[number], options) if number in blocks else h

    def before_output_block(h: Tensor, skip: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return (add_residual(h, -1, options) if options["block"][1] == 0 else h), skip

    model.set_model_input_block_patch(after_input_block)
    model.set_model_output_block_patch(before_output_block)
    # This one belongs to the middle block: before patches of output blocks that were there already (FreeU).
    output_patches = model.model_options["transformer_options"]["patches"]["output_block_patch"]
    output_patches.insert(0, output_patches.pop())
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, ADAPTER_KEY, _sample_wrapper(rig.num_views, known))


def _sample_wrapper(num_views: int, known: dict[tuple[int, int], list[Tensor]]) -> Callable[..., Tensor]:
    def sample(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_batch(len(noise), num_views)
        check_size(*noise.shape[-2:])
        known.clear()
        try:
            return executor(noise, *args, **kwargs)
        finally:
            known.clear()  # they lie in the card's memory

    return sample
