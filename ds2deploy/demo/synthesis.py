"""Spoken digit strings for `ds2deploy demo`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ds2deploy.data.corpora.fsdd import DIGITS
from ds2deploy.demo.espeak import Synthesizer, Voice
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.features import FloatArray, IntArray


def _voices(variants_by_accent: dict[str, str]) -> tuple[Voice, ...]:
    return tuple(
        Voice(f"{accent}+{variant}")
        for accent, variants in variants_by_accent.items()
        for variant in variants.split()
    )


# `en` is British: espeak_SetVoiceByName does not know the name `en-gb`. The list excludes whispers,
# robots, loud echoes, voices whose noise comes from libc's rand(), and voices that resemble a test
# voice (aunty has the formants of f4; gustave and marcelo are close to Michael, Nguyen to m7).
TRAIN_VOICES = _voices(
    {
        "en-us": "m1 f1 Alex Gene steph",
        "en-us-nyc": "m2 f2 Denis john",
        "en": "m4 f3 Henrique Mario Andrea",
        "en-gb-x-rp": "m5 f5 adam grandpa",
        "en-gb-scotland": "m6 linda miguel robert Storm",
        "en-029": "m8 grandma edward pablo",
        "en-gb-x-gbclan": "anika Andy iven3 sandro victor",
    }
)
TEST_VOICES = _voices(
    {
        "en-us": "m3 f4",
        "en-us-nyc": "Annie",
        "en": "m7",
        "en-gb-x-rp": "belinda",
        "en-gb-scotland": "Michael",
        "en-029": "travis",
        "en-gb-x-gbclan": "boris",
    }
)


class SpokenString(NamedTuple):
    """String of digits with its recording.

    Attributes:
        text: upper-case words, such as `THREE ONE NINE`.
        voice: name of the voice that spoke it.
        samples: (samples,) float32, mono, in [-1, 1].
        sample_rate: sample rate, in Hz.
    """

    text: str
    voice: str
    samples: FloatArray
    sample_rate: int


def digit_strings(
    count: int, voices: Sequence[Voice], seed: int, lengths: tuple[int, int]
) -> Iterator[SpokenString]:
    """Speak random digit strings at 120 to 220 words per minute, with varied pitch and level.

    All digits occur equally often (or once more), including doubled digits, and so do all voices.
    The digits and voices only depend on the arguments, not on espeak-ng.

    Args:
        count: number of strings.
        voices: voices that speak.
        seed: seed of the random numbers, 0 or more.
        lengths: minimum and maximum number of digits of a string.

    Returns:
        A lazy iterator; it takes 7 ms to synthesise a string of 4 digits.

    Raises:
        ConfigError: there are no voices, or the lengths allow no string.
        RuntimeUnavailableError: as from `Synthesizer`.
    """
    if not voices or not 1 <= lengths[0] <= lengths[1]:
        raise ConfigError(
            f"digit strings of {lengths} digits by {len(voices)} voices: expected 1 or more of both"
        )
    random = np.random.default_rng(seed)
    sizes = random.integers(*lengths, endpoint=True, size=count)
    digits = np.split(_deal(len(DIGITS), int(sizes.sum()), random), np.cumsum(sizes))
    speakers = _deal(len(voices), count, random)
    rates_wpm = random.integers(120, 220, endpoint=True, size=count)
    pitches = random.integers(25, 75, endpoint=True, size=count)
    synthesizer = Synthesizer()

    def spoken(index: int) -> SpokenString:
        text, voice = " ".join(DIGITS[digit] for digit in digits[index]), voices[speakers[index]]
        rate_wpm, pitch = int(rates_wpm[index]), int(pitches[index])
        speech, sample_rate = synthesizer.speak(text.lower(), voice, rate_wpm, pitch)
        recording = _record(speech, sample_rate, np.random.default_rng([seed, index]))
        return SpokenString(text, voice.name, recording, sample_rate)

    return map(spoken, range(count))


def _deal(kinds: int, total: int, random: np.random.Generator) -> IntArray:
    """Shuffle `total` numbers below `kinds`, which all occur equally often (or once more)."""
    return random.permutation(random.permutation(kinds)[np.arange(total) % kinds])


def _record(speech: FloatArray, sample_rate: int, random: np.random.Generator) -> FloatArray:
    """Simulate a recording in a quiet room: (samples,) float32.

    The recording has 20 to 100 ms of room noise before and after the speech. The speech is 20 to
    32 dB below full scale, and the white noise 25 to 40 dB below the speech.
    """
    before, after = (int(seconds * sample_rate) for seconds in random.uniform(0.02, 0.1, size=2))
    level = 10 ** (random.uniform(-32, -20) / 20)
    noise = random.standard_normal(before + len(speech) + after)
    noise *= level * 10 ** (-random.uniform(25, 40) / 20)
    speech = speech * (level / np.sqrt(np.mean(np.square(speech))))
    return np.clip(np.pad(speech, (before, after)) + noise, -1, 1).astype(np.float32)
