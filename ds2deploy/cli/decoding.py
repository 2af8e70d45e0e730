"""Options of decoding, which `transcribe` and `evaluate` share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ds2deploy.cli.options import option
from ds2deploy.runtimes.errors import ConfigError, MissingFileError

if TYPE_CHECKING:
    from ds2deploy.runtimes.decoding.decoder import MakeDecoder

DECODING = "Decoding"
"""Title of the group of these options; without any, decoding is greedy."""

LM_HELP = (
    "Language model, see ds2deploy lm; may be given twice, for one of words and one of characters."
)
HOT_WORDS_HELP = (
    'Phrases to look for: "A,B", or a file with one on each line; A:1.2 has the weight 1.2 (nats '
    "for every letter). Default weight: 0.8."
)
NBEST_HELP = "Alternatives in the JSON output; needs --json. Default: 1."
PATH_LIKE = re.compile(r"[/\\]|\.[a-z]\w{1,4}$")
"""Names that are meant as a file: with a folder, or a suffix in small letters."""

WEIGHTED = re.compile(r"(.*\S)\s*:\s*([-+]?(?:\d+\.?\d*|\.\d+))")
"""A phrase and its weight, which stands behind the last colon."""

Lm = Annotated[list[Path] | None, option("FILE", LM_HELP, DECODING)]
Decoder = Annotated[
    Path | None, option("FILE", "Settings that ds2deploy tune found, a .decoder file.", DECODING)
]
Beam = Annotated[
    int | None, option("COUNT", "Hypotheses of the beam search. Default: 64.", DECODING, min=1)
]
HotWords = Annotated[str | None, option("LIST", HOT_WORDS_HELP, DECODING)]
Phrases = Annotated[
    Path | None,
    option("FILE", "Closed list: each utterance is one of these lines.", DECODING),
]
Lexicon = Annotated[
    Path | None,
    option("FILE", "All words that may occur, one on each line; no other is written.", DECODING),
]
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
    """Make the decoder of the options; None, which is greedy decoding, without any.

    Raises:
        MissingFileError, ModelFileError, ConfigError: a file that is not there, or damaged.
    """
    given = (decoder, lm or None, beam, hot_words, phrases, lexicon, nbest)
    if all(value is None for value in given):
        return None
    import msgspec

    from ds2deploy.runtimes.decoding.config import DecoderConfig, one_or_all
    from ds2deploy.runtimes.decoding.decoder_file import read_decoder_file

    settings = DecoderConfig() if decoder is None else read_decoder_file(decoder)
    changes: dict[str, object] = {}
    if lm:
        if settings.lm is not None:
            raise ConfigError(
                f"--lm {lm[0]}: {decoder} has weights that were tuned for {settings.lm}; leave "
                "--lm out, or tune again with this one: ds2deploy tune MODEL MANIFEST --lm"
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
    """Read phrases and weights from a file if there is one of this name, or between commas."""
    if _is_file(value):
        found = _lines(Path(value), "--hotwords")
    elif "," not in value and PATH_LIKE.search(value):
        raise MissingFileError(
            f'--hotwords {value}: no such file; expected one with a phrase on each line, or "A,B"'
        )
    else:
        found = [phrase.strip() for phrase in value.split(",") if phrase.strip()]
    if not found:
        raise ConfigError(f'--hotwords {value!r}: no phrase; expected a file, or "A,B"')
    return dict(map(_with_weight, found))


def _with_weight(entry: str) -> tuple[str, float]:
    """Split an entry into its phrase and its weight; the usual one where it has none."""
    from ds2deploy.runtimes.decoding.decoder import HOT_WORD_WEIGHT

    if (match := WEIGHTED.fullmatch(entry)) is None:
        return entry, HOT_WORD_WEIGHT
    return match[1], float(match[2])


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except OSError:  # longer than a name may be
        return False


def _lines(path: Path, name: str) -> list[str]:
    from ds2deploy.text_files import read_text, text_lines

    text = read_text(path, "one entry on each line")
    found = [line.strip() for line in text_lines(text) if line.strip()]
    if not found:
        raise ConfigError(f"{name} {path}: no line in it; write one entry on each")
    return found
