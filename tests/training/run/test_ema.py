"""The average of the LoRA: its equation, borrowing and giving back the parameters, its state."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from training.run.ema import LoraEma

numbers = st.floats(min_value=-100, max_value=100, width=32)


def parameters(*values: float) -> list[nn.Parameter]:
    return [nn.Parameter(torch.full((2, 3), value)) for value in values]


def fill(parameter: nn.Parameter, value: float) -> None:
    with torch.no_grad():
        parameter.fill_(value)


@given(st.lists(numbers, min_size=1, max_size=30), st.floats(min_value=0.01, max_value=0.999))
def test_the_average_is_the_weighted_sum_of_all_values(values, decay):
    """Closed form: s_N = Σ_k w_k·p_k with w_k = (1 - d_k)·d_{k+1}·…·d_N, and d_1·…·d_N for the start."""
    (parameter,) = parameters(values[0])
    ema = LoraEma([parameter], decay)
    for value in values[1:]:
        fill(parameter, value)
        ema.update()
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(len(values) - 1)]
    weights, rest = [], 1.0
    for d in reversed(decays):
        weights.insert(0, (1 - d) * rest)
        rest *= d
    expected = sum(weight * value for weight, value in zip([rest, *weights], values, strict=True))
    assert torch.allclose(ema.shadows[0], torch.tensor(expected), rtol=1e-5, atol=1e-4)
    assert ema.num_updates == len(values) - 1


def test_updates_by_hand():
    (parameter,) = parameters(0.0)
    ema = LoraEma([parameter], 0.15)
    fill(parameter, 1.0)
    ema.update()  # d = 1/10: s = 0.9
    assert ema.shadows[0][0, 0].item() == pytest.approx(0.9)
    ema.update()  # 2/11 is above the decay, d = 0.15: s = 0.15·0.9 + 0.85
    assert ema.shadows[0][0, 0].item() == pytest.approx(0.985)


def test_shadows_are_fp32_copies():
    parameter = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    ema = LoraEma([parameter, *parameters(1.0)], 0.9)
    fill(ema.parameters[1], 5.0)
    assert [shadow.dtype for shadow in ema.shadows] == [torch.float32] * 2
    assert ema.shadows[1].max().item() == 1.0
    with ema.applied():
        assert parameter.dtype == torch.bfloat16


@pytest.mark.parametrize("is_failing", [False, True])
def test_applied_lends_the_parameters_and_gives_them_back_bit_for_bit(is_failing):
    own = [nn.Parameter(torch.tensor([0.1, -0.0, float("nan"), 1e-45])), *parameters(3.0)]
    ema = LoraEma(own, 0.9)
    fill(own[1], 4.0)
    ema.update()
    bits = [parameter.detach().clone().view(torch.int32) for parameter in own]

    def borrow():
        with ema.applied():
            assert torch.equal(own[1].detach(), ema.shadows[1])
            assert own[1].detach()[0, 0].item() == pytest.approx(3.9)
            fill(own[0], 7.0)  # whatever happens in between is undone
            if is_failing:
                raise KeyboardInterrupt

    if is_failing:
        with pytest.raises(KeyboardInterrupt):
            borrow()
    else:
        borrow()
    assert all(torch.equal(p.detach().view(torch.int32), b) for p, b in zip(own, bits, strict=True))
    assert all(parameter.requires_grad for parameter in own)


def test_a_saved_average_goes_on_as_if_nothing_had_happened(tmp_path):
    whole, first = (LoraEma(parameters(0.0, 1.0), 0.9) for _ in range(2))

    def train(ema, steps):
        for step in steps:
            for parameter in ema.parameters:
                fill(parameter, float(step))
            ema.update()

    train(whole, range(6))
    train(first, range(3))
    torch.save(first.state_dict(), tmp_path / "ema.pt")
    second = LoraEma(first.parameters, 0.9)
    second.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    train(second, range(3, 6))
    assert second.num_updates == whole.num_updates == 6
    assert all(torch.equal(a, b) for a, b in zip(second.shadows, whole.shadows, strict=True))


def test_a_state_is_a_copy():
    (parameter,) = parameters(0.0)
    ema = LoraEma([parameter], 0.9)
    state = ema.state_dict()
    fill(parameter, 1.0)
    ema.update()
    assert state["shadows"][0].max().item() == 0.0


@pytest.mark.parametrize(
    ("shapes", "sentence"), [([(2, 3)], "has 1 tensors"), ([(2, 3), (4, 3)], r"tensor 1 is \[4, 3\]")]
)
def test_a_state_of_another_lora_is_refused(shapes, sentence):
    ema = LoraEma(parameters(0.0, 1.0), 0.9)
    with pytest.raises(ValueError, match=sentence):
        ema.load_state_dict({"num_updates": 9, "shadows": [torch.ones(shape) for shape in shapes]})
    assert ema.num_updates == 0
    assert ema.shadows[0].max().item() == 0.0


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        LoraEma(parameters(0.0), decay)
