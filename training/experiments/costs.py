"""What a training of the comparison cost, in UNet evaluations of a set of views."""

from __future__ import annotations

from t2mv_core.samplers import count_evaluations

from ..algorithm.objectives import OBJECTIVES
from ..config import TrainConfig
from ..models.policy import iteration_updates, make_dual, sampling_settings


def training_costs(config: TrainConfig, num_iterations: int) -> dict[str, int]:
    """Return how many sets were sampled for learning, optimizer steps, and UNet evaluations by purpose.

    "sampling_evaluations" has the sets that the first threshold is measured on, "update_evaluations" a pass
    per trajectory and step, one more each where the objective and where the KL asks the reference policy, and
    one more with `splits_pairs` except in an iteration's first update, "held_out_evaluations" the evaluations
    between iterations. Backward passes are not counted.

    Args:
        config: of the training, of a model with a guidance embedding: others evaluate twice under guidance.
        num_iterations: that were done.
    """
    settings, sampling, evaluation = sampling_settings(config.sampling), config.sampling, config.evaluation
    objective = OBJECTIVES[config.objective]
    per_set = count_evaluations("standard", settings)
    num_prompts = num_iterations * sampling.prompts_per_iteration
    updates = iteration_updates(config, range(sampling.prompts_per_iteration), 1)
    passes = 1 + objective.uses_reference + (config.optim.kl_weight > 0)
    num_passes = sum(
        update.num_terms * (passes + (config.optim.splits_pairs and number > 0))
        for number, update in enumerate(updates)
    )
    measures_threshold = make_dual(config) is not None and config.constraint.threshold_init is None
    num_threshold_sets = config.constraint.threshold_prompts if measures_threshold else 0
    num_held_out = 1 + num_iterations // evaluation.every if evaluation.every else 0
    sampled = sum(count_evaluations(name, settings) for name in objective.samplers)
    return {
        "sampled_sets": 2 * num_prompts,
        "optimizer_steps": num_iterations * len(updates),
        "sampling_evaluations": num_prompts * sampled + num_threshold_sets * per_set,
        "update_evaluations": 2 * num_iterations * num_passes,  # two trajectories a pair
        "held_out_evaluations": num_held_out * evaluation.num_prompts * per_set,
    }
