"""Lists of utterances: lhotse cut sets, from folders and from deepspeech.pytorch's manifests."""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lhotse
import msgspec
import numpy as np
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut

from ds2deploy.files import whole_file
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.audio import SHORTEST_MS, convert_audio, load_audio
from ds2deploy.runtimes.errors import AudioError, ManifestError, MissingFileError
from ds2deploy.runtimes.features import FloatArray

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64"}
FSDD_TEST_INDICES = range(5)
"""Recordings 0 to 4 of every digit and speaker are that data set's own test set."""

FSDD_VALID_INDICES = range(45, 50)
"""Recordings that training does not see either, for choosing the best checkpoint."""

JOIN_PAUSE_S = (0.05, 0.3)
"""Silence between the recordings of a joined held-out utterance."""

DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")

Layout = Literal["folder", "fsdd"]
LAYOUTS: tuple[Layout, ...] = ("folder", "fsdd")


class Utterance(NamedTuple):
    """A recording and what is said in it."""

    audio: Path
    text: str
    speaker: str = ""
    split: str = "train"


def read_manifest(path: str | Path) -> CutSet:
    """Open a manifest for training or evaluation.

    Args:
        path: a lhotse cut manifest (`.jsonl`, `.jsonl.gz`), or deepspeech.pytorch's JSON or CSV.

    Raises:
        MissingFileError: no such file, or an utterance's audio is not there.
        ManifestError: not a manifest, empty, or an utterance without a transcript.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "no such file"
        raise MissingFileError(
            f"{path}: {kind}; expected a manifest, which `ds2deploy prepare` makes"
        )
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        cuts = _read_cuts(path)
    elif path.suffix in (".json", ".csv"):
        cuts = make_cuts(_deepspeech_pytorch(path), path)
    else:
        raise ManifestError(
            f"{path}: not a manifest; expected .jsonl or .jsonl.gz (lhotse cuts), or .json or "
            ".csv of deepspeech.pytorch"
        )
    if len(cuts) == 0:
        raise ManifestError(f"{path}: lists no utterances; expected at least one")
    for cut in cuts:
        _check_audio(cut, path)
    return cuts


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
        alphabet.encode(transcript(cut), source=f"{manifest}: {audio_path(cut)}")


def audio_path(cut: Cut) -> str:
    """The (first) file that a cut reads."""
    return str(_recordings(cut)[0].sources[0].source)


def read_audio(cut: Cut, sample_rate: int) -> FloatArray:
    """Samples of a cut, (samples,) float32 at the wanted rate.

    Raises:
        MissingFileError, AudioError: see `load_audio`.
    """
    if isinstance(cut, MonoCut) and cut.start == 0 and cut.duration == cut.recording.duration:
        return load_audio(audio_path(cut), sample_rate)
    try:
        samples = cut.load_audio()
    except Exception as error:  # lhotse wraps the backends' errors in many classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise AudioError(f"{audio_path(cut)}: cannot be read ({reason})") from None
    return convert_audio(
        samples.T.astype(np.float32), cut.sampling_rate, sample_rate, audio_path(cut)
    )


def prepare(
    source: Path,
    out: Path,
    layout: Layout,
    alphabet: Alphabet,
    valid_share: float,
    join: tuple[int, int],
    join_times: int,
) -> dict[str, CutSet]:
    """Write the manifests of a data set.

    Args:
        source: a folder, or a deepspeech.pytorch manifest.
        out: folder for the manifests.
        layout: of a folder: audio with a .txt beside each, or the Free Spoken Digit Dataset.
        alphabet: that the transcripts must be spelled with.
        valid_share: share of a folder's or manifest's utterances that becomes `valid`.
        join: fewest and most utterances that are joined into one in `valid-joined` and
            `test-joined`; (1, 1) makes neither.
        join_times: how often each utterance is used for that.

    Returns:
        The manifests by their names; each is `out/NAME.jsonl.gz`.

    Raises:
        MissingFileError, ManifestError, AudioError, AlphabetError: what is wrong with which file.
    """
    if out.exists() and not out.is_dir():
        raise MissingFileError(f"{out}: is a file; expected a folder for the manifests")
    utterances = list(_utterances(source, layout, valid_share))
    if not utterances and source.is_file():
        raise ManifestError(f"{source}: lists no utterances; expected at least one")
    if not utterances:
        raise ManifestError(
            f"{source}: holds no audio ({', '.join(sorted(AUDIO_SUFFIXES))}); "
            "expected recordings with a .txt transcript beside each"
        )
    splits = sorted({utterance.split for utterance in utterances})
    manifests = {
        split: make_cuts((u for u in utterances if u.split == split), source) for split in splits
    }
    for cuts in manifests.values():
        check_transcripts(cuts, alphabet, source)
    for name in ("valid", "test"):
        if join != (1, 1) and name in manifests:
            manifests[f"{name}-joined"] = _joined(manifests[name], join, join_times)
    for name, cuts in manifests.items():
        write_manifest(cuts, out / f"{name}.jsonl.gz")
    return manifests


def write_manifest(cuts: CutSet, path: Path) -> None:
    """Write a cut manifest, `.jsonl.gz`; it appears whole or not at all."""
    with whole_file(path) as temporary:
        cuts.to_file(temporary)


def _joined(cuts: CutSet, counts: tuple[int, int], times: int) -> CutSet:
    rounds = (join_utterances(cuts, counts, JOIN_PAUSE_S, seed) for seed in range(times))
    return CutSet.from_cuts(cut for joined in rounds for cut in joined)


def make_cuts(utterances: Iterable[Utterance], source: Path) -> CutSet:
    """One cut per utterance; reads every header.

    Raises:
        MissingFileError, AudioError: an utterance's audio is not there, or not audio.
    """
    return CutSet.from_cuts(_cut(utterance, source) for utterance in utterances)


def join_utterances(
    cuts: CutSet, counts: tuple[int, int], pause_s: tuple[float, float], seed: int
) -> CutSet:
    """Join utterances of one speaker into longer ones, each utterance once.

    Args:
        cuts: single utterances.
        counts: fewest and most in one; the last of a speaker may have fewer.
        pause_s: shortest and longest silence between two, in seconds.
        seed: decides who stands beside whom.
    """
    random = np.random.default_rng(seed)
    voices: dict[str, list[Cut]] = {}
    for cut in cuts:
        voices.setdefault(speaker(cut), []).append(cut)
    chains: list[Cut] = []
    for _, members in sorted(voices.items()):
        members = [members[i] for i in random.permutation(len(members))]
        while members:
            count = int(random.integers(counts[0], counts[1] + 1))
            chain, members = members[:count], members[count:]
            chains.append(_chain(chain, pause_s, random).with_id(f"joined-{seed}-{len(chains)}"))
    return CutSet.from_cuts(chains)


def _chain(cuts: list[Cut], pause_s: tuple[float, float], random: np.random.Generator) -> Cut:
    chain = cuts[0]
    for cut in cuts[1:]:
        pause = round(float(random.uniform(*pause_s)), 3)
        chain = chain.mix(cut, offset_other_by=chain.duration + pause, allow_padding=True)
    return chain


def _cut(utterance: Utterance, source: Path) -> Cut:
    path = utterance.audio
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file, but {source} lists it")
    try:
        info = soundfile.info(str(path))
    except soundfile.LibsndfileError:
        raise AudioError(f"{path}: not audio that can be read, but {source} lists it") from None
    if info.frames * 1000 < SHORTEST_MS * info.samplerate:
        raise AudioError(
            f"{path}: too short ({1000 * info.frames / info.samplerate:.2g} ms); expected at "
            f"least {SHORTEST_MS:g} ms of speech; take it out of {source}"
        )
    path = path.resolve()
    identity = f"{path.stem}-{zlib.crc32(str(path).encode()):08x}"
    recording = Recording(
        id=identity,
        sources=[lhotse.AudioSource(type="file", channels=[0], source=str(path))],
        sampling_rate=info.samplerate,
        num_samples=info.frames,
        duration=info.frames / info.samplerate,
    )
    supervision = SupervisionSegment(
        id=identity,
        recording_id=identity,
        start=0,
        duration=recording.duration,
        text=utterance.text,
        speaker=utterance.speaker or None,
    )
    return MonoCut(
        id=identity,
        start=0,
        duration=recording.duration,
        channel=0,
        recording=recording,
        supervisions=[supervision],
    )


def _utterances(source: Path, layout: Layout, valid_share: float) -> Iterator[Utterance]:
    if source.is_dir():
        read: Callable[[Path], Iterator[Utterance]] = _fsdd if layout == "fsdd" else _folder
    elif source.is_file() and source.suffix in (".json", ".csv"):
        read = _deepspeech_pytorch
    elif source.is_file():
        raise ManifestError(
            f"{source}: expected a folder, or a manifest of deepspeech.pytorch (.json, .csv)"
        )
    else:
        raise MissingFileError(f"{source}: no such file or directory")
    for utterance in read(source):
        # By a hash of the name, so that an utterance stays where it is when others come.
        share = zlib.crc32(utterance.audio.name.encode()) / 2**32
        if utterance.split == "train" and layout != "fsdd" and share < valid_share:
            utterance = utterance._replace(split="valid")
        yield utterance


def _folder(folder: Path) -> Iterator[Utterance]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in AUDIO_SUFFIXES:
            yield Utterance(
                path, _read_transcript(path.with_suffix(".txt"), path), path.parent.name
            )


def _fsdd(folder: Path) -> Iterator[Utterance]:
    for path in sorted(folder.glob("*.wav")):
        match = re.fullmatch(r"(\d)_([a-z]+)_(\d+)", path.stem)
        if match is None:
            raise ManifestError(f"{path}: expected a name such as 7_jackson_32.wav")
        digit, speaker_name, index = match.groups()
        split = "test" if int(index) in FSDD_TEST_INDICES else "train"
        split = "valid" if int(index) in FSDD_VALID_INDICES else split
        yield Utterance(path, DIGITS[int(digit)], speaker_name, split)


def _deepspeech_pytorch(manifest: Path) -> Iterator[Utterance]:
    pairs = _json_pairs(manifest) if manifest.suffix == ".json" else _csv_pairs(manifest)
    for audio, text in pairs:
        if not audio.is_file():
            raise MissingFileError(f"{audio}: no such file, but {manifest} lists it")
        yield Utterance(audio, _read_transcript(text, audio))


def _json_pairs(manifest: Path) -> Iterator[tuple[Path, Path]]:
    """deepspeech.pytorch 3: a root and, relative to it, audio and transcript of each sample."""
    try:
        document: Any = msgspec.json.decode(manifest.read_bytes())
        root = manifest.parent / document["root_path"]
        samples = [(root / s["wav_path"], root / s["transcript_path"]) for s in document["samples"]]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise ManifestError(
            f"{manifest}: expected JSON with root_path and samples, each with wav_path and "
            f"transcript_path ({type(error).__name__}: {error})"
        ) from None
    yield from samples


def _csv_pairs(manifest: Path) -> Iterator[tuple[Path, Path]]:
    """deepspeech.pytorch 2: a line per utterance, audio path and transcript path."""
    try:
        rows = list(csv.reader(manifest.read_text(encoding="utf-8").splitlines()))
    except (UnicodeDecodeError, csv.Error):
        raise ManifestError(
            f"{manifest}: not a text file; expected audio,transcript lines"
        ) from None
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise ManifestError(
                f"{manifest}: line {number} has {len(row)} fields; expected audio,transcript paths"
            )
        yield manifest.parent / row[0].strip(), manifest.parent / row[1].strip()


def _read_transcript(path: Path, audio: Path) -> str:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected the transcript of {audio}")
    try:
        text = " ".join(path.read_text(encoding="utf-8").split())
    except UnicodeDecodeError:
        raise ManifestError(f"{path}: not UTF-8 text; expected the transcript of {audio}") from None
    if not text:
        raise ManifestError(f"{path}: empty; expected the transcript of {audio}")
    return text


def _read_cuts(path: Path) -> CutSet:
    try:
        cuts = CutSet.from_jsonl(path).to_eager()
        for cut in cuts:
            _check_types(cut)
    except Exception as error:  # lhotse raises whatever the damaged line made it trip over
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise ManifestError(
            f"{path}: not a lhotse cut manifest, or damaged ({reason}); "
            "make it again with `ds2deploy prepare`"
        ) from None
    return cuts


def _check_types(cut: Cut) -> None:
    """Use what lhotse takes from a file without a look at its type."""
    float(cut.duration)
    transcript(cut)
    for recording in _recordings(cut):
        if not recording.sources:
            raise TypeError("a recording without a file")
        for source in recording.sources:
            if source.type != "file":  # lhotse would run a "command", and fetch a "url"
                raise TypeError(f"audio of type {source.type!r}; expected a file")
            Path(source.source)


def _recordings(cut: Cut) -> list[Recording]:
    """What a cut reads: a joined one has tracks, some of which are silence."""
    parts = [getattr(track, "cut", track) for track in getattr(cut, "tracks", [cut])]
    return [part.recording for part in parts if getattr(part, "recording", None) is not None]


def _check_audio(cut: Cut, manifest: Path) -> None:
    recordings = _recordings(cut)
    if not recordings:
        raise ManifestError(f"{manifest}: utterance {cut.id!r} has no recording")
    for source in (source for recording in recordings for source in recording.sources):
        if not Path(source.source).is_file():
            raise MissingFileError(f"{source.source}: no such file, but {manifest} lists it")
    if not transcript(cut).strip():
        raise ManifestError(f"{manifest}: {audio_path(cut)} has no transcript")
