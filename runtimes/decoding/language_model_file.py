"""The `.lm` file: an n-gram language model as arrays that are mapped into memory.

    bytes 0 to 11   b"ds2deploy.lm"
    uint32          length of the header
    uint32          CRC-32 of everything that follows
    header          JSON, padded with spaces so that the arrays begin at a multiple of 8
    arrays          see `layout`

An entry is an n-gram. The entries of one order follow those of the order below; within an order
they are sorted by the entry of all words but the last, then by the last word, so that `keys`
ascends from end to end. Entry 0 is the empty n-gram, entry `1 + w` the unigram of word `w`. Words
are sorted by their UTF-8 bytes. All numbers are little-endian.
"""

from __future__ import annotations

import mmap
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.errors import (
    DECODING_ERRORS,
    ModelFileError,
    missing_file,
    newer_format,
    system_reason,
)

MAGIC = b"ds2deploy.lm"
FORMAT_VERSION = 1
SUFFIX = ".lm"

UNKNOWN, START, END = "<unk>", "<s>", "</s>"
"""Words that every model has: an unknown word, the start and the end of a sentence."""

SPACE = "<space>"
"""The space between words in the vocabulary of a character model."""

PREAMBLE = len(MAGIC) + 8
"""Bytes before the header."""

REMAKE = "make it again: ds2deploy lm TEXT --out"


class TextSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that a language model was made from.

    Attributes:
        name: name of the file, without its folder.
        sha256: SHA-256 of its bytes, in hexadecimal.
    """

    name: str
    sha256: str


class LanguageModelHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Facts about a language model.

    Attributes:
        format_version: version of the file's format.
        kind: unit of the n-grams.
        labels: alphabet of the texts, as in the acoustic model: one character each, blank first.
        counts: number of n-grams of each order, unigrams first; these are the vocabulary.
        sources: files that the model was made from.
        made: method of estimation.
        created_by: name and version of the program that wrote the file.
    """

    format_version: int = FORMAT_VERSION
    kind: Literal["words", "characters"]
    labels: str
    counts: tuple[int, ...]
    sources: tuple[TextSource, ...] = ()
    made: str = ""
    created_by: str = ""

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 0 or self.counts[0] < 3:
            raise ValueError(f"counts = {self.counts}: expected 3 or more words")
        if sum(self.counts) >= 2**31 - 1:
            raise ValueError(f"counts = {self.counts}: expected a sum below 2147483647")

    @property
    def order(self) -> int:
        """Longest n-gram."""
        return len(self.counts)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First entry of each order, and the one after its last."""
        ends = np.cumsum([1, *self.counts]).tolist()
        return list(pairwise(ends))


class Arrays(NamedTuple):
    """The arrays of a model, in the order of the file.

    Attributes:
        keys: (entries,) int64, entry of all words but the last times the size of the vocabulary,
            plus the last word; -1 for entry 0.
        scores: (entries,) float32, natural logarithm of the probability of the last word.
        links: (entries,) int32, entry of the longest proper suffix that is a state: an n-gram below
            the highest order that longer ones continue, or whose back-off is not 0. The complement
            (`~entry`) where this n-gram is no state itself.
        backoffs: (entries below the highest order,) float32, natural logarithm of the back-off.
        offsets: (words + 1,) uint32, where each word begins in `text`, and its length at the end.
        text: (bytes,) uint8, the words in UTF-8 without anything between them.
    """

    keys: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    links: npt.NDArray[np.int32]
    backoffs: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.uint32]
    text: npt.NDArray[np.uint8]


def layout(counts: tuple[int, ...]) -> list[tuple[str, int]]:
    """Type and length of each of the arrays but the last, which takes the rest of the file."""
    entries = 1 + sum(counts)
    states = 1 + sum(counts[:-1])
    return [
        ("<i8", entries), ("<f4", entries), ("<i4", entries), ("<f4", states),
        ("<u4", counts[0] + 1),
    ]  # fmt: skip


class _Version(msgspec.Struct):
    format_version: int


def read_file(path: Path) -> tuple[LanguageModelHeader, Arrays]:
    """Map a file into memory, and check it: no later access can leave it or go round in a circle.

    Raises:
        MissingFileError: no such file.
        ModelFileError: not a language model, damaged, or of a newer format.
    """
    if not path.is_file():
        raise missing_file(path, "a language model (.lm)")
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ModelFileError(
                    f"{path}: not a language model of ds2deploy; make one from a file with one "
                    f"sentence per line: ds2deploy lm TEXT --out NAME{SUFFIX}"
                )
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read ({system_reason(error)}); make it readable, or copy it again"
        ) from None
    try:
        header, start = _read_header(content, path)
        arrays = _split(content, start, header.counts)
        _check(header, arrays)
    except ModelFileError:
        raise
    except (*DECODING_ERRORS, TypeError) as error:
        raise ModelFileError(f"{path}: damaged ({error}); {REMAKE} {path.name}") from None
    return header, arrays


def _read_header(content: mmap.mmap, path: Path) -> tuple[LanguageModelHeader, int]:
    """Read the header, and where the arrays begin."""
    length, checksum = np.frombuffer(content[len(MAGIC) : PREAMBLE], "<u4").tolist()
    document = content[PREAMBLE : PREAMBLE + length]
    version = msgspec.json.decode(document, type=_Version).format_version
    if version > FORMAT_VERSION:
        raise newer_format(path, "language model", version, FORMAT_VERSION)
    if zlib.crc32(memoryview(content)[PREAMBLE:]) != checksum:
        raise ValueError("wrong checksum")
    return msgspec.json.decode(document, type=LanguageModelHeader), PREAMBLE + length


def _split(content: mmap.mmap, start: int, counts: tuple[int, ...]) -> Arrays:
    arrays: list[npt.NDArray[Any]] = []
    for kind, length in layout(counts):
        arrays.append(np.frombuffer(content, kind, length, start))
        start += arrays[-1].nbytes
    arrays.append(np.frombuffer(content, np.uint8, -1, start))
    return Arrays._make(arrays)


def _check(header: LanguageModelHeader, arrays: Arrays) -> None:
    """Check that entries lead to entries of lower orders, and that all scores are numbers.

    Raises:
        ValueError: the file is damaged.
    """
    size = header.counts[0]
    keys, links = arrays.keys, arrays.links
    _require(keys[0] == -1 and bool((keys[1:] > keys[:-1]).all()), "entries out of order")
    _require(links[0] == 0 and arrays.backoffs[0] == 0, "entry 0 is wrong")
    _require(keys[1] == 0 and keys[size] == size - 1, "unigrams")
    lower = 0
    for first, end in header.blocks:
        if end > first:
            parents = int(keys[first]) // size, int(keys[end - 1]) // size
            _require(lower <= parents[0] and parents[1] < max(first, 1), "entries out of range")
            to = links[first:end]
            _require(int((to ^ (to >> 31)).max()) < first, "back-off out of range")
            _require(
                first < len(arrays.backoffs) or int(to.max()) < 0,
                "wrong states of the highest order",
            )
        lower = first
    _require(-np.inf < arrays.scores.min() and arrays.scores.max() <= 0, "probabilities")
    _require(bool(np.isfinite([arrays.backoffs.min(), arrays.backoffs.max()]).all()), "back-offs")
    offsets = arrays.offsets
    _require(bool((offsets[1:] >= offsets[:-1]).all()) and offsets[-1] == len(arrays.text), "words")


def _require(holds: bool | np.bool_, fault: str) -> None:
    if not holds:
        raise ValueError(fault)
