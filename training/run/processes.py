"""How the processes of a run share its prompts."""

from __future__ import annotations

from accelerate import Accelerator, DistributedType


def process_slots(accelerator: Accelerator, num_prompts: int) -> range:
    """Return which of an iteration's prompts this process samples: every n-th of n processes.

    Raises:
        ValueError: accelerate is set to shard models, or the prompts do not divide among the processes.
    """
    kind = accelerator.distributed_type
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"accelerate is set to {kind.value}, which shards models; only a LoRA is trained here. "
            "Use distributed_type MULTI_GPU (docs/training.md, Several GPUs)."
        )
    if num_prompts % accelerator.num_processes:
        raise ValueError(
            f"sampling.prompts_per_iteration={num_prompts} does not divide among {accelerator.num_processes} "
            f"processes; use a multiple of {accelerator.num_processes}."
        )
    return range(accelerator.process_index, num_prompts, accelerator.num_processes)
