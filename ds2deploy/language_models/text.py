"""Conversion of text to ids of words or characters, spelt with the labels of an acoustic model."""

from __future__ import annotations

import io
from array import array
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from ds2deploy.data.text_normalization import Change, TextNormalizer
from ds2deploy.language_models.ngrams import Ids
from ds2deploy.language_models.source_file import SourceFile
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.language_model_file import END, SPACE, START, UNKNOWN
from ds2deploy.runtimes.errors import TextError
from ds2deploy.text_files import UTF_16

SPECIAL = (UNKNOWN, START, END)

BREAK = -1
"""Id that marks the end of a line."""

EXAMPLES = 5
"""Maximum number of skipped lines whose positions are reported."""


class TextReport(msgspec.Struct, frozen=True, kw_only=True):
    """Report of the lines that were read.

    Attributes:
        sentences: number of lines that are used.
        words: number of words in the used lines.
        left_out: number of lines with a character that has no label and no replacement.
        examples: positions of the first of these lines.
        characters: characters without a label, with their replacements.
    """

    sentences: int
    words: int
    left_out: int
    examples: list[str]
    characters: list[Change]


class Corpus(NamedTuple):
    """Sentences as ids.

    Attributes:
        ids: (words,) ids with `<s>` and `</s>` around each sentence.
        words: vocabulary in the order of its UTF-8 bytes.
    """

    ids: Ids
    words: list[str]


class TextReader:
    """Reader of text files with one sentence per line.

    Tokens are separated by white space; each distinct token is normalised only once.

    Args:
        alphabet: labels of the acoustic model.
    """

    def __init__(self, alphabet: Alphabet) -> None:
        self._alphabet = alphabet
        self._tokens: defaultdict[str, int] = defaultdict()
        self._tokens.default_factory = self._tokens.__len__
        self._ids = array("i")  # ids of tokens, with BREAK after each line
        self._places = array("q")  # number of each line in its file
        self._files: list[tuple[int, str]] = []  # first line of each file in all, and its name

    def read(self, source: SourceFile) -> None:
        """Read a file to its end.

        Raises:
            TextError: the file is not text.
        """
        self._files.append((len(self._places), source.name))
        tokens = self._tokens
        for number, line in enumerate(_decoded(source), 1):
            if words := line.split():
                self._ids.extend([tokens[word] for word in words])
                self._ids.append(BREAK)
                self._places.append(number)

    def finish(self) -> tuple[Corpus, TextReport]:
        """Normalise the text, and leave out lines that the labels cannot spell.

        Raises:
            TextError: no line is left.
        """
        ids = np.array(self._ids, np.int32)
        normalizer = TextNormalizer(self._alphabet)
        times = np.bincount(ids[ids != BREAK], minlength=len(self._tokens)).tolist()
        spelled = [
            normalizer.normalize(token, count)
            for token, count in zip(self._tokens, times, strict=True)
        ]
        faults = {i: fault for i, text in enumerate(spelled) if (fault := self._fault(text))}
        segments = [[] if i in faults else text.split() for i, text in enumerate(spelled)]
        kept, left_out = self._choose(ids, segments, faults)
        examples = [self._example(line, ids, faults) for line in left_out[:EXAMPLES]]
        if not kept.any():
            names = ", ".join(name for _, name in self._files)
            raise TextError(
                f"{names}: no line can be spelled with the labels {self._alphabet.labels[1:]!r}"
                f"{f' ({examples[0]})' if examples else ''}; give other text, or --labels MODEL"
            )
        used = np.unique(ids[kept & (ids != BREAK)]).tolist()
        words = sorted({*SPECIAL}.union(*(segments[token] for token in used)))
        index = {word: i for i, word in enumerate(words)}
        numbered: list[list[int]] = [[] for _ in segments]
        for token in used:
            numbered[token] = [index[word] for word in segments[token]]
        result = _expand(ids[kept], [*numbered, [index[END], index[START]]])
        result = np.concatenate([result[-1:], result[:-1]])  # the last <s> is the first one's
        sentences = int((ids[kept] == BREAK).sum())
        report = TextReport(
            sentences=sentences,
            words=len(result) - 2 * sentences,
            left_out=len(left_out),
            examples=examples,
            characters=normalizer.changes,
        )
        return Corpus(result, words), report

    def _fault(self, text: str) -> str:
        """Explain why the labels cannot spell a normalised token; empty if they can."""
        if text in SPECIAL:
            return f"{text} is a reserved word"
        unknown = self._alphabet.unknown(text)
        return f"no label for {', '.join(map(repr, unknown))}" if unknown else ""

    def _choose(
        self, ids: Ids, segments: list[list[str]], faults: dict[int, str]
    ) -> tuple[npt.NDArray[np.bool_], list[int]]:
        """Select the ids of the used lines; also return the lines that are left out."""
        breaks = ids == BREAK
        line = np.cumsum(breaks) - breaks
        widths = np.array([*map(len, segments), 0])
        bad = np.zeros(len(widths), bool)
        bad[list(faults)] = True
        lines = len(self._places)
        words = np.bincount(line, widths[ids], lines)
        left_out = np.bincount(line, bad[ids], lines) > 0
        if " " not in self._alphabet.labels:
            left_out |= words > 1
        return (~left_out & (words > 0))[line], np.flatnonzero(left_out).tolist()

    def _example(self, line: int, ids: Ids, faults: dict[int, str]) -> str:
        """Describe the position of a line that is left out, and the reason."""
        name = next(name for first, name in reversed(self._files) if first <= line)
        ends = np.flatnonzero(ids == BREAK)
        tokens = ids[ends[line - 1] + 1 if line else 0 : ends[line]].tolist()
        fault = next((faults[token] for token in tokens if token in faults), "no label for ' '")
        return f"{name}: line {self._places[line]}: {fault}"


def characters(corpus: Corpus, alphabet: Alphabet) -> Corpus:
    """Split words into characters, with `<space>` between the words of a sentence."""
    between = [SPACE] if " " in alphabet.labels else []
    segments = [[word] if word in SPECIAL else [*word, *between] for word in corpus.words]
    known = sorted({*SPECIAL, *between}.union(*segments))
    index = {character: i for i, character in enumerate(known)}
    ids = _expand(corpus.ids, [[index[c] for c in segment] for segment in segments])
    if between:
        last = np.zeros(len(ids), bool)
        last[:-1] = (ids[:-1] == index[SPACE]) & (ids[1:] == index[END])
        ids = ids[~last]
    return Corpus(ids, known)


def _decoded(source: SourceFile) -> Iterator[str]:
    """Decode the lines of a file in UTF-8, or in UTF-16 with a byte order mark."""
    is_utf_16 = source.lines.peek(2).startswith(UTF_16)
    text = io.TextIOWrapper(source.lines, "utf-16" if is_utf_16 else "utf-8-sig")
    try:
        yield from text
    except UnicodeDecodeError:
        raise TextError(
            f"{source.name}: not UTF-8 text; convert it: iconv -f ISO-8859-1 -t UTF-8"
        ) from None
    finally:
        text.detach()


def _expand(ids: Ids, segments: list[list[int]]) -> Ids:
    """Replace each id by a segment of other ids; BREAK is replaced by the last segment."""
    lengths = np.array([len(segment) for segment in segments])
    flat = np.array([i for segment in segments for i in segment], np.int32)
    taken = lengths[ids]
    ends = np.cumsum(taken)
    offsets = np.repeat((np.cumsum(lengths) - lengths)[ids] - (ends - taken), taken)
    expanded: Ids = flat[np.arange(len(offsets)) + offsets]
    return expanded
