"""Makes a `.lm` file from text or from an ARPA file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from ds2deploy.language_models.arpa import ArpaReader
from ds2deploy.language_models.estimate import estimate
from ds2deploy.language_models.ngrams import NGrams
from ds2deploy.language_models.source_file import open_source
from ds2deploy.language_models.text import TextReader, TextReport, characters
from ds2deploy.language_models.writer import write_language_model
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.language_model_file import LanguageModelHeader, TextSource
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.version import __version__

Kind = Literal["words", "characters"]

WORD_ORDER, CHARACTER_ORDER = 4, 6
"""Longest n-grams unless another order is asked for."""

MOST_ORDER = 20


class LanguageModelOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the estimation from text.

    Attributes:
        kind: what the n-grams consist of.
        order: longest n-gram; None: 4 for words, 6 for characters.
        prune: for each order, the number of occurrences up to which an n-gram is dropped; the last
            number holds for the orders above.
    """

    kind: Kind = "words"
    order: int | None = None
    prune: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.order is not None and not 1 <= self.order <= MOST_ORDER:
            raise ConfigError(f"--order {self.order}: expected 1 to {MOST_ORDER}")
        given = ",".join(map(str, self.prune))
        if self.prune and (self.prune[0] != 0 or list(self.prune) != sorted(self.prune)):
            raise ConfigError(
                f"--prune {given}: expected 0 first, and no number lower than the one before it, "
                "such as 0,0,1"
            )
        if len(self.prune) > self.longest:
            raise ConfigError(f"--prune {given}: more numbers than orders ({self.longest})")

    @property
    def longest(self) -> int:
        """Longest n-gram."""
        if self.order is not None:
            return self.order
        return WORD_ORDER if self.kind == "words" else CHARACTER_ORDER


class LanguageModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """Account of a language model that was made.

    Attributes:
        file: the file that was written.
        size: its size in bytes.
        header: facts that the file has of itself.
        text: account of the text; None for an ARPA file.
        fallback: orders for which the text was too small to estimate discounts.
        unspellable: number of words of an ARPA file that the labels cannot spell.
    """

    file: str
    size: int
    header: LanguageModelHeader
    text: TextReport | None = None
    fallback: list[int] = []
    unspellable: int = 0


def make_language_model(
    paths: Sequence[Path],
    out: Path,
    alphabet: Alphabet,
    options: LanguageModelOptions,
    step: Callable[[str], None] = lambda _: None,
) -> LanguageModelReport:
    """Make a language model.

    Args:
        paths: text files, one sentence in a line, or one ARPA file; plain or gzip; `-` is standard
            input.
        out: file to write.
        alphabet: labels of the acoustic model.
        options: options of the estimation; of an ARPA file, only the kind has an effect.
        step: is told of each step.

    Raises:
        MissingFileError: no such file.
        TextError: a text cannot be read, or no line is in the labels.
        ModelFileError: an ARPA file is damaged.
        AlphabetError: an ARPA file is written in other labels.
        ConfigError: an ARPA file together with options of the estimation, or with other files.
    """
    if options.kind == "words" and " " not in alphabet.labels:
        raise ConfigError(
            f"labels {alphabet.labels!r}: without a space there are no words; --characters"
        )
    reader = TextReader(alphabet)
    sources: list[TextSource] = []
    for path in paths:
        step(f"reading {path}")
        with open_source(path) as source:
            if source.is_arpa:
                if len(paths) > 1 or options.order is not None or options.prune:
                    raise ConfigError(
                        f"{source.name}: an ARPA file; give it alone, without --order and --prune"
                    )
                arpa = ArpaReader(source, alphabet, options.kind == "characters")
                ngrams = arpa.read()
                header = _header(ngrams, alphabet, options.kind, [source.describe()], "from ARPA")
                write_language_model(out, ngrams, header)
                return LanguageModelReport(
                    file=str(out),
                    size=out.stat().st_size,
                    header=header,
                    unspellable=len(arpa.unspellable),
                )
            reader.read(source)
            sources.append(source.describe())
    step("normalizing")
    corpus, text = reader.finish()
    if options.kind == "characters":
        corpus = characters(corpus, alphabet)
    step("estimating")
    ngrams, fallback = estimate(*corpus, options.longest, options.prune)
    made = "interpolated modified Kneser-Ney"
    if options.prune:
        made += f", pruned {','.join(map(str, options.prune))}"
    if fallback:
        made += f", fixed discounts at order {', '.join(map(str, fallback))}"
    header = _header(ngrams, alphabet, options.kind, sources, made)
    write_language_model(out, ngrams, header)
    return LanguageModelReport(
        file=str(out), size=out.stat().st_size, header=header, text=text, fallback=fallback
    )


def _header(
    ngrams: NGrams, alphabet: Alphabet, kind: Kind, sources: list[TextSource], made: str
) -> LanguageModelHeader:
    return LanguageModelHeader(
        kind=kind,
        labels=alphabet.labels,
        counts=tuple(len(order.word) for order in ngrams.orders),
        sources=tuple(sources),
        made=made,
        created_by=f"ds2deploy {__version__}",
    )
