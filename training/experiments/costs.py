"""What a training of the comparison cost, in UNet evaluations of a set of views."""

from __future__ import annotations

from t2mv_core.samplers import count_evaluations

from ..algorithm.objectives import OBJECTIVES
from ..config import TrainConfig
from ..models.policy import iteration_updates, make_dual, sampling_settings


def training_costs(config: TrainConfig, num_iterations: int) -> dict[str, int]:
    """Return how many sets were sampled for learning, optimizer steps, and UNet evaluations by purpose.

    "sampling_evaluations" has the sets that the first threshold is measured on, "update_evaluations" a pass
    per trajectory and step, and one more where the objective or the KL asks the reference policy,
    "held_out_evaluations" the evaluations between iterations. Backward passes are not counted.

    Args:
        config: of the training, of a model with a guidance embedding: others evaluate twice under guidance.
        num_iterations: that were done.
    """
    settings, sampling, evaluation = sampling_settings(config.sampling), config.sampling, config.evaluation
    objective = OBJECTIVES[config.objective]
    per_set = count_evaluations("standard", settings)
    num_prompts = num_iterations * sampling.prompts_per_iteration
    updates = iteration_updates(config, range(sampling.prompts_per_iteration), 1)
    num_pairs = num_iterations * sum(update.num_terms for update in updates)
    asks_reference = objective.uses_reference or config.optim.kl_weight > 0
    measures_threshold = make_dual(config) is not None and config.constraint.threshold_init is None
    num_threshold_sets = config.constraint.threshold_prompts if measures_threshold else 0
    num_held_out = 1 + num_iterations // evaluation.every if evaluation.every else 0
    sampled = sum(count_evaluations(name, settings) for name in objective.samplers)
    return {
        "sampled_sets": 2 * num_prompts,
        "optimizer_steps": num_iterations * len(updates),
        "sampling_evaluations": num_prompts * sampled + num_threshold_sets * per_set,
        "update_evaluations": 2 * num_pairs * (2 if asks_reference else 1),  # two trajectories a pair
        "held_out_evaluations": num_held_out * evaluation.num_prompts * per_set,
    }
