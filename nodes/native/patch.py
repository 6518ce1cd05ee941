"""The hooks through which an MV-Adapter acts on a ComfyUI MODEL.

* `attn1_patch` keeps the normalised hidden states that the self-attention is about to see;
  `attn1_output_patch` adds multiview attention over them to that attention's output.
* `input_block_patch` adds a level's camera residual before ComfyUI stores the skip connection;
  `output_block_patch` of the first output block adds the last residual to the middle block's output.
* An `OUTER_SAMPLE` wrapper refuses a batch that is no multiple of the views before ComfyUI loads any model.
* With a picture, what reference.py says.
* A `PREPARE_SAMPLING` wrapper finds the adapter's copy on each GPU, where ComfyUI has spread the model.

The hooks are closures over the adapter's module, not objects: ComfyUI makes deep copies of objects.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from torch import Tensor

from .comfyui import (
    CLONES_KEY,
    CLONES_MATCHED,
    DEVICE_OPTION,
    ModelPatcher,
    WrappersMP,
    residual_blocks,
)
from .reference import check_task, patch_reference, reference_at

if TYPE_CHECKING:
    from ...t2mv_core.cameras import CameraRig
    from .adapter_weights import NativeAdapter
    from .reference import Reference

ModuleOf = Callable[[dict[str, Any]], "NativeAdapter"]
"""The adapter for an evaluation with these `transformer_options`."""
Cache = dict[Any, list[Tensor]]
"""The camera residuals of one sampling, by the latents' size and the device."""
ADAPTER_KEY = "t2mv_adapter"
"""Key of the adapter among a model's `additional_models` and of its wrappers."""
VIEW_SCALE_OPTION = "t2mv_view_scale"
"""In `transformer_options`: a view scale for one evaluation instead of the node's."""
_HIDDEN_STATES = "t2mv_hidden_states"


def apply_adapter(
    model: ModelPatcher,
    path: Path,
    rig: CameraRig,
    mv_scale: float = 1.0,
    view_scale: float = 1.0,
    reference: Reference | None = None,
) -> ModelPatcher:
    """Return a clone of the model on which an adapter acts.

    Args:
        model: of an SDXL UNet; it stays as it is.
        path: the MV-Adapter's file.
        rig: the cameras; their number is the number of views.
        mv_scale: factor on multiview attention.
        view_scale: factor on the camera residuals.
        reference: the pictures, for an adapter of image to multiview; None for one of text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the model has an adapter already, is no SDXL, or the file does not fit it or the task.
    """
    from .adapter_weights import load_native_adapter

    if adapter_of(model) is not None:
        raise ValueError(
            "This model already has an MV-Adapter; connect the model from before the other Apply MV-Adapter."
        )
    check_task(model, path, reference)
    adapter = load_native_adapter(model, path)
    patched = model.clone()
    patched.set_additional_models(ADAPTER_KEY, [adapter])
    module_of = _follow_copies(patched, adapter.model)
    _patch_attention(patched, module_of, rig.num_views, mv_scale)
    _patch_residuals(patched, module_of, rig, view_scale)
    if reference is not None:
        patch_reference(patched, reference, rig.num_views)
    return patched


def adapter_of(model: ModelPatcher) -> ModelPatcher | None:
    """Return the patcher of the adapter that acts on a model; None without one."""
    return next(iter(model.get_additional_models_with_key(ADAPTER_KEY)), None)


def _follow_copies(model: ModelPatcher, module: NativeAdapter) -> ModuleOf:
    """Return what finds the adapter for an evaluation: its own, or the copy on the GPU that evaluates.

    ComfyUI spreads a model over several GPUs by copies of its networks, the adapter among them, but all are
    evaluated with the first one's hooks.
    """
    # By device; under None the adapter of the model that was sampled last.
    copies: WeakValueDictionary[Any, NativeAdapter] = WeakValueDictionary()

    def prepare(executor: Any, sampled: ModelPatcher, *args: Any, **kwargs: Any) -> Any:
        prepared = executor(sampled, *args, **kwargs)
        for patcher in (*sampled.get_additional_models_with_key(CLONES_KEY), sampled):
            if (adapter := adapter_of(patcher)) is not None:
                copies[patcher.load_device] = copies[None] = adapter.model
        return prepared

    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, ADAPTER_KEY, prepare)
    model.add_callback_with_key(CLONES_MATCHED, ADAPTER_KEY, _match_adapter)
    return lambda options: copies.get(options.get(DEVICE_OPTION), module)


def _match_adapter(model: ModelPatcher, clone: ModelPatcher) -> None:
    """Give the adapter's copy on another GPU the LoRAs of the adapter; ComfyUI does so for the UNet alone."""
    own, copied = adapter_of(model), adapter_of(clone)
    if own is not None and copied is not None and own.patches_uuid != copied.patches_uuid:
        matched = own.clone(model_override=copied.get_clone_model_override())
        matched.load_device = copied.load_device
        clone.set_additional_models(ADAPTER_KEY, [matched])


def _check_batch(batch: int, num_views: int) -> None:
    if batch % num_views:
        raise ValueError(
            f"The latent has a batch of {batch}, which is no multiple of the {num_views} views of the rig. "
            "Use Empty Multiview Latent (T2MV) with the same rig, or change the batch size."
        )


def _check_size(height: int, width: int) -> None:
    if height % 2 or width % 2:
        raise ValueError(
            f"Latents of {width}x{height} are pictures of {8 * width}x{8 * height} px. The MV-Adapter needs "
            "a width and height that are multiples of 16 px."
        )


def _patch_attention(model: ModelPatcher, module_of: ModuleOf, num_views: int, mv_scale: float) -> None:
    def keep(n: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        options[_HIDDEN_STATES] = n  # this dictionary lives as long as one transformer block's evaluation
        return n, context, value

    def add(out: Tensor, options: dict[str, Any]) -> Tensor:
        hidden_states = options.pop(_HIDDEN_STATES)
        attention = module_of(options).attention_at(options)
        reference = reference_at(options)
        if attention is None or (mv_scale == 0.0 and reference is None):
            return out
        rows, columns = options["activations_shape"][-2:]
        if out.shape != hidden_states.shape or hidden_states.shape[1] != rows * columns:
            raise ValueError(
                f"Another patch (HyperTile or Token Merging, for example) changed the tokens of a "
                f"{columns}x{rows} level to {tuple(hidden_states.shape)}. Multiview attention needs every "
                "row of every view; remove that node."
            )
        if mv_scale != 0.0:
            out = out + mv_scale * attention(hidden_states, num_views, rows, options)
        if reference is None:
            return out
        return out + reference.scale * attention.refer(hidden_states, reference.states, num_views, options)

    model.set_model_attn1_patch(keep)
    model.set_model_attn1_output_patch(add)


def _patch_residuals(model: ModelPatcher, module_of: ModuleOf, rig: CameraRig, view_scale: float) -> None:
    levels = {number: level for level, number in enumerate(residual_blocks(model.model.diffusion_model))}
    cache: Cache = {}

    def add_residual(h: Tensor, level: int, options: dict[str, Any]) -> Tensor:
        size = tuple(options["original_shape"][-2:])
        key = (size, options.get(DEVICE_OPTION))
        if key not in cache:
            _check_size(*size)
            cache[key] = module_of(options).adapter(rig.embedding().to(h.device, h.dtype), *size)
        residual = cache[key][level].to(h.device, h.dtype)
        if h.shape[-2:] != residual.shape[-2:]:
            (rows, columns), (expected_rows, expected_columns) = h.shape[-2:], residual.shape[-2:]
            raise ValueError(
                "Another patch (PatchModelAddDownscale, which is Kohya's Deep Shrink, for example) resized a "
                f"level of {expected_columns}x{expected_rows} to {columns}x{rows}. The MV-Adapter's cameras "
                "need every level in its own size; remove that node."
            )
        scale = float(options.get(VIEW_SCALE_OPTION, view_scale))
        return h + (scale * residual).repeat(len(h) // len(residual), 1, 1, 1)

    def after_input_block(h: Tensor, options: dict[str, Any]) -> Tensor:
        number = options["block"][1]
        if number == 0:
            # Conditions that ComfyUI evaluates together are chunks of the batch, each with every view.
            _check_batch(len(h) // max(len(options.get("cond_or_uncond", ())), 1), rig.num_views)
        return add_residual(h, levels[number], options) if number in levels else h

    def before_output_block(h: Tensor, skip: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return (add_residual(h, -1, options) if options["block"][1] == 0 else h), skip

    model.set_model_input_block_patch(after_input_block)
    model.set_model_output_block_patch(before_output_block)
    # It belongs to the middle block, so it goes before output patches that were there already (FreeU).
    output_patches = model.model_options["transformer_options"]["patches"]["output_block_patch"]
    output_patches.insert(0, output_patches.pop())
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, ADAPTER_KEY, _sample_wrapper(rig.num_views, cache))


def _sample_wrapper(num_views: int, cache: Cache) -> Callable[..., Tensor]:
    def sample(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        _check_batch(len(noise), num_views)
        _check_size(*noise.shape[-2:])
        cache.clear()
        try:
            return executor(noise, *args, **kwargs)
        finally:
            cache.clear()  # the residuals lie in the card's memory

    return sample
