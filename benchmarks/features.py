"""Speed of the feature extractor compared with librosa's transform and a logarithm.

    python benchmarks/features.py [--quick] [--json] [--out DIR]

deepspeech.pytorch computes `log1p(abs(librosa.stft(...)))`. Ours does the same, and also normalises
the utterance. The extra `peers` installs librosa; torch.stft is measured as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from models import speech
from report import Result, Table, arguments, at_most, deliver, progress

from ds2deploy.bench.timing import latency, ratio, take_turns
from ds2deploy.runtimes.features import FeatureConfig, FeatureExtractor, FloatArray

OURS, LIBROSA, TORCH = "ds2deploy", "librosa.stft, log1p", "torch.stft, log1p"
TIME_GOAL = 1.5
TOLERANCE = 1e-4
"""Maximum difference from librosa before normalisation, where values reach 5."""


def spectrograms(config: FeatureConfig, samples: FloatArray) -> dict[str, Callable[[], Any]]:
    """List the ways to compute (bins, time) float32 features; librosa only if it is installed."""
    extract = FeatureExtractor(config)
    options: dict[str, Any] = {
        "n_fft": config.n_fft,
        "hop_length": config.stride,
        "win_length": config.n_fft,
        "center": True,
        "pad_mode": "constant",
    }
    window, tensor = torch.hamming_window(config.n_fft), torch.from_numpy(samples)
    found: dict[str, Callable[[], Any]] = {
        OURS: lambda: extract(samples),
        TORCH: lambda: torch.log1p(
            torch.stft(tensor, window=window, return_complex=True, **options).abs()
        ).numpy(),
    }
    try:
        import librosa
    except ImportError:
        return found
    found[LIBROSA] = lambda: np.log1p(
        np.abs(librosa.stft(samples, window=config.window, **options))
    )
    return found


def measure(seconds: float, rounds: int, quick: bool = False) -> Result:
    """Time every way, and compare the results.

    Args:
        seconds: duration of the audio, in seconds.
        rounds: number of interleaved rounds.
        quick: True for the sizes of a test.
    """
    config = FeatureConfig()
    samples = speech(config.sample_rate, seconds)
    ways = spectrograms(config, samples)
    ours = FeatureExtractor(config).log_spectrogram(samples)
    differences = {
        name: float(np.abs(np.asarray(way()) - ours).max())
        for name, way in ways.items()
        if name != OURS
    }
    took = take_turns(ways, rounds, warm_up=3)
    times = {name: ratio(took[OURS], values) for name, values in took.items()}
    rows = [
        [
            name,
            f"{1000 * latency(values).p50:.2f}",
            f"{times[name].median:.2f}",
            f"{differences[name]:.1e}" if name in differences else "-",
        ]
        for name, values in took.items()
    ]
    progress(f"measured {rounds} rounds of {len(ways)} implementations")
    there = LIBROSA in ways
    return Result(
        name="features",
        title=f"Features of {seconds:g} s of audio",
        quick=quick,
        goals=[
            at_most(
                f"features of {seconds:g} s: time against librosa.stft and log1p",
                TIME_GOAL,
                times[LIBROSA].median if there else None,
            ),
            at_most(
                "largest difference from librosa, before normalisation",
                TOLERANCE,
                differences.get(LIBROSA),
                "",
            ),
        ],
        tables=[
            Table(
                "Each way, in turns",
                ["", "p50 (ms)", "ours takes times", "largest difference"],
                rows,
            )
        ],
        notes=[] if there else ["librosa is not installed: pip install 'ds2deploy[peers]'."],
        data={"seconds": took, "differences": differences},
    )


def main() -> None:
    """Measure, and print or write the result."""
    options = arguments(__doc__ or "").parse_args()
    deliver(measure(2.0, 5, quick=True) if options.quick else measure(10.0, 100), options)


if __name__ == "__main__":
    main()
