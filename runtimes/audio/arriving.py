"""Recordings that are decoded while their bytes still arrive.

The beginning of a file does not say everything about it: recordings may be joined, sizes in headers
may be wrong, the end may be missing. So what was decoded early is compared with what `read_blocks`
reads of the complete file, which alone decides.
"""

from __future__ import annotations

import hashlib
import io
import math
import threading
from collections.abc import Iterator
from typing import BinaryIO, cast

import numpy as np
import soundfile

from ds2deploy.runtimes.audio.checks import check_longest, check_stream_rate
from ds2deploy.runtimes.audio.levels import Levels
from ds2deploy.runtimes.audio.loading import read_blocks, up_to
from ds2deploy.runtimes.audio.recording import Sound
from ds2deploy.runtimes.audio.samples import resample_pieces
from ds2deploy.runtimes.audio.source import BinaryReader
from ds2deploy.runtimes.audio.spliced import ENDLESS, TAIL, Span, Spliced
from ds2deploy.runtimes.audio.wav import find_wav_audio, is_unknown
from ds2deploy.runtimes.errors import AudioError
from ds2deploy.runtimes.features import FloatArray

HEAD = 1 << 16
"""Bytes in which the header of a file is expected; files with a longer one are read at the end."""

EARLY_BLOCK = 1 << 14
"""Numbers that are decoded at a time, so that little audio waits: 1 s of mono at 16 kHz."""

EARLY_FORMATS = (1, 3, 6, 7, 0xFFFE)
"""Format tags of WAV whose samples have a fixed size: PCM, float, A-law, mu-law, extensible. The
length of other codings is in other chunks, maybe after the audio."""

NAME = "audio"
"""Name of a recording in errors, as of other file objects without a name."""


class RereadError(Exception):
    """The complete file contains other audio than its beginning promised; read it again."""


class ArrivingFile(io.RawIOBase):
    """File that one thread writes and another one reads; a read waits for the bytes.

    Args:
        file: seekable file that stores the bytes; closed with this object.

    Attributes:
        is_complete: True when all bytes have arrived.
        is_aborted: True if no more bytes will arrive although some are missing.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._size = self._place = 0
        self._changed = threading.Condition()
        self.is_complete = self.is_aborted = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Append bytes; the position of the reader stays."""
        with self._changed:
            self._file.seek(self._size)
            self._file.write(data)
            self._size += len(data)
            self._changed.notify_all()
        return len(data)

    def complete(self) -> None:
        """Declare that all bytes have arrived."""
        with self._changed:
            self.is_complete = True
            self._changed.notify_all()

    def abort(self) -> None:
        """End all waiting reads: no more bytes will arrive."""
        with self._changed:
            self.is_aborted = True
            self._changed.notify_all()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the reader to an offset from the beginning."""
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation(
                "cannot seek from the end of a file that is still arriving"
            )
        self._place = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        """Wait until a byte has arrived at the position, and return at most `size` bytes.

        Returns:
            Bytes; none at the end, or if no more arrive.
        """
        data = self._read_at(self._place, size, self._place + 1)
        self._place += len(data)
        return data

    def head(self) -> bytes:
        """Wait for the first `HEAD` bytes, or for the end of a shorter file, and return them."""
        return self._read_at(0, HEAD, HEAD)

    def whole(self) -> BinaryReader:
        """Wait for the end, and return a view of the complete file with a position of its own.

        Raises:
            AudioError: the file was aborted.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.is_complete or self.is_aborted)
            if not self.is_complete:
                raise AudioError(
                    f"{NAME}: incomplete, the end of the file did not arrive; send it again"
                )
        return _Whole(self)

    def close(self) -> None:
        """Close the file that stores the bytes."""
        self.abort()
        with self._changed:
            self._file.close()
            super().close()

    def _read_at(self, place: int, size: int, awaited: int) -> bytes:
        """Read at most `size` bytes at a place, once `awaited` bytes have arrived or none will."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._size >= awaited or self.is_complete or self.is_aborted
            )
            if self.closed or not (self.is_complete or self._size >= awaited):
                return b""
            self._file.seek(place)
            return self._file.read(size)


class _Whole:
    """Complete file, read from its beginning."""

    def __init__(self, file: ArrivingFile) -> None:
        self._file, self._place = file, 0

    def read(self, size: int, /) -> bytes:
        data = self._file._read_at(self._place, size, self._place)
        self._place += len(data)
        return data


def read_arriving(
    file: ArrivingFile, sample_rate: int, most_s: float | None = None
) -> Iterator[FloatArray]:
    """Read a recording while it arrives; WAV and FLAC from their beginning, others at the end.

    The arguments, errors and warnings are those of `read_blocks`. Those about a file as a whole
    come when it is complete.

    Yields:
        (samples,) float32 in [-1, 1]; joined, what `load_audio` returns for the complete file.

    Raises:
        RereadError: blocks that were yielded differ from the complete file; discard them, and read
            the file again.
    """
    early = _Digest()
    if not file.is_complete and (content := _begun(file)) is not None:
        for block in _early_blocks(content, sample_rate, most_s):
            early.update(block)
            yield block
    count, expected = early.count, early.value
    checked = _Digest()
    for block in read_blocks(file.whole(), sample_rate, most_s):
        known = min(len(block), count - checked.count)
        checked.update(block[:known])
        if known and checked.count == count and checked.value != expected:
            raise RereadError
        if known < len(block):
            yield block[known:]
    if checked.count < count:
        raise RereadError


class _Digest:
    """Hash of the samples of consecutive blocks."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b()
        self.count = 0

    def update(self, block: FloatArray) -> None:
        self._hash.update(np.ascontiguousarray(block).data)
        self.count += len(block)

    @property
    def value(self) -> bytes:
        return self._hash.digest()


def _begun(file: ArrivingFile) -> Spliced | None:
    """View a file whose beginning suffices to decode it; None for others."""
    head = file.head()
    if head.startswith(b"fLaC"):
        return Spliced(cast(BinaryIO, file), [Span(0, ENDLESS - TAIL)], endless=True)
    if head[:4] not in (b"RIFF", b"RIFX") or head[8:12] != b"WAVE":
        return None
    audio = next(iter(find_wav_audio(io.BytesIO(head))), None)
    if audio is None or audio.tag not in EARLY_FORMATS:
        return None
    start = audio.data.start
    size = int.from_bytes(head[start - 4 : start], "big" if head[3:4] == b"X" else "little")
    if not size or is_unknown(size):
        return None
    data = Span(start, size)
    return Spliced(cast(BinaryIO, file), [audio._replace(data=data).header(), data])


def _early_blocks(content: Spliced, sample_rate: int, most_s: float | None) -> Iterator[FloatArray]:
    """Decode a recording from its beginning; its first error ends it, and comes again later."""
    most_s = math.inf if most_s is None else most_s
    try:
        with Sound(content) as sound:
            check_stream_rate(sound.samplerate, NAME)
            check_longest((sound.known_samples or 0) / sound.samplerate, most_s, NAME)
            levels = Levels(NAME)
            mono = (levels.mix_down(block) for block in sound.blocks_to_end(EARLY_BLOCK))
            blocks = resample_pieces(mono, int(sound.samplerate), sample_rate)
            yield from up_to(blocks, sample_rate, most_s, NAME)
    except (AudioError, soundfile.LibsndfileError):
        return
