"""The benchmark's other form computes what ours computes."""

import pytest
import torch

from benchmarks.attention import largest_difference, make_ways


@pytest.mark.parametrize("num_views", [2, 3])
def test_both_forms_and_their_gradients_agree(num_views):
    stages = make_ways(num_views, 4, 16, 2, "cpu", torch.float32)
    assert set(stages) == {
        f"{form}, {run}" for form in ("attention", "layer") for run in ("forward", "forward+backward")
    }
    for ways in stages.values():
        ours, theirs = ways["ours"](), ways["repeated"]()
        assert float(ours[0].abs().max()) > 0
        assert largest_difference(ours, theirs) < 1e-5
