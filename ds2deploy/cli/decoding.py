"""Options of decoding, which `transcribe` and `evaluate` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ds2deploy.cli.options import option
from ds2deploy.runtimes.errors import ConfigError

if TYPE_CHECKING:
    from ds2deploy.runtimes.decoding.decoder import MakeDecoder

DECODING = "Decoding"
"""Title of the group of these options; without any, decoding is greedy."""

Lm = Annotated[Path | None, option("FILE", "Language model; see ds2deploy lm.", DECODING)]
Decoder = Annotated[
    Path | None, option("FILE", "Settings that ds2deploy tune found, a .decoder file.", DECODING)
]
Beam = Annotated[
    int | None, option("COUNT", "Hypotheses of the beam search. Default: 64.", DECODING, min=1)
]
HotWords = Annotated[
    str | None,
    option("LIST", 'Phrases to look for: "A,B", or a file with one on each line.', DECODING),
]
Phrases = Annotated[
    Path | None,
    option("FILE", "Closed list: each utterance is one of these lines.", DECODING),
]
Lexicon = Annotated[
    Path | None,
    option("FILE", "All words that may occur, one on each line; no other is written.", DECODING),
]
NBest = Annotated[
    int | None, option("COUNT", "Alternatives in the JSON output. Default: 1.", DECODING, min=1)
]


def choose_decoder(
    decoder: Path | None = None,
    lm: Path | None = None,
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
    if all(value is None for value in (decoder, lm, beam, hot_words, phrases, lexicon, nbest)):
        return None
    import msgspec

    from ds2deploy.runtimes.decoding.beam import HOT_WORD_WEIGHT
    from ds2deploy.runtimes.decoding.config import DecoderConfig
    from ds2deploy.runtimes.decoding.decoder_file import read_decoder_file

    settings = DecoderConfig() if decoder is None else read_decoder_file(decoder)
    changes: dict[str, object] = {}
    if lm is not None:
        changes["lm"] = str(lm)
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
        changes["hot_words"] = dict.fromkeys(_hot_words(hot_words), HOT_WORD_WEIGHT)
    return msgspec.structs.replace(settings, **changes)


def _hot_words(value: str) -> list[str]:
    """Phrases of the option: of a file if there is one of this name, or between commas."""
    if _is_file(value):
        return _lines(Path(value), "--hotwords")
    found = [phrase.strip() for phrase in value.split(",") if phrase.strip()]
    if not found:
        raise ConfigError(f'--hotwords {value!r}: no phrase; expected a file, or "A,B"')
    return found


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
