"""Recordings of any format, rate and channel count to mono float32 at the model's rate."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from ds2deploy.runtimes.errors import AudioError, MissingFileError
from ds2deploy.runtimes.features import FloatArray

SHORTEST_MS = 10.0
"""Less than one stride of audio holds no speech."""

MOST_CHANNELS = 32
"""A short block may have fewer samples than channels; more of them are samples, transposed."""

LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
"""Of a recorder, in Hz."""

UNKNOWN_SIZE = 0x7FFF_0000
"""A header that declares this much or more was written by a stream that did not know its end."""

BLOCK = 1 << 20
"""Samples read at a time. A header cannot be trusted with the size of the array: a FLAC stream
declares 2^63 - 1 samples."""


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """A recording read from beginning to end, whatever length its header declares."""

    def seekable(self) -> bool:
        """No: soundfile would seek after each read, which fails at the end of a FLAC stream."""
        return False

    def samples(self) -> Iterator[FloatArray]:
        """Blocks of (samples, channels) float32; the last is shorter, maybe empty."""
        while True:
            block: FloatArray = self.read(BLOCK, dtype="float32", always_2d=True)
            yield block
            if len(block) < BLOCK:
                return


def load_audio(path: str | Path, sample_rate: int) -> FloatArray:
    """Read a recording.

    Args:
        path: any format that libsndfile reads (WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF, ...).
        sample_rate: in Hz, what to convert to.

    Returns:
        (samples,) float32 in [-1, 1], the mean of all channels.

    Raises:
        MissingFileError: no such file, or not a file.
        AudioError: not audio, damaged, truncated, empty, not finite, or too short.
    """
    return np.concatenate(list(read_blocks(path, sample_rate)))


def read_blocks(path: str | Path, sample_rate: int) -> Iterator[FloatArray]:
    """Read a recording of any length in blocks, so that it need not fit in memory.

    The arguments and errors are those of `load_audio`; some errors come with the last block.

    Yields:
        (samples,) float32 in [-1, 1]; joined, what `load_audio` gives.
    """
    path = Path(path)
    if path.is_dir():
        raise MissingFileError(f"{path}: is a directory; expected an audio file")
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; expected an audio file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: empty file (0 bytes); expected audio, record or copy it again")
    try:
        with _Forward(_unsized_wav(path) or os.fsencode(path)) as sound:
            rate = int(sound.samplerate)
            yield from resample_pieces(_decoded(path, sound), rate, sample_rate)
    except soundfile.LibsndfileError as error:
        detail = str(error.error_string).strip().rstrip(".") or "cannot be decoded"
        raise AudioError(
            f"{path}: not audio that can be read, or damaged ({detail}); "
            "expected WAV, FLAC, Ogg or another format of libsndfile"
        ) from None
    except TypeError:  # soundfile takes names that end in .raw for headerless audio
        raise AudioError(f"{path}: audio without a header; convert it to WAV first") from None


def resample_pieces(
    pieces: Iterable[FloatArray], sample_rate: float, to_rate: int
) -> Iterator[FloatArray]:
    """Resample audio that comes in pieces; joined, what the whole is resampled to.

    Args:
        pieces: (samples,) float32.
        sample_rate: of them, in Hz.
        to_rate: wanted rate, in Hz.
    """
    if sample_rate == to_rate:
        yield from pieces
        return
    resampler = soxr.ResampleStream(sample_rate, to_rate, 1, dtype="float32")
    for piece in pieces:
        yield resampler.resample_chunk(np.ascontiguousarray(piece))
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _decoded(path: Path, sound: _Forward) -> Iterator[FloatArray]:
    """Mono blocks of an open recording, which is checked when all of it was read."""
    decoded = 0
    for block in sound.samples():
        decoded += len(block)
        yield _mono(block, str(path))  # its shape is libsndfile's
    if _truncated(path, sound, decoded):
        raise AudioError(f"{path}: truncated, its end is missing; copy or record it again")
    check_duration(decoded, sound.samplerate, str(path))


def convert_audio(
    samples: npt.ArrayLike, sample_rate: float, to_rate: int, source: str = "audio"
) -> FloatArray:
    """Mix down, check and resample audio that is in memory.

    Args:
        samples: (samples,) or (samples, channels) float32 in [-1, 1].
        sample_rate: of `samples`, in Hz.
        to_rate: wanted rate, in Hz.
        source: what to name in an error.

    Returns:
        (samples,) float32.

    Raises:
        AudioError: not an array of finite float samples, or shorter than 10 ms.
    """
    check_rate(sample_rate, source)
    mono = mix_down(samples, source)
    check_duration(len(mono), sample_rate, source)
    if sample_rate != to_rate:
        mono = soxr.resample(mono, sample_rate, to_rate)
    return np.ascontiguousarray(mono, np.float32)


def check_duration(samples: int, sample_rate: float, source: str) -> None:
    """Refuse what is too short to be an utterance.

    Raises:
        AudioError: shorter than 10 ms.
    """
    if samples == 0:
        raise AudioError(f"{source}: 0 samples; expected speech, record or copy it again")
    duration_ms = 1000 * samples / sample_rate
    if duration_ms < SHORTEST_MS:
        count = f"{samples} sample{'s' if samples > 1 else ''}"
        raise AudioError(
            f"{source}: {count} ({duration_ms:.2g} ms); expected at least {SHORTEST_MS:g} ms"
        )


def check_rate(sample_rate: float, source: str = "audio") -> None:
    """Refuse what is no sample rate.

    Raises:
        AudioError: not a number above 0.
    """
    # Not `<= 0`, so that NaN is refused as well.
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, float, np.number)):
        raise AudioError(f"{source}: a sample rate of {sample_rate!r}; expected a number, in Hz")
    if not sample_rate > 0:
        raise AudioError(f"{source}: a sample rate of {sample_rate} Hz; expected a positive number")


def as_samples(samples: npt.ArrayLike, source: str = "audio") -> npt.NDArray[Any]:
    """Check the type and the shape of audio from outside.

    Args:
        samples: (samples,) or (samples, channels) float32 in [-1, 1]; there may be none.
        source: what to name in an error.

    Returns:
        The same as an array.

    Raises:
        AudioError: not such an array.
    """
    try:
        array = np.asarray(samples)
    except ValueError:  # rows of different lengths
        raise AudioError(f"{source}: no array; expected (samples, channels) float32") from None
    if array.size == 0:
        return np.zeros(0, np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(
            f"{source}: samples of type {array.dtype}; expected float32 in [-1, 1] "
            "(divide 16-bit integers by 32768)"
        )
    if array.ndim not in (1, 2):
        raise AudioError(f"{source}: {array.ndim} dimensions; expected (samples, channels)")
    if array.ndim == 2 and array.shape[1] > max(array.shape[0], MOST_CHANNELS):
        raise AudioError(
            f"{source}: shape {array.shape}; expected (samples, channels), transpose it"
        )
    return array


def check_stream_rate(sample_rate: float, source: str = "audio") -> None:
    """Refuse what is no rate of a recorder: a slip of the hand would be heard as noise.

    Raises:
        AudioError: not a number from 1,000 to 768,000.
    """
    check_rate(sample_rate, source)
    if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
        raise AudioError(
            f"{source}: a sample rate of {sample_rate:g} Hz; expected {LOWEST_RATE} to "
            f"{HIGHEST_RATE}"
        )


def mono_pieces(
    pieces: Iterable[npt.ArrayLike], sample_rate: float, source: str
) -> Iterator[FloatArray]:
    """Check and mix down a recording that comes in pieces, and its duration when it is over.

    The arguments and errors are those of `mix_down` and `check_duration`.
    """
    count = 0
    for piece in pieces:
        mono = mix_down(piece, source)
        count += len(mono)
        yield mono
    check_duration(count, sample_rate, source)


def mix_down(samples: npt.ArrayLike, source: str = "audio") -> FloatArray:
    """Check audio that is in memory, and take the mean of its channels.

    Args:
        samples: (samples,) or (samples, channels) float32 in [-1, 1]; there may be none.
        source: what to name in an error.

    Returns:
        (samples,) float32, which may be the same array.

    Raises:
        AudioError: not an array of finite float samples.
    """
    samples = as_samples(samples, source)
    if samples.size == 0:
        return np.zeros(0, np.float32)
    return _mono(samples, source)


def _mono(samples: npt.NDArray[Any], source: str) -> FloatArray:
    """The mean of all channels, which must be finite."""
    with np.errstate(invalid="ignore", over="ignore"):  # what comes of it is refused below
        mono = samples if samples.ndim == 1 else samples.mean(axis=1)
        mono = mono.astype(np.float32, copy=False)
    if not np.isfinite(mono).all():
        raise AudioError(
            f"{source}: holds samples that are not finite (NaN or infinity); repair it"
        )
    return mono


def _truncated(path: Path, sound: soundfile.SoundFile, decoded: int) -> bool:
    """Whether the container says that there was more than what could be decoded."""
    if sound.format == "OGG":
        return not _ogg_is_whole(path)
    if sound.format == "MP3" and not _mp3_counts_frames(path):
        return False  # libsndfile's length is then a guess from the size of the first frame
    return decoded < sound.frames < UNKNOWN_SIZE or _cut_off(sound.extra_info)


def _cut_off(log: str) -> bool:
    """Whether libsndfile's account of the header says that the audio is longer than the file.

    Only the chunk of the audio counts (WAV, AIFF, AU; the whole file in W64 and RF64): many
    writers get the total in a RIFF header wrong, and remarks after the audio may be cut.
    """
    audio = r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)"
    sizes = re.findall(audio, log, re.MULTILINE)
    return any(int(actual) < int(declared) < UNKNOWN_SIZE for declared, actual in sizes)


def _ogg_is_whole(path: Path) -> bool:
    """Whether the last page is complete and marked as the last (RFC 3533, section 6)."""
    content = path.read_bytes()
    page = content[content.rfind(b"OggS") :]
    if len(page) < 27 or not page[5] & 4:
        return False
    segments = page[27 : 27 + page[26]]
    return len(segments) == page[26] and len(page) >= 27 + len(segments) + sum(segments)


def _mp3_counts_frames(path: Path) -> bool:
    """Whether the first frame says how many follow (in a Xing, Info or VBRI header)."""
    with path.open("rb") as file:
        head = file.read(10)
        tag = head[6:10] if head.startswith(b"ID3") else b""
        file.seek(10 + int("".join(f"{byte:07b}" for byte in tag), 2) if tag else 0)
        frame = file.read(64)
    return any(name in frame for name in (b"Xing", b"Info", b"VBRI"))


def _unsized_wav(path: Path) -> io.BytesIO | None:
    """A WAV stream whose sizes were left at zero (GStreamer's), given the size for "unknown".

    libsndfile reads no samples from such a file; ffmpeg reads to its end, as is done here.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    data = head.find(b"data\0\0\0\0")
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE" or data < 0:
        return None
    content = bytearray(path.read_bytes())
    if int.from_bytes(content[4:8], "little") == len(content) - 8:
        return None  # an empty recording, properly closed
    content[data + 4 : data + 8] = b"\xff" * 4
    return io.BytesIO(content)
