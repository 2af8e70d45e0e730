"""Waiting threads of torch sleep soon, in every process of the command line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ds2deploy.cli.app import SPINS, shorten_spinning


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, SPINS),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_settings_of_the_environment_are_kept(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    shorten_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_the_command_line_says_it_before_torch_is_imported():
    code = (
        "import os, sys; sys.argv = ['ds2deploy', '--version']\n"
        "from ds2deploy.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ['GOMP_SPINCOUNT'])"
    )
    environment = {k: v for k, v in os.environ.items() if k[:4] not in ("GOMP", "OMP_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split()[-1] == SPINS
