"""The embedded default: a small text-to-multiview model with its rewards, shipped with the code.

How it was made: `python -m training.toybox all`; what it can do: MODEL_CARD.md beside the weights.
"""

from pathlib import Path

TOYBOX_DIR = Path(__file__).parent


def toybox_path(part: str) -> Path:
    """Return the path of a shipped part, for example "model" or "rewards/clip.safetensors".

    Raises:
        FileNotFoundError: this checkout does not have it.
    """
    path = TOYBOX_DIR / part
    if not path.exists():
        raise FileNotFoundError(
            f"The toybox has no {part!r} in {TOYBOX_DIR}; the checkout is incomplete. Clone it again, or "
            "make the weights with `python -m training.toybox all`."
        )
    return path
