"""Decoding options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ds2deploy.cli.options import option
from ds2deploy.runtimes.errors import ConfigError, MissingFileError

if TYPE_CHECKING:
    from ds2deploy.runtimes.decoding.decoder import MakeDecoder

DECODING = "Decoding"
"""Title of the group of decoding options; decoding is greedy if none of them is given."""

LM_HELP = (
    "Language model (.lm) made by ds2deploy lm. Give the option twice to combine a word model and "
    "a character model."
)
DECODER_HELP = "Settings file (.decoder) written by ds2deploy tune."
BEAM_HELP = (
    "Turns on a beam search that keeps this number of hypotheses. Default: 64 if another of these "
    "options turns it on, else greedy decoding."
)
HOT_WORDS_HELP = (
    'Phrases to prefer: "A,B", or a file with one phrase per line. "A:1.2" sets the weight of A '
    "(nats per letter). Default weight: 0.8."
)
PHRASES_HELP = "File of allowed transcripts, one per line; every result is one of them."
LEXICON_HELP = "File of allowed words, one per line; results contain no other words."
NBEST_HELP = "Number of alternatives in the JSON output; requires --json. Default: 1."
PATH_LIKE = re.compile(r"[/\\]|\.[a-z]\w{1,4}$")
"""Pattern of values that look like a path: they contain a slash or end in a lower-case suffix."""

WEIGHTED = re.compile(r"(.*\S)\s*:\s*([-+]?(?:\d+\.?\d*|\.\d+))")
"""Pattern of a phrase with a weight after its last colon."""

Lm = Annotated[list[Path] | None, option("FILE", LM_HELP, DECODING)]
Decoder = Annotated[Path | None, option("FILE", DECODER_HELP, DECODING)]
Beam = Annotated[int | None, option("COUNT", BEAM_HELP, DECODING, min=1)]
HotWords = Annotated[str | None, option("LIST", HOT_WORDS_HELP, DECODING)]
Phrases = Annotated[Path | None, option("FILE", PHRASES_HELP, DECODING)]
Lexicon = Annotated[Path | None, option("FILE", LEXICON_HELP, DECODING)]
NBest = Annotated[int | None, option("COUNT", NBEST_HELP, DECODING, min=1)]


def choose_decoder(
    decoder: Path | None = None,
    lm: list[Path] | None = None,
    beam: int | None = None,
    hot_words: str | None = None,
    phrases: Path | None = None,
    lexicon: Path | None = None,
    nbest: int | None = None,
) -> MakeDecoder | None:
    """Make the decoder that the options describe.

    Returns:
        The decoder's settings; None, which means greedy decoding, if no option is given.

    Raises:
        MissingFileError: a file does not exist.
        ModelFileError, ConfigError: a file is damaged, or options contradict each other.
    """
    given = (decoder, lm or None, beam, hot_words, phrases, lexicon, nbest)
    if all(value is None for value in given):
        return None
    import msgspec

    from ds2deploy.runtimes.decoding.config import DecoderConfig, as_tuple, one_or_all
    from ds2deploy.runtimes.decoding.decoder_file import read_decoder_file

    settings = DecoderConfig() if decoder is None else read_decoder_file(decoder)
    changes: dict[str, object] = {}
    if lm:
        if settings.lm is not None:
            raise ConfigError(
                f"--lm {lm[0]}: {decoder} was tuned with {', '.join(as_tuple(settings.lm))}; omit "
                f"--lm, or tune again: ds2deploy tune MODEL MANIFEST --lm {lm[0]}"
            )
        changes["lm"] = one_or_all([str(path) for path in lm])
    if beam is not None:
        changes["beam"] = beam
    if nbest is not None:
        changes["nbest"] = nbest
    if phrases is not None:
        changes["phrases"] = tuple(_lines(phrases, "--phrases"))
    if lexicon is not None:
        words = dict.fromkeys(" ".join(_lines(lexicon, "--lexicon")).split())
        changes |= {"lexicon": tuple(words), "unknown_letter": None}
    if hot_words is not None:
        changes["hot_words"] = _hot_words(hot_words)
    return msgspec.structs.replace(settings, **changes)


def _hot_words(value: str) -> dict[str, float]:
    """Read phrases and weights from the file of this name, or from a comma-separated list."""
    if _is_file(value):
        found = _lines(Path(value), "--hotwords")
    elif "," not in value and PATH_LIKE.search(value):
        raise MissingFileError(
            f'--hotwords {value}: no such file; expected a file with one phrase per line, or "A,B"'
        )
    else:
        found = [phrase.strip() for phrase in value.split(",") if phrase.strip()]
    if not found:
        raise ConfigError(f'--hotwords {value!r}: contains no phrase; expected a file, or "A,B"')
    return dict(map(_with_weight, found))


def _with_weight(entry: str) -> tuple[str, float]:
    """Split an entry into its phrase and its weight, which defaults to `HOT_WORD_WEIGHT`."""
    from ds2deploy.runtimes.decoding.decoder import HOT_WORD_WEIGHT

    if (match := WEIGHTED.fullmatch(entry)) is None:
        return entry, HOT_WORD_WEIGHT
    return match[1], float(match[2])


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except OSError:  # the value is longer than a file name may be
        return False


def _lines(path: Path, name: str) -> list[str]:
    from ds2deploy.text_files import read_text, text_lines

    text = read_text(path, "one entry per line")
    found = [line.strip() for line in text_lines(text) if line.strip()]
    if not found:
        raise ConfigError(f"{name} {path}: empty; write one entry per line")
    return found
