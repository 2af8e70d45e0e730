"""Recordings as libsndfile decodes them, block by block, and the check that all of them came."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import BinaryIO

import soundfile

from ds2deploy.runtimes.audio.checks import check_stream_rate
from ds2deploy.runtimes.audio.formats import FRAME_PAIR, content_format, conversion, suffix_format
from ds2deploy.runtimes.audio.levels import Levels
from ds2deploy.runtimes.audio.sections import Section, find_mp3_sections, find_sections
from ds2deploy.runtimes.audio.source import AudioFile, audio_name, open_audio_file
from ds2deploy.runtimes.audio.wav import is_unknown
from ds2deploy.runtimes.errors import AudioError, NotAudioError
from ds2deploy.runtimes.features import FloatArray

BLOCK = 1 << 20
"""Numbers read at a time. A header cannot be trusted with the size of the array: a FLAC stream
declares 2^63 - 1 samples."""

MOST_SAMPLES = (1 << 36) - 1
"""The largest count that FLAC can write (50 days at 16 kHz); it and larger ones stand for a length
that is not known."""

SIZES = re.compile(
    r"^\s*(?:data|SSND|BODY|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE
)
"""Remark of libsndfile: the size of the audio in the header, and the size that is there."""

AIFF_COUNTS = re.compile(r"'COMM' chunk \((\d+)\) not equal to frame count\s+\*\*\*.*\((\d+)\)")
"""Remark of libsndfile on AIFF: the samples that the header counts, and those that are there."""

COUNTS = re.compile(r"\b(?:Frames|Cols)\s*: (\d+)")
"""Remark of libsndfile: samples that a header counts (AVR, MAT5)."""

CODED_BY_NAME = {".gsm": "GSM610", ".vox": "VOX_ADPCM"}
"""Codings of mono files without a header, by their suffixes."""

CODED_RATE = 8_000
"""Sample rate of those files, in Hz."""


class Sound(soundfile.SoundFile):  # type: ignore[misc]
    """A section that is read from beginning to end, whatever length its header declares."""

    def seekable(self) -> bool:
        """Return False: soundfile would seek after each read, and fail at the end of FLAC."""
        return False

    @property
    def known_samples(self) -> int | None:
        """Samples of one channel that the header declares; None where it does not know."""
        return int(self.frames) if 0 <= self.frames < MOST_SAMPLES else None

    def blocks_to_end(self, numbers: int = BLOCK) -> Iterator[FloatArray]:
        """Blocks of (samples, channels) float32; the last is shorter, maybe empty.

        Args:
            numbers: number of samples of all channels in a block.
        """
        count = max(1, numbers // self.channels)
        while True:
            block: FloatArray = self.read(count, dtype="float32", always_2d=True)
            yield block
            if len(block) < count:
                return


class Recording:
    """An open recording; see `open_recording`.

    Args:
        name: name of the recording, for errors; libsndfile knows some codings by its suffix.
        file: the recording, open.

    Attributes:
        name: the same.
        sections: its parts, in order.
    """

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name, self._file = name, file
        self._suffix = PurePath(name).suffix.lower()
        self.sections = find_sections(name, file)
        if not self.sections:
            begun = self._readable()  # else MP3 after something else, maybe
            self.sections = [Section()] if begun else find_mp3_sections(name, file)

    @contextmanager
    def open(self, section: Section) -> Iterator[Sound]:
        """Open a section.

        Raises:
            AudioError: it cannot be decoded, now or later, or its sample rate is none.
        """
        try:
            with self._sound(section) as sound:
                check_stream_rate(sound.samplerate, self.name)
                yield sound
        except soundfile.LibsndfileError as error:
            raise self._unreadable(str(error.error_string)) from None

    def blocks(self, section: Section, sound: Sound, levels: Levels) -> Iterator[FloatArray]:
        """Decode an open section.

        Yields:
            (samples,) float32, the mean of all channels.

        Raises:
            AudioError: damaged, truncated, or not finite; maybe with the last block.
        """
        decoded = 0
        for block in sound.blocks_to_end():
            decoded += len(block)
            yield levels.mix_down(block)
        if _truncated(section, sound, decoded):
            raise AudioError(f"{self.name}: truncated, its end is missing; copy or record it again")

    def _unreadable(self, detail: str) -> NotAudioError:
        """Say that a recording cannot be decoded."""
        promised = suffix_format(self.name)
        if promised is not None and promised.kind == "headerless":
            return NotAudioError(
                f"{self.name}: raw samples without a header; if they are 16-bit mono, pass their "
                f"sample rate: ds2deploy transcribe MODEL - --rate HZ < {self.name}"
            )
        self._file.seek(0)
        found = content_format(self._file.read(FRAME_PAIR))
        if found is not None and found.kind == "foreign":
            return NotAudioError(
                f"{self.name}: {found.name}, which libsndfile cannot read; convert it: "
                f"{conversion(self.name)}"
            )
        if "resource fork" in detail:  # libsndfile's last guess
            detail = "Format not recognised"
        return NotAudioError(
            f"{self.name}: damaged, or not audio in a supported format "
            f"({detail.strip().rstrip('.') or 'cannot be decoded'}); convert it to WAV, FLAC, Ogg, "
            "MP3 or another format of libsndfile"
        )

    def _sound(self, section: Section) -> Sound:
        if section.content is not None:
            section.content.seek(0)
            return Sound(section.content)
        self._file.seek(0)
        # A file by its number, so that neither a name which is not UTF-8 nor a suffix matters.
        file = self._file.fileno() if isinstance(self._file, io.FileIO) else self._file
        try:
            return Sound(file, closefd=False)
        except soundfile.LibsndfileError:
            if (subtype := CODED_BY_NAME.get(self._suffix)) is None:
                raise
        self._file.seek(0)
        return Sound(
            file, samplerate=CODED_RATE, channels=1, subtype=subtype, format="RAW", closefd=False
        )

    def _readable(self) -> bool:
        try:
            self._sound(Section()).close()
        except soundfile.LibsndfileError:
            return False
        return True


@contextmanager
def open_recording(source: AudioFile) -> Iterator[Recording]:
    """Open a recording of any format.

    Raises:
        MissingFileError, AudioError: see `open_audio_file` and `find_sections`.
    """
    with open_audio_file(source) as file:
        yield Recording(audio_name(source), file)


def _truncated(section: Section, sound: Sound, decoded: int) -> bool:
    """Check whether the container holds, or declares, more than was decoded."""
    expected = sound.known_samples if section.samples is None else section.samples
    if expected is not None and decoded < expected:
        return True
    if section.truncated is not None:
        return section.truncated
    counts = COUNTS.findall(sound.extra_info)
    return any(decoded < int(count) < MOST_SAMPLES for count in counts) or _cut_off(
        sound.extra_info
    )


def _cut_off(log: str) -> bool:
    """Check libsndfile's log of the header for audio that is longer than the file.

    Only the chunk of the audio counts (CAF, AU, SVX; the whole file in W64): many writers get the
    total in a header wrong, and remarks after the audio may be cut. AIFF counts its samples a
    second time, and that count is the one to believe.
    """
    if re.search("seems to be (a )?truncated", log, re.IGNORECASE):  # VOC, MAT4
        return True
    sizes = SIZES.findall(log)
    if "SSND" in log and "check block count" not in log:
        sizes = AIFF_COUNTS.findall(log)
    return any(
        int(actual) < int(declared) and not is_unknown(int(declared)) for declared, actual in sizes
    )
