"""Public corpora, read as they are unpacked: every utterance that they list, damaged or not.

lhotse has recipes for most of them, and for a hundred more (`lhotse:NAME`). These are read here
because a recipe of lhotse leaves out without a word what it does not find, or ends at the first
file that is damaged, and the report of `prepare` must name each.
"""

from __future__ import annotations

import csv
import inspect
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lhotse import CutSet, RecordingSet, SupervisionSet, recipes

from ds2deploy.data.listing import Listing, is_file, list_files
from ds2deploy.data.sources import Utterance
from ds2deploy.runtimes.errors import (
    AudioError,
    ConfigError,
    Ds2Error,
    ManifestError,
    MissingFileError,
)
from ds2deploy.text_files import read_text

LHOTSE = "lhotse:"

TEST, VALID, TRAIN = "test", "valid", "train"

COMMONVOICE_TABLES = {"train": TRAIN, "dev": VALID, "test": TEST}
"""The sets of Common Voice whose clips somebody has validated."""

AN4_SETS = {"train": TRAIN, "test": TEST}


def read_librispeech(folder: Path) -> Iterator[Utterance]:
    """LibriSpeech, Mini LibriSpeech, or any tree of PART/SPEAKER/CHAPTER/*.trans.txt.

    Parts that begin with `dev` become `valid`, with `test`, `test`; all others `train`.
    """
    below = list_files(folder)
    yield from _locked(below)
    listings = [path for path in below.files if path.name.endswith(".trans.txt")]
    if not listings and not below.faults:
        raise ManifestError(
            f"{folder}: holds no *.trans.txt; expected LibriSpeech as it is unpacked, such as "
            "train-clean-100/19/198/19-198.trans.txt"
        )
    listed = set()
    unread = set()
    for listing in listings:
        split = _split_of(listing.absolute().parts[-4])
        for number, line in _numbered(listing):
            if isinstance(line, Ds2Error):
                unread.add(listing.parent)
                yield Utterance(listing, "", fault=line)
                continue
            name, _, text = line.partition(" ")
            audio = listing.parent / f"{name}.flac"
            listed.add(audio)
            fault = _no_text(audio, text, f"{listing}: line {number}")
            yield Utterance(audio, text.strip(), name.partition("-")[0], split, fault=fault)
    for audio in below.files:
        if audio.suffix == ".flac" and audio not in listed and audio.parent not in unread:
            yield Utterance(audio, "", fault=_not_listed(audio, audio.parent))


def read_commonvoice(folder: Path) -> Iterator[Utterance]:
    """Common Voice, the folder of one language: train.tsv, dev.tsv, test.tsv and clips/."""
    tables = {folder / f"{name}.tsv": split for name, split in COMMONVOICE_TABLES.items()}
    there = {table: split for table, split in tables.items() if table.is_file()}
    if not there:
        raise ManifestError(
            f"{folder}: holds none of train.tsv, dev.tsv, test.tsv; expected the folder of one "
            "language of Common Voice"
        )
    for table, split in there.items():
        lines = [line for _, line in _numbered(table)]
        if lines and isinstance(lines[0], Ds2Error):
            yield Utterance(table, "", fault=lines[0])
            continue
        # Quotation marks are part of the sentences, and often stand alone.
        rows = csv.DictReader(map(str, lines), delimiter="\t", quoting=csv.QUOTE_NONE)
        if not {"path", "sentence", "client_id"} <= set(rows.fieldnames or ()):
            raise ManifestError(f"{table}: expected the columns client_id, path and sentence")
        for number, row in enumerate(rows, start=2):
            audio = folder / "clips" / (row["path"] or "")
            text = row["sentence"] or ""
            fault = _no_text(audio, text, f"{table}: line {number}")
            yield Utterance(audio, text.strip(), row["client_id"] or "", split, fault=fault)


def read_tedlium(folder: Path) -> Iterator[Utterance]:
    """TED-LIUM 3: legacy/PART/stm/*.stm, with a talk in sph/ for each (release 2: PART/stm)."""
    # Beside `legacy` lies `data`, with the same talks again.
    places = ("legacy/*/stm/*.stm", "*/stm/*.stm", "*/legacy/*/stm/*.stm", "*/*/stm/*.stm")
    listings = next(filter(None, (sorted(folder.glob(place)) for place in places)), [])
    if not listings:
        raise ManifestError(
            f"{folder}: holds no stm/*.stm; expected TED-LIUM as it is unpacked, such as "
            "legacy/train/stm/AaronHuey_2010X.stm"
        )
    for listing in listings:
        split = _split_of(listing.parts[-3])
        audio = listing.parent.parent / "sph" / f"{listing.stem}.sph"
        for number, line in _numbered(listing):
            if isinstance(line, Ds2Error):
                yield Utterance(listing, "", fault=line)
                continue
            place = f"{listing}: line {number}"
            fields = line.split(maxsplit=6)
            if len(fields) < 6 or not _is_number(fields[3]) or not _is_number(fields[4]):
                fault = ManifestError(
                    f"{place}: expected TALK CHANNEL SPEAKER START END LABEL TEXT"
                )
                yield Utterance(audio, "", fault=fault)
                continue
            text = _without_marks(fields[6] if len(fields) > 6 else "")
            if text == "ignore_time_segment_in_scoring":  # says the format, and is no utterance
                continue
            start, end = float(fields[3]), float(fields[4])
            yield Utterance(
                audio, text, fields[2], split, start, end - start, _no_text(audio, text, place)
            )


def read_voxforge(folder: Path) -> Iterator[Utterance]:
    """VoxForge: a folder for each speaker and visit, with wav/ or flac/ and etc/PROMPTS."""
    below = list_files(folder)
    yield from _locked(below)
    listings = [path for path in below.files if path.parts[-2:] == ("etc", "PROMPTS")]
    if not listings and not below.faults:
        raise ManifestError(
            f"{folder}: holds no etc/PROMPTS; expected VoxForge as it is unpacked, a folder for "
            "each speaker"
        )
    for listing in listings:
        visit = listing.parent.parent
        speaker = visit.name.partition("-")[0]
        if speaker == "anonymous":  # each visit is somebody else
            speaker = visit.name
        for number, line in _numbered(listing):
            if isinstance(line, Ds2Error):
                yield Utterance(listing, "", fault=line)
                continue
            name, _, text = line.partition(" ")
            stem = Path(name).name
            places = [visit / kind / f"{stem}.{kind}" for kind in ("wav", "flac")]
            audio = next(filter(is_file, places), places[0])
            fault = _no_text(audio, text, f"{listing}: line {number}")
            yield Utterance(audio, text.strip(), speaker, fault=fault)


def read_an4(folder: Path) -> Iterator[Utterance]:
    """CMU's AN4: etc/an4_train.transcription and an4_test.transcription, with .fileids beside."""
    etc = folder / "etc"
    there = [name for name in AN4_SETS if (etc / f"an4_{name}.transcription").is_file()]
    if not there:
        raise ManifestError(
            f"{folder}: holds no etc/an4_train.transcription with an4_train.fileids; expected AN4 "
            "as it is unpacked"
        )
    for name in there:
        transcripts, ids = etc / f"an4_{name}.transcription", etc / f"an4_{name}.fileids"
        if not ids.is_file():
            raise MissingFileError(
                f"{ids}: no such file, but {transcripts.name} is there; unpack the corpus again"
            )
        texts, paths = list(_lines(transcripts)), list(_lines(ids))
        if len(texts) != len(paths):
            raise ManifestError(
                f"{transcripts}: {len(texts)} lines, {ids.name} has {len(paths)}; unpack the "
                "corpus again"
            )
        for number, (line, path) in enumerate(zip(texts, paths, strict=True), start=1):
            place = f"{transcripts}: line {number}"
            yield _an4_utterance(folder, line, path, AN4_SETS[name], place)


def _an4_utterance(folder: Path, line: str, path: str, split: str, place: str) -> Utterance:
    """`<s> RUBOUT G M </s> (an253-fash-b)`, and `an4_clstk/fash/an253-fash-b`."""
    places = [folder / "wav" / f"{path}{suffix}" for suffix in (".wav", ".sph")]
    audio = next(filter(is_file, places), places[0])
    text, _, name = line.rpartition("(")
    if name.rstrip(") ") != Path(path).name:
        fault = ManifestError(f"{place}: is of {name.rstrip(') ')!r}, the list has {path!r}")
        return Utterance(audio, "", fault=fault)
    text = " ".join(word for word in text.split() if word not in ("<s>", "</s>"))
    return Utterance(audio, text, Path(path).parent.name, split, fault=_no_text(audio, text, place))


CORPORA: dict[str, Callable[[Path], Iterator[Utterance]]] = {
    "librispeech": read_librispeech,
    "commonvoice": read_commonvoice,
    "tedlium": read_tedlium,
    "voxforge": read_voxforge,
    "an4": read_an4,
}


def read_with_lhotse(name: str, folder: Path) -> Iterator[Utterance]:
    """A corpus that lhotse has a recipe for.

    Args:
        name: of the recipe, such as `ljspeech`.
        folder: of the corpus.

    Raises:
        ConfigError: no such recipe.
        ManifestError: it cannot read the corpus.
    """
    recipe = getattr(recipes, f"prepare_{name}", None)
    if recipe is None:
        known = sorted(n.removeprefix("prepare_") for n in dir(recipes) if n.startswith("prepare_"))
        raise ConfigError(f"--layout {LHOTSE}{name}: lhotse has {', '.join(known)}")
    with _Complaints() as complaints, tempfile.TemporaryDirectory(prefix="ds2deploy-") as scratch:
        given: dict[str, Any] = {}
        if "output_dir" in inspect.signature(recipe).parameters:
            given["output_dir"] = scratch
        try:
            found = list(_sets(recipe(folder, **given), TRAIN))
        except Exception as error:  # whatever the corpus made it trip over
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise ManifestError(f"{folder}: lhotse's recipe {name} ends with: {reason}") from None
        for split, recordings, supervisions in found:
            for cut in CutSet.from_manifests(recordings, supervisions).trim_to_supervisions():
                said = cut.supervisions[0]
                audio = Path(cut.recording.sources[0].source)
                fault = _no_text(audio, said.text or "", f"{folder}: {said.id}")
                if cut.recording.num_channels > 1:
                    fault = AudioError(
                        f"{audio}: {cut.recording.num_channels} channels, each with words of its "
                        "own; make a file of each"
                    )
                yield Utterance(
                    audio, said.text or "", said.speaker or "", split, cut.start, cut.duration,
                    fault,
                )  # fmt: skip
    for message in complaints.messages:  # of what it left out
        yield Utterance(folder, "", fault=ManifestError(f"{folder}: {message}"))


class _Complaints(logging.Handler):
    """Hears what lhotse logs instead of raising it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def __enter__(self) -> _Complaints:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line of it."""
        self.messages.append(record.getMessage().splitlines()[0][:200])


def _sets(found: Any, name: str) -> Iterator[tuple[str, RecordingSet, SupervisionSet]]:
    """The sets of a recipe, at whatever depth it puts them."""
    if not isinstance(found, dict):
        return
    if isinstance(found.get("recordings"), RecordingSet) and found.get("supervisions"):
        yield _split_of(name), found["recordings"], found["supervisions"]
        return
    for key, inner in found.items():
        yield from _sets(inner, str(key))


def _split_of(name: str) -> str:
    """`dev-clean` is validation, `test-other` is test, everything else training."""
    if re.match(r"(dev|valid)", name):
        return VALID
    return TEST if re.match(r"(test|eval)", name) else TRAIN


def _lines(path: Path) -> Iterator[str]:
    """The lines of a list without which nothing of a corpus is known.

    Raises:
        ManifestError: it cannot be read.
    """
    for _, line in _numbered(path):
        if isinstance(line, Ds2Error):
            raise line
        yield line


def _numbered(path: Path) -> Iterator[tuple[int, str | Ds2Error]]:
    """Number the lines of a text file from 1, and leave out empty ones.

    Yields a single error where it cannot be read, so that other files of the corpus are.
    """
    try:
        text = read_text(path, "a list of the corpus; unpack it again")
    except ManifestError as error:
        yield 0, error
        return
    yield from ((i, line) for i, line in enumerate(text.splitlines(), start=1) if line.strip())


def _locked(below: Listing) -> Iterator[Utterance]:
    """Folders of a corpus that cannot be listed."""
    for error in below.faults:
        yield Utterance(Path(), "", fault=error, unreadable=True)


def _no_text(audio: Path, text: str, place: str) -> Ds2Error | None:
    return None if text.strip() else ManifestError(f"{place}: no transcript of {audio}")


def _not_listed(audio: Path, folder: Path) -> Ds2Error:
    return MissingFileError(f"{audio}: no transcript of it in {folder}")


def _without_marks(text: str) -> str:
    """TED-LIUM writes `<unk>`, `{NOISE}` and `it 's`."""
    text = re.sub(r"<[^>]*>|\{[^}]*\}|\([0-9]+\)", " ", text)
    return " ".join(re.sub(r" '(?=\w)", "'", text).split())


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]+(\.[0-9]*)?", text) is not None
