"""Command line of the toybox recipe: `python -m training.toybox <stage> [--quick] [--out DIR]`."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys

from ..config import home_path
from .stages.stage import StageConfig

STAGES = (
    "render", "vae", "base", "adapter", "lcm", "rewards", "judge", "export", "lcm_lora", "evaluate", "aware",
    "image_adapter",
)  # fmt: skip
"""Modules in `stages/` with a `run(config)`, in the order of the recipe."""
RESTORE = "restore"
"""Not a part of the recipe: takes the bundled weights for what earlier stages would make."""


def main(arguments: list[str] | None = None) -> int:
    """Run one stage, or all of them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.toybox", description=__doc__)
    parser.add_argument(
        "stage", choices=[*STAGES, "all", RESTORE], help="what to do; every stage resumes where it stopped"
    )
    parser.add_argument("--out", type=home_path, default=StageConfig.out_dir, help="working folder")
    parser.add_argument("--quick", action="store_true", help="a tiny version in two minutes, for tests")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and training")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    config = StageConfig(args.out, args.quick, args.seed, args.device)
    try:
        for stage in STAGES if args.stage == "all" else [args.stage]:
            importlib.import_module(f"{__package__}.stages.{stage}").run(config)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
