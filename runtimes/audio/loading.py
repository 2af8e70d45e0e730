"""Reading of recordings of any format, rate and channel count as mono float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ds2deploy.runtimes.audio.checks import check_duration, check_longest
from ds2deploy.runtimes.audio.levels import Levels
from ds2deploy.runtimes.audio.recording import Recording, open_recording
from ds2deploy.runtimes.audio.samples import resample_pieces
from ds2deploy.runtimes.audio.source import AudioFile
from ds2deploy.runtimes.features import FloatArray


class AudioFacts(NamedTuple):
    """Format and length of a recording.

    Attributes:
        sample_rate: sample rate of the first part, in Hz.
        channels: number of channels of the first part.
        samples: number of samples of one channel, at that rate.
        format: container, in words.
        subtype: coding of the samples, in words.
    """

    sample_rate: int
    channels: int
    samples: int
    format: str
    subtype: str

    @property
    def duration_s(self) -> float:
        """Duration in seconds."""
        return self.samples / self.sample_rate


def load_audio(source: AudioFile, sample_rate: int) -> FloatArray:
    """Read a recording.

    Any number of threads may read at the same time, each its own recording. Do not use a file
    object elsewhere while it is read; its position afterwards is undefined.

    Args:
        source: path of a file or a pipe, the bytes of a file, or a binary file object, which is
            read from its position on and not closed; in any format that libsndfile reads (WAV,
            FLAC, Ogg Vorbis and Opus, MP3, AIFF, ...). Recordings that were joined in one file are
            read one after the other.
        sample_rate: sample rate of the result, in Hz.

    Returns:
        (samples,) float32 in [-1, 1], the mean of all channels.

    Raises:
        MissingFileError: the file does not exist, or is not a file.
        AudioError: the file is not audio, damaged, truncated, empty, not finite, or too short.

    Warns:
        AudioWarning: digital silence, channels that cancel each other out, or a wrong scale.
    """
    return np.concatenate(list(read_blocks(source, sample_rate)))


def read_blocks(
    source: AudioFile, sample_rate: int, most_s: float | None = None
) -> Iterator[FloatArray]:
    """Read a recording of any length in blocks, so that it need not fit in memory.

    The arguments, errors and warnings are those of `load_audio`; some come with the last block.

    Args:
        source: the recording.
        sample_rate: sample rate of the result, in Hz.
        most_s: maximum duration, in seconds; None allows any.

    Yields:
        (samples,) float32 in [-1, 1]; joined, they equal the result of `load_audio`.

    Raises:
        TooLongError: longer than `most_s`; before any block if the file declares its length.
    """
    with open_recording(source) as recording:
        if most_s is None:
            yield from _resampled(recording, sample_rate)
            return
        check_longest(_declared_s(recording), most_s, recording.name)
        yield from up_to(_resampled(recording, sample_rate), sample_rate, most_s, recording.name)


def up_to(
    blocks: Iterable[FloatArray], sample_rate: int, most_s: float, source: str
) -> Iterator[FloatArray]:
    """Yield blocks, up to a maximum duration in seconds.

    Raises:
        TooLongError: the blocks are longer.
    """
    count = 0
    for block in blocks:
        count += len(block)
        check_longest(count / sample_rate, most_s, source)
        yield block


def _declared_s(recording: Recording) -> float:
    """Duration that the containers declare, in seconds; parts without a length count as 0."""
    total_s = 0.0
    for section in recording.sections:
        with recording.open(section) as sound:
            samples = sound.known_samples if section.samples is None else section.samples
            total_s += (samples or 0) / sound.samplerate
    return total_s


def load_part(
    source: AudioFile, start_s: float = 0.0, duration_s: float | None = None
) -> tuple[FloatArray, int]:
    """Read a part of a recording as it is.

    Args:
        source: the recording, see `load_audio`.
        start_s: start of the part, in seconds.
        duration_s: length of the part, in seconds; None reads to the end.

    Returns:
        (samples, channels) float32, fewer samples where the recording ends before; and its sample
        rate. Recordings that were joined in one file are mixed down to one channel.

    Raises:
        MissingFileError, AudioError: see `load_audio`.
    """
    with open_recording(source) as recording:
        section = recording.sections[0]
        with recording.open(section) as sound:
            rate = int(sound.samplerate)
            start = round(start_s * rate)
            stop = None if duration_s is None else start + round(duration_s * rate)
            if len(recording.sections) > 1:
                blocks = (block[:, None] for block in _resampled(recording, rate))
                return _slice(blocks, start, stop), rate
            known = sound.known_samples if section.samples is None else None
            if known is not None:
                sound.seek(min(start, known))
                count = known if stop is None else stop - start
                return sound.read(min(count, known), dtype="float32", always_2d=True), rate
            return _slice(sound.blocks_to_end(), start, stop), rate


def measure_audio(source: AudioFile, read: bool = False) -> AudioFacts:
    """Find out a recording's rate, channels and true length, without holding it in memory.

    Args:
        source: the recording, see `load_audio`.
        read: decode all of it, and check it like `load_audio`; else only what has no length in its
            container is decoded.

    Raises:
        MissingFileError, AudioError: see `load_audio`.
    """
    parts: list[AudioFacts] = []
    with open_recording(source) as recording:
        levels = Levels(recording.name)
        for section in recording.sections:
            with recording.open(section) as sound:
                samples = sound.known_samples if section.samples is None else section.samples
                if read or samples is None:
                    blocks = recording.blocks(section, sound, levels)
                    samples = sum(len(block) for block in blocks)
                names = (sound.format_info, sound.subtype_info)
                parts.append(AudioFacts(sound.samplerate, sound.channels, samples, *names))
    whole = parts[0]
    total = sum(round(part.samples * whole.sample_rate / part.sample_rate) for part in parts)
    if read:
        check_duration(total, whole.sample_rate, recording.name)
        levels.warn()
    return whole._replace(samples=total)


def _resampled(recording: Recording, sample_rate: int) -> Iterator[FloatArray]:
    """Mono blocks of all sections of an open recording, which is checked when all were read."""
    levels, seconds, rate = Levels(recording.name), 0.0, sample_rate
    for section in recording.sections:
        with recording.open(section) as sound:
            rate, before = int(sound.samplerate), levels.count
            blocks = recording.blocks(section, sound, levels)
            yield from resample_pieces(blocks, rate, sample_rate)
            seconds += (levels.count - before) / rate
    check_duration(round(seconds * rate), rate, recording.name)
    levels.warn()


def _slice(blocks: Iterable[FloatArray], start: int, stop: int | None) -> FloatArray:
    """Cut the samples from one place to another out of blocks."""
    kept: list[FloatArray] = []
    place = 0
    for block in blocks:
        end = None if stop is None else max(0, stop - place)
        kept.append(block[max(0, start - place) : end])
        place += len(block)
        if stop is not None and place >= stop:
            break
    return np.concatenate(kept)
