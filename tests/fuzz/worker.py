"""Read one content after the other in a process that is killed where a reader does not return."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

CPU_S = 10.0
"""Seconds of a processor that a case may take: those of the clock depend on who else computes."""

WALL_S = 60.0
"""Seconds of the clock: what waits for ever uses no processor."""

MEMORY_BYTES = 1 << 30
"""Above what the process has before the case."""

TRIES = 400
"""Readings that a finding is made smaller with, at most."""

MEMORY_FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108

HERE = str(Path(__file__).resolve().parent)


class Finding(NamedTuple):
    """A case that ended as none may.

    Attributes:
        target: name of the reader.
        kind: `error`, `memory`, `output`; of a process that died `hang` or `crash`.
        where: class of the exception and the innermost line of ours, or what was written.
        content: the bytes that were read.
        trace: traceback, for a person.
    """

    target: str
    kind: str
    where: str
    content: bytes
    trace: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """The same for one fault, whatever content shows it."""
        return self.target, self.kind, self.where


class Case:
    """Reads contents of one target, each within the limits.

    Args:
        target: a reader with `name` and `read`, which is called in the current folder.
        current: file that holds the content while it is read, for whoever finds this process dead.
        is_explained: tells the exceptions that a reader may raise.
        cpu_s: seconds of a processor for a content.
    """

    def __init__(
        self,
        target: Any,
        current: Path,
        is_explained: Callable[[BaseException], bool],
        cpu_s: float = CPU_S,
    ) -> None:
        self._target, self._is_explained, self._cpu_s = target, is_explained, cpu_s
        self._current = os.open(current, os.O_RDWR | os.O_CREAT)
        self._log = open(os.dup(2), "w")  # noqa: PTH123, SIM115
        faulthandler.enable(self._log)
        # Its default action ends the process, wherever it is.
        faulthandler.register(signal.SIGPROF, self._log, chain=True)

    def read(self, content: bytes) -> Finding | None:
        """One content."""
        os.pwrite(self._current, len(content).to_bytes(8, "little") + content, 0)
        written = os.fstat(2).st_size
        failed: BaseException | None = None
        _limit_memory(MEMORY_BYTES)
        faulthandler.dump_traceback_later(WALL_S, exit=True, file=self._log)
        signal.setitimer(signal.ITIMER_PROF, self._cpu_s)
        try:
            self._target.read(content)
        except BaseException as error:
            failed = None if self._is_explained(error) else error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
            _limit_memory(None)
        return self._judged(content, failed, written)

    def _judged(self, content: bytes, failed: BaseException | None, written: int) -> Finding | None:
        name = self._target.name
        if failed is not None:
            trace = "".join(traceback.format_exception(failed))[-4000:]
            kind = "memory" if isinstance(failed, MemoryError) else "error"
            return Finding(name, kind, _where(failed), content, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        if os.fstat(2).st_size > written:
            with open("/proc/self/fd/2", "rb") as log:  # noqa: PTH123
                log.seek(written)
                text = log.read(2000).decode("utf-8", "replace")
            if self._target.writes and re.match(self._target.writes, text):
                return None
            return Finding(name, "output", f"written: {_digest(text)}", content, text)
        return None


def smaller(case: Case, finding: Finding) -> Finding:
    """The same fault with fewer bytes, of those that a few tries find."""
    tries = 0
    size = max(1, len(finding.content) // 2)
    while size and tries < TRIES:
        start = 0
        while start < len(finding.content) and tries < TRIES:
            content = finding.content[:start] + finding.content[start + size :]
            found = case.read(content)
            tries += 1
            if found is not None and found.key == finding.key:
                finding = found
            else:
                start += size
        size //= 2
    return finding


def contents(
    seeds: Sequence[bytes], tokens: Sequence[bytes], kind: str, seed: str, first: int
) -> Iterator[tuple[int, bytes]]:
    """Numbered contents, each of which depends on the seed and its number alone."""
    from mutators import mutate

    number = first
    while True:
        yield number, mutate(Random(f"{seed} {number}"), seeds, tokens, kind)
        number += 1


def work(target: Any, is_explained: Callable[[BaseException], bool], order: dict[str, Any]) -> None:
    """Do what an order says, and write down what was found.

    Args:
        target: the reader to call.
        is_explained: tells the exceptions that it may raise.
        order: `out`, folder for `current`, `number` and `findings.jsonl`; `seed`, `first`
            and `last` of the numbered contents; `engine`, `own` or `atheris`; `cpu_s`; `known`
            keys; `corpus`, more to begin with; `files`, which are read instead.
    """
    out = Path(order["out"])
    case = Case(target, out / "current", is_explained, order["cpu_s"])
    known = {tuple(key) for key in order["known"]}
    last = order["last"]
    numbers = os.open(out / "number", os.O_RDWR | os.O_CREAT)

    def count(number: int) -> None:
        os.pwrite(numbers, number.to_bytes(8, "little"), 0)

    def found(content: bytes) -> None:
        finding = case.read(content)
        if finding is None or finding.key in known:
            return
        known.add(finding.key)
        if not order["files"]:
            finding = smaller(case, finding)
        line = finding._asdict() | {"content": finding.content.hex()}
        with (out / "findings.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    if order["files"]:
        for number, name in enumerate(order["files"]):
            count(number)
            found(read_case(Path(name)))
        return
    seeds = [*target.seeds(), *(read_case(Path(name)) for name in order["corpus"])]
    if order["engine"] == "atheris":
        from guided import guided

        guided(target, seeds, found, count, order)
        return
    for number, content in contents(
        seeds, target.tokens, target.kind, order["seed"], order["first"]
    ):
        if last is not None and number >= last:
            return
        count(number)
        found(content)


def read_current(path: Path) -> bytes:
    """The content that a process was reading when it died."""
    content = path.read_bytes()
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def read_case(path: Path) -> bytes:
    """A content of the corpus."""
    return path.read_bytes()


def _limit_memory(more: int | None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = resource.RLIM_INFINITY
    if more is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _where(error: BaseException) -> str:
    """The class, and the innermost line of the project."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} in {innermost((f.filename, f.name) for f in reversed(frames))}"


def innermost(frames: Iterable[tuple[str, str]]) -> str:
    """The first of (file, function) that is neither Python's nor another library's.

    A reader's before one of these modules.
    """
    ours = [frame for frame in frames if "/lib/python" not in frame[0] and frame[0][:1] == "/"]
    readers = [frame for frame in ours if not frame[0].startswith(HERE)] or ours or [("?", "?")]
    return f"{Path(readers[0][0]).name}: {readers[0][1]}"


def _digest(text: str) -> str:
    return re.sub(r"\d+", "N", text.strip().partition("\n")[0])[:60]


def main() -> None:
    """Entry point: the order is the only argument, as JSON."""
    order = json.loads(sys.argv[1])
    sys.path[:0] = [str(Path(__file__).parent), *order["path"]]
    if order["engine"] == "atheris":
        import atheris

        with atheris.instrument_imports(include=["ds2deploy", "csv", "lhotse", "zipfile"]):
            module = __import__(order["module"])
    else:
        module = __import__(order["module"])
    warnings.simplefilter("always")
    for ignored in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", ignored)
    target = module.TARGETS[order["target"]]
    folder = Path(order["out"]) / "here"  # which the runner removes
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    module.furnish(folder)
    for content in target.seeds():  # whatever it imports and keeps is no case's
        try:
            target.read(content)
        except Exception as error:
            if not module.is_explained(error):
                raise
    work(target, module.is_explained, order)


if __name__ == "__main__":
    main()
