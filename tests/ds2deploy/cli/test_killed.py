"""What dies while it writes leaves nothing half-written under a final name."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
import torch

from ds2deploy.config import Recipe
from ds2deploy.data.manifest import read_manifest, write_manifest
from ds2deploy.export import verified_onnx
from ds2deploy.export.artifacts import export_onnx
from ds2deploy.model.checkpoint import save_checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.runtimes.errors import ModelFileError
from ds2deploy.runtimes.onnx.session import OnnxSession
from ds2deploy.training.run_folder import RunFolder
from ds2deploy.training.train import train

PATIENCE_S = 600

Hold = Callable[..., AbstractContextManager[Any]]


class Killed(BaseException):
    """Stands for the end of the process; not an Exception, so that nothing handles it."""


# A process that is killed ---------------------------------------------------------------------


def final_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        "import onnx; onnx.checker.check_model = hold",
        "import ds2deploy.export.verified_onnx as module; module.check_parity = hold",
        "hold_name('model.onnx')",
    ],
)
def test_an_export_that_is_killed_before_it_is_named(
    place: str, hold_command: Hold, small_checkpoint: Path, tmp_path: Path
) -> None:
    with hold_command(place, "export", small_checkpoint, "--out", tmp_path) as held:
        assert any(tmp_path.glob(".*model.onnx"))
        held.process.kill()
    assert final_names(tmp_path) == set()


@pytest.mark.slow
def test_an_export_that_is_killed_as_soon_as_its_file_has_its_name(
    hold_command: Hold, small_checkpoint: Path, tmp_path: Path
) -> None:
    place = "import ds2deploy.cli.export_report as module; module.artifact_lines = hold"
    with hold_command(place, "export", small_checkpoint, "--out", tmp_path) as held:
        held.process.kill()
    assert_whole_artifact(tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "present"),
    [
        (
            "from ds2deploy.training.run_folder import RunFolder as folder\n"
            "append = folder.append\n"
            "folder.append = lambda self, line: (append(self, line), hold())",
            {"metrics.jsonl"},
        ),
        ("hold_name('last.ckpt')", {"metrics.jsonl"}),
        ("hold_name('best.ckpt')", {"metrics.jsonl", "last.ckpt"}),
        (
            "from ds2deploy.training.progress import TrainingProgress as shown\n"
            "shown.note_validation = lambda self, point, _: point.step > 8 and hold()",
            {"metrics.jsonl", "last.ckpt", "best.ckpt", "best.jsonl"},
        ),
    ],
    ids=["a line", "last.ckpt", "best.ckpt", "later"],
)
def test_a_training_that_is_killed(
    place: str,
    present: set[str],
    hold_command: Hold,
    tone_toml: Path,
    tone_manifests: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    settings = [f"data.{name}={tone_manifests / name}.jsonl.gz" for name in ("train", "valid")]
    settings += [f"training.run={run}", "training.epochs=1000"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    with hold_command(place, "train", tone_toml, *arguments) as held:
        held.process.kill()
    assert final_names(run) == present
    for name in final_names(run) - {"best.jsonl", "metrics.jsonl"}:
        assert load_checkpoint(run / name).recipe.training.epochs == 1000
    *lines, _ = (run / "metrics.jsonl").read_bytes().split(b"\n")
    assert [msgspec.json.decode(line) for line in lines] == RunFolder(run).metrics()


def assert_whole_artifact(path: Path) -> None:
    onnx.checker.check_model(str(path), full_check=True)
    parity = OnnxSession(path).description.parity
    assert parity is not None
    assert parity["passed"]


# The same to the byte: a writer that dies in the middle ----------------------------------------


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a function write half of its file and die."""

    def patch(owner: Any, name: str, path_at: int) -> None:
        write = getattr(owner, name)

        def half(*arguments: Any, **options: Any) -> None:
            write(*arguments, **options)
            path = Path(arguments[path_at])
            os.truncate(path, path.stat().st_size // 2)
            raise Killed

        monkeypatch.setattr(owner, name, half)

    return patch


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dies where a file that is written would get its name."""

    def die(*_: Any) -> None:
        raise Killed

    for owner in (Path, os):
        for name in ("replace", "rename"):
            monkeypatch.setattr(owner, name, die)


@pytest.fixture(params=[None, b"the file of before"], ids=["fresh", "over an old one"])
def old(request: pytest.FixtureRequest) -> bytes | None:
    content: bytes | None = request.param
    return content


def prepared(path: Path, old: bytes | None) -> Path:
    if old is not None:
        path.write_bytes(old)
    return path


def assert_as_before(path: Path, old: bytes | None) -> None:
    assert (path.read_bytes() if path.exists() else None) == old


@pytest.fixture
def half_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dies in the middle of a checkpoint."""
    save = torch.save

    def half(document: Any, file: Any) -> None:
        save(document, file)
        file.truncate(file.tell() // 2)
        raise Killed

    monkeypatch.setattr(torch, "save", half)


def test_a_checkpoint_that_is_half_written(
    half_saved: None, old: bytes | None, small_checkpoint: Path, tmp_path: Path
) -> None:
    loaded, path = load_checkpoint(small_checkpoint), prepared(tmp_path / "best.ckpt", old)
    with pytest.raises(Killed):
        save_checkpoint(path, loaded.network, loaded.recipe, {})
    assert_as_before(path, old)


@pytest.mark.usefixtures("no_names")
def test_a_checkpoint_without_its_name(
    old: bytes | None, small_checkpoint: Path, tmp_path: Path
) -> None:
    loaded, path = load_checkpoint(small_checkpoint), prepared(tmp_path / "best.ckpt", old)
    with pytest.raises(Killed):
        save_checkpoint(path, loaded.network, loaded.recipe, {})
    assert_as_before(path, old)


def test_an_export_that_is_half_written(
    dying: Callable[..., None], old: bytes | None, small_checkpoint: Path, tmp_path: Path
) -> None:
    path = prepared(tmp_path / "model.onnx", old)
    dying(onnx, "save", path_at=1)
    with pytest.raises(Killed):
        export_onnx(small_checkpoint, tmp_path)
    assert_as_before(path, old)


@pytest.mark.parametrize("step", ["check_parity", "append_description", "file_sha256"])
def test_an_export_that_dies_after_writing(
    step: str,
    old: bytes | None,
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both precisions: what stands or falls together may not leave the first one behind."""
    paths = [prepared(tmp_path / name, old) for name in ("model.onnx", "model.fp16.onnx")]
    passes_once(monkeypatch, step)
    with pytest.raises(Killed):
        export_onnx(small_checkpoint, tmp_path, ("fp32", "fp16"))
    for path in paths:
        assert_as_before(path, old)


def passes_once(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The step dies when it is done for the second artifact; parity is not what is tested."""

    class Passed:
        passed = True

        def summary(self) -> dict[str, Any]:
            return {"passed": True}

    calls: list[None] = []
    monkeypatch.setattr(verified_onnx, "check_parity", lambda *_: Passed())
    work = getattr(verified_onnx, step)

    def once(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            raise Killed
        return work(*arguments)

    monkeypatch.setattr(verified_onnx, step, once)


def test_a_last_checkpoint_that_is_half_written(
    half_saved: None, tone_recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train(tone_recipe)
    # The first is written before the first validation.
    assert final_names(tmp_path / "run") == {"metrics.jsonl"}


def test_metrics_that_are_half_rewound(dying: Callable[..., None], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in range(10):
        folder.append({"step": step, "kind": "train"})
    before = folder.metrics()
    dying(Path, "write_bytes", path_at=0)
    with pytest.raises(Killed):
        folder.rewind(5)
    assert folder.metrics() == before


def test_a_line_of_metrics_that_is_half_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append({"step": 1, "kind": "train"})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "los')
    assert folder.metrics() == [{"step": 1, "kind": "train"}]


@pytest.mark.usefixtures("no_names")
def test_a_manifest_without_its_name(
    old: bytes | None, tone_manifests: Path, tmp_path: Path
) -> None:
    cuts = read_manifest(tone_manifests / "valid.jsonl.gz")
    path = prepared(tmp_path / "train.jsonl.gz", old)
    with pytest.raises(Killed):
        write_manifest(cuts, path)
    assert_as_before(path, old)


# Several that write at once ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def contained() -> list[str]:
    """Begins a command whose process ids start anew, as a container's do; empty where that is not
    allowed, and the processes then differ in their ids."""
    prefix = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child"]
    allowed = shutil.which("unshare") and not subprocess.run([*prefix, "true"]).returncode
    return prefix if allowed else []


@pytest.mark.slow
def test_two_exports_at_once_into_one_folder(
    contained: list[str], small_checkpoint: Path, tmp_path: Path
) -> None:
    """Two containers give both exports the same process id."""
    call = [*contained, sys.executable, "-m", "ds2deploy", "export", str(small_checkpoint)]
    call += ["--out", str(tmp_path), "--precision", "fp32,fp16"]
    processes = [
        subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.fp16.onnx"}
    for path in tmp_path.iterdir():
        assert_whole_artifact(path)


@pytest.mark.parametrize("happens", ["gone", "cut", "grown"])
def test_an_export_whose_file_another_process_touches_is_refused(
    happens: str, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A description without a graph must never be called verified."""
    check = verified_onnx.check_parity

    def disturb(*arguments: Any) -> Any:
        report = check(*arguments)
        (temporary,) = tmp_path.glob(".*.model.onnx")
        if happens == "gone":
            temporary.unlink()
        else:
            size = temporary.stat().st_size
            os.truncate(temporary, size // 2 if happens == "cut" else size + 1)
        return report

    monkeypatch.setattr(verified_onnx, "check_parity", disturb)
    with pytest.raises(ModelFileError, match="another process writes into"):
        export_onnx(small_checkpoint, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_description_is_never_appended_to_nothing(small_onnx: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ModelFileError, match=re.escape(f"{path}: disappeared")):
        verified_onnx.append_description(path, OnnxSession(small_onnx).description)
    assert not path.exists()


def test_two_last_checkpoints_have_different_temporary_names(
    tone_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, names = torch.save, []

    def note(document: Any, file: Any) -> None:
        names.append(Path(file.name).name)
        save(document, file)

    monkeypatch.setattr(torch, "save", note)
    train(tone_recipe.changed("training", epochs=1))
    assert len(set(names)) == len(names) > 1
    assert all(re.fullmatch(r"\.[0-9a-f]{16}\.(last|best)\.ckpt", name) for name in names)


# A process that is told to end ------------------------------------------------------------------


@pytest.mark.slow
def test_a_polite_end_leaves_nothing(
    hold_command: Hold, small_checkpoint: Path, tmp_path: Path
) -> None:
    """SIGTERM, as a scheduler or systemd sends it."""
    out = tmp_path / "out"
    out.mkdir()
    place = "import ds2deploy.export.verified_onnx as module; module.check_parity = hold"
    with hold_command(place, "export", small_checkpoint, "--out", out) as held:
        held.process.terminate()
        assert held.process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert list(out.iterdir()) == []
