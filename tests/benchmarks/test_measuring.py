"""Bytes that live at once, by hand and on both devices."""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measuring import flash_attention_on_meta, measure_live


def test_a_tensor_counts_until_nobody_holds_it():
    x = torch.zeros(1000)

    def work():
        a = x + 1
        b = a * 2  # a and b: 8000 bytes
        del a
        c = b.view(10, 100) + 1  # the view is no new memory; b and c: 8000 again
        return c

    assert measure_live(work)[0] == 8000


def test_weights_of_given_modules_count_from_the_start():
    linear = nn.Linear(10, 10, bias=False)
    with torch.no_grad():
        peak, _ = measure_live(lambda: linear(torch.zeros(1, 10)), linear)
    assert peak == 400 + 40 + 40  # weight, input, output


def test_what_the_backward_pass_keeps_counts():
    x = torch.zeros(1000, requires_grad=True)
    # 2x dies at once; exp keeps its result, exp(2x) is kept by the second exp: 3 x 4000 at the worst moment.
    peak, _ = measure_live(lambda: (x * 2).exp().exp().sum().backward())
    assert 12000 <= peak < 12100


def test_the_outline_on_meta_needs_what_the_cpu_needs():
    def peak(device):
        q, k = (torch.zeros(2, 3, 100, 16, device=device, requires_grad=True) for _ in range(2))
        with flash_attention_on_meta():
            return measure_live(lambda: F.scaled_dot_product_attention(q, k, k).sum().backward())[0]

    assert peak("meta") == peak("cpu") > 0
