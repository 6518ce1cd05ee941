"""The progress display: bars on a terminal, one log line per iteration elsewhere."""

import io
import logging

import pytest

from training.run.console import RunDisplay

RECORD = {
    "iteration": 3,
    "loss": 0.25,
    "approx_kl": 0.00123,
    "clip_fraction": 0.125,
    "view_reward_standard": 0.5,
    "view_reward_zmv": 0.625,
    "joint_reward_standard": -1.0,
    "joint_reward_zmv": -0.75,
    "lambda": 0.099,
    "threshold": -0.8,
    "joint_spread": 0.25,
    "rollout_seconds": 8.0,
    "update_seconds": 4.0,
}
TEXT = (
    "view 0.5000 (zmv 0.6250) joint -1.0000 (zmv -0.7500) lambda 0.099 threshold -0.8000 "
    "(spread 0.2500) loss 0.2500 kl 1.2e-03 clipped 12%"
)


class Stream(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def stderr_of_kind(monkeypatch):
    """Replaces stderr; called in the test itself, as pytest puts its own there before it."""

    def replace(is_terminal):
        stream = Stream(is_terminal)
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setenv("COLUMNS", "300")
        return stream

    return replace


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger="training.run.console")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "training.run.console"]


def test_a_terminal_gets_a_bar_for_the_run_and_one_for_the_phase(stderr_of_kind, lines):
    stream = stderr_of_kind(is_terminal=True)
    display = RunDisplay(10, 2, is_shown=True)
    with display.shown():
        display.phase("rollout", 4)
        assert "iterations:  20%" in stream.getvalue()
        assert "rollout:   0%" in stream.getvalue()
        display.advance()
        display.report(RECORD)
        logging.getLogger("elsewhere").warning("Watch out.")
    assert "3/10" in stream.getvalue()
    assert TEXT in stream.getvalue()
    assert stream.getvalue().endswith("\n")
    assert lines() == []


def test_an_exception_closes_the_bars(stderr_of_kind):
    stream = stderr_of_kind(is_terminal=True)

    def fail():
        display = RunDisplay(10, 0, is_shown=True)
        with display.shown():
            display.phase("rollout", 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert stream.getvalue().endswith("\n")


def test_messages_appear_above_the_bars(stderr_of_kind):
    stream = stderr_of_kind(is_terminal=True)
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:
        display = RunDisplay(10, 0, is_shown=True)
        with display.shown():
            display.phase("rollout", 4)
            logging.getLogger("elsewhere").warning("Watch out.")
    finally:
        logging.getLogger().removeHandler(handler)
    before, _, after = stream.getvalue().partition("Watch out.\n")
    assert "rollout" in before
    assert "rollout" in after  # drawn again below it


def test_elsewhere_every_iteration_is_one_log_line(stderr_of_kind, lines):
    stream = stderr_of_kind(is_terminal=False)
    display = RunDisplay(10, 2, is_shown=True)
    with display.shown():
        display.phase("rollout", 4)
        display.advance()
        display.report(RECORD)
    # 7 iterations of 12 s are to come
    assert lines() == [f"iteration 3/10: {TEXT}, 01:24 left"]
    assert stream.getvalue() == ""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_other_processes_are_silent(stderr_of_kind, lines, is_terminal):
    stream = stderr_of_kind(is_terminal)
    display = RunDisplay(10, 2, is_shown=False)
    with display.shown():
        display.phase("rollout", 4)
        display.advance()
        display.report(RECORD)
    assert stream.getvalue() == ""
    assert lines() == []


def test_a_metric_that_a_run_lacks_is_left_out(stderr_of_kind, lines):
    stderr_of_kind(is_terminal=False)
    record = {name: value for name, value in RECORD.items() if not name.startswith(("joint", "threshold"))}
    RunDisplay(10, 2, is_shown=True).report(record)
    assert "view 0.5000 (zmv 0.6250) lambda 0.099 loss" in lines()[0]
