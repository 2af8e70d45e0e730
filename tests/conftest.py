"""Paths and small models that the tests share."""

from __future__ import annotations

import fcntl
import functools
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

# Two cores are what the figures are for; more threads than that only disturb each other. Where two
# processes test side by side, `make test` gives them one each.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line has it


import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from ds2deploy.config import Recipe
    from ds2deploy.model.network import DeepSpeech2
    from ds2deploy.runtimes.artifact import ArtifactDescription, ModelShape, Precision
    from ds2deploy.runtimes.tensorrt.library import TensorRt

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("DS2DEPLOY_TEST_DATA", ROOT.parent / "shared"))
"""Holds data/fsdd and fixtures/deepspeech_pytorch, which are not part of this repository."""

DIGITS_CHECKPOINT = ROOT / "tests" / "models" / "digits.ckpt"
STREAMING_CHECKPOINT = ROOT / "tests" / "models" / "digits-streaming.ckpt"


# How long an example takes is the machine's affair.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

PATIENCE_S = 600
"""Longer than anything here takes on a machine that is ten times slower and busy."""

TONES = {"A": 400.0, "B": 900.0, "C": 1800.0, "D": 3000.0}
"""Letters of a language of pure tones, which a tiny network learns in seconds."""

TINY = """
labels = "_ABCD "
[model]
rnn = "lstm"
hidden = 16
layers = 1
[features]
sample_rate = 8000
window_ms = 10.0
[data]
batch_size = 8
workers = 0
[training]
epochs = 4
learning_rate = 5e-3
threads = 1
accelerator = "cpu"
log_every = 1
"""


def speak_tones(text: str, random: np.random.Generator) -> np.ndarray:
    """Each letter is a tone of 0.1 s, each space 0.1 s of silence; 8 kHz."""
    time = np.arange(800) / 8000
    tones = [
        np.sin(2 * np.pi * TONES[letter] * time) * np.hanning(800) if letter != " " else 0 * time
        for letter in text
    ]
    sound = 0.3 * np.concatenate(tones)
    return (sound + 0.003 * random.standard_normal(len(sound))).astype(np.float32)


def write_corpus(folder: Path, utterances: int, seed: int) -> Path:
    """Recordings with a .txt beside each."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(utterances):
        words = [
            "".join(random.choice(list(TONES), size=random.integers(1, 4)))
            for _ in range(random.integers(1, 4))
        ]
        text = " ".join(words)
        soundfile.write(folder / f"{seed}-{i:03}.wav", speak_tones(text, random), 8000)
        (folder / f"{seed}-{i:03}.txt").write_text(f"{text}\n")
    return folder


def write_recipe(recipe: Recipe, path: Path) -> Path:
    """A recipe as TOML, for a process of its own; JSON's values are TOML's, but for null."""
    import json

    import msgspec

    lines, sections = [], []
    for name, value in msgspec.to_builtins(recipe).items():
        if isinstance(value, dict):
            keys = [f"{k} = {json.dumps(v)}" for k, v in value.items() if v is not None]
            sections += [f"[{name}]", *keys]
        else:
            lines.append(f"{name} = {json.dumps(value)}")
    path.write_text("\n".join([*lines, *sections, ""]))
    return path


@pytest.fixture(scope="session")
def recipe_file() -> Callable[[Recipe, Path], Path]:
    """Writes recipes."""
    return write_recipe


def shared_folder(name: str) -> Path:
    """A folder of the data beside the project; skips the test where it is not there."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder}: not there; DS2DEPLOY_TEST_DATA says where else to look")
    return folder


@pytest.fixture(scope="session")
def reference_checkpoints() -> Path:
    """deepspeech.pytorch's checkpoints and numbers; only beside the project."""
    return shared_folder("fixtures/deepspeech_pytorch")


@pytest.fixture(scope="session")
def spoken_digits() -> Path:
    """Recordings of the Free Spoken Digit Dataset; only beside the project."""
    return shared_folder("data/fsdd")


@pytest.fixture(scope="session")
def digits_checkpoint() -> Path:
    """The trained model that comes with the project."""
    return DIGITS_CHECKPOINT


@pytest.fixture(scope="session")
def streaming_checkpoint() -> Path:
    """The trained unidirectional model that comes with the project."""
    return STREAMING_CHECKPOINT


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder that all processes of a run share: `made_once(name, write)`.

    The first process that asks for it calls `write(folder)`; the others wait for that.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, write: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                write(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def digits_onnx(made_once: Callable[..., Path], digits_checkpoint: Path) -> Path:
    """Export and verify that model; a slow test has the longest utterances of the grid."""
    from ds2deploy.export.artifacts import export_onnx

    def write(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ds2deploy.export.parity.check.FRAMES", (40, 120))
            export_onnx(digits_checkpoint, folder)

    return made_once("digits", write) / "model.onnx"


@pytest.fixture(scope="session")
def streaming_onnx(tmp_path_factory: pytest.TempPathFactory, streaming_checkpoint: Path) -> Path:
    """It in blocks of 320 ms of samples, written but not verified."""
    import onnx

    from ds2deploy.export.onnx.graph import build_graph
    from ds2deploy.export.onnx.lowering import lower
    from ds2deploy.export.verified_onnx import append_description
    from ds2deploy.model.load import load_checkpoint
    from ds2deploy.model.streaming import streaming_description

    loaded = load_checkpoint(streaming_checkpoint)
    description = streaming_description(loaded.description(), "waveform")
    path = tmp_path_factory.mktemp("streaming") / "model.streaming.waveform.onnx"
    onnx.save(build_graph(lower(loaded.network), description), path)
    append_description(path, description)
    return path


@pytest.fixture(scope="session")
def rtx() -> TensorRt:
    """TensorRT-RTX, which builds without a GPU; it comes with the development environment."""
    from ds2deploy.runtimes.tensorrt.library import import_tensorrt

    if platform.machine() != "x86_64":
        pytest.skip("TensorRT-RTX has no wheel for this machine")
    return import_tensorrt("rtx")


@pytest.fixture(scope="session")
def lively_network() -> Callable[[ModelShape], DeepSpeech2]:
    """Makes networks whose weights are as large as trained ones, so that gates open and labels
    differ, and whose batch norms would be noticed if they were left out."""
    import torch

    from ds2deploy.model.network import DeepSpeech2

    def make(shape: ModelShape, bins: int = 161, gain: float = 2.0) -> DeepSpeech2:
        torch.manual_seed(0)
        network = DeepSpeech2(shape, bins=bins)
        for module in network.modules():
            if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.3)
                torch.nn.init.normal_(module.running_mean, std=0.3)
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        with torch.no_grad():
            network.output.weight.mul_(gain**2)
            for layer in network.rnns:
                for parameter in layer.rnn.parameters():
                    parameter.mul_(gain)
        return network.eval()

    return make


@pytest.fixture(scope="session")
def describe() -> Callable[..., ArtifactDescription]:
    """Describes the artifact of a network."""
    from ds2deploy.runtimes.alphabet import ENGLISH
    from ds2deploy.runtimes.artifact import ArtifactDescription, WeightsSource
    from ds2deploy.runtimes.blocks import make_blocks
    from ds2deploy.runtimes.features import FeatureConfig
    from ds2deploy.runtimes.tensors import with_tensors

    def make(
        shape: ModelShape,
        precision: Precision = "fp32",
        features: FeatureConfig | None = None,
        sound: str = "features",
        block_ms: float | None = None,
    ) -> ArtifactDescription:
        config = features or FeatureConfig()
        blocks = None if block_ms is None else make_blocks(shape, config, sound, block_ms)
        return with_tensors(
            ArtifactDescription(
                kind="offline" if blocks is None else "streaming",
                input=sound,
                precision=precision,
                labels=ENGLISH,
                features=config,
                model=shape,
                source=WeightsSource(name="test.ckpt", sha256="0" * 64, kind="ds2deploy"),
                blocks=blocks,
            )
        )

    return make


@pytest.fixture
def random() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def small_recipe() -> Recipe:
    """Of a network that costs next to nothing: few bins, few samples per frame."""
    import msgspec

    from ds2deploy.config import Recipe

    document = {
        "model": {"hidden": 8, "layers": 1},
        "features": {"sample_rate": 8000, "window_ms": 4.0, "stride_ms": 2.0},
        "data": {"batch_size": 2, "workers": 0},
        "training": {"epochs": 1, "accelerator": "cpu", "log_every": 1},
    }
    return msgspec.convert(document, Recipe)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory, small_recipe: Recipe) -> Path:
    """A checkpoint of that network, untrained."""
    import torch

    from ds2deploy.model.checkpoint import save_checkpoint
    from ds2deploy.model.weights import build_network

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "small.ckpt"
    save_checkpoint(path, build_network(small_recipe), small_recipe, {})
    return path


@pytest.fixture(scope="session")
def small_onnx(tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Path) -> Path:
    """It as an ONNX file, written but not verified, which would take seconds."""
    import onnx

    from ds2deploy.export.onnx.graph import build_graph
    from ds2deploy.export.onnx.lowering import lower
    from ds2deploy.export.verified_onnx import append_description
    from ds2deploy.model.load import load_checkpoint

    loaded = load_checkpoint(small_checkpoint)
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    onnx.save(build_graph(lower(loaded.network), loaded.description()), path)
    append_description(path, loaded.description())
    return path


@pytest.fixture(scope="session")
def tone_corpus(made_once: Callable[..., Path]) -> Path:
    """A folder of 40 recordings."""
    return made_once("tones", lambda out: write_corpus(out / "speaker", 40, seed=1)) / "speaker"


@pytest.fixture(scope="session")
def tone_manifests(tone_corpus: Path, made_once: Callable[..., Path]) -> Path:
    """A folder with train.jsonl.gz and valid.jsonl.gz of that corpus."""
    from ds2deploy.data.preparation import PrepareOptions, prepare
    from ds2deploy.runtimes.alphabet import Alphabet

    alphabet, options = Alphabet("_ABCD "), PrepareOptions(valid_share=0.25)
    return made_once("manifests", lambda out: prepare(tone_corpus, out, alphabet, options))


@pytest.fixture(scope="session")
def digit_strings(spoken_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of the test set, joined to strings of 2 to 6 digits; the other sets beside it.

    600 digits that the trained models never heard, by which their artifacts are judged.
    """
    from ds2deploy.data.preparation import PrepareOptions, prepare
    from ds2deploy.runtimes.alphabet import Alphabet

    out = tmp_path_factory.mktemp("strings")
    prepare(
        spoken_digits, out, Alphabet(), PrepareOptions(layout="fsdd", join=(2, 6), join_times=3)
    )
    return out / "test-joined.jsonl.gz"


@pytest.fixture
def tone_toml(tmp_path: Path) -> Path:
    """A recipe for that corpus, without its manifests."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def tone_recipe(tone_manifests: Path, tone_toml: Path, tmp_path: Path) -> Recipe:
    """A training of a few seconds, into tmp_path/run."""
    from ds2deploy.recipes import load_recipe

    return load_recipe(
        str(tone_toml),
        [
            f"data.train={tone_manifests / 'train.jsonl.gz'}",
            f"data.valid={tone_manifests / 'valid.jsonl.gz'}",
            f"training.run={tmp_path / 'run'}",
        ],
    )


@pytest.fixture
def children_hear_ctrl_c() -> Iterator[None]:
    """A shell starts what runs in its background without the signal, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def speech_is_made_once() -> Iterator[None]:
    """Keep the speech of the parity checks: it is the same for every export.

    To make it takes longer than a small network takes for it.
    """
    from ds2deploy.export.parity import speech

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech, "synthesize", _kept(speech.synthesize))
        yield


def _kept(synthesize: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Gives copies of what is kept: no test sees what another did to its own."""
    cached = functools.lru_cache(maxsize=64)(synthesize)
    return lambda *arguments, **options: cached(*arguments, **options).copy()


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off the lines that a command writes where it takes long on a busy machine."""
    monkeypatch.setattr("ds2deploy.heartbeat.SILENCE_S", float("inf"))


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Waits for a condition; fails after a time that no machine needs."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"not so after {PATIENCE_S} s"
            time.sleep(0.005)

    return wait


HOLDING = """
import os, sys, time
from pathlib import Path

def hold(*_, **__):
    Path({mark!r}).touch()
    while not Path({go!r}).exists():
        time.sleep(0.005)

def hold_name(wanted):
    def held(rename):
        def call(source, target, *others, **options):
            if Path(target).name == wanted:
                hold()
            return rename(source, target, *others, **options)
        return call
    for owner in (Path, os):
        for name in ("replace", "rename"):
            setattr(owner, name, held(getattr(owner, name)))

{patch}
sys.argv[0] = "ds2deploy"
from ds2deploy.cli.app import main
main()
"""


class Held:
    """A command that stands still at a chosen place.

    Attributes:
        process: process of the command.
    """

    def __init__(self, process: subprocess.Popen[str], go: Path) -> None:
        self.process, self._go = process, go

    def release(self) -> None:
        """Let it run on."""
        self._go.touch()


@pytest.fixture
def hold_command(
    tmp_path_factory: pytest.TempPathFactory, wait_until: Callable[[Callable[[], object]], None]
) -> Callable[..., AbstractContextManager[Held]]:
    """Starts a command in a process of its own and waits until it stands where it is told to.

    The first argument is Python that puts `hold` in the place of a function, or calls
    `hold_name(name)`: then it stands before a file gets that name.
    """

    @contextmanager
    def start(patch: str, *arguments: object) -> Iterator[Held]:
        folder = tmp_path_factory.mktemp("held")
        mark, go = folder / "mark", folder / "go"
        code = HOLDING.format(mark=str(mark), go=str(go), patch=patch)
        with subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            try:
                wait_until(lambda: mark.exists() or process.poll() is not None)
                assert process.poll() is None, process.communicate()[1]
                yield Held(process, go)
            finally:
                process.kill()

    return start
