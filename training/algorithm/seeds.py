"""One number per purpose: a random draw depends on (seed, what it is for), never on what ran before."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: int | str) -> int:
    """Hash a run's seed with a purpose to a generator seed in [0, 2^63).

    The noise of a prompt is derived from (seed, "noise", iteration, slot), so it depends neither on the
    batch it is sampled in, nor on the process that samples it, nor on whether the run was interrupted before.

    Args:
        seed: the run's seed.
        purpose: words and counters that name the draw, such as ("noise", 3, 0).
    """
    text = "/".join([str(seed), *(f"{type(part).__name__}:{part}" for part in purpose)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
