"""The progress display: exact texts, one bar on a terminal, one log line per iteration elsewhere."""

import io
import logging

import pytest

from training.run import console
from training.run.console import RunDisplay, bar_text, format_duration, iteration_line, phase_text

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
    "rollout_seconds": 8.0,
    "update_seconds": 4.0,
}
REWARDS = "view 0.5000 (zmv 0.6250)  joint -1.0000 (zmv -0.7500)  lambda 0.099  threshold -0.8000"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def drawings(self) -> list[str]:
        return [text.strip() for text in self.getvalue().replace("\n", "\r").split("\r") if text.strip()]


@pytest.fixture
def clock(monkeypatch):
    """Seconds in a list that the test moves on."""
    now = [100.0]
    monkeypatch.setattr(console, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger="training.run.console")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "training.run.console"]


def test_the_line_of_an_iteration():
    assert iteration_line(RECORD, 10, seconds_left=125, samples_per_second=1.5) == (
        f"iteration 3/10  {REWARDS}  loss 0.2500  kl 1.2e-03  clipped 12%  1.5 sets/s  left 2:05"
    )


def test_what_a_record_lacks_is_left_out():
    record = {name: value for name, value in RECORD.items() if not name.startswith("joint")}
    assert iteration_line({**record, "threshold": None}, 10, None, None) == (
        "iteration 3/10  view 0.5000 (zmv 0.6250)  lambda 0.099  loss 0.2500  kl 1.2e-03  clipped 12%"
    )


def test_the_text_on_the_bar():
    assert bar_text(RECORD, 125, 1.5) == f"  left 2:05  1.5 sets/s  {REWARDS}"
    assert bar_text({}, None, None) == ""


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [(0, 8, " rollout   0%"), (5, 8, " rollout  62%"), (9, 8, " rollout 100%"), (0, 0, " rollout 100%")],
)
def test_phases_have_a_percentage(done, total, text):
    assert phase_text("rollout", done, total) == text
    assert phase_text("", done, total) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3599.6, "1:00:00"), (90061, "25:01:01")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_a_terminal_gets_one_bar_that_stays(clock, lines):
    terminal = Terminal()
    with RunDisplay(10, 2, is_shown=True, stream=terminal) as display:
        display.phase("rollout", 4)
        assert terminal.drawings()[-1] == "iteration 2/10 |##        | rollout   0%"
        clock[0] += 6
        display.advance()
        assert terminal.drawings()[-1] == "iteration 2/10 |##        | rollout  25%"
        clock[0] += 6
        display.report(RECORD, num_sets=12)  # 12 s for one iteration, 7 to go; 12 sets in 8 s
        assert terminal.drawings()[-1] == f"iteration 3/10 |###       |  left 1:24  1.5 sets/s  {REWARDS}"
        clock[0] += 5
        display.phase("update", 2)
        display.advance(1)  # too soon after the last drawing to be drawn
        assert terminal.drawings()[-1].startswith("iteration 3/10 |###       | update   0%  left 1:19  1.5")
    assert terminal.drawings()[-1].startswith("iteration 3/10 |###       | update  50%  left 1:19  1.5")
    assert terminal.getvalue().count("\n") == 1
    assert lines() == []


def test_the_time_left_never_falls_below_the_later_iterations(clock):
    terminal = Terminal()
    with RunDisplay(3, 0, is_shown=True, stream=terminal) as display:
        clock[0] += 10
        display.report({"iteration": 1}, num_sets=1)
        clock[0] += 1000  # this one takes long: 10 s of the last one are still to come
        display.phase("update", 1)
    assert "left 0:10" in terminal.drawings()[-1]


def test_the_bar_is_closed_by_an_exception():
    terminal = Terminal()

    def fail():
        with RunDisplay(10, 0, is_shown=True, stream=terminal) as display:
            display.phase("rollout", 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert terminal.getvalue().endswith("\n")


def test_messages_appear_above_the_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:
        with RunDisplay(10, 0, is_shown=True) as display:
            display.phase("rollout", 4)
            logging.getLogger("elsewhere").warning("Watch out.")
    finally:
        logging.getLogger().removeHandler(handler)
    assert "\rWatch out.\n" in terminal.getvalue()
    assert terminal.drawings()[-1] == "iteration 0/10 |          | rollout   0%"


def test_elsewhere_every_iteration_is_one_log_line(clock, lines):
    stream = io.StringIO()
    with RunDisplay(10, 1, is_shown=True, stream=stream) as display:
        for iteration in (2, 3):
            display.phase("rollout", 4)
            display.advance()
            clock[0] += 5 * iteration
            display.report({**RECORD, "iteration": iteration}, num_sets=12)
    # paces: 10 s with 8 to go, then (10 + 15) / 2 s with 7 to go
    assert lines() == [
        iteration_line({**RECORD, "iteration": 2}, 10, 80, 1.5),
        iteration_line(RECORD, 10, 87.5, 1.5),
    ]
    assert stream.getvalue() == ""


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_other_processes_are_silent(stream, lines):
    with RunDisplay(10, 0, is_shown=False, stream=stream) as display:
        display.phase("rollout", 4)
        display.advance(4)
        display.report(RECORD, num_sets=12)
    assert stream.getvalue() == ""
    assert lines() == []


@pytest.mark.parametrize("seconds", [None, 0.0])
def test_without_a_rollout_time_there_is_no_speed(seconds, lines):
    with RunDisplay(10, 2, is_shown=True, stream=io.StringIO()) as display:
        display.report({**RECORD, "rollout_seconds": seconds}, num_sets=12)
    assert len(lines()) == 1
    assert "sets/s" not in lines()[0]
