"""Cuts of lhotse: making, joining, and reading their files, transcripts and samples."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import lhotse
import numpy as np
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut

from ds2deploy.data.lhotse_audio import runtime_audio
from ds2deploy.data.listing import missing_recording
from ds2deploy.data.utterance import Utterance
from ds2deploy.runtimes.audio.checks import SHORTEST_MS
from ds2deploy.runtimes.audio.loading import load_audio, load_part, measure_audio
from ds2deploy.runtimes.audio.samples import convert_audio
from ds2deploy.runtimes.errors import AudioError, MissingFileError, NotAudioError
from ds2deploy.runtimes.features import FloatArray

LATE_END_S = 0.5
"""Tolerance of an utterance's end after its recording's end: transcripts contain rounded times."""


def make_cut(utterance: Utterance, source: Path) -> Cut:
    """Make the cut of an utterance.

    This reads the header of the recording, or all of the recording if the header has no length.

    Args:
        utterance: utterance of a source, rejected or not.
        source: folder or manifest that lists it, for errors.

    Raises:
        Ds2Error: the utterance is rejected; this is its own error.
        MissingFileError: the recording does not exist.
        AudioError: the recording is not audio, or is too short.
    """
    if utterance.error is not None:
        raise utterance.error
    path = utterance.audio
    try:
        facts = measure_audio(path)
    except MissingFileError:
        raise missing_recording(path, source) from None
    except NotAudioError:
        raise AudioError(
            f"{path}: not readable audio; repair it, or remove it from {source}"
        ) from None
    whole_s = facts.duration_s
    start_s = utterance.start_s
    duration_s = whole_s - start_s if utterance.duration_s is None else utterance.duration_s
    if duration_s * 1000 < SHORTEST_MS:
        raise AudioError(
            f"{path}: too short ({1000 * max(duration_s, 0):.2g} ms); expected at "
            f"least {SHORTEST_MS:g} ms of speech; remove it from {source}"
        )
    if start_s < 0 or start_s + duration_s > whole_s + LATE_END_S:
        raise AudioError(
            f"{path}: ends at {whole_s:.2f} s, but {source} has an utterance from {start_s:g} to "
            f"{start_s + duration_s:g} s; correct the entry, or copy the recording again"
        )
    path = path.resolve()
    name = os.fsencode(path.stem).decode("utf-8", "backslashreplace")
    identity = f"{name}-{zlib.crc32(os.fsencode(path)):08x}"
    if start_s > 0:
        identity += f"-{round(1000 * start_s)}"
    recording = Recording(
        id=identity,
        sources=[lhotse.AudioSource(type="file", channels=[0], source=str(path))],
        sampling_rate=facts.sample_rate,
        num_samples=facts.samples,
        duration=whole_s,
    )
    duration_s = min(duration_s, whole_s - start_s)
    supervision = SupervisionSegment(
        id=identity,
        recording_id=identity,
        start=0,
        duration=duration_s,
        text=utterance.text,
        speaker=utterance.speaker or None,
    )
    return MonoCut(
        id=identity,
        start=start_s,
        duration=duration_s,
        channel=0,
        recording=recording,
        supervisions=[supervision],
        custom={"source": str(source)},
    )


def transcript(cut: Cut) -> str:
    """Join the texts of a cut's supervisions, in order."""
    return " ".join(s.text or "" for s in sorted(cut.supervisions, key=lambda s: s.start))


def speaker(cut: Cut) -> str:
    """Return the name of the speaker; empty if unknown."""
    return (cut.supervisions[0].speaker or "") if cut.supervisions else ""


def cut_tags(cut: Cut) -> dict[str, str]:
    """Collect the tags of a cut for grouping: speaker, gender, language, and custom tags.

    The tags of a joined cut contain all values of its parts.
    """
    found: dict[str, dict[str, None]] = {}
    for part in cut.supervisions:
        known = {"speaker": part.speaker, "gender": part.gender, "language": part.language}
        for name, value in {**known, **(part.custom or {})}.items():
            if isinstance(value, (str, int, float)) and value != "":
                found.setdefault(name, {})[str(value)] = None
    for name, value in (getattr(cut, "custom", None) or {}).items():
        if isinstance(value, (str, int, float)):
            found[name] = {str(value): None}
    return {name: "+".join(values) for name, values in found.items()}


def audio_path(cut: Cut) -> str:
    """Return the path of the first file of a cut."""
    return str(recordings(cut)[0].sources[0].source)


def recordings(cut: Cut) -> list[Recording]:
    """List the recordings of a cut, without the silent tracks of a joined one."""
    parts = [getattr(track, "cut", track) for track in getattr(cut, "tracks", [cut])]
    return [part.recording for part in parts if getattr(part, "recording", None) is not None]


def read_audio(cut: Cut, sample_rate: int) -> FloatArray:
    """Read the samples of a cut: (samples,) float32.

    Args:
        cut: cut of any kind.
        sample_rate: sample rate of the result, in Hz.

    Raises:
        MissingFileError, AudioError: see `load_audio`.
    """
    if _is_plain(cut):
        whole = cut.start == 0 and cut.duration == cut.recording.duration
        return load_audio(audio_path(cut), sample_rate) if whole else _read_part(cut, sample_rate)
    try:
        with runtime_audio():
            samples = cut.load_audio()
    except Exception as error:  # lhotse wraps the backends' errors in many classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise AudioError(
            f"{audio_path(cut)}: cannot be read ({reason}); copy it again, or remove its entry"
        ) from None
    return convert_audio(
        samples.T.astype(np.float32), cut.sampling_rate, sample_rate, audio_path(cut)
    )


def _is_plain(cut: Cut) -> bool:
    """Check that a cut is a single-channel recording or an unchanged part of one."""
    if not isinstance(cut, MonoCut) or cut.recording.transforms:
        return False
    return bool(cut.recording.num_channels == 1)


def _read_part(cut: Cut, sample_rate: int) -> FloatArray:
    path = audio_path(cut)
    samples, rate = load_part(path, cut.start, cut.duration)
    return convert_audio(samples, rate, sample_rate, path)


def join_utterances(
    cuts: CutSet, counts: tuple[int, int], pause_s: tuple[float, float], seed: int
) -> CutSet:
    """Join utterances of the same speaker into longer ones; each utterance is used once.

    Unnamed speakers count as one speaker. Utterances of different sample rates are never joined.

    Args:
        cuts: single utterances.
        counts: minimum and maximum number of joined utterances; the last of a speaker may have
            fewer.
        pause_s: minimum and maximum silence between two utterances, in seconds.
        seed: seed of the order of the utterances and of the pauses.
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
            if 0 < len(members) - count < counts[0]:  # the remaining chain would be too short
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
