"""Language models for the tests, and n-grams as a dictionary and as an ARPA file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from ds2deploy.language_models.estimate import estimate
from ds2deploy.language_models.make import LanguageModelOptions, make_language_model
from ds2deploy.language_models.ngrams import NGrams
from ds2deploy.language_models.source_file import SourceFile
from ds2deploy.language_models.text import Corpus, TextReader, characters
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.language_model import LanguageModel, read_language_model

LICENSE = Path(__file__).resolve().parents[3] / "LICENSE"
"""A text of 1,468 words that everyone has."""

SMALL = "A ROSE IS A ROSE\nIS A ROSE A FLOWER\nTHE ROSE IS RED\n"


def read_corpus(text: str, kind: str = "words", labels: str | None = None) -> Corpus:
    alphabet = Alphabet(labels) if labels else Alphabet()
    reader = TextReader(alphabet)
    reader.read(SourceFile(Path("text"), io.BytesIO(text.encode())))
    corpus, _ = reader.finish()
    return corpus if kind == "words" else characters(corpus, alphabet)


def ngrams_of(text: str, order: int, kind: str = "words", prune: tuple[int, ...] = ()) -> NGrams:
    return estimate(*read_corpus(text, kind), order, prune).ngrams


def model_of(
    source: Path | str, folder: Path, labels: str | None = None, **options: object
) -> LanguageModel:
    """Make a model from a file, or from a text."""
    if isinstance(source, str):
        text, source = source, folder / "text.txt"
        source.write_text(text, "utf-8")
    alphabet = Alphabet(labels) if labels else Alphabet()
    out = folder / f"{source.name}.lm"
    make_language_model([source], out, alphabet, LanguageModelOptions(**options))  # type: ignore[arg-type]
    return read_language_model(out)


def entries(ngrams: NGrams) -> Iterator[list[tuple[str, float, float]]]:
    """For each order, (words, log10 of the probability, log10 of the back-off)."""
    grams: list[str] = []
    for order in ngrams.orders:
        last = [ngrams.words[i] for i in order.word]
        prefixes = [grams[i] + " " for i in order.prefix] if grams else [""] * len(last)
        grams = [prefix + word for prefix, word in zip(prefixes, last, strict=True)]
        yield list(zip(grams, order.score.tolist(), order.backoff.tolist(), strict=True))


def arpa_text(ngrams: NGrams) -> str:
    orders = list(entries(ngrams))
    lines = ["\\data\\", *(f"ngram {n}={len(order)}" for n, order in enumerate(orders, 1))]
    for n, order in enumerate(orders, 1):
        lines += ["", f"\\{n}-grams:"]
        highest = n == len(orders)
        lines += [f"{p:.9g}\t{g}" + ("" if highest else f"\t{b:.9g}") for g, p, b in order]
    return "\n".join([*lines, "", "\\end\\", ""])


def backed_off(table: dict[str, tuple[float, float]], history: list[str], word: str) -> float:
    """log10 of a probability by the definition of back-off models."""
    gram = " ".join([*history, word])
    if gram in table:
        return table[gram][0]
    if not history:
        return table["<unk>"][0]
    return table.get(" ".join(history), (0.0, 0.0))[1] + backed_off(table, history[1:], word)
