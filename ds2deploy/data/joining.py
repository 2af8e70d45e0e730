"""Utterances of one speaker joined into longer ones."""

from __future__ import annotations

import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut

from ds2deploy.data.cuts import speaker


def join_utterances(
    cuts: CutSet, counts: tuple[int, int], pause_s: tuple[float, float], seed: int
) -> CutSet:
    """Join utterances of one speaker into longer ones, each utterance once.

    Args:
        cuts: single utterances.
        counts: fewest and most in one; the last of a speaker may have fewer.
        pause_s: shortest and longest silence between two, in seconds.
        seed: seed of the order of the utterances and of the pauses.

    Speakers that the manifest does not name count as one; sample rates are kept apart.
    """
    random = np.random.default_rng(seed)
    voices: dict[tuple[str, int], list[Cut]] = {}
    for cut in cuts:
        voices.setdefault((speaker(cut), cut.sampling_rate), []).append(cut)
    chains: list[Cut] = []
    for _, members in sorted(voices.items()):
        members = [members[i] for i in random.permutation(len(members))]
        while members:
            count = int(random.integers(counts[0], counts[1] + 1))
            if 0 < len(members) - count < counts[0]:  # the rest would be too short a chain
                count = len(members) if len(members) <= counts[1] else len(members) - counts[0]
            chain, members = members[:count], members[count:]
            chains.append(_chain(chain, pause_s, random).with_id(f"joined-{seed}-{len(chains)}"))
    return CutSet.from_cuts(chains)


def _chain(cuts: list[Cut], pause_s: tuple[float, float], random: np.random.Generator) -> Cut:
    chain = cuts[0]
    for cut in cuts[1:]:
        pause = round(float(random.uniform(*pause_s)), 3)
        chain = chain.mix(cut, offset_other_by=chain.duration + pause, allow_padding=True)
    return chain
