"""Command line: `python -m training.compare`; see `experiments.compare`."""

from .experiments.compare import main

if __name__ == "__main__":
    raise SystemExit(main())
