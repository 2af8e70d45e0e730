"""The command `ds2deploy lm`, which makes a language model from text or an ARPA file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ds2deploy.cli.errors import complain
from ds2deploy.cli.options import Json, argument, flag, option
from ds2deploy.heartbeat import status
from ds2deploy.output import print_json
from ds2deploy.runtimes.errors import ConfigError

if TYPE_CHECKING:
    from ds2deploy.language_models.make import LanguageModelReport

TEXT_HELP = "Text files with one sentence per line, or one ARPA file; may be gzipped; - is stdin."
OUT_HELP = "Language model file to write; the name must end in .lm."
ORDER_HELP = "Length of the longest n-gram. Default: 4 words, or 6 characters with --characters."
CHARACTERS_HELP = "Make a character model instead of a word model."
PRUNE_HELP = (
    "Drop n-grams that occur this many times or fewer: one number per order, the last one also "
    "for higher orders. Default: 0 (drop none)."
)
LABELS_HELP = (
    "Labels of the acoustic model: a model file, or the labels as one string, blank first. "
    "Default: English letters."
)


def lm(
    texts: Annotated[list[Path], argument("TEXT", TEXT_HELP)],
    out: Annotated[Path, option("FILE", OUT_HELP)],
    order: Annotated[int | None, option("COUNT", ORDER_HELP)] = None,
    characters: Annotated[bool, flag("--characters", CHARACTERS_HELP)] = False,
    prune: Annotated[str, option("COUNTS", PRUNE_HELP)] = "",
    labels: Annotated[str | None, option("MODEL", LABELS_HELP)] = None,
    json: Json = False,
) -> None:
    """Make a language model from text or an ARPA file.

    Text is normalised to the labels as by prepare --normalize. Lines that still contain a
    character without a label are skipped and counted.

    Example: ds2deploy lm sentences.txt --out words.lm --labels model.onnx

    Characters: ds2deploy lm sentences.txt --out characters.lm --characters
    """
    from ds2deploy.language_models.make import LanguageModelOptions, make_language_model
    from ds2deploy.loading import read_labels
    from ds2deploy.runtimes.alphabet import ENGLISH, Alphabet
    from ds2deploy.runtimes.decoding.language_model_file import SUFFIX

    if out.suffix != SUFFIX:
        raise ConfigError(f"--out {out}: expected a name that ends in {SUFFIX}")
    options = LanguageModelOptions(
        kind="characters" if characters else "words", order=order, prune=_counts(prune)
    )
    alphabet = Alphabet(ENGLISH if labels is None else read_labels(labels))
    with status(f"making {out}") as step:
        report = make_language_model(texts, out, alphabet, options, step)
    if json:
        print_json(report)
    else:
        _print_report(report)
    if report.text is not None and (left_out := report.text.left_out):
        complain(
            f"{left_out} line{'s' if left_out > 1 else ''} left out because of characters without "
            f"a label; first: {report.text.examples[0]}"
        )


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ConfigError(f"--prune {text}: expected whole numbers, such as 0,0,1") from None


def _print_report(report: LanguageModelReport) -> None:
    header = report.header
    if report.text is not None:
        text = report.text
        typer.echo(f"{text.sentences} sentences, {text.words} words")
        for change in text.characters:
            typer.echo(str(change))
    if report.unspellable:
        typer.echo(f"{report.unspellable} words contain characters without a label")
    if report.fallback:
        orders = ", ".join(map(str, report.fallback))
        typer.echo(f"fixed discounts at order {orders}: there is too little text to estimate them")
    grams = ", ".join(f"{count} {n}-grams" for n, count in enumerate(header.counts, 1))
    typer.echo(f"{report.file}  {report.size / 1e6:.1f} MB, {header.kind}, {grams}")
