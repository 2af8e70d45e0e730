"""Several writers of one file, from containers where all have the same process id."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ds2deploy.runtimes.files import LEFTOVER_S, WholeFiles, whole_file

TOKEN = "0123456789abcdef"  # noqa: S105


def test_two_writers_never_share_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Both believe to be process 7 and that no other process lives."""

    def no_process(*_: object) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "getpid", lambda: 7)
    monkeypatch.setattr(os, "kill", no_process)
    path = tmp_path / "model.onnx"
    with whole_file(path) as first, whole_file(path) as second:
        assert first != second
        first.write_bytes(b"first")
        second.write_bytes(b"second")
        assert first.read_bytes() == b"first"
    assert path.read_bytes() == b"first"  # whose name came last
    assert list(tmp_path.iterdir()) == [path]


def test_a_temporary_file_keeps_its_suffix_and_is_hidden(tmp_path: Path):
    with whole_file(tmp_path / "train.jsonl.gz") as temporary:
        assert re.fullmatch(r"\.[0-9a-f]{16}\.train\.jsonl\.gz", temporary.name)


def leftover(path: Path, age_s: float) -> Path:
    path.write_bytes(b"half")
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))
    return path


def test_only_an_old_and_unlocked_leftover_goes(tmp_path: Path):
    old = leftover(tmp_path / f".{TOKEN}.model.onnx", 2 * LEFTOVER_S)
    kept = [
        leftover(tmp_path / f".{TOKEN[::-1]}.model.onnx", LEFTOVER_S / 2),  # perhaps in use
        leftover(tmp_path / f".{TOKEN}.other.onnx", 2 * LEFTOVER_S),
        leftover(tmp_path / f".{TOKEN}.my.model.onnx", 2 * LEFTOVER_S),
        leftover(tmp_path / ".12.model.onnx", 2 * LEFTOVER_S),
        leftover(tmp_path / ".x.model.onnx", 2 * LEFTOVER_S),
    ]
    with whole_file(tmp_path / "model.onnx") as temporary:
        temporary.write_bytes(b"whole")
    assert not old.exists()
    assert all(path.exists() for path in kept)


def test_an_old_file_that_another_process_holds_stays(tmp_path: Path):
    """A build of more than a day, in whichever container."""
    held = leftover(tmp_path / f".{TOKEN}.model.onnx", 2 * LEFTOVER_S)
    code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print(); input()"
    call = [sys.executable, "-c", code, str(held)]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with whole_file(tmp_path / "model.onnx"):
            assert held.exists()
        other.communicate(b"\n")


def test_a_writer_holds_its_file(tmp_path: Path):
    with (
        whole_file(tmp_path / "model.onnx") as temporary,
        temporary.open("rb") as file,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_system_without_locks_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unsupported(*_: object) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    old = leftover(tmp_path / f".{TOKEN}.a", 2 * LEFTOVER_S)
    with WholeFiles() as files:
        files.add(tmp_path / "a").write_bytes(b"a")
        files.add(tmp_path / "b").write_bytes(b"b")
    assert old.exists()  # nobody knows whether it is in use
    assert (tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes() == b"ab"


def test_a_failure_leaves_nothing(tmp_path: Path):
    folder = tmp_path / "new" / "folder"
    with pytest.raises(FileNotFoundError), WholeFiles() as files:
        (files.add(folder / "a"), files.add(folder / "b"), (tmp_path / "nothing").read_bytes())
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_folder_of_another_writer(tmp_path: Path):
    folder = tmp_path / "new"
    with whole_file(folder / "b") as other:
        with pytest.raises(ZeroDivisionError), whole_file(folder / "a"):
            raise ZeroDivisionError
        other.write_bytes(b"b")
    assert [path.name for path in folder.iterdir()] == ["b"]


def test_a_folder_that_another_writer_removes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The other writer fails after this one made the folder, and before it made the file."""
    mkdir, folder = Path.mkdir, tmp_path / "new"
    removed: list[Path] = []

    def make(self: Path, *arguments: object, **options: object) -> None:
        mkdir(self, *arguments, **options)  # type: ignore[arg-type]
        if self == folder and not removed:
            removed.append(self)
            self.rmdir()

    monkeypatch.setattr(Path, "mkdir", make)
    with whole_file(folder / "a") as temporary:
        temporary.write_bytes(b"a")
    assert removed
    assert (folder / "a").read_bytes() == b"a"


def test_files_of_one_export_take_their_names_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another export of the same names waits while the first has given one of two."""
    paths = [tmp_path / "model.engine", tmp_path / "model.engine.json"]
    replace, second = Path.replace, threading.Thread(target=lambda: export(b"second"))
    order: list[bytes] = []

    def export(content: bytes) -> None:
        with WholeFiles() as files:
            for path in paths:
                files.add(path).write_bytes(content)

    def slow(self: Path, target: Path) -> Path:
        order.append(self.read_bytes())
        result = replace(self, target)
        if not second.ident:
            second.start()
            second.join(0.5)  # without the lock it would be done by now
        return result

    monkeypatch.setattr(Path, "replace", slow)
    export(b"first")
    second.join()
    assert order == [b"first", b"first", b"second", b"second"]
    assert [path.read_bytes() for path in paths] == [b"second", b"second"]
