"""Plan of an epoch: the utterances of every batch, known to every process before the epoch begins.

lhotse's samplers draw batches that are large enough for all processes; every process trains on its
part of each batch. Two processes therefore train on the same batches as one process with twice the
batch size, and no utterance is repeated or lost. The plan depends only on the manifest, the recipe
and the number of the epoch, so that a training can resume at any batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import attrgetter
from typing import NamedTuple

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler, SimpleCutSampler

from ds2deploy.config import Recipe
from ds2deploy.data.cuts import join_utterances
from ds2deploy.runtimes.errors import ConfigError


class ProcessBatch(NamedTuple):
    """Part of a batch for one process.

    Attributes:
        cuts: utterances of the process.
        scale: factor of the sum of their losses, so that the mean over the processes is the mean
            over the utterances of the whole batch.
    """

    cuts: CutSet
    scale: float


def plan_training(cuts: CutSet, recipe: Recipe, epoch: int, processes: int = 1) -> list[list[Cut]]:
    """Draw the ordered batches of one epoch; each batch is for all processes together.

    Args:
        cuts: training utterances.
        recipe: recipe of the training; its batch sizes are for one process.
        epoch: number of the epoch, from 0.
        processes: number of processes that train.

    Raises:
        ConfigError: there are fewer utterances than processes.
    """
    data, seed = recipe.data, recipe.training.seed
    if data.join != (1, 1) and epoch >= recipe.augment.warm_up_epochs:
        cuts = join_utterances(cuts, data.join, data.pause_s, seed=(seed << 16) + epoch)
    _check_count(cuts, processes, f"data.train = {data.train}")
    # lhotse draws for one process; `process_batches` divides the batches.
    options = {
        "max_cuts": data.batch_size * processes,
        "max_duration": data.batch_duration_s and data.batch_duration_s * processes,
        "seed": seed,
        "world_size": 1,
        "rank": 0,
    }
    buckets = min(data.buckets, len(cuts) // (2 * data.batch_size * processes))
    if data.sortagrad and epoch == 0:
        shortest_first = cuts.sort_by_duration(ascending=True)
        sampler = SimpleCutSampler(shortest_first, **options, shuffle=False)
    elif buckets < 2:  # too few utterances to group them
        sampler = SimpleCutSampler(cuts, **options, shuffle=True)
    else:
        sampler = DynamicBucketingSampler(cuts, **options, num_buckets=buckets, shuffle=True)
    sampler.set_epoch(epoch)
    return large_enough(map(list, sampler), processes)


def plan_evaluation(cuts: CutSet, recipe: Recipe, processes: int = 1) -> list[list[Cut]]:
    """Put all utterances into batches once, longest last; see `plan_training`."""
    data = recipe.data
    _check_count(cuts, processes, f"data.valid = {data.valid}")
    most_s = (data.batch_duration_s or math.inf) * processes
    batches: list[list[Cut]] = [[]]
    total_s = 0.0
    for cut in cuts.sort_by_duration(ascending=True):
        total_s += cut.duration
        full = len(batches[-1]) == data.batch_size * processes or total_s > most_s
        if batches[-1] and full:
            batches.append([])
            total_s = cut.duration
        batches[-1].append(cut)
    return large_enough(batches, processes)


def process_batches(
    batches: Iterable[list[Cut]], rank: int = 0, processes: int = 1
) -> list[ProcessBatch]:
    """Take one process's part of every batch.

    Args:
        batches: batches from `plan_training` or `plan_evaluation`.
        rank: number of the process, from 0.
        processes: number of processes.
    """
    found = []
    for batch in batches:
        # By duration, so that all processes have as much to do.
        ordered = sorted(batch, key=attrgetter("duration"))
        if chosen := ordered[rank::processes]:
            found.append(ProcessBatch(CutSet.from_cuts(chosen), processes / len(batch)))
    return found


def large_enough(batches: Iterable[list[Cut]], least: int) -> list[list[Cut]]:
    """Merge each batch that is smaller than the number of processes with the one that follows.

    Args:
        batches: batches, none of them empty, with at least `least` utterances together.
        least: minimum of utterances in a batch.
    """
    found: list[list[Cut]] = []
    waiting: list[Cut] = []
    for batch in batches:
        waiting = waiting + batch
        if len(waiting) >= least:
            found.append(waiting)
            waiting = []
    if waiting:
        found[-1] = found[-1] + waiting
    return found


def _check_count(cuts: CutSet, processes: int, name: str) -> None:
    if len(cuts) < processes:
        raise ConfigError(
            f"{name}: {len(cuts)} utterances for {processes} processes; lower training.devices"
        )
