"""Recognition is private: no network, and nothing left in the user's home."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[3]

GUARD = """
import ctypes, os, struct, sys

# Python's own ways to the network.
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        sys.stderr.write(f"NETWORK {event} {arguments}")
        os._exit(99)

sys.addaudithook(refuse)

# And those of the libraries below it: Linux ends a process, or a child, that calls connect(2), with
# SIGSYS. A filter of seccomp: load the number of the call, compare, allow or kill.
connect = {"x86_64": 42, "aarch64": 203}[os.uname().machine]
codes = ((0x20, 0, 0, 0), (0x15, 1, 0, connect), (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x80000000))
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *code) for code in codes))

class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_void_p)]

libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
libc.prctl(22, 2, ctypes.byref(Filter(len(codes), ctypes.addressof(program))), 0, 0)
"""

COMMAND = "\nfrom ds2deploy.cli.app import main\nmain()\n"


def run(
    code: str, home: Path, *arguments: object, **extra: str
) -> subprocess.CompletedProcess[str]:
    """A fresh process in an empty home, without the variables that switch telemetry off."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", GUARD + code, *map(str, arguments)],
        env={**kept, "HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": "", **extra},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def left_in(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*")}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of noise, which serves as well as speech here."""
    path = tmp_path_factory.mktemp("recording") / "noise.wav"
    noise = np.random.default_rng(0).standard_normal(8000)
    soundfile.write(path, 0.1 * noise, 8000)
    return path


NATIVE = """
import ctypes, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
    address = struct.pack("!HH4s8x", 2 << 8, 9, bytes([127, 0, 0, 1]))
    ctypes.CDLL(None).connect(made.fileno(), address, len(address))
"""


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        NATIVE,
    ],
)
def test_the_guard_sees_the_network(code: str, tmp_path: Path):
    assert run(code, tmp_path / "home").returncode in (99, -signal.SIGSYS)


@pytest.mark.parametrize(
    "command",
    [
        "transcribe {onnx} {audio}",
        "transcribe {onnx} {audio} --json",
        "transcribe {streaming} {audio} --stream",
        "inspect {onnx}",
        "doctor",
    ],
)
def test_recognition_leaves_nothing_and_calls_nobody(
    command: str, digits_onnx: Path, streaming_onnx: Path, recording: Path, tmp_path: Path
):
    files = {"onnx": digits_onnx, "streaming": streaming_onnx, "audio": recording}
    home = tmp_path / "home"
    done = run(COMMAND, home, *(word.format(**files) for word in command.split()))
    assert done.returncode == 0, done.stderr
    assert left_in(home) == set()


def test_it_holds_under_every_xdg_folder(digits_onnx: Path, recording: Path, tmp_path: Path):
    names = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "TMPDIR")
    folders = {name: tmp_path / name for name in names}
    for folder in folders.values():
        folder.mkdir()
    variables = {name: str(folder) for name, folder in folders.items()}
    done = run(COMMAND, tmp_path / "home", "transcribe", digits_onnx, recording, **variables)
    assert done.returncode == 0, done.stderr
    assert set().union(*map(left_in, folders.values())) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "export {checkpoint} --out out",
        "verify {onnx} {checkpoint}",
        "bench {onnx} --seconds 0.5 --rounds 1 --batch 1",
    ],
)
def test_the_other_commands_call_nobody(
    command: str, small_checkpoint: Path, small_onnx: Path, tmp_path: Path
):
    """`bench` starts processes of its own. lhotse, on which these rest, makes an empty folder."""
    home, out = tmp_path / "home", tmp_path / "out"
    files = {"onnx": small_onnx, "checkpoint": small_checkpoint}
    words = [str(out) if word == "out" else word.format(**files) for word in command.split()]
    done = run(COMMAND, home, *words)
    assert done.returncode in (0, 1), done.stderr  # the small network is not trained
    assert "Traceback" not in done.stderr
    assert left_in(home) <= {".lhotse", ".lhotse/tools"}


def test_a_program_of_ones_own_is_protected_too(digits_onnx: Path, recording: Path, tmp_path: Path):
    opened, heard = f"ds2deploy.load({str(digits_onnx)!r})", f"transcribe({str(recording)!r})"
    home = tmp_path / "home"
    done = run(f"\nimport ds2deploy\nprint({opened}.{heard})\n", home)
    assert done.returncode == 0, done.stderr
    assert left_in(home) == set()


def test_onnxruntime_is_imported_in_one_place():
    found = set()
    for folder in ("ds2deploy", "export", "runtimes", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                found |= {
                    str(path.relative_to(ROOT))
                    for name in names
                    if name.split(".")[0] == "onnxruntime"
                }
    assert found == {"runtimes/onnx/library.py"}
