"""Recognition that is watched: partial results on a terminal, in a pipe, or as lines of JSON."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

import msgspec

from ds2deploy.runtimes.audio.loading import read_blocks
from ds2deploy.runtimes.decoding.greedy import Transcript
from ds2deploy.runtimes.decoding.greedy_stream import Update
from ds2deploy.runtimes.errors import Ds2Error
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.pipeline import AudioInput, readable
from ds2deploy.runtimes.recognizer import Recognizer

PIECE_S = 0.1
"""Of a recording at a time: so that partial results come as they would from a microphone."""


class Display(Protocol):
    """Shows what a stream comes to."""

    def update(self, update: Update) -> None:
        """Something may be new."""

    def finish(self, transcript: Transcript) -> None:
        """The utterance is over."""

    def break_off(self) -> None:
        """Recognition ends before the utterance does; what was certain stands."""


def follow(
    recognizer: Recognizer,
    pieces: Iterable[FloatArray],
    sample_rate: float,
    display: Display,
    name: str = "stream",
) -> Transcript:
    """Recognise audio as it comes.

    An interrupt (Ctrl-C) while it waits for audio ends the utterance, and what was said up to
    there is recognised.

    Args:
        recognizer: of a model that can stream.
        pieces: (samples,) or (samples, channels) float32, of any size.
        sample_rate: of them, in Hz.
        display: is told of everything that is new.
        name: of the recording, for errors.

    Raises:
        StreamError: the model, or the artifact, is one of whole utterances.
        AudioError, MissingFileError: of the audio.
    """
    with recognizer.stream(sample_rate, name) as stream:
        try:
            with suppress(KeyboardInterrupt):
                for piece in pieces:
                    display.update(stream.accept(piece))
            transcript = stream.finish()
        except Ds2Error:
            display.break_off()
            raise
    display.finish(transcript)
    return transcript


def recording_pieces(path: Path, sample_rate: int) -> Iterator[FloatArray]:
    """A recording in small pieces: (samples,) float32 at the rate."""
    size = int(PIECE_S * sample_rate)
    for block in readable(AudioInput(str(path), read_blocks(path, sample_rate))):
        for start in range(0, len(block), size):
            yield block[start : start + size]


class WordDisplay:
    """Writes each word when it is certain; for pipes and files."""

    def __init__(self, out: TextIO, prefix: str = "") -> None:
        self._out, self._prefix, self._written = out, prefix, 0

    def update(self, update: Update) -> None:
        """See `Display`."""
        self._write([word.text for word in update.words])

    def finish(self, transcript: Transcript) -> None:
        """See `Display`."""
        self._write([word.text for word in transcript.words[self._written :]])
        self._out.write("\n" if self._written else f"{self._prefix}\n")
        self._out.flush()

    def break_off(self) -> None:
        """See `Display`."""
        if self._written:
            self._out.write("\n")
            self._out.flush()

    def _write(self, words: list[str]) -> None:
        if words:
            self._out.write((" " if self._written else self._prefix) + " ".join(words))
            self._out.flush()
            self._written += len(words)


class LineDisplay:
    """A live line on a terminal: what is certain, and dimmed the word that may grow."""

    CLEAR, DIM, PLAIN = "\r\x1b[K", "\x1b[2m", "\x1b[0m"

    def __init__(self, out: TextIO, prefix: str = "") -> None:
        self._out, self._line, self._written = out, prefix, 0
        self._shown = ""

    def update(self, update: Update) -> None:
        """See `Display`."""
        self._add([word.text for word in update.words])
        tail = update.tail[: max(0, self._width() - len(self._line) - 1)]
        space = " " if self._line and tail else ""
        shown = f"{self._line}{space}" + (f"{self.DIM}{tail}{self.PLAIN}" if tail else "")
        if shown != self._shown:
            self._shown = shown
            self._out.write(f"{self.CLEAR}{shown}")
            self._out.flush()

    def finish(self, transcript: Transcript) -> None:
        """See `Display`."""
        self._add([word.text for word in transcript.words[self._written :]])
        self._out.write(f"{self.CLEAR}{self._line}\n")
        self._out.flush()

    def break_off(self) -> None:
        """See `Display`."""
        self._out.write(f"{self.CLEAR}{self._line}\n" if self._written else self.CLEAR)
        self._out.flush()

    def _add(self, words: list[str]) -> None:
        for word in words:
            if self._line and len(self._line) + 1 + len(word) > self._width():
                self._out.write(f"{self.CLEAR}{self._line}\n")
                self._line = ""
            self._line += (" " if self._line and not self._line.endswith("\t") else "") + word
        self._written += len(words)

    def _width(self) -> int:
        return shutil.get_terminal_size().columns - 1


class JsonDisplay:
    """One JSON object a line: words that are new and the tail; at the end the whole transcript."""

    def __init__(self, write: Callable[[Any], None], audio: str) -> None:
        self._write, self._audio, self._tail = write, audio, ""

    def update(self, update: Update) -> None:
        """See `Display`."""
        if update.words or update.tail != self._tail:
            self._tail = update.tail
            words = msgspec.to_builtins(update.words)
            self._write({"audio": self._audio, "final": False, "words": words, "tail": update.tail})

    def finish(self, transcript: Transcript) -> None:
        """See `Display`."""
        self._write({"audio": self._audio, "final": True, **msgspec.to_builtins(transcript)})

    def break_off(self) -> None:
        """See `Display`."""
