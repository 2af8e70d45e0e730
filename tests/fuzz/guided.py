"""Let atheris choose the contents: it keeps what reaches code that nothing else reached."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import atheris
from mutators import mutate

PLAIN_SHARE = 0.2
"""Share of the contents that libFuzzer changes, which knows what was compared."""

LONGER_BYTES = 4096
"""Bytes by which a content may be longer than the longest seed."""


def guided(
    target: Any,
    seeds: Sequence[bytes],
    found: Callable[[bytes], None],
    count: Callable[[int], None],
    order: dict[str, Any],
) -> None:
    """Read contents until the process is ended.

    Args:
        target: the reader.
        seeds: first contents; those that an earlier process kept are added.
        found: reads a content, and notes what it leads to.
        count: notes the number of the next.
        order: settings of the process, see `worker.work`.
    """
    kept = Path(order["out"]) / "kept"
    kept.mkdir(exist_ok=True)
    for number, content in enumerate(seeds):
        (kept / f"seed-{number}").write_bytes(content)
    number = order["first"]

    def mutator(content: bytes, largest: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < PLAIN_SHARE:
            return bytes(atheris.Mutate(content, largest))
        return mutate(random, [content], target.tokens, target.kind)[:largest]

    def one(content: bytes) -> None:
        nonlocal number
        count(number)
        number += 1
        found(content)

    options = {
        "rss_limit_mb": 0, "timeout": 0, "verbosity": 0, "artifact_prefix": f"{order['out']}/",
        "max_len": max(map(len, seeds)) + LONGER_BYTES,
        "seed": Random(f"{order['seed']} {number}").getrandbits(31),
    }  # fmt: skip
    options_given = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *options_given, str(kept)], one, custom_mutator=mutator)
    atheris.Fuzz()
