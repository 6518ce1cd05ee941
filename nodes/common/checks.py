"""What a workflow may ask for: texts, angles and numbers, read or refused in words; needs no ComfyUI.

A workflow file is a stranger's file. ComfyUI 0.3.64 does not check the choices of V3 combo inputs, and its
range checks let NaN through, so values are checked here: before the run, and again when the node runs, as a
linked value is not known before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

MAX_PROMPTS = 16
MAX_PROMPT_CHARACTERS = 2000
MAX_VIEWS = 24
MAX_SEED = 2**64 - 1


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


def check_number(name: str, value: float | None, low: float, high: float) -> None:
    """Refuse what is no number in [low, high], NaN included; None (a linked input, not known yet) passes.

    Texts come here, too: ComfyUI 0.3.64 goes on to a node's own checks with a value it could not convert.

    Raises:
        ValueError: with the value and the range.
    """
    if value is None:
        return
    # A bool counts as 0 or 1 in Python, but who links one to a number has linked the wrong thing.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise ValueError(f"{name}={_shown(value)} must be a number from {low:g} to {high:g}.")


def check_integer(name: str, value: int | None, low: int, high: int) -> None:
    """Refuse what is not a whole number in [low, high]; None (a linked input, not known yet) passes.

    Raises:
        ValueError: with the value and the range.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}={_shown(value)} must be a whole number from {low} to {high}.")


def check_boolean(name: str, value: bool | None) -> None:
    """Refuse what is neither true nor false; None (a linked input, not known yet) passes.

    Raises:
        ValueError: with the value.
    """
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name}={_shown(value)} must be true or false.")


def check_text(name: str, text: str | None) -> None:
    """Refuse what is not a text of at most 2,000 characters; None (a linked input, not known yet) passes.

    Raises:
        ValueError: with what it is.
    """
    if text is None:
        return
    if not isinstance(text, str):
        raise ValueError(f"{name}={_shown(text)} must be a text.")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise ValueError(
            f"{name} has {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed. Shorten it."
        )


def _shown(value: object) -> str:
    """A value as a sentence can hold it."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def check_choice(name: str, value: str | None, choices: Sequence[str], remedy: str) -> None:
    """Refuse a name that is not one of the choices; None (a linked input, not known yet) passes.

    Raises:
        ValueError: with the value, what there is (at most ten names) and what to do.
    """
    if value is None or value in choices:
        return
    known = ", ".join(map(repr, choices[:10])) + (", …" if len(choices) > 10 else "")
    raise ValueError(f"{name}={value!r} is not available here (available: {known or 'none'}). {remedy}")


def read_prompts(text: str | None) -> list[str]:
    """Split a text box into prompts, one per line, blank lines ignored; None (linked) gives no prompt.

    Raises:
        ValueError: no prompt, more than 16, or one of more than 2,000 characters.
    """
    if text is None:
        return []
    if not isinstance(text, str):
        raise ValueError(f"The prompt must be a text, one object per line, not {_shown(text)}.")
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError("The prompt is empty; describe one object per line, for example 'a red mug'.")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(
            f"{len(prompts)} prompts (lines) were given; at most {MAX_PROMPTS} fit into one run."
        )
    longest = max(map(len, prompts))
    if longest > MAX_PROMPT_CHARACTERS:
        raise ValueError(
            f"A prompt has {longest} characters; at most {MAX_PROMPT_CHARACTERS} are allowed, and the text "
            "encoders read only about the first 75 tokens. Shorten it."
        )
    return prompts


def read_angles(name: str, text: str) -> tuple[float, ...]:
    """Read degrees separated by commas, semicolons or spaces.

    Raises:
        ValueError: no angle or more than 24, or something that is not a number from -360 to 360.
    """
    words = text.replace(",", " ").replace(";", " ").split()
    if not 1 <= len(words) <= MAX_VIEWS:
        raise ValueError(
            f"{name} holds {len(words)} angles; give 1 to {MAX_VIEWS}, in degrees, separated by commas."
        )
    angles = []
    for word in words:
        try:
            angle = float(word)
        except ValueError:
            raise ValueError(
                f"{name}: {word[:40]!r} is not a number; write degrees such as '0, 45, 90'."
            ) from None
        check_number(f"{name}: angle", angle, -360, 360)
        angles.append(angle)
    return tuple(angles)


def read_rig_angles(
    azimuths: str | None, elevations: str | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Azimuths and elevations of a rig, of the same length; a single elevation is meant for every view.

    Returns:
        (azimuths, elevations) in degrees; two empty tuples while an input is linked and not known yet.

    Raises:
        ValueError: see `read_angles`; an elevation outside -90 to 90; the numbers of angles disagree.
    """
    if azimuths is None or elevations is None:
        return (), ()
    azimuths_deg = read_angles("azimuths", azimuths)
    elevations_deg = read_angles("elevations", elevations)
    for elevation in elevations_deg:
        check_number("elevations: angle", elevation, -90, 90)
    if len(elevations_deg) == 1:
        elevations_deg *= len(azimuths_deg)
    if len(elevations_deg) != len(azimuths_deg):
        raise ValueError(
            f"{len(azimuths_deg)} azimuths but {len(elevations_deg)} elevations were given; "
            "give one elevation for all views or one per view."
        )
    return azimuths_deg, elevations_deg
