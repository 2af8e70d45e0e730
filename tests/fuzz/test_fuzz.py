"""Faults that fuzzing found stay mended, and planted faults are found."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parent
CORPUS = sorted(path.name for path in (FOLDER / "corpus").iterdir())

PLANTED = """
from collections import namedtuple
Target = namedtuple("Target", "name seeds read kind tokens writes")

def is_explained(error):
    return isinstance(error, ValueError)

def furnish(folder):
    (folder / "beside").write_text("there")

def faulty(content):
    assert open("beside").read() == "there"
    if content.count(b"!") >= 2:
        {}["key"]

def refusing(content):
    raise ValueError("a line for a person")

def hanging(content):
    while b"!" in content:
        pass

def greedy(content):
    if b"!" in content:
        bytearray(2 << 30)

def dying(content):
    if b"!" in content:
        import signal
        signal.raise_signal(signal.SIGSEGV)

def talking(content):
    if b"!" in content:
        import os
        os.write(2, b"to the terminal\\n")

READERS = (faulty, refusing, hanging, greedy, dying, talking)
TARGETS = {
    read.__name__: Target(read.__name__, lambda: [b"plain"], read, "binary", (b"!",), "")
    for read in READERS
}
"""


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The runner; its modules import each other from their own folder, as Python starts them."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("run")
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.mark.parametrize("target", CORPUS)
def test_corpus_is_refused_or_read(
    fuzz: ModuleType,
    target: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Read in this process, which has imported the readers' modules; the limits are not tested."""
    targets = importlib.import_module("targets")
    monkeypatch.chdir(tmp_path)
    targets.furnish(tmp_path)
    reader, paths = targets.TARGETS[target], fuzz.corpus(target)
    assert paths
    for path in paths:
        capfd.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                reader.read(Path(path).read_bytes())
            except Exception as error:
                if not targets.is_explained(error):
                    raise
        written = "".join(capfd.readouterr())
        assert not written or (reader.writes and re.match(reader.writes, written)), path


@pytest.mark.slow
@pytest.mark.parametrize("target", CORPUS)
def test_corpus_is_refused_or_read_within_the_limits(
    fuzz: ModuleType, target: str, tmp_path: Path
) -> None:
    hunt = fuzz.Hunt(target, tmp_path)
    hunt.files([Path(path) for path in fuzz.corpus(target)])
    assert hunt.cases > 0
    assert [(*finding.key, finding.trace) for finding in hunt.findings] == []


def test_corpus_is_small() -> None:
    files = [path for path in (FOLDER / "corpus").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 400_000


@pytest.mark.parametrize(
    ("target", "kind", "where"),
    [
        ("faulty", "error", "KeyError in planted.py: faulty"),
        ("hanging", "hang", "planted.py: hanging"),
        ("greedy", "memory", "MemoryError in planted.py: greedy"),
        ("dying", "crash", "SIGSEGV"),
        ("talking", "output", "written: to the terminal"),
    ],
)
def test_planted_fault_is_found(
    fuzz: ModuleType, tmp_path: Path, target: str, kind: str, where: str
) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    # A process that hangs uses up all of its limit; no other comes near it, on any machine.
    limit = {"cpu_s": 0.3} if kind == "hang" else {}
    hunt = fuzz.Hunt(target, tmp_path / "out", module="planted", path=str(tmp_path), **limit)
    hunt.random(last=150)
    assert len(hunt.findings) == 1, [(one.key, one.trace) for one in hunt.findings]
    (found,) = hunt.findings
    assert found.kind == kind
    assert where in found.where
    assert b"!" in found.content
    assert kind != "error" or found.content == b"!!", "not made smaller"


def test_refusal_is_no_finding(fuzz: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    hunt = fuzz.Hunt("refusing", tmp_path / "out", module="planted", path=str(tmp_path))
    hunt.random(last=150)
    assert (hunt.cases, hunt.findings) == (150, [])


@pytest.mark.parametrize("kind", ["binary", "text", "pickle"])
def test_contents_depend_on_seed_and_number_alone(fuzz: ModuleType, kind: str) -> None:
    mutate = importlib.import_module("mutators").mutate
    seeds = [b'{"a": [1, 2.5], "b": "c"}\n', b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x01s."]

    def contents(seed: int) -> list[bytes]:
        return [mutate(Random(f"{seed} {i}"), seeds, (b"a",), kind) for i in range(200)]

    assert contents(0) == contents(0) != contents(1)
    assert len(set(contents(0))) > 150
