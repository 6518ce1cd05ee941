"""A node's inputs: their widgets, and their values read or refused in words. Needs no ComfyUI.

A workflow file is a stranger's file. ComfyUI checks ranges, but NaN passes; 0.3.64 does not check the choices
of V3 combo inputs, 0.33 does; a linked value is known only when the node runs: so a node checks its values
again then. Before the run it checks what ComfyUI cannot: `validate_inputs` takes as few inputs as possible,
because ComfyUI leaves all checks of these to it, and paints all of them red when it refuses.

Every check raises a ValueError with the value and what is allowed. None, a linked input not known yet,
passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...t2mv_core.prompts import MAX_PROMPT_CHARACTERS, check_prompts, split_lines

if TYPE_CHECKING:
    from comfy_api.latest import io

MAX_PROMPTS = 16
MAX_VIEWS = 24
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Field:
    """An input with a widget: its schema and the check of its values come from here.

    Attributes:
        name: id, as saved workflows have it.
        default: what the widget shows at first. Its type says what the input is: a switch, a whole number, a
            number or a text; a list with `choices`.
        tooltip: one or two sentences.
        low: the smallest number.
        high: the largest number.
        step: of the widget's arrows.
        choices: the names of a list, or what gives them.
        remedy: what to do about a name that is not among them.
        is_optional: older workflows may lack the input.
        is_advanced: the widget hides behind "Show advanced".
        own: a number that stands for the model's own one; None where the input has no such number.
        more: further arguments of ComfyUI's input.
    """

    name: str
    default: bool | int | float | str | None
    tooltip: str
    low: float = 0
    high: float = 0
    step: float | None = None
    choices: Sequence[str] | Callable[[], Sequence[str]] = ()
    remedy: str = "Choose one of the list."
    is_optional: bool = False
    is_advanced: bool = False
    own: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def widget(self) -> io.WidgetInput:
        """Return ComfyUI's input."""
        from comfy_api.latest import io

        from ..sockets import advanced

        kinds = {bool: io.Boolean, int: io.Int, float: io.Float, str: io.String}
        kind, options = kinds.get(type(self.default), io.Combo), dict(self.more)
        if self.choices:
            kind, options["options"] = io.Combo, self._list_choices()
        elif kind in (io.Int, io.Float):
            number = type(self.default)
            low = self.low if self.own is None else min(self.low, self.own)
            options |= {"min": number(low), "max": number(self.high), "step": self.step}
        elif kind is io.String:
            # What stands in a box is what a run gets: drawn, scored, trained on and resumed with one text.
            options["dynamic_prompts"] = False
        widget = kind.Input(
            self.name, default=self.default, optional=self.is_optional, tooltip=self.tooltip, **options
        )
        return advanced(widget) if self.is_advanced else widget

    def check(self, value: Any) -> None:
        """Refuse a value that the widget cannot have."""
        if self.choices:
            check_choice(self.name, value, self._list_choices(), self.remedy)
        elif isinstance(self.default, bool):
            check_boolean(self.name, value)
        elif isinstance(self.default, int):
            check_integer(self.name, value, int(self.low), int(self.high), self.own)
        elif isinstance(self.default, float):
            check_number(self.name, value, self.low, self.high, self.own)
        else:
            check_text(self.name, value)

    def _list_choices(self) -> list[str]:
        return list(self.choices() if callable(self.choices) else self.choices)


def widgets(*fields: Field) -> list[io.WidgetInput]:
    """Return ComfyUI's inputs for several fields."""
    return [each.widget() for each in fields]


def check_fields(fields: Iterable[Field], values: Mapping[str, Any]) -> None:
    """Check the values of several inputs by name; one that is missing passes."""
    for each in fields:
        each.check(values.get(each.name))


def first_problem(*checks: Callable[[], object]) -> bool | str:
    """Run checks in order: True when all pass, else the sentence of the first that fails.

    This is the answer ComfyUI's `validate_inputs` wants.
    """
    for check in checks:
        try:
            check()
        except ValueError as error:
            return str(error)
    return True


def check_number(name: str, value: float | None, low: float, high: float, own: float | None = None) -> None:
    """Refuse what is no number in [low, high]: NaN, and texts, which ComfyUI 0.3.64 hands on unconverted.

    `own`, the number that stands for the model's own one, passes, too.
    """
    if value is None:
        return
    # A bool counts as 0 or 1 in Python, but who links one to a number has linked the wrong thing.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not (low <= value <= high or value == own):
        words = f"{low:g} to {high:g}{_or_own(own, low)}"
        raise ValueError(f"{name}={_shown(value)} must be a number from {words}.")


def check_integer(name: str, value: int | None, low: int, high: int, own: float | None = None) -> None:
    """Refuse what is not a whole number in [low, high], nor `own`."""
    if value is None:
        return
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not (low <= value <= high or value == own):
        words = f"{low} to {high}{_or_own(own, low)}"
        raise ValueError(f"{name}={_shown(value)} must be a whole number from {words}.")


def check_boolean(name: str, value: bool | None) -> None:
    """Refuse what is neither true nor false."""
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name}={_shown(value)} must be true or false.")


def check_text(name: str, text: str | None, most: int = MAX_PROMPT_CHARACTERS) -> None:
    """Refuse what is not a text, or a text that is too long."""
    if text is None:
        return
    if not isinstance(text, str):
        raise ValueError(f"{name}={_shown(text)} must be a text.")
    if len(text) > most:
        raise ValueError(f"{name} has {len(text)} characters; at most {most} are allowed. Shorten it.")


def check_choice(name: str, value: str | None, choices: Sequence[str], remedy: str) -> None:
    """Refuse a name that is not one of the choices, of which the sentence lists ten."""
    if value is None or find_choice(value, choices) is not None:
        return
    known = ", ".join(map(repr, choices[:10])) + (", …" if len(choices) > 10 else "")
    raise ValueError(f"{name}={value!r} is not available here (available: {known or 'none'}). {remedy}")


def find_choice(value: str, choices: Sequence[str]) -> str | None:
    """Return the choice of this name, or of this path as another system writes it; None if there is none."""
    if value in choices:
        return value
    slashed = str(value).replace("\\", "/")  # a workflow from Windows says `folder\x.safetensors`
    return next((each for each in choices if each.replace("\\", "/") == slashed), None)


def read_prompts(text: str | None) -> list[str]:
    """Split a text box into prompts, one per line, blank lines ignored; None (linked) gives no prompt.

    Raises:
        ValueError: no prompt, more than 16, or one that no model can use.
    """
    if text is None:
        return []
    prompts = read_lines(text)
    if not prompts:
        raise ValueError("The prompt is empty; describe one object per line, for example 'a red mug'.")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"{len(prompts)} prompts are too many for one run; use at most {MAX_PROMPTS} lines.")
    return prompts


def read_lines(text: str) -> list[str]:
    """Split a text box into prompts, one per line, blank lines ignored.

    Raises:
        ValueError: no text, or a prompt that no model can use.
    """
    if not isinstance(text, str):
        raise ValueError(f"The prompt must be a text, one object per line, not {_shown(text)}.")
    prompts = [line for line in split_lines(text) if line]
    if prompts:
        check_prompts(prompts)
    return prompts


def _or_own(own: float | None, low: float) -> str:
    return "" if own is None or own >= low else f", or {own:g} for the model's own"


def _shown(value: object) -> str:
    """Return a value as a sentence can hold it."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
