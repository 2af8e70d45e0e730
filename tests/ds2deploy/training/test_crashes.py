"""A training that is killed, told to end, out of disk, or fed with broken files."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from ds2deploy.config import Recipe
from ds2deploy.data.batches import Batch
from ds2deploy.data.preparation import PrepareOptions, prepare
from ds2deploy.model.load import load_checkpoint
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import AudioError, ConfigError, TrainingError
from ds2deploy.training import loop
from ds2deploy.training.loop import TrainingLoop
from ds2deploy.training.progress import TrainingProgress
from ds2deploy.training.run_folder import BROKEN, RunFolder
from ds2deploy.training.train import train

PATIENCE_S = 600
LEARN = TrainingLoop.learn
EVERY_STEP = 1e-9
"""Minutes between checkpoints."""


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def recipe(tone_recipe: Recipe) -> Recipe:
    """With everything that is drawn at random, and a checkpoint after every step."""
    noisy = tone_recipe.changed(
        "augment", speed=(0.9, 1.1), noise_snr_db=(5.0, 20.0), frequency_masks=1
    )
    noisy = noisy.changed("data", join=(1, 2), silence_s=(0.0, 0.2), batch_size=4)
    return noisy.changed("training", epochs=4, checkpoint_minutes=EVERY_STEP)


def losses(run: str | Path) -> list[tuple[int, float]]:
    lines = RunFolder(Path(run)).metrics()
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]


def validations(run: str | Path) -> list[dict[str, Any]]:
    lines = [line for line in RunFolder(Path(run)).metrics() if line["kind"] == "valid"]
    return [{k: v for k, v in line.items() if k != "elapsed_s"} for line in lines]


def assert_same_training(left: Path, right: Path) -> None:
    """To the last bit: losses, validations, weights, and every state of the optimiser."""
    assert losses(left) == losses(right)
    assert validations(left) == validations(right) != []
    kept = [torch.load(run / "last.ckpt", weights_only=True) for run in (left, right)]
    assert kept[0]["global_step"] == kept[1]["global_step"]
    for name, tensor in kept[0]["state_dict"].items():
        assert tensor.equal(kept[1]["state_dict"][name]), name
    states = [document["optimizer_states"][0]["state"] for document in kept]
    for number, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(value, states[1][number][name]), (number, name)
    assert kept[0]["lr_schedulers"] == kept[1]["lr_schedulers"]


Command = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


STANDING = """
import sys, time
from pathlib import Path
from ds2deploy.cli.app import main
from ds2deploy.training.loop import TrainingLoop

def stand(self, batch, learn=TrainingLoop.learn):
    while self.point.step == {step} and not Path({go!r}).exists():
        time.sleep(0.002)
    learn(self, batch)

TrainingLoop.learn = stand
sys.argv[0] = "ds2deploy"
main()
"""


@pytest.fixture
def command(recipe_file: Callable[[Recipe, Path], Path]) -> Command:
    """Trains by a recipe in a process of its own, which is killed in the end.

    With a `last` step it stands still then, until there is a file `go` beside its run: so it
    cannot end before something is done to it, however late that comes.
    """

    @contextmanager
    def run(
        recipe: Recipe, *options: str, last: int | None = None
    ) -> Iterator[subprocess.Popen[str]]:
        toml = recipe_file(recipe, Path(recipe.training.run).with_suffix(".toml"))
        go = Path(recipe.training.run).with_name("go")
        start = STANDING.format(step=last, go=str(go))
        call = [sys.executable, "-c", start, "train", str(toml), *options]
        process = subprocess.Popen(
            call,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    return run


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not any(line["step"] >= step for line in RunFolder(run).metrics()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("epochs", "accumulate", "max_steps"),
    [
        (2, 1, None),
        pytest.param(4, 1, None, marks=pytest.mark.slow),
        pytest.param(4, 3, 11, marks=pytest.mark.slow),
    ],
)
def test_it_goes_on_in_the_middle_of_an_epoch(
    recipe: Recipe, epochs: int, accumulate: int, max_steps: int | None, tmp_path: Path
):
    """It dies after every third step, again and again."""
    recipe = recipe.changed("training", epochs=epochs, accumulate=accumulate, max_steps=max_steps)
    whole, parted = (
        recipe.changed("training", run=str(tmp_path / name)) for name in ("whole", "parted")
    )
    train(whole)

    lives = 0
    while True:
        begun = losses(parted.training.run)[-1][0] if lives else 0

        def die(self: TrainingLoop, batch: Batch, begun: int = begun) -> None:
            if self.point.step >= begun + 3:
                raise KilledError
            LEARN(self, batch)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingLoop, "learn", die)
            try:
                train(parted, resume=lives > 0)
                break
            except KilledError:
                lives += 1
    assert lives >= 2
    assert_same_training(tmp_path / "whole", tmp_path / "parted")


@pytest.mark.parametrize(
    ("hook", "validate_every", "epochs"),
    [
        ("note_validated", 1, 2),
        pytest.param("note_validated", 1, 3, marks=pytest.mark.slow),
        pytest.param("note_validation", 2, 3, marks=pytest.mark.slow),
    ],
)
def test_it_dies_in_every_validation(
    recipe: Recipe, hook: str, validate_every: int, epochs: int, tmp_path: Path
):
    """They are made when it goes on, also the last, after which there is no step to make."""
    recipe = recipe.changed(
        "training",
        epochs=epochs,
        validate_every=validate_every,
        checkpoint_minutes=1000,
        report=True,
    )
    whole, parted = (
        recipe.changed("training", run=str(tmp_path / name)) for name in ("whole", "parted")
    )
    train(whole)
    died: set[int] = set()

    def die(*_: Any) -> None:
        done = len(validations(parted.training.run))
        if done not in died:
            died.add(done)
            raise KilledError

    for _ in range(9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingProgress, hook, die)
            try:
                train(parted, resume=bool(died))
                break
            except KilledError:
                pass
    assert len(died) >= 2
    assert_same_training(tmp_path / "whole", tmp_path / "parted")
    assert (tmp_path / "parted" / "report.html").exists()
    left, right = (load_checkpoint(tmp_path / name / "best.ckpt") for name in ("whole", "parted"))
    for name, tensor in left.network.state_dict().items():
        assert tensor.equal(right.network.state_dict()[name]), name
    with pytest.raises(ConfigError, match=rf"last\.ckpt: .*--set training\.epochs={2 * epochs}\b"):
        train(parted, resume=True)


def test_resuming_at_max_steps_is_refused(recipe: Recipe):
    train(recipe.changed("training", max_steps=5, tensorboard=True))
    with pytest.raises(ConfigError, match=r"last\.ckpt: .*--set training\.max_steps=10"):
        train(recipe.changed("training", max_steps=5, tensorboard=True), resume=True)


@pytest.mark.thorough
def test_killed_five_times_at_random(recipe: Recipe, command: Command, tmp_path: Path):
    """The signal comes at five steps, at any moment up to the step after each."""
    recipe = recipe.changed("training", epochs=8)
    whole, parted = (
        recipe.changed("training", run=str(tmp_path / name)) for name in ("whole", "parted")
    )
    train(whole)
    last = losses(tmp_path / "whole")[-1][0]
    places = sorted(random.Random(6).sample(range(1, last - 3), 5))
    for number, step in enumerate(places):
        with command(parted, *(["--resume"] if number else []), last=step + 2) as process:
            wait_for_step(process, tmp_path / "parted", step)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
    train(parted, resume=True)
    assert_same_training(tmp_path / "whole", tmp_path / "parted")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("children_hear_ctrl_c")
def test_told_to_end_it_keeps_its_last_step(
    recipe: Recipe, command: Command, number: signal.Signals, tmp_path: Path
):
    """Although the next checkpoint would be minutes away."""
    recipe = recipe.changed("training", epochs=200, schedule="constant", checkpoint_minutes=1000)
    run = tmp_path / "run"
    with command(recipe) as process:
        wait_for_step(process, run, 2)
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number
    step = losses(run)[-1][0]
    line = errors.splitlines()[-1]
    assert line.startswith(f"ds2deploy: {run}: ")
    assert f"last.ckpt contains step {step}" in line
    assert line.endswith("--resume")
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == step
    # A training that was never told anything ends the same.
    whole = recipe.changed("training", epochs=200, max_steps=step + 3, run=str(tmp_path / "whole"))
    train(whole)
    train(recipe.changed("training", max_steps=step + 3), resume=True)
    assert_same_training(tmp_path / "whole", run)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("children_hear_ctrl_c")
def test_a_signal_to_the_whole_group_leaves_the_checkpoint(
    recipe: Recipe, command: Command, number: signal.Signals, tmp_path: Path
):
    """Ctrl-C in a terminal and `timeout` signal the processes that load data too."""
    recipe = recipe.changed("training", epochs=200, schedule="constant", checkpoint_minutes=1000)
    recipe = recipe.changed("data", workers=2)
    run = tmp_path / "run"
    with command(recipe) as process:
        wait_for_step(process, run, 2)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    step = losses(run)[-1][0]
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == step


@pytest.mark.slow
def test_warned_it_writes_a_checkpoint_and_goes_on(
    recipe: Recipe, command: Command, wait_until: Callable[..., None], tmp_path: Path
):
    recipe = recipe.changed("training", epochs=1000, checkpoint_minutes=1000, validate_every=1000)
    recipe = recipe.changed("data", batch_size=1, join=(1, 1))  # an epoch of thirty steps
    run = tmp_path / "run"
    with command(recipe, last=3) as process:
        wait_for_step(process, run, 3)
        process.send_signal(signal.SIGUSR1)
        (tmp_path / "go").touch()
        wait_until(lambda: (run / "last.ckpt").exists())
        step = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
        wait_for_step(process, run, step + 5)
        assert process.poll() is None
    assert step in (3, 4)  # not that of an epoch's end


def test_a_checkpoint_every_minute(recipe: Recipe, tmp_path: Path, monkeypatch):
    """By the clock alone, which here strikes half a minute at every batch."""
    now = [0.0]
    monkeypatch.setattr("ds2deploy.training.last_checkpoint.time.monotonic", lambda: now[0])
    written: list[int] = []
    save = torch.save

    def noted(document: dict[str, Any], file: Any) -> None:
        if "global_step" in document:
            written.append(document["global_step"])
        save(document, file)

    def tick(self: TrainingLoop, batch: Batch) -> None:
        now[0] += 30.0
        LEARN(self, batch)

    monkeypatch.setattr(torch, "save", noted)
    monkeypatch.setattr(TrainingLoop, "learn", tick)
    train(recipe.changed("training", max_steps=7, checkpoint_minutes=1))
    assert written[:2] == [2, 4]


# Disks ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_disk_that_is_full(
    recipe: Recipe, recipe_file: Callable[[Recipe, Path], Path], tmp_path: Path
):
    """The last good checkpoint stands; the process ends with one line."""
    run = tmp_path / "run"
    train(recipe.changed("training", epochs=1))
    before = (run / "last.ckpt").read_bytes()
    limit = (
        "import resource, signal, sys; from ds2deploy.cli.app import main; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) - 1000},) * 2); "
        "sys.argv[0] = 'ds2deploy'; main()"
    )
    toml = recipe_file(recipe.changed("training", epochs=2), tmp_path / "run.toml")
    call = [sys.executable, "-c", limit, "train", str(toml), "--resume"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    step = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    assert line.startswith(f"ds2deploy: {run / 'last.ckpt'}: {os.strerror(errno.EFBIG)}; ")
    assert "--resume" in line
    assert line.endswith(f"last.ckpt contains step {step}")
    assert (run / "last.ckpt").read_bytes() == before
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_disk_without_room_for_a_line(recipe: Recipe, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device; free some space") as caught:
        RunFolder(run).append({"step": 1})
    assert caught.value.filename == str(run / "metrics.jsonl")


# Numbers and files ------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_stops_it_before_the_weights_are_touched(
    recipe: Recipe, tmp_path: Path
):
    with pytest.raises(TrainingError, match=r"run: the loss is nan .*--resume"):
        train(recipe.changed("training", learning_rate=1e30, schedule="constant"))
    weights = load_checkpoint(tmp_path / "run" / "last.ckpt").network.state_dict()
    first = losses(tmp_path / "run")
    assert all(loss is not None for _, loss in first)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_gradients_that_are_not_numbers_stop_it_too(recipe: Recipe, tmp_path: Path, monkeypatch):
    """The loss may still be one: a square root of nothing."""
    train(recipe.changed("training", epochs=1))
    before = (tmp_path / "run" / "last.ckpt").read_bytes()

    def poisoned(*_: Any, **__: Any) -> torch.Tensor:
        return torch.tensor(float("inf"))

    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", poisoned)
    with pytest.raises(TrainingError, match="the norm of the gradients is inf"):
        train(recipe.changed("training", epochs=2), resume=True)
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_16_mixed_skips_steps_and_counts_them_until_that_does_not_help(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At 65536 times the loss the gradients overflow, until that was halved a few times."""
    monkeypatch.setattr("ds2deploy.training.train.check_hardware", lambda _: None)
    recipe = recipe.changed("training", precision="16-mixed", max_steps=6, checkpoint_minutes=1)
    recipe = recipe.changed("data", batch_size=1, join=(1, 1))
    train(recipe.changed("training", run=str(tmp_path / "helps")))
    lines = [line for line in RunFolder(tmp_path / "helps").metrics() if line["kind"] == "train"]
    skipped = [line["gradient_norm"] is None for line in lines]
    assert [line["skipped_steps"] for line in lines] == list(accumulate(skipped))
    assert {*skipped} == {True, False}

    monkeypatch.setattr(loop, "MOST_SKIPPED", 1)
    with pytest.raises(TrainingError, match=r"gradients is (inf|nan) at step \d;"):
        train(recipe)


def test_resuming_with_another_learning_rate(recipe: Recipe, tmp_path: Path):
    train(recipe.changed("training", epochs=1, schedule="constant", learning_rate=1e-3))
    train(
        recipe.changed(
            "training", epochs=2, schedule="constant", learning_rate=2e-4, weight_decay=0.5
        ),
        resume=True,
    )
    lines = [line for line in RunFolder(tmp_path / "run").metrics() if line["kind"] == "train"]
    assert {line["learning_rate"] for line in lines if line["epoch"] == 1} == {1e-3}
    later = [line["learning_rate"] for line in lines if line["epoch"] == 2]
    assert later == [pytest.approx(2e-4)] * len(later) != []
    group = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["optimizer_states"][0]
    assert group["param_groups"][0]["weight_decay"] == 0.5


@pytest.fixture
def corpus(tone_corpus: Path, tmp_path: Path) -> Path:
    """A copy of the recordings, to break some of."""
    return Path(shutil.copytree(tone_corpus, tmp_path / "corpus" / "speaker"))


def on_corpus(recipe: Recipe, corpus: Path, out: Path) -> Recipe:
    prepare(corpus, out, Alphabet("_ABCD "), PrepareOptions(valid_share=0.25))
    paths = {name: str(out / f"{name}.jsonl.gz") for name in ("train", "valid")}
    return recipe.changed("data", **paths, join=(1, 1))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_few_broken_recordings_are_named_and_left_out(
    recipe: Recipe, corpus: Path, workers: int, tmp_path: Path, capsys, monkeypatch
):
    """One in training, where it is a batch of its own, and one in validation; of forty."""
    monkeypatch.setattr("ds2deploy.training.recorder.BROKEN_SHARE", 0.05)
    recipe = on_corpus(recipe, corpus, tmp_path / "manifests").changed("data", workers=workers)
    recipe = recipe.changed("data", batch_size=1)
    from ds2deploy.data.cuts import audio_path
    from ds2deploy.data.manifest import read_manifest

    broken = [
        Path(audio_path(next(iter(read_manifest(path)))))
        for path in (recipe.data.train, recipe.data.valid)
    ]
    for path in broken:
        path.write_bytes(b"RIFF of no use")
    metrics = train(recipe.changed("training", epochs=2, checkpoint_minutes=1000))
    assert metrics["wer"] > 0
    named = [
        msgspec.json.decode(line)["error"]
        for line in (tmp_path / "run" / BROKEN).read_bytes().splitlines()
    ]
    assert sorted(error.partition(":")[0] for error in named) == sorted(map(str, broken))
    reported = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert sorted(reported) == sorted(f"left out: {error}" for error in named)


def test_too_many_broken_recordings_end_it(
    recipe: Recipe, corpus: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("ds2deploy.training.recorder.BROKEN_SHARE", 0.05)
    recipe = on_corpus(recipe, corpus, tmp_path / "manifests")
    for path in sorted(corpus.glob("*.wav"))[:20]:
        path.write_bytes(b"RIFF of no use")
    with pytest.raises(AudioError, match=r"\.wav: .*3 of 40 .*ds2deploy prepare --read"):
        train(recipe)
