"""Audio backend that makes lhotse read joined or changed cuts with the reader of the runtime.

lhotse's own backends read only the first of several recordings in a file, and pass the names of
`.opus` and `.sph` files to a shell.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr
from lhotse.audio.backend import AudioBackend, get_current_audio_backend, set_current_audio_backend

from ds2deploy.runtimes.audio.loading import load_part
from ds2deploy.runtimes.errors import AudioError


class RuntimeAudioBackend(AudioBackend):  # type: ignore[misc]
    """Audio backend of lhotse that reads every format of the device runtime."""

    def read_audio(
        self,
        path_or_fd: Any,
        offset: float = 0.0,
        duration: float | None = None,
        force_opus_sampling_rate: int | None = None,
    ) -> tuple[npt.NDArray[np.float32], int]:
        """Read a part of a recording.

        Args:
            path_or_fd: path of the recording.
            offset: start of the part, in seconds.
            duration: length of the part, in seconds; None reads to the end.
            force_opus_sampling_rate: sample rate in the manifest, in Hz.

        Returns:
            (channels, samples) float32, and its sample rate.

        Raises:
            MissingFileError, AudioError: see `load_part`.
            AudioError: the part begins after the end of the recording.
        """
        samples, rate = load_part(str(path_or_fd), offset, duration)
        if not len(samples):
            raise AudioError(
                f"{path_or_fd}: ends before {offset:g} s, where its part starts; correct the "
                "manifest"
            )
        wanted = force_opus_sampling_rate or rate
        if wanted != rate:
            samples = soxr.resample(samples, rate, wanted)
        return np.ascontiguousarray(samples.T), wanted


@contextmanager
def runtime_audio() -> Iterator[None]:
    """Make lhotse read recordings through `RuntimeAudioBackend` during the context."""
    before = get_current_audio_backend()
    set_current_audio_backend(RuntimeAudioBackend())
    try:
        yield
    finally:
        set_current_audio_backend(before)
