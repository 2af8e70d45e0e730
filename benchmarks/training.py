"""Speed of a training step compared with packed sequences, and time spent waiting for data.

    python benchmarks/training.py [--quick] [--json] [--out DIR]

There are four parts.

1. One step (forward, CTC loss, backward, clipped AdamW) of 3 x BiLSTM-512 on 8 utterances of 3 to
   5 s, in turns and from the same weights: as the project computes it, and as deepspeech.pytorch
   does, over packed sequences and with torch's convolutions. Their gradients must be equal. A third
   step, over packed sequences with the project's convolutions, separates the two effects.
2. A real training with the project's trainer on synthetic recordings; the time between two steps is
   waiting for data.
3. Steps of 5 x BiLSTM-1024 on six utterances of 10 s, in a separate process: time and memory.
4. A training of 500 steps on utterances of random lengths, in another process: growth of memory.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from counting import network_stages
from models import LARGE, MEDIUM, TINY, recipe_of, shape_name, speech
from probes import SIDE, TINY_SIDE, multiply_probes, rates
from report import Goal, Result, Table, arguments, at_most, deliver, progress
from torch import nn

from ds2deploy.bench.timing import latency, ratio, take_turns
from ds2deploy.config import Recipe
from ds2deploy.data.batches import Batch, collate
from ds2deploy.data.preparation import PrepareOptions, prepare
from ds2deploy.heartbeat import Heartbeat
from ds2deploy.model.convolution import FourierConv2d
from ds2deploy.model.network import DeepSpeech2, pack_sequences
from ds2deploy.model.weights import build_network
from ds2deploy.runtimes.alphabet import ENGLISH, Alphabet
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.features import FeatureExtractor
from ds2deploy.training.hardware import silence_lightning
from ds2deploy.training.loop import TrainingLoop
from ds2deploy.training.memory import (
    bound_primitive_cache,
    keep_freed_memory,
    peak_memory_mib,
    resident_memory_mib,
)
from ds2deploy.training.optimization import ctc_loss
from ds2deploy.training.progress import TrainingProgress
from ds2deploy.training.resuming import InitialState
from ds2deploy.training.run_folder import RunFolder

OURS = "this project's step"
PACKED = "over packed sequences"
PEERS = "over packed sequences, torch's own convolutions"
STEP_GOAL, GRADIENT_GOAL, BUSY_GOAL, GROWTH_GOAL = 3.0, 1e-3, 95.0, 10.0
VALID_SHARE = 0.1
CLIP_NORM = 5.0
WORDS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")


class Sizes(NamedTuple):
    """Sizes of a run: network, batch, minimum and maximum seconds, rounds, and training steps."""

    shape: ModelShape
    batch: int
    seconds: tuple[float, float]
    rounds: int
    steps: int


FULL = Sizes(MEDIUM, 8, (3.0, 5.0), 7, 24)
QUICK = Sizes(TINY, 2, (0.5, 1.0), 1, 3)

LARGE_STEP = Sizes(LARGE, 6, (10.0, 10.0), 3, 0)
"""Sizes of the third part: a minute of audio per batch, and a network as in deepspeech.pytorch."""

LARGE_QUICK = Sizes(TINY, 2, (0.5, 0.5), 2, 0)

LONG = Sizes(ModelShape(rnn="lstm", hidden=256, layers=3), 8, (0.5, 2.0), 100, 500)
"""Sizes of the training whose memory is measured; `rounds` is the number of steps before that."""

LONG_QUICK = Sizes(TINY, 2, (0.2, 0.4), 4, 12)


def make_batch(recipe: Recipe, utterances: int, seconds: tuple[float, float]) -> Batch:
    """Make a batch of synthetic speech with random durations, and transcripts of digits."""
    random = np.random.default_rng(0)
    rate, alphabet = recipe.features.sample_rate, Alphabet(recipe.labels)
    extract = FeatureExtractor(recipe.features)
    durations = np.linspace(*seconds, utterances)
    sounds = [extract(speech(rate, duration, voice=i)) for i, duration in enumerate(durations)]
    texts = [" ".join(random.choice(WORDS, 4)) for _ in range(utterances)]
    return collate(sounds, texts, alphabet)


def make_networks(recipe: Recipe) -> dict[str, DeepSpeech2]:
    """Make networks with the same weights, by name, each in the memory format of its training."""
    found = {}
    for name in (OURS, PACKED, PEERS):
        torch.manual_seed(0)
        network = build_network(recipe).train()
        if name == PEERS:
            use_torchs_convolutions(network)
        else:
            network.conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        found[name] = network if name == OURS else pack_sequences(network)
    return found


def use_torchs_convolutions(network: DeepSpeech2) -> None:
    """Replace the project's convolutions by torch's."""
    for module in list(network.modules()):
        if isinstance(module, FourierConv2d):
            module.__class__ = nn.Conv2d


def backward(network: DeepSpeech2, batch: Batch) -> float:
    """Run forward and backward pass, and return the loss."""
    log_probs, lengths = network(batch.features, batch.lengths)
    loss = ctc_loss(log_probs, lengths, batch) / len(batch.lengths)
    loss.backward()
    return float(loss.detach())


def gradient_difference(left: DeepSpeech2, right: DeepSpeech2, batch: Batch) -> float:
    """Compute the maximum difference of gradients, relative to a parameter's largest gradient."""
    for network in (left, right):
        network.zero_grad()
        backward(network, batch)
    worst = 0.0
    for ours, theirs in zip(left.parameters(), right.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        scale = max(float(theirs.grad.abs().max()), GRADIENT_FLOOR)
        worst = max(worst, float((ours.grad - theirs.grad).abs().max()) / scale)
    return worst


GRADIENT_FLOOR = 1e-4
"""Maximum of a gradient that counts as zero with rounding errors: that of a bias which the
following batch norm removes again."""


def step_of(network: DeepSpeech2, batch: Batch) -> Callable[[], None]:
    """Make a function that runs a whole optimisation step."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        backward(network, batch)
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimizer.step()

    return step


def least_step(recipe: Recipe, batch: Batch, rate: float) -> float:
    """Compute a lower bound of the seconds of a step that multiplies directly, as the reference.

    The bound counts the products of valid frames: each stage forward, then the gradients of its
    weights and of its input (except the features). The project's second convolution needs fewer
    operations, see `ds2deploy.model.convolution`.

    Args:
        recipe: recipe of the network.
        batch: batch of the step.
        rate: operations per second.
    """
    shape, bins, labels = recipe.model, recipe.features.bins, len(recipe.labels)
    operations = 0.0
    for frames in batch.lengths.tolist():
        for stage in network_stages(shape, bins, labels, 1, frames):
            operations += stage.operations * (2 if stage.name == "conv1" else 3)
    return operations / rate


class TimedLoop(TrainingLoop):
    """Training loop that measures its steps.

    Attributes:
        busy: seconds of every step.
        waited: seconds of waiting before every step.
        mib: resident memory of the process after every step, in MiB.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.busy: list[float] = []
        self.waited: list[float] = []
        self.mib: list[float] = []
        self._since = 0.0

    def train_epoch(self) -> None:
        """Start the clock when the first batch is requested."""
        self._since = time.perf_counter()
        super().train_epoch()

    def learn(self, batch: Batch) -> None:
        """Measure the time until a batch is available, and the time of its step."""
        arrived = time.perf_counter()
        self.waited.append(arrived - self._since)
        super().learn(batch)
        self._since = time.perf_counter()
        self.busy.append(self._since - arrived)
        self.mib.append(resident_memory_mib())

    def busy_share(self) -> float:
        """Share of the time from the first batch to the end that the steps take."""
        waited = sum(self.waited[1:])
        return sum(self.busy) / (sum(self.busy) + waited)


def write_recordings(folder: Path, rate: int, count: int, between: tuple[float, float]) -> Path:
    """Write a folder of WAV files, each with a transcript."""
    random = np.random.default_rng(1)
    folder.mkdir()
    for i in range(count):
        seconds = float(random.uniform(*between))
        soundfile.write(folder / f"{i:03}.wav", speech(rate, seconds, voice=i % 16), rate)
        words = random.choice(WORDS, min(4, max(1, int(4 * seconds))))  # CTC has room for them
        (folder / f"{i:03}.txt").write_text(" ".join(words) + "\n")
    return folder


def growth(mib: Sequence[float], warm_up: int) -> float:
    """Compute the growth of the resident memory after the first steps, in percent.

    Medians over several steps at both ends are compared, because the memory of a step depends on
    its utterances.

    Args:
        mib: resident memory after every step, in MiB.
        warm_up: number of steps to ignore.
    """
    watched = mib[warm_up:]
    part = max(len(watched) // 5, 1)
    before, after = statistics.median(watched[:part]), statistics.median(watched[-part:])
    return 100 * (after / before - 1)


def train_for_real(sizes: Sizes) -> TimedLoop:
    """Run the project's training for a number of steps of one epoch."""
    count = round(sizes.batch * (sizes.steps + 1) / (1 - VALID_SHARE))
    progress(f"training {sizes.steps} steps")
    return run_training(sizes, count, epochs=1, workers=1)


def long_training(sizes: Sizes) -> list[float]:
    """Train on utterances of random lengths in this process; return the MiB after every step."""
    bound_primitive_cache()
    keep_freed_memory()
    augment = {"speed": [0.85, 1.15]}
    # Few batches per epoch, so that there are several epochs, as in a real training.
    return run_training(sizes, 20 * sizes.batch, sizes.steps, workers=0, augment=augment).mib


def run_training(
    sizes: Sizes,
    count: int,
    epochs: int,
    workers: int,
    **sections: object,
) -> TimedLoop:
    """Train with the project's trainer on synthetic recordings.

    Args:
        sizes: sizes of the run.
        count: number of recordings.
        epochs: maximum number of epochs; `sizes.steps` ends the run earlier.
        workers: number of processes that load data.
        sections: other sections of the recipe.
    """
    silence_lightning()
    with tempfile.TemporaryDirectory(prefix="ds2deploy-") as name:
        folder = Path(name)
        recipe = recipe_of(
            sizes.shape,
            data={"batch_size": sizes.batch, "workers": workers},
            training={
                "accelerator": "cpu",
                "max_steps": sizes.steps,
                "epochs": epochs,
                "validate_every": epochs,
                "run": str(folder / "run"),
            },
            **sections,
        )
        rate = recipe.features.sample_rate
        source = write_recordings(folder / "audio", rate, count, sizes.seconds)
        alphabet = Alphabet(ENGLISH)
        cuts = prepare(
            source, folder / "manifests", alphabet, PrepareOptions(valid_share=VALID_SHARE)
        )[0]
        network = build_network(recipe)
        network.conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        run = RunFolder(folder / "run")
        run.path.mkdir()
        shown = TrainingProgress(epochs, Heartbeat("training", silent=True))
        loop = TimedLoop(
            recipe, network, (cuts["train"], cuts["valid"]), run, shown, InitialState()
        )
        loop.run()
        return loop


def large_step(sizes: Sizes) -> dict[str, Any]:
    """Measure the seconds of every step after the first, and the peak memory of this process."""
    keep_freed_memory()
    recipe = recipe_of(sizes.shape)
    batch, network = make_batch(recipe, sizes.batch, sizes.seconds), make_networks(recipe)[OURS]
    took = take_turns({OURS: step_of(network, batch)}, sizes.rounds)
    return {"seconds": took[OURS], "peak_mib": peak_memory_mib()}


def elsewhere(option: str, quick: bool) -> Any:
    """Run a part in a separate process, so that its memory contains nothing else.

    Args:
        option: command-line option that names the part.
        quick: True for the sizes of a test.
    """
    call = [sys.executable, __file__, option, *(["--quick"] if quick else [])]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    return json.loads(done.stdout.splitlines()[-1])


def measure(sizes: Sizes, quick: bool = False) -> Result:
    """Measure all parts: steps in turns, gradients, real training, large step and long training.

    Args:
        sizes: sizes of the run.
        quick: True for the sizes of a test.
    """
    keep_freed_memory()  # as in a training, for both
    recipe = recipe_of(sizes.shape)
    batch, networks = make_batch(recipe, sizes.batch, sizes.seconds), make_networks(recipe)
    difference = max(
        gradient_difference(networks[OURS], networks[name], batch) for name in (PACKED, PEERS)
    )
    cases = {name: step_of(network, batch) for name, network in networks.items()}
    side = TINY_SIDE if quick else SIDE
    probes = {n: p for n, p in multiply_probes(side, side, side).items() if p.what == "fp32"}
    calls = cases | {name: probe.call for name, probe in probes.items()}
    seconds = take_turns(calls, sizes.rounds, progress=progress)
    took = {name: seconds[name] for name in cases}
    least_s = least_step(recipe, batch, rates(probes, seconds).multiply["fp32"])
    faster = ratio(took[PEERS], took[OURS])
    clock = train_for_real(sizes)
    share = 100 * clock.busy_share()
    progress("training on a minute of audio with 5 x BiLSTM-1024")
    large, of_large = elsewhere("--large-step", quick), LARGE_QUICK if quick else LARGE_STEP
    long = LONG_QUICK if quick else LONG
    progress(f"training {long.steps} steps to measure memory")
    resident = elsewhere("--long-training", quick)
    return Result(
        name="training",
        title=f"Training: {shape_name(sizes.shape)}, batch {sizes.batch} of "
        f"{sizes.seconds[0]:g} to {sizes.seconds[1]:g} s",
        quick=quick,
        goals=[
            Goal(
                "training step against packed sequences",
                STEP_GOAL,
                faster.median,
                detail=faster.spread,
            ),
            at_most("largest difference of gradients, relative", GRADIENT_GOAL, difference, ""),
            Goal("the network's share of the training's time", BUSY_GOAL, share, "%"),
            at_most(
                f"a training's memory, growth from step {long.rounds} to {long.steps}",
                GROWTH_GOAL,
                growth(resident, long.rounds),
                "%",
                detail=f"({shape_name(long.shape)}, {resident[long.rounds]:.0f} to "
                f"{resident[-1]:.0f} MiB, at most {max(resident):.0f})",
            ),
        ],
        tables=[
            Table(
                "A step",
                ["", "p50 (s)", "p95 (s)", "utterances per s", "this project's against it"],
                [step_row(name, sizes.batch, took) for name in took],
            )
        ],
        notes=[
            f"The products of a step, multiplied directly, take at least {least_s:.2f} s by the "
            "machine's own rate, those of padded frames not counted.",
            f"The real training: {len(clock.busy)} steps, "
            f"{sizes.batch * len(clock.busy) / (sum(clock.busy) + sum(clock.waited)):.2f} "
            f"utterances per second, {100 - share:.2f} % of the time waiting for data (a step "
            f"{statistics.median(clock.busy):.2f} s, a wait {statistics.median(clock.waited):.4f} "
            f"s); {clock.waited[0]:.2f} s until the first batch.",
            f"{shape_name(of_large.shape)}, {of_large.batch} x {of_large.seconds[0]:g} s: "
            f"{statistics.median(large['seconds']):.2f} s for a step, at most "
            f"{large['peak_mib']:.0f} MiB resident.",
        ],
        data={
            "seconds": took,
            "least_s": least_s,
            "gradient_difference": difference,
            "busy_s": clock.busy,
            "waited_s": clock.waited,
            "large_step": large,
            "resident_mib": resident,
        },
    )


def step_row(name: str, batch: int, took: dict[str, list[float]]) -> list[str]:
    """Make a row of the table of steps."""
    found, against = latency(took[name]), ratio(took[name], took[OURS])
    times = [f"{found.p50:.3f}", f"{found.p95:.3f}", f"{batch / found.p50:.2f}"]
    return [name, *times, str(against)]


def main() -> int:
    """Measure, and print or write the result."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--large-step", action="store_true", help="run only the large step and print JSON"
    )
    parser.add_argument(
        "--long-training", action="store_true", help="run only the long training and print JSON"
    )
    options = parser.parse_args()
    if options.large_step:
        print(json.dumps(large_step(LARGE_QUICK if options.quick else LARGE_STEP)))
        return 0
    if options.long_training:
        print(json.dumps(long_training(LONG_QUICK if options.quick else LONG)))
        return 0
    deliver(measure(QUICK if options.quick else FULL, options.quick), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
