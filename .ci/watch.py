"""Runs a command that takes long and prints its last line every ten seconds: how far it is."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time

EVERY_S = 10.0
WIDTH = 100
PROGRESS = re.compile(r"Progress (\d+) of (\d+)")


def watch(command: list[str]) -> int:
    """Run a command.

    Args:
        command: program and arguments; what it writes to stderr is shown if it fails.

    Returns:
        Its exit code.
    """
    started, ended = time.monotonic(), threading.Event()
    last, share = " ".join(command[1:]), ""

    def report() -> None:
        while not ended.wait(EVERY_S):
            print(f"  {time.monotonic() - started:4.0f} s: {last[:WIDTH]}{share}", flush=True)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if found := PROGRESS.fullmatch(line.strip()):
                done, total = (int(number) / 1e6 for number in found.groups())
                share = f" ({done:.0f} of {total:.0f} MB)"
            elif line.strip():
                last, share = line.strip(), ""
        if process.wait():
            errors.seek(0)
            sys.stderr.write(errors.read())
    ended.set()
    thread.join()
    return process.returncode


if __name__ == "__main__":
    sys.exit(watch(sys.argv[1:]))
