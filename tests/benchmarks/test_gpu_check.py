"""The check that wants a GPU, run on the CPU with the bundled model."""

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import (
    OURS,
    PLAIN,
    PUBLISHED,
    Figures,
    attempt,
    items,
    iteration,
    make_lab,
    run,
    table,
)


@pytest.fixture(scope="module")
def lab():
    return make_lab("cpu", is_tiny=True)


def test_an_iteration_is_measured_in_all_three_ways(lab, monkeypatch):
    monkeypatch.setattr(gpu_check, "REPEATS", 1)
    found = iteration("lcm-sdxl-12gb")(lab)
    assert list(found) == [OURS, PUBLISHED, PLAIN]
    assert all(figures.seconds > 0 and not figures.failure for figures in found.values())
    assert not any("lora" in name for name, _ in lab.bundle.unet.named_parameters())  # as it was


def test_what_begins_too_late_is_left_out_and_said(lab):
    found = dict(run(lab, seconds=-1.0))
    assert list(found) == list(items(lab))
    text = table(found)
    assert text.count("left out, time was up") == len(found)


def test_what_does_not_fit_is_said(lab):
    def too_much():
        raise torch.cuda.OutOfMemoryError

    figures = attempt(too_much, lab)
    assert figures.failure == "does not fit"
    assert "does not fit" in table({"sampling": {OURS: figures, PUBLISHED: Figures(2.0, 1.0)}})


def test_an_item_that_fails_costs_no_other(lab, monkeypatch):
    def fails(_):
        raise RuntimeError("cuBLAS: no handle\nmore")

    works = lambda _: {OURS: Figures(1.0, 2.0)}  # noqa: E731
    monkeypatch.setattr(gpu_check, "items", lambda _: {"a": fails, "b": works})
    found = dict(run(lab, seconds=60.0))
    assert found["a"][OURS].failure == "failed: cuBLAS: no handle"
    assert found["b"][OURS] == Figures(1.0, 2.0)


def test_every_way_is_timed_over_as_many_repeats(lab, monkeypatch):
    times = iter((3.0, 2.0, 1.0))
    monkeypatch.setattr(gpu_check, "timed", lambda work, device: (next(times), 0.0, None))
    assert attempt(lambda: None, lab, 3).seconds == 2.0


def test_ratios_are_ours_by_theirs():
    text = table({"sampling": {OURS: Figures(1.0, 3.0), PUBLISHED: Figures(2.0, 4.0)}})
    assert "| sampling | published | 2.00 | 0.50 | 4.00 | 0.75 |" in text


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu_check"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main() == 1
    assert "no CUDA device" in capsys.readouterr().out
