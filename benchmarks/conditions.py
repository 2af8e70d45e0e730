r"""Word errors of a streaming model by acoustic condition, false words in noise, and drift.

    python benchmarks/conditions.py MODEL MANIFEST... [--seed 7] [--drift-minutes 10] [--out DIR]

MODEL is a checkpoint or an artifact that streams. Each manifest is measured alone, so that the
corpora can be compared. Conditions are simulated: silence around the words, stationary noise of a
random colour, rooms, a telephone's sample rate, a low gain. A minute of silence, of noise and of
music has no words: each word there is a false one. Drift compares the first and the last minute of
continuous speech, as one stream and with a new segment at every pause.

    python benchmarks/conditions.py model.streaming.waveform.onnx data/an4/valid.jsonl.gz
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import lhotse
import numpy as np
import soxr
from report import Goal, Result, Table, arguments, at_most, deliver, progress

import ds2deploy
from ds2deploy.data.acoustics import make_music, reverberate
from ds2deploy.data.augmentation import add_noise, made_noise
from ds2deploy.data.cuts import transcript
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.streaming.endpoint import Endpoint
from ds2deploy.training.error_analysis import wer_interval, word_errors
from ds2deploy.training.scoring import Hypothesis

CLEAN = "clean"
PAUSE_S = 1.5
"""Pause between two utterances of continuous speech, in seconds: longer than a word is late."""

PIECE_S = 0.25
MINUTE_S = 60.0
SPEECH_RMS = 0.05
"""Root mean square of speech at a usual gain: the level of noise and music without words."""


class Utterance(NamedTuple):
    """Recorded words: (samples,) float32 at `rate` Hz."""

    samples: FloatArray
    rate: int
    text: str


Change = Callable[[Utterance, np.random.Generator], Utterance]


def main() -> None:
    """Measure, and print or write."""
    parser = arguments(__doc__ or "")
    parser.add_argument("model", type=Path)
    parser.add_argument("manifests", type=Path, nargs="+")
    parser.add_argument("--seed", type=int, default=7, help="random seed of noise and rooms")
    parser.add_argument(
        "--drift-minutes", type=float, default=10.0, help="duration of the stream in minutes"
    )
    options = parser.parse_args()
    deliver(measure(options), options)


def measure(options: argparse.Namespace) -> Result:
    """Measure all conditions on every manifest."""
    recognizer = ds2deploy.load(options.model)
    goals: list[Goal] = []
    tables: list[Table] = []
    data: dict[str, object] = {}
    for manifest in options.manifests:
        name = f"{manifest.parent.name}/{manifest.name.split('.')[0]}"
        utterances = read(manifest, recognizer)
        if options.quick:
            utterances = utterances[:4]
        rows, rates = by_condition(recognizer, utterances, options.seed)
        tables.append(
            Table(
                f"Word error rate: {name}, {len(utterances)} utterances",
                ["condition", "WER", "95 % interval", "of clean"],
                rows,
            )
        )
        goals += condition_goals(name, rates)
        drift = measure_drift(recognizer, utterances, options.drift_minutes)
        tables.append(
            Table(
                f"Drift: {name}, {drift.minutes:.1f} minutes",
                ["", "first minute", "last minute", "all"],
                drift.rows,
            )
        )
        data[name] = {"wer": rates, "drift": drift.rows}
    false = false_words(recognizer, options.seed)
    tables.append(
        Table(
            "Words in a minute without speech",
            ["sound", "words", "text"],
            [[sound, str(len(text.split())), text] for sound, text in false.items()],
        )
    )
    goals.append(
        at_most("false words in a minute", 1, max(len(text.split()) for text in false.values()), "")
    )
    return Result(
        name="conditions",
        title=f"Conditions: {options.model.name}",
        quick=options.quick,
        goals=goals,
        tables=tables,
        notes=[f"Seed {options.seed}. Intervals by bootstrap over utterances."],
        data={**data, "false_words": false},
    )


def read(manifest: Path, recognizer: Recognizer) -> list[Utterance]:
    """Read the utterances of a manifest, with the text that the model can write."""
    alphabet = Alphabet(recognizer.description.labels)
    return [
        Utterance(
            cut.load_audio()[0].astype(np.float32),
            int(cut.sampling_rate),
            alphabet.normalize(transcript(cut)),
        )
        for cut in lhotse.CutSet.from_file(manifest)
    ]


def conditions() -> dict[str, Change]:
    """List the changes of a recording, by name."""
    return {
        CLEAN: lambda one, _: one,
        **{f"silence of {s:g} s around": silence(s) for s in (0.1, 1.0, 2.0)},
        **{f"noise, {snr:g} dB": noise(snr) for snr in (20.0, 10.0)},
        **{f"room, RT60 {rt60:g} s": room(rt60) for rt60 in (0.3, 0.6)},
        "8 kHz": telephone,
        "gain of -30 dB": lambda one, _: one._replace(samples=one.samples * np.float32(10**-1.5)),
    }


def silence(seconds: float) -> Change:
    """Put silence before and after the words, with the faint noise of a sound card."""

    def change(one: Utterance, random: np.random.Generator) -> Utterance:
        count = int(seconds * one.rate)
        faint = [random.normal(0, 1e-4, count).astype(np.float32) for _ in range(2)]
        return one._replace(samples=np.concatenate([faint[0], one.samples, faint[1]]))

    return change


def noise(snr_db: float) -> Change:
    """Add stationary noise of a random colour."""

    def change(one: Utterance, random: np.random.Generator) -> Utterance:
        made = made_noise(len(one.samples), random)
        return one._replace(samples=add_noise(one.samples, made, snr_db))

    return change


def room(rt60_s: float) -> Change:
    """Simulate a room."""
    return lambda one, random: one._replace(
        samples=reverberate(one.samples, one.rate, rt60_s, random)
    )


def telephone(one: Utterance, _: np.random.Generator) -> Utterance:
    """Resample to the rate of a telephone."""
    return one._replace(samples=soxr.resample(one.samples, one.rate, 8000), rate=8000)


def by_condition(
    recognizer: Recognizer, utterances: Sequence[Utterance], seed: int
) -> tuple[list[list[str]], dict[str, float]]:
    """Measure every condition; rows of a table, and the rates in percent."""
    rows: list[list[str]] = []
    rates: dict[str, float] = {}
    for name, change in conditions().items():
        random = np.random.default_rng(seed)
        found = []
        for one in utterances:
            changed = change(one, random)
            found.append((one.text, stream(recognizer, changed.samples, changed.rate)[0]))
        rate, low, high = rate_of(found)
        rates[name] = rate
        rows.append([name, f"{rate:.1f} %", f"{low:.1f} to {high:.1f}",
                     f"{rate / max(rates[CLEAN], 1e-9):.2f}"])  # fmt: skip
        progress(f"{name}: {rate:.1f} %")
    return rows, rates


def condition_goals(name: str, rates: dict[str, float]) -> list[Goal]:
    """Compare the conditions with the bounds of the model: 1.5 times clean, and 3 times."""
    quiet = max(rate for key, rate in rates.items() if key.startswith("silence"))
    other = max(
        rate for key, rate in rates.items() if key != CLEAN and not key.startswith("silence")
    )
    clean = max(rates[CLEAN], 1e-9)
    return [
        at_most(f"{name}: WER with silence, against clean", 1.5, quiet / clean),
        at_most(f"{name}: WER in other conditions, against clean", 3.0, other / clean),
    ]


def rate_of(found: Sequence[tuple[str, str]]) -> tuple[float, float, float]:
    """Word error rate of (said, recognised), with its interval; in percent."""
    errors, words = word_errors([Hypothesis("", said, recognised) for said, recognised in found])
    low, high = wer_interval(errors, words)
    rate = float(errors.sum()) / max(int(words.sum()), 1)
    return 100 * rate, 100 * low, 100 * high


def stream(
    recognizer: Recognizer, samples: FloatArray, rate: int, endpoint: Endpoint | None = None
) -> tuple[str, list[tuple[float, str]]]:
    """Recognise samples as a stream; the text, and (start in seconds, word)."""
    words: list[tuple[float, str]] = []
    texts: list[str] = []
    size = int(PIECE_S * rate)
    with recognizer.stream(rate, endpoint=endpoint) as live:
        for start in range(0, len(samples), size):
            for segment in live.accept(samples[start : start + size]).segments:
                texts.append(segment.text)
                words += [(word.start, word.text) for word in segment.words]
        last = live.finish()
    texts.append(last.text)
    words += [(word.start, word.text) for word in last.words]
    return " ".join(filter(None, texts)), words


class Drift(NamedTuple):
    """Word error rates over a long stream."""

    minutes: float
    rows: list[list[str]]


def measure_drift(recognizer: Recognizer, utterances: Sequence[Utterance], minutes: float) -> Drift:
    """Recognise continuous speech: utterances one after the other, and again from the first."""
    rate = utterances[0].rate
    pause = np.zeros(int(PAUSE_S * rate), np.float32)
    parts: list[FloatArray] = []
    said: list[tuple[float, str]] = []
    at_s, number = 0.0, 0
    while at_s < 60 * minutes:
        one = utterances[number % len(utterances)]
        parts += [one.samples, pause]
        at_s += len(one.samples) / rate + PAUSE_S
        said += [(at_s, one.text)]
        number += 1
    samples = np.concatenate(parts)
    rows = []
    for name, endpoint in (("one stream", None), ("segments at pauses", Endpoint())):
        _, words = stream(recognizer, samples, rate, endpoint)
        cells = []
        for low, high in ((0.0, MINUTE_S), (at_s - MINUTE_S, at_s), (0.0, at_s)):
            ends = [end for end, _ in said]
            starts = [0.0, *ends[:-1]]
            pairs = [
                (text, " ".join(word for t, word in words if start <= t < end))
                for start, (end, text) in zip(starts, said, strict=True)
                if start >= low - 1e-6 and end <= high + 1e-6
            ]
            cells.append(f"{rate_of(pairs)[0]:.1f} %")
        rows.append([name, *cells])
    return Drift(at_s / 60, rows)


def false_words(recognizer: Recognizer, seed: int) -> dict[str, str]:
    """Recognise a minute of each sound without words; the texts."""
    rate = recognizer.description.features.sample_rate
    random, count = np.random.default_rng(seed), int(MINUTE_S * rate)
    music = make_music(count, rate, random)
    colour = made_noise(count, random)
    sounds = {
        "digital silence": np.zeros(count, np.float32),
        "silence of a sound card": random.normal(0, 1e-4, count).astype(np.float32),
        "noise": SPEECH_RMS / 4 * colour / np.sqrt(np.mean(colour**2)),
        "music": SPEECH_RMS * music / np.sqrt(np.mean(music**2)),
    }
    return {
        name: stream(recognizer, sound.astype(np.float32), rate)[0]
        for name, sound in sounds.items()
    }


if __name__ == "__main__":
    main()
