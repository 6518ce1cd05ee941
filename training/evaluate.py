"""Command line: `python -m training.evaluate`; see `evaluation.cli`."""

from .evaluation.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
