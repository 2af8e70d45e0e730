"""Displays of partial results: on a terminal, in a pipe, or as lines of JSON."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TextIO

import msgspec

from ds2deploy.output import escape_control, print_json
from ds2deploy.runtimes.audio.loading import read_blocks
from ds2deploy.runtimes.decoding.transcript import Transcript, Update
from ds2deploy.runtimes.errors import Ds2Error
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.preparation import AudioInput, readable
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.streaming.endpoint import Endpoint

PIECE_S = 0.1
"""Length of the pieces that a recording is fed in, in seconds, as a microphone would."""


class Display(Protocol):
    """Display of the partial results of a stream."""

    def update(self, update: Update) -> None:
        """Show the new words, and the tail that may still change."""

    def finish(self, transcript: Transcript) -> None:
        """Show the rest of an utterance or segment, and end it; another may follow."""

    def abort(self) -> None:
        """End early after an error, and keep the words that were shown."""


def make_display(path: Path, json: bool, several: bool) -> Display:
    """Choose the display of one recording: JSON, a terminal line, or words for a pipe.

    Args:
        path: path of the recording, for its name.
        json: print JSON.
        several: begin each line with the name, because the command has several recordings.
    """
    if json:
        return JsonDisplay(str(path))
    prefix = f"{escape_control(str(path))}\t" if several else ""
    kind = LineDisplay if sys.stdout.isatty() else WordDisplay
    return kind(sys.stdout, prefix)


def follow(
    recognizer: Recognizer,
    pieces: Iterable[FloatArray],
    sample_rate: float,
    display: Display,
    name: str = "stream",
    endpoint: Endpoint | None = None,
) -> Transcript:
    """Recognise audio as it arrives, and display partial results.

    An interrupt (Ctrl-C) during the wait for audio ends the utterance; the audio up to there is
    still recognised.

    Args:
        recognizer: recognizer of a model that can stream.
        pieces: (samples,) or (samples, channels) float32, of any size.
        sample_rate: sample rate of the pieces, in Hz.
        display: display to update after every piece.
        name: name of the recording, for errors.
        endpoint: rules for the end of a segment; each segment is displayed on its own. None
            makes the whole audio one segment.

    Returns:
        The transcript of the last segment, which is the whole audio without `endpoint`.

    Raises:
        StreamError: the model or the artifact only processes whole utterances.
        AudioError, MissingFileError: the audio cannot be read.
    """
    segments = 0
    with recognizer.stream(sample_rate, name, endpoint=endpoint) as stream:
        try:
            with suppress(KeyboardInterrupt):
                for piece in pieces:
                    update = stream.accept(piece)
                    for segment in update.segments:
                        display.finish(segment)
                    segments += len(update.segments)
                    display.update(update)
            transcript = stream.finish()
        except Ds2Error:
            display.abort()
            raise
    if transcript.text or not segments:
        display.finish(transcript)
    return transcript


def recording_pieces(path: Path, sample_rate: int) -> Iterator[FloatArray]:
    """Read a recording in small pieces: (samples,) float32 at the sample rate (Hz)."""
    size = int(PIECE_S * sample_rate)
    for block in readable(AudioInput(str(path), read_blocks(path, sample_rate))):
        for start in range(0, len(block), size):
            yield block[start : start + size]


class WordDisplay:
    """Display for pipes and files, which writes each word as soon as it is certain."""

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
        self._written = 0

    def abort(self) -> None:
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
    """Display for a terminal: one live line, with the tail that may still change dimmed."""

    CLEAR, DIM, PLAIN = "\r\x1b[K", "\x1b[2m", "\x1b[0m"

    def __init__(self, out: TextIO, prefix: str = "") -> None:
        self._out, self._prefix, self._line, self._written = out, prefix, prefix, 0
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
        self._line, self._written, self._shown = self._prefix, 0, ""

    def abort(self) -> None:
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
    """Display that writes one JSON object per line, for each update and each segment."""

    def __init__(self, audio: str) -> None:
        self._audio, self._tail = audio, ""

    def update(self, update: Update) -> None:
        """See `Display`."""
        if update.words or update.tail != self._tail:
            self._tail = update.tail
            words = msgspec.to_builtins(update.words)
            self._print(final=False, words=words, tail=update.tail)

    def finish(self, transcript: Transcript) -> None:
        """See `Display`."""
        self._print(final=True, **msgspec.to_builtins(transcript), end=transcript.end)
        self._tail = ""

    def abort(self) -> None:
        """See `Display`."""

    def _print(self, **facts: object) -> None:
        print_json({"audio": self._audio, **facts}, in_one_line=True)
