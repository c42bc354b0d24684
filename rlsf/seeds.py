"""One seed per run; every generator is derived from it by name, so that nothing random needs saving to resume."""

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the use that `names` describe: independent of all others, the same on every machine."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
