"""Making of a `.lm` file from text or an ARPA file."""

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
"""Default order of each kind of model."""

MOST_ORDER = 20


class LanguageModelOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the estimation from text.

    Attributes:
        kind: unit of the n-grams, `words` or `characters`.
        order: length of the longest n-gram; None means 4 words or 6 characters.
        prune: for each order, the number of occurrences up to which an n-gram is dropped; the last
            number also applies to higher orders.
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
                f"--prune {given}: expected 0 first, and then equal or larger numbers, such as "
                "0,0,1"
            )
        if len(self.prune) > self.longest:
            raise ConfigError(
                f"--prune {given}: expected at most {self.longest} numbers, one for each order"
            )

    @property
    def longest(self) -> int:
        """Length of the longest n-gram."""
        if self.order is not None:
            return self.order
        return WORD_ORDER if self.kind == "words" else CHARACTER_ORDER


class LanguageModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """Report of a language model that was made.

    Attributes:
        file: path of the file that was written.
        size: size of the file, in bytes.
        header: header of the file.
        text: report of the text; None for an ARPA file.
        fallback: orders for which the text was too small to estimate discounts.
        unspellable: number of words of an ARPA file with characters that have no label.
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
        paths: text files with one sentence per line, or one ARPA file; plain or gzip; `-` is
            standard input.
        out: file to write.
        alphabet: labels of the acoustic model.
        options: options of the estimation; only the kind applies to an ARPA file.
        step: function that is called with a description of each step.

    Raises:
        MissingFileError: a file does not exist.
        TextError: a text cannot be read, or the labels can spell none of its lines.
        ModelFileError: an ARPA file is damaged.
        AlphabetError: an ARPA file uses other labels.
        ConfigError: an ARPA file is combined with options of the estimation or with other files.
    """
    if options.kind == "words" and " " not in alphabet.labels:
        raise ConfigError(
            f"labels {alphabet.labels!r}: a word model needs a space among them; add --characters"
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
