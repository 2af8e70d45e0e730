"""Optimisation profiles in the units of those who have recordings: utterances and seconds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ds2deploy.runtimes.artifact import Blocks
from ds2deploy.runtimes.engine_description import Profile, frames_of
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.features import FeatureConfig

BATCH = (1, 4, 16)
SECONDS = (0.5, 5.0, 30.0)
"""Default profile: commands and sentences, some at a time."""

LARGEST = {"--batch": 4096, "--seconds": 3600}
"""More is a slip of the hand: an hour has 360,000 frames."""


STREAM_FRAMES = (40, 457)
"""Frames of the streams that an engine is compared on; it takes them block by block."""


def engine_profile(
    features: FeatureConfig,
    batch: Sequence[int],
    seconds: Sequence[float],
    blocks: Blocks | None = None,
) -> Profile:
    """Make a profile of so many utterances of so many seconds, or of so many streams.

    Args:
        features: feature settings of the model.
        batch: minimum, optimum and maximum number of utterances or streams.
        seconds: minimum, optimum and maximum duration of the longest utterance of a batch.
        blocks: blocks of a streaming model; None for an offline one.
    """
    if blocks is not None:
        return Profile(batch=(batch[0], batch[1], batch[2]), frames=(blocks.frames,) * 3)
    shortest, optimum, longest = (frames_of(duration, features) for duration in seconds)
    return Profile(batch=(batch[0], batch[1], batch[2]), frames=(shortest, optimum, longest))


def seconds_of(durations_s: Sequence[float]) -> tuple[float, float, float]:
    """Minimum, median and maximum of real durations, rounded outwards to 0.1 s.

    Args:
        durations_s: durations of at least one utterance, in seconds.
    """
    shortest = max(0.1, math.floor(min(durations_s) * 10) / 10)
    longest = math.ceil(max(durations_s) * 10 - 1e-9) / 10
    median = math.ceil(statistics.median(durations_s) * 10 - 1e-9) / 10
    return shortest, max(shortest, median), max(shortest, longest)


def grid(profile: Profile, blocks: Blocks | None = None) -> list[tuple[int, int]]:
    """Return the corners of a profile and its middle: batches and frames for a parity check.

    Streams are longer than the one block that a profile of theirs knows.
    """
    return [
        (batch, frames)
        for frames in (STREAM_FRAMES if blocks is not None else sorted(set(profile.frames)))
        for batch in sorted(set(profile.batch))
    ]


def check_order(option: str, values: Sequence[float], example: str) -> None:
    """Refuse what is not three numbers in order.

    Raises:
        ConfigError: names the option, and gives the example.
    """
    text = ",".join(f"{value:g}" for value in values)
    if len(values) != 3:
        raise ConfigError(
            f"{option} {text}: expected three numbers, MIN,OPT,MAX, such as {example}"
        )
    if not 0 < values[0] <= values[1] <= values[2] <= LARGEST[option]:
        raise ConfigError(
            f"{option} {text}: expected MIN <= OPT <= MAX, above 0 and at most {LARGEST[option]}, "
            f"such as {example}"
        )
