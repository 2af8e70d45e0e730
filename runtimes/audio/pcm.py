"""Raw audio from a pipe: `arecord | ds2deploy transcribe model.onnx -`."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.audio.checks import check_stream_rate
from ds2deploy.runtimes.audio.formats import FRAME_PAIR, content_format
from ds2deploy.runtimes.audio.mp3 import find_mp3_audio
from ds2deploy.runtimes.audio.sections import is_frame
from ds2deploy.runtimes.audio.spliced import Span
from ds2deploy.runtimes.audio.wav import is_unknown
from ds2deploy.runtimes.errors import AudioError
from ds2deploy.runtimes.features import FloatArray

CONVERSION = "ffmpeg -i FILE -f wav -"
"""Command that converts a recording for a pipe."""

READ_BYTES = 1 << 16
"""At most at a time; what is there is taken at once."""

LARGEST_HEADER = 1 << 28
"""Bytes of remarks (texts, pictures) before the audio of a WAV stream, at most."""

LONGEST_FORMAT = 1 << 12
"""Bytes of a chunk of a header that are looked at; the rest is passed over."""

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
"""Format tags of WAV."""


class PcmFormat(NamedTuple):
    """Encoding of samples.

    Attributes:
        sample_rate: sample rate in Hz.
        channels: number of interleaved channels.
        bits: number of bits of a sample.
        floating: True if the samples are floats, False for integers.
    """

    sample_rate: int
    channels: int = 1
    bits: int = 16
    floating: bool = False

    @property
    def frame_bytes(self) -> int:
        """Size of one sample of every channel."""
        return self.channels * self.bits // 8


class PcmStream:
    """Reads samples as they come.

    Args:
        file: binary, such as `sys.stdin.buffer`: headerless 16-bit little-endian mono, or a WAV
            stream, whose header says what it is.
        sample_rate: sample rate of headerless audio, in Hz.
        name: name of the audio in errors.
        told: True if a user requested that rate, so that another one is an error.

    Attributes:
        name: name of the audio in errors.
        format: format of the samples.
        bytes_left: number of bytes of audio left, from the WAV header; None if it is unknown.

    Raises:
        AudioError: the WAV header is damaged, or has another encoding or rate.
    """

    def __init__(
        self, file: BinaryIO, sample_rate: int, name: str = "-", told: bool = False
    ) -> None:
        self._file, self.name = file, name
        self.format = PcmFormat(sample_rate)
        self.bytes_left: int | None = None
        self._begun = _exactly(file, 12)
        if other := self._other_format():
            raise AudioError(
                f"{name}: {other}; expected 16-bit samples or a WAV stream: pass the path of the "
                f"file, or convert it first: {CONVERSION}"
            )
        if self._begun[:4] in (b"RIFF", b"RF64") and self._begun[8:] == b"WAVE":
            self._begun = b""
            self.format = self._read_header()
            if told and self.format.sample_rate != sample_rate:
                raise AudioError(
                    f"{name}: its header has a sample rate of {self.format.sample_rate} Hz, but "
                    f"--rate is {sample_rate}; omit --rate, which is for audio without a header"
                )

    def __iter__(self) -> Iterator[FloatArray]:
        """Pieces (samples,) or (samples, channels) float32 in [-1, 1], as soon as they are there.

        Raises:
            AudioError: no samples at all.
        """
        waiting, size, count = self._begun, self.format.frame_bytes, 0
        read = getattr(self._file, "read1", self._file.read)
        while True:
            if self.bytes_left is not None and count + len(waiting) >= self.bytes_left:
                waiting = waiting[: self.bytes_left - count]  # what follows are remarks
            whole = len(waiting) // size * size
            if whole:
                count += whole
                yield _samples(waiting[:whole], self.format)
                waiting = waiting[whole:]
            if self.bytes_left is not None and count + len(waiting) >= self.bytes_left:
                break
            piece = read(READ_BYTES)
            if not piece:
                break
            waiting += piece
        if not count:
            raise AudioError(
                f"{self.name}: 0 samples; expected speech: check that the recorder is running"
            )

    def _other_format(self) -> str | None:
        """Name the format that begins here and would be read as noise, or None.

        MP3 and AAC without tags begin like some raw audio. Where they may, so much is read that
        the second of their frames decides.
        """
        if is_frame(self._begun):
            self._begun += _exactly(self._file, FRAME_PAIR)
            found = find_mp3_audio(io.BytesIO(self._begun), Span(0, len(self._begun))).recordings
            if found and found[0].spans[0].start == 0 and found[0].frames > 1:
                return "MP3"
        form = content_format(self._begun)
        return None if form is None or form.name in ("WAV", "RF64") else form.name

    def _read_header(self) -> PcmFormat:
        """Read the chunks up to the audio (Microsoft, Multimedia Programming Interface, 1991)."""
        found: PcmFormat | None = None
        whole, passed = 0, 0
        while True:
            chunk = _exactly(self._file, 8)
            if len(chunk) < 8:
                raise AudioError(
                    f"{self.name}: the WAV stream ends within its header; record or send it again"
                )
            kind, size = chunk[:4], int.from_bytes(chunk[4:], "little")
            if kind == b"data":
                size = whole or size
                self.bytes_left = None if size == 0 or is_unknown(size) else size
                break
            passed += size
            if passed > LARGEST_HEADER:
                raise AudioError(
                    f"{self.name}: the header of the WAV stream is damaged; convert it again: "
                    f"{CONVERSION}"
                )
            content = self._chunk(size)
            if kind == b"fmt ":
                found = self._parse_format(content)
            elif kind == b"ds64":  # RF64, EBU Tech 3306
                whole = int.from_bytes(content[8:16], "little")
        if found is None:
            raise AudioError(
                f'{self.name}: the WAV stream has no "fmt " chunk; convert it again: {CONVERSION}'
            )
        check_stream_rate(found.sample_rate, self.name)
        return found

    def _chunk(self, size: int) -> bytes:
        """Read the beginning of a chunk, and skip the rest."""
        content = _exactly(self._file, min(size, LONGEST_FORMAT))
        rest = size + size % 2 - len(content)
        while len(content) == min(size, LONGEST_FORMAT) and rest > 0:
            piece = self._file.read(min(rest, READ_BYTES))
            if not piece:
                break
            rest -= len(piece)
        if rest > size % 2:
            raise AudioError(
                f"{self.name}: the WAV stream ends within its header; record or send it again"
            )
        return content

    def _parse_format(self, content: bytes) -> PcmFormat:
        if len(content) < 16:
            raise AudioError(
                f"{self.name}: the header of the WAV stream is damaged; convert it again: "
                f"{CONVERSION}"
            )
        tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
        if tag == EXTENSIBLE and len(content) >= 26:
            tag = int.from_bytes(content[24:26], "little")
        known = (tag == PCM and bits in (8, 16, 24, 32)) or (tag == FLOAT and bits == 32)
        if not known or not channels or not rate:
            raise AudioError(
                f"{self.name}: a WAV stream with format code {tag}, {bits} bits, {channels} "
                f"channels and {rate} Hz; expected PCM of 8, 16, 24 or 32 bits, or float32: "
                f"convert it: {CONVERSION}"
            )
        return PcmFormat(rate, channels, bits, tag == FLOAT)


def _exactly(file: BinaryIO, count: int) -> bytes:
    """Read so many bytes; fewer where the file ends."""
    content = b""
    while len(content) < count and (piece := file.read(count - len(content))):
        content += piece
    return content


def _samples(content: bytes, form: PcmFormat) -> FloatArray:
    """Whole frames of bytes as numbers in [-1, 1]."""
    values: npt.NDArray[Any]
    if form.floating:
        values = np.frombuffer(content, "<f4")
    elif form.bits == 8:  # the only unsigned one
        values = (np.frombuffer(content, np.uint8) - 128.0) / 128
    elif form.bits == 24:
        parts = np.zeros((len(content) // 3, 4), np.uint8)
        parts[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        values = parts.view("<i4")[:, 0] / 2.0**31
    else:
        values = np.frombuffer(content, f"<i{form.bits // 8}") / 2.0 ** (form.bits - 1)
    samples = values.astype(np.float32)
    return samples if form.channels == 1 else samples.reshape(-1, form.channels)
