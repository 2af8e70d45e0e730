"""The demo's speech: repeatable, varied, and honest about which voices are heard in training."""

from __future__ import annotations

import ctypes
import sys
from _ctypes import dlclose
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ds2deploy.data.corpora.fsdd import DIGITS
from ds2deploy.demo.espeak import Synthesizer, Voice
from ds2deploy.demo.synthesis import TEST_VOICES, TRAIN_VOICES, digit_strings
from ds2deploy.runtimes.errors import ConfigError, RuntimeUnavailableError

VOICES = TRAIN_VOICES + TEST_VOICES

needs_espeak = pytest.mark.usefixtures("espeakng_loader")


@pytest.fixture
def espeakng_loader():
    return pytest.importorskip("espeakng_loader", reason="pip install 'ds2deploy[demo]'")


@needs_espeak
def test_an_utterance_does_not_depend_on_those_before_it():
    synthesizer = Synthesizer()
    first = [synthesizer.speak("three one nine", voice)[0] for voice in VOICES]
    again = [synthesizer.speak("three one nine", voice)[0] for voice in reversed(VOICES)][::-1]
    for voice, a, b in zip(VOICES, first, again, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=voice.name)


@needs_espeak
def test_every_voice_is_one_of_its_own():
    """espeak-ng replaces what it does not know by a default, without a word."""
    synthesizer = Synthesizer()
    accents = {Voice(voice.name.partition("+")[0]) for voice in VOICES}
    spoken = {synthesizer.speak("four", voice)[0].tobytes() for voice in {*VOICES, *accents}}
    assert len(spoken) == len(VOICES) + len(accents)


@needs_espeak
@pytest.mark.parametrize("voice", [TRAIN_VOICES[0], *TEST_VOICES], ids=lambda v: v.name)
def test_ten_digits_are_audible_and_different(voice):
    synthesizer = Synthesizer()
    spoken = [synthesizer.speak(digit.lower(), voice)[0] for digit in DIGITS]
    for samples in spoken:
        assert samples.dtype == np.float32
        assert samples.ndim == 1
        assert 0.2 < len(samples) / synthesizer.sample_rate < 0.7
        # Room to full scale: at it, espeak-ng's limiter distorts.
        assert 0.05 < np.abs(samples).max() < 0.95
    assert len({samples.tobytes() for samples in spoken}) == 10


def test_no_speaker_is_in_both_sets():
    train, test = ([voice.variant for voice in voices] for voices in (TRAIN_VOICES, TEST_VOICES))
    assert len(set(train)) == len(train)
    assert len(set(test)) == len(test)
    assert not set(train) & set(test)
    assert "" not in train + test


@needs_espeak
def test_rate_and_pitch_are_heard():
    synthesizer = Synthesizer()
    voice = Voice("en-us+m7")
    lengths = [len(synthesizer.speak("one two", voice, rate_wpm=r)[0]) for r in (120, 160, 220)]
    assert all(slower > 1.2 * faster for slower, faster in pairwise(lengths))
    low, high = (synthesizer.speak("nine", voice, pitch=pitch)[0] for pitch in (20, 80))
    assert _pitch_hz(high, synthesizer.sample_rate) > 1.3 * _pitch_hz(low, synthesizer.sample_rate)


def _pitch_hz(samples, sample_rate):
    middle = samples[len(samples) // 3 :][:4096]
    correlation = np.correlate(middle, middle, "full")[len(middle) - 1 :]
    shortest, longest = sample_rate // 250, sample_rate // 60
    return sample_rate / (shortest + correlation[shortest:longest].argmax())


@needs_espeak
@pytest.mark.parametrize(
    ("voice", "options", "message"),
    [
        ("en-us+nobody", {}, "nobody: espeak-ng has no variant nobody"),
        ("en-gb+f3", {}, "f3: espeak-ng has no such voice"),
        ("en-us+f3", {"rate_wpm": 1000}, "rate_wpm 1000: expected 80 to 450"),
        ("en-us+f3", {"pitch": 100}, "pitch 100: expected 0 to 99"),
    ],
)
def test_values_that_espeak_would_replace_silently_are_refused(voice, options, message):
    with pytest.raises(ConfigError, match=message):
        Synthesizer().speak("one", Voice(voice), **options)
    assert len(Synthesizer().speak("one", Voice("en-us+f3"))[0]) > 0


def test_missing_wheel_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(RuntimeUnavailableError) as raised:
        digit_strings(1, TRAIN_VOICES, seed=0, lengths=(1, 4))
    assert str(raised.value) == "espeakng_loader is not installed: pip install 'ds2deploy[demo]'"


def test_library_that_cannot_be_loaded_names_the_remedy(monkeypatch, tmp_path):
    broken = tmp_path / "libespeak-ng.so"
    broken.write_bytes(b"not a library")
    _stand_in(monkeypatch, broken, tmp_path)
    with pytest.raises(RuntimeUnavailableError, match=r"libespeak-ng\.so.*ds2deploy\[demo\]"):
        Synthesizer()


def test_missing_data_names_the_folder(monkeypatch, tmp_path, espeakng_loader):
    _stand_in(monkeypatch, Path(espeakng_loader.get_library_path()), tmp_path / "gone")
    with pytest.raises(RuntimeUnavailableError, match=r"gone: espeak-ng finds no voices in it"):
        Synthesizer()


def _stand_in(monkeypatch, library, data):
    loader = SimpleNamespace(get_library_path=lambda: library, get_data_path=lambda: data)
    monkeypatch.setitem(sys.modules, "espeakng_loader", loader)


def test_library_that_another_package_holds_is_refused(espeakng_loader):
    held = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        with pytest.raises(RuntimeUnavailableError, match="in use by another package"):
            Synthesizer()
    finally:
        dlclose(held._handle)
    assert Synthesizer().sample_rate == 22050


@needs_espeak
def test_a_seed_fixes_the_strings_and_another_changes_them():
    first, again, other = (
        list(digit_strings(12, TEST_VOICES, seed=seed, lengths=(1, 4))) for seed in (3, 3, 4)
    )
    for a, b in zip(first, again, strict=True):
        assert (a.text, a.voice, a.sample_rate) == (b.text, b.voice, b.sample_rate)
        np.testing.assert_array_equal(a.samples, b.samples)
    assert [s.text for s in first] != [s.text for s in other]
    assert len({s.samples.tobytes() for s in (*first, *other)}) == 24


@needs_espeak
def test_strings_are_balanced_and_compact():
    strings = list(digit_strings(80, TEST_VOICES, seed=0, lengths=(2, 4)))
    words = [string.text.split() for string in strings]
    assert {len(w) for w in words} == {2, 3, 4}
    assert set(Counter(string.voice for string in strings).values()) == {10}
    digits = Counter(word for w in words for word in w)
    assert sorted(digits) == sorted(DIGITS)
    assert max(digits.values()) - min(digits.values()) <= 1
    assert any(a == b for w in words for a, b in pairwise(w))
    seconds = sum(len(string.samples) / string.sample_rate for string in strings)
    assert 0.3 < seconds / digits.total() < 0.5


@needs_espeak
def test_recordings_are_not_sterile():
    strings = list(digit_strings(20, TRAIN_VOICES, seed=1, lengths=(3, 3)))
    for string in strings:
        assert string.samples.dtype == np.float32
        assert np.abs(string.samples).max() <= 1
        # The first 20 ms are room noise alone.
        noise = string.samples[: string.sample_rate // 50]
        speech = string.samples[string.sample_rate // 10 : -string.sample_rate // 10]
        assert 15 < 20 * np.log10(speech.std() / noise.std()) < 45
    levels = [20 * np.log10(string.samples.std()) for string in strings]
    assert max(levels) - min(levels) > 6


@pytest.mark.parametrize(("voices", "lengths"), [((), (1, 4)), (TEST_VOICES, (0, 4))])
def test_impossible_strings_are_refused(voices, lengths):
    with pytest.raises(ConfigError, match="digit strings of"):
        digit_strings(1, voices, seed=0, lengths=lengths)
