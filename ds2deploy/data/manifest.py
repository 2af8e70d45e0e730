"""Lists of utterances as lhotse cut sets: opened, checked, made, joined, written."""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lhotse
import numpy as np
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut, PaddingCut

from ds2deploy.data.lhotse_audio import runtime_audio
from ds2deploy.data.listing import is_file
from ds2deploy.data.sources import Utterance, read_deepspeech_pytorch
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.audio.loading import (
    LOWEST_RATE,
    SHORTEST_MS,
    convert_audio,
    load_audio,
    load_part,
    measure_audio,
)
from ds2deploy.runtimes.errors import (
    FILE_ERRORS,
    AudioError,
    Ds2Error,
    ManifestError,
    MissingFileError,
    NotAudioError,
)
from ds2deploy.runtimes.features import HIGHEST_RATE, FloatArray
from ds2deploy.runtimes.files import manifest_line, whole_file
from ds2deploy.text_files import UTF_16

LATE_END_S = 0.5
"""An utterance may seem to end so long after its recording: transcripts round."""


LONGEST_S = 7 * 86_400.0
"""Longest recording and utterance of a manifest, in seconds: a week."""

LONGEST_JOINED_S = 3_600.0
"""Longest utterance that is joined of several, in seconds; it is made in memory."""


class Unusable(NamedTuple):
    """An utterance of a manifest that cannot be used.

    Attributes:
        audio: its file, or the manifest where that does not say it.
        error: the fault, with its remedy.
    """

    audio: str
    error: Ds2Error


def read_manifest(path: str | Path) -> CutSet:
    """Open a manifest of which every utterance is needed, such as that of a training.

    Args:
        path: a lhotse cut manifest (`.jsonl`, `.jsonl.gz`), or deepspeech.pytorch's JSON or CSV.

    Raises:
        MissingFileError: no such file, or an utterance's audio is not there.
        AudioError: an utterance's audio is not audio.
        ManifestError: not a manifest, empty, or an utterance without a transcript.
    """
    cuts, unusable = read_usable(path)
    if unusable:
        raise unusable[0].error
    return cuts


def read_usable(path: str | Path) -> tuple[CutSet, list[Unusable]]:
    """Open a manifest, and part the utterances that can be used from those that cannot.

    Args:
        path: the manifest, in a format of `read_manifest`.

    Raises:
        MissingFileError: no such file.
        ManifestError: not a manifest, or empty.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "no such file"
        raise MissingFileError(
            f"{path}: {kind}; expected a manifest, which `ds2deploy prepare` makes"
        )
    name = path.name.lower()
    usable: list[Cut] = []
    unusable: list[Unusable] = []
    if name.endswith((".jsonl", ".jsonl.gz")):
        usable = list(_read_cuts(path))
    elif name.endswith((".json", ".csv")):
        for utterance in read_deepspeech_pytorch(path):
            try:
                usable.append(make_cut(utterance, path))
            except (*FILE_ERRORS, ManifestError) as error:
                unusable.append(Unusable(str(utterance.audio), error))
    else:
        raise ManifestError(
            f"{path}: not a manifest; expected .jsonl or .jsonl.gz (lhotse cuts), or .json or "
            ".csv of deepspeech.pytorch"
        )
    if not usable and not unusable:
        raise ManifestError(f"{path}: lists no utterances; expected at least one")
    faults = [_fault(cut, path) for cut in usable]
    unusable += [fault for fault in faults if fault is not None]
    good = (cut for cut, fault in zip(usable, faults, strict=True) if fault is None)
    return CutSet.from_cuts(good), unusable


def transcript(cut: Cut) -> str:
    """All that is said in a cut, in order."""
    return " ".join(s.text or "" for s in sorted(cut.supervisions, key=lambda s: s.start))


def speaker(cut: Cut) -> str:
    """Who speaks, or an empty string."""
    return (cut.supervisions[0].speaker or "") if cut.supervisions else ""


def check_transcripts(cuts: Iterable[Cut], alphabet: Alphabet, manifest: str | Path) -> None:
    """Refuse transcripts that the labels cannot spell.

    Raises:
        AlphabetError: names the audio file and the characters.
    """
    for cut in cuts:
        check_transcript(cut, alphabet, manifest)


def check_transcript(cut: Cut, alphabet: Alphabet, manifest: str | Path) -> None:
    """Refuse a transcript that the labels cannot spell, see `check_transcripts`."""
    alphabet.encode(transcript(cut), source=f"{manifest}: {audio_path(cut)}")


def audio_path(cut: Cut) -> str:
    """The (first) file that a cut reads."""
    return str(_recordings(cut)[0].sources[0].source)


def read_audio(cut: Cut, sample_rate: int) -> FloatArray:
    """Samples of a cut, (samples,) float32 at the wanted rate.

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
        raise AudioError(f"{audio_path(cut)}: cannot be read ({reason})") from None
    return convert_audio(
        samples.T.astype(np.float32), cut.sampling_rate, sample_rate, audio_path(cut)
    )


def write_manifest(cuts: CutSet, path: Path) -> None:
    """Write a cut manifest, `.jsonl.gz`; it appears whole or not at all."""
    with (
        whole_file(path) as temporary,
        gzip.open(temporary, "wt", encoding="utf-8") as file,
    ):
        for cut in cuts:
            file.write(manifest_line(cut.to_dict()) + "\n")


def make_cuts(utterances: Iterable[Utterance], source: Path) -> CutSet:
    """One cut per utterance; reads every header, and all of a recording whose header has no length.

    Raises:
        MissingFileError, AudioError: an utterance's audio is not there, or not audio.
    """
    return CutSet.from_cuts(make_cut(utterance, source) for utterance in utterances)


def join_utterances(
    cuts: CutSet, counts: tuple[int, int], pause_s: tuple[float, float], seed: int
) -> CutSet:
    """Join utterances of one speaker into longer ones, each utterance once.

    Args:
        cuts: single utterances.
        counts: fewest and most in one; the last of a speaker may have fewer.
        pause_s: shortest and longest silence between two, in seconds.
        seed: decides who stands beside whom.

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


def _is_plain(cut: Cut) -> bool:
    """Whether a cut is nothing but a recording or a part of it: its only channel, unchanged."""
    if not isinstance(cut, MonoCut) or cut.recording.transforms:
        return False
    return bool(cut.recording.num_channels == 1)


def _read_part(cut: Cut, sample_rate: int) -> FloatArray:
    path = audio_path(cut)
    samples, rate = load_part(path, cut.start, cut.duration)
    return convert_audio(samples, rate, sample_rate, path)


def _chain(cuts: list[Cut], pause_s: tuple[float, float], random: np.random.Generator) -> Cut:
    chain = cuts[0]
    for cut in cuts[1:]:
        pause = round(float(random.uniform(*pause_s)), 3)
        chain = chain.mix(cut, offset_other_by=chain.duration + pause, allow_padding=True)
    return chain


def make_cut(utterance: Utterance, source: Path) -> Cut:
    """The cut of one utterance; reads its file's header, and all of it where that has no length.

    Args:
        utterance: with or without a fault.
        source: that it is from, for errors.

    Raises:
        Ds2Error: its fault.
        MissingFileError, AudioError: its audio is not there, not audio, or too short.
    """
    if utterance.fault is not None:
        raise utterance.fault
    path = utterance.audio
    try:
        facts = measure_audio(path)
    except MissingFileError:
        raise MissingFileError(f"{path}: no such file, but {source} lists it") from None
    except NotAudioError:
        raise AudioError(
            f"{path}: not audio that can be read, but it is in {source}; repair it, or take it out"
        ) from None
    whole_s = facts.duration_s
    start_s = utterance.start_s
    duration_s = whole_s - start_s if utterance.duration_s is None else utterance.duration_s
    if duration_s * 1000 < SHORTEST_MS:
        raise AudioError(
            f"{path}: too short ({1000 * max(duration_s, 0):.2g} ms); expected at "
            f"least {SHORTEST_MS:g} ms of speech; take it out of {source}"
        )
    if start_s < 0 or start_s + duration_s > whole_s + LATE_END_S:
        raise AudioError(
            f"{path}: {source} has an utterance from {start_s:g} to {start_s + duration_s:g} s, "
            f"but it ends at {whole_s:.2f} s; correct it, or copy the recording again"
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


def _read_cuts(path: Path) -> CutSet:
    try:
        cuts = CutSet.from_dicts(_json_lines(path)).to_eager()
        for cut in cuts:
            _check_values(cut)
    except PermissionError:  # says all that there is to say
        raise
    except Exception as error:  # lhotse raises whatever the damaged line made it trip over
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise ManifestError(
            f"{path}: not a lhotse cut manifest, or damaged ({reason}); "
            "make it again with `ds2deploy prepare`"
        ) from None
    return cuts


def _json_lines(path: Path) -> Iterator[Any]:
    """Documents of a file, a line each, with or without a byte order mark.

    Not by lhotse, which runs a path that begins with "pipe:" as a command.
    """
    is_gzip = path.suffix.lower() == ".gz"
    with gzip.open(path, "rb") if is_gzip else path.open("rb") as file:
        begun = file.read(2)
        file.seek(0)
        encoding = "utf-16" if begun in UTF_16 else "utf-8-sig"
        text = io.TextIOWrapper(file, encoding, newline="\n")
        yield from (json.loads(line) for line in text if line.strip())


def _check_values(cut: Cut) -> None:
    """Refuse values that lhotse takes from a file without a look at their type or size."""
    tracks = getattr(cut, "tracks", ())
    for track in tracks:
        _number("offset", track.offset, 0, LONGEST_JOINED_S)
        _number("snr", track.snr or 0, -1000, 1000)
    for part in [track.cut for track in tracks] or [cut]:
        _number("start", getattr(part, "start", 0), 0, LONGEST_S)
        _number("duration", part.duration, 0, LONGEST_JOINED_S if tracks else LONGEST_S)
        if isinstance(part, PaddingCut):
            _number("sampling_rate", part.sampling_rate, LOWEST_RATE, HIGHEST_RATE)
    for spoken in cut.supervisions:
        for name in ("text", "speaker"):
            if not isinstance(getattr(spoken, name), (str, type(None))):
                raise TypeError(f"{name}: expected text")
    transcript(cut)
    for recording in _recordings(cut):
        _number("duration", recording.duration, 0, LONGEST_S)
        _number("sampling_rate", recording.sampling_rate, LOWEST_RATE, HIGHEST_RATE)
        if not recording.sources:
            raise TypeError("a recording without a file")
        for source in recording.sources:
            if source.type != "file":  # lhotse would run a "command", and fetch a "url"
                raise TypeError(f"audio of type {source.type!r}; expected a file")
            Path(source.source)


def _number(name: str, value: Any, least: float, most: float) -> None:
    """Refuse a value that is no number, or out of its range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number")
    if not least <= value <= most:
        raise ValueError(f"{name} {value:g}: expected {least:g} to {most:g}")


def _recordings(cut: Cut) -> list[Recording]:
    """What a cut reads: a joined one has tracks, some of which are silence."""
    parts = [getattr(track, "cut", track) for track in getattr(cut, "tracks", [cut])]
    return [part.recording for part in parts if getattr(part, "recording", None) is not None]


def _fault(cut: Cut, manifest: Path) -> Unusable | None:
    """Look whether the files of an utterance are there, and its transcript."""
    recordings = _recordings(cut)
    if not recordings:
        error = ManifestError(f"{manifest}: utterance {cut.id!r} has no recording")
        return Unusable(str(manifest), error)
    for source in (source for recording in recordings for source in recording.sources):
        if not is_file(Path(source.source)):
            missing = MissingFileError(f"{source.source}: no such file, but {manifest} lists it")
            return Unusable(str(source.source), missing)
    if not transcript(cut).strip():
        error = ManifestError(f"{manifest}: {audio_path(cut)} has no transcript")
        return Unusable(audio_path(cut), error)
    return None
