"""`doctor --json`: what the reporter of a problem attaches."""

from __future__ import annotations

import getpass
import json
import platform
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ds2deploy
from ds2deploy import environment
from ds2deploy.cli.app import app
from ds2deploy.environment import describe_environment

JETSON = {
    "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.4 LTS"\nID=ubuntu\n',
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.0, GCID: 1, BOARD: generic\n# KERNEL\n",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module 540.4.0\nGCC 11\n",
    "var/lib/dpkg/status": "Package: nvidia-jetpack-dev\nStatus: ok\nVersion: 1\n\n"
    "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.1+b123\n\n"
    "Package: zlib\nVersion: 3\n",
}


def test_a_jetson_states_its_release(tmp_path: Path):
    for name, content in JETSON.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    found = describe_environment(tmp_path)
    assert found.distribution == "Ubuntu 22.04.4 LTS"
    assert found.jetson == "# R36 (release), REVISION: 4.0, GCID: 1, BOARD: generic"
    assert found.nvidia_driver.endswith("540.4.0")
    assert found.jetpack == "6.1+b123"


def test_elsewhere_these_are_empty(tmp_path: Path):
    found = describe_environment(tmp_path)
    assert (found.distribution, found.jetson, found.jetpack, found.nvidia_driver) == ("",) * 4


def test_packages_and_extras(monkeypatch: pytest.MonkeyPatch):
    lines = ["numpy>=1.26", "none-such>=1; extra == 'odd'", "ds2deploy[cpu]; extra == 'odd'"]
    monkeypatch.setattr(environment.metadata, "requires", lambda _: lines)
    found = describe_environment()
    assert found.packages == {"none-such": None, "numpy": metadata.version("numpy")}
    assert found.extras == {"odd": ["none-such"]}


def test_the_command_has_it_all_and_names_no_one():
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 0, done.output
    about = json.loads(done.stdout)["environment"]
    assert about["ds2deploy"] == ds2deploy.__version__
    assert about["kernel"] == platform.release()
    assert about["machine"]["processor"]
    assert about["packages"]["onnxruntime"]
    assert about["extras"]["cpu"] == []
    assert str(Path.home()) not in done.stdout
    assert getpass.getuser() not in json.dumps(about).split('"')
