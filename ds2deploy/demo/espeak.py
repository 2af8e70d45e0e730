"""Speech synthesis with the voices of espeak-ng, through its shared library.

espeak-ng keeps state between utterances that no call resets: the position in its pitch flutter, a
cycle count, and a random seed from the clock. Of the 104 variants in espeakng-loader 0.2.4, 91
spoke the same sentence differently within four tries. The library is therefore opened and closed
for every utterance, so that the audio only depends on the arguments. A word then takes 4 ms instead
of 1.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
from _ctypes import dlclose
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ds2deploy.runtimes.errors import ConfigError, RuntimeUnavailableError
from ds2deploy.runtimes.features import FloatArray

REMEDY = "pip install 'ds2deploy[demo]'"

# Values of espeak-ng's speak_lib.h.
_SYNCHRONOUS, _DONT_EXIT = 2, 0x8000
_RATE, _VOLUME, _PITCH = 1, 2, 3
_FROM_CHARACTER, _UTF8 = 1, 1

# At espeak's default volume of 100, the louder voices reach full scale and trigger its limiter.
_VOLUME_PERCENT = 50

_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)

# A process has a single espeak-ng for any number of Synthesizers.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Voice:
    """Voice of espeak-ng.

    Attributes:
        name: accent and speaker, joined by a plus sign: `en-us+f3`.
    """

    name: str

    @property
    def variant(self) -> str:
        """Name of the speaker, after the plus sign; empty for the accent's own speaker."""
        return self.name.partition("+")[2]


class Synthesizer:
    """Synthesizer that uses espeak-ng; the same arguments always give the same samples.

    Calls from several threads are processed one after another.

    Raises:
        RuntimeUnavailableError: espeakng_loader is missing, its library or its voices cannot be
            loaded, or something else in this process has the library open.
    """

    def __init__(self) -> None:
        self._library, self._data = _find_espeak()
        with _opened(self._library, self._data) as (_, sample_rate):
            self.sample_rate = sample_rate

    def speak(
        self, text: str, voice: Voice, rate_wpm: int = 175, pitch: int = 50
    ) -> tuple[FloatArray, int]:
        """Speak a text, with about 15 ms of silence before and after it.

        Args:
            text: words in lower case; upper case may be spelled out.
            voice: voice that speaks.
            rate_wpm: nominal words per minute, 80 to 450; a digit takes 0.48 s at 120, 0.24 s
                at 220.
            pitch: pitch from 0 to 99; 50 is the voice's own, 0 about 0.7 times and 99 about 1.6
                times that.

        Returns:
            Samples, (samples,) float32, mono, in [-1, 1]; and their sample rate in Hz.

        Raises:
            ConfigError: there is no such voice, or the rate or pitch is out of range.
            RuntimeUnavailableError: see the class.
        """
        self._check(voice, rate_wpm, pitch)
        with _opened(self._library, self._data) as (espeak, sample_rate):
            if espeak.espeak_SetVoiceByName(voice.name.encode()) != 0:
                raise ConfigError(f"{voice.name}: espeak-ng has no such voice")
            espeak.espeak_SetParameter(_RATE, rate_wpm, 0)
            espeak.espeak_SetParameter(_PITCH, pitch, 0)
            espeak.espeak_SetParameter(_VOLUME, _VOLUME_PERCENT, 0)
            return _synthesize(espeak, text), sample_rate

    def _check(self, voice: Voice, rate_wpm: int, pitch: int) -> None:
        # espeak-ng would silently use the accent's own speaker, or the nearest number.
        if voice.variant and not (self._data / "voices" / "!v" / voice.variant).is_file():
            raise ConfigError(f"{voice.name}: espeak-ng has no variant {voice.variant}")
        if not 80 <= rate_wpm <= 450:
            raise ConfigError(f"rate_wpm {rate_wpm}: expected 80 to 450")
        if not 0 <= pitch <= 99:
            raise ConfigError(f"pitch {pitch}: expected 0 to 99")


def _find_espeak() -> tuple[Path, Path]:
    """Find espeak-ng's shared library and its data folder."""
    try:
        loader = importlib.import_module("espeakng_loader")
        return Path(loader.get_library_path()), Path(loader.get_data_path())
    except ImportError as error:
        raise RuntimeUnavailableError(f"espeakng_loader is not installed: {REMEDY}") from error
    except RuntimeError as error:  # get_data_path raises it if the folder is missing
        raise RuntimeUnavailableError(f"espeakng_loader is damaged ({error}): {REMEDY}") from error


@contextmanager
def _opened(library: Path, data: Path) -> Iterator[tuple[ctypes.CDLL, int]]:
    """Load espeak-ng, yield it with its sample rate in Hz, and unload it afterwards."""
    with _one_at_a_time:
        _refuse_if_open(library)
        try:
            espeak = ctypes.CDLL(str(library))
        except OSError as error:
            raise RuntimeUnavailableError(f"{error}: {REMEDY}") from error
        try:
            sample_rate = espeak.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _DONT_EXIT)
            if sample_rate <= 0:
                # Measured: a path of 152 characters works, one of 167 does not.
                raise RuntimeUnavailableError(
                    f"{data}: espeak-ng finds no voices in it (they must exist, and the path must"
                    f" not exceed 150 characters): {REMEDY}"
                )
            espeak.espeak_ng_SetRandSeed(ctypes.c_long(1))
            yield espeak, sample_rate
        finally:
            espeak.espeak_Terminate()
            dlclose(espeak._handle)


def _refuse_if_open(library: Path) -> None:
    """Refuse a library that is open already: opening it again would keep its state."""
    try:
        handle = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD)._handle
    except OSError:
        return
    dlclose(handle)
    raise RuntimeUnavailableError(
        f"{library}: in use by another package in this process; synthesise in a separate process"
    )


def _synthesize(espeak: ctypes.CDLL, text: str) -> FloatArray:
    """Speak a text with the current voice and parameters: (samples,)."""
    chunks: list[bytes] = []

    def collect(samples: int | None, count: int, _events: int | None) -> int:
        if samples is not None and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0  # continue

    callback = _SynthCallback(collect)
    espeak.espeak_SetSynthCallback(callback)
    encoded = text.encode() + b"\0"
    size = ctypes.c_size_t(len(encoded))
    status = espeak.espeak_Synth(encoded, size, 0, _FROM_CHARACTER, 0, _UTF8, None, None)
    if status != 0:
        raise RuntimeUnavailableError(f"espeak-ng failed with status {status}: {REMEDY}")
    return np.frombuffer(b"".join(chunks), np.int16).astype(np.float32) / np.float32(32768)
