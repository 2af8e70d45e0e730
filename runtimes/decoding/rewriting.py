"""Decoder whose words are rewritten, such as to small letters or digits, or left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import msgspec

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.decoder import Decoder, HotWordDecoder, MakeDecoder, with_hot_words
from ds2deploy.runtimes.decoding.greedy import GreedyDecoder
from ds2deploy.runtimes.decoding.making import make_decoder
from ds2deploy.runtimes.decoding.transcript import Transcript, Update, Word
from ds2deploy.runtimes.features import FloatArray


def rewrite_words(
    decoder: MakeDecoder | str | Path | None, rewrite: Callable[[str], str]
) -> MakeDecoder:
    """Rewrite the words of any decoder: `load(..., decoder=rewrite_words(None, str.lower))`.

    Args:
        decoder: settings, path of a `.decoder` file, or class, as for `load`; None for greedy
            decoding.
        rewrite: function that returns the new text of a word; an empty text removes the word. It
            may be called several times for a word, and must always return the same text.

    Returns:
        A function that makes the decoder, for the argument `decoder` of `load`.

    Raises:
        MissingFileError, ModelFileError, ConfigError: see `load`.
    """
    make = make_decoder(decoder) or GreedyDecoder

    def made(alphabet: Alphabet, frame_s: float) -> RewritingDecoder:
        return RewritingDecoder(make(alphabet, frame_s), rewrite)

    return made


class RewritingDecoder:
    """Rewrites the words of another decoder; see `HotWordDecoder` for its methods.

    Times, confidence and scores do not change, and `chars` are the recognised labels. Write hot
    words with the labels of the model.

    Args:
        decoder: any decoder.
        rewrite: see `rewrite_words`.
    """

    def __init__(self, decoder: Decoder, rewrite: Callable[[str], str]) -> None:
        self._decoder, self._rewrite = decoder, rewrite

    def start(self, live: bool = False) -> Any:
        """See `Decoder`."""
        return self._decoder.start(live)

    def advance(self, states: Sequence[Any], blocks: Sequence[FloatArray]) -> None:
        """See `Decoder`."""
        self._decoder.advance(states, blocks)

    def update(self, state: Any, duration_s: float = float("inf")) -> Update:
        """See `Decoder`."""
        found = self._decoder.update(state, duration_s)
        return msgspec.structs.replace(
            found,
            stable=self._text(found.stable),
            tail=self._text(found.tail),
            words=self._words(found.words),
            tail_words=self._words(found.tail_words),
        )

    def finish(self, state: Any, duration_s: float) -> Transcript:
        """See `Decoder`; alternatives are rewritten too."""
        found = self._decoder.finish(state, duration_s)
        alternatives = tuple(
            msgspec.structs.replace(one, text=self._text(one.text)) for one in found.alternatives
        )
        return msgspec.structs.replace(
            found,
            text=self._text(found.text),
            words=self._words(found.words),
            alternatives=alternatives,
        )

    def with_hot_words(self, phrases: Mapping[str, float]) -> RewritingDecoder:
        """See `HotWordDecoder`.

        Raises:
            ConfigError: the other decoder has no hot words.
        """
        other = copy(self)
        other._decoder = with_hot_words(self._decoder, phrases)
        return other

    def take_hot_words(self, state: Any) -> None:
        """See `HotWordDecoder`."""
        assert isinstance(self._decoder, HotWordDecoder)
        self._decoder.take_hot_words(state)

    def _text(self, text: str) -> str:
        return " ".join(filter(None, map(self._rewrite, text.split())))

    def _words(self, words: Sequence[Word]) -> tuple[Word, ...]:
        written = ((word, self._rewrite(word.text)) for word in words)
        return tuple(msgspec.structs.replace(word, text=text) for word, text in written if text)
