"""Describe a machine and its packages for the report of a problem; nothing personal is in it."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import msgspec

from ds2deploy.bench.machine import Machine, describe_machine, installed_version
from ds2deploy.version import __version__

FIRST_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
EXTRA = re.compile(r"extra == ['\"]([^'\"]+)['\"]")


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that a report of a problem needs.

    Attributes:
        ds2deploy: version of ds2deploy.
        machine: processor with its instructions, cores, memory, GPUs.
        distribution: name and version of the operating system; empty where it has no os-release.
        kernel: version of the kernel.
        libc: name and version of the C library.
        nvidia_driver: line in which the kernel's NVIDIA driver states its version; empty without.
        jetson: release of L4T, as /etc/nv_tegra_release states it; empty elsewhere.
        jetpack: version of the package nvidia-jetpack; empty where it is not installed.
        packages: versions of ds2deploy's dependencies; null for one that is not installed.
        extras: for each extra the packages that it lacks; an empty list where it is complete.
    """

    ds2deploy: str
    machine: Machine
    distribution: str
    kernel: str
    libc: str
    nvidia_driver: str
    jetson: str
    jetpack: str
    packages: dict[str, str | None]
    extras: dict[str, list[str]]


def describe_environment(root: Path = Path("/")) -> Environment:
    """Describe this machine.

    Args:
        root: root of the file system that is read.
    """
    by_extra = _requirements()
    names = sorted({name for names in by_extra.values() for name in names})
    packages = {name: installed_version(name) for name in names}
    return Environment(
        ds2deploy=__version__,
        machine=describe_machine(),
        distribution=_distribution(root / "etc/os-release"),
        kernel=platform.release(),
        libc=" ".join(platform.libc_ver()),
        nvidia_driver=_first_line(root / "proc/driver/nvidia/version"),
        jetson=_first_line(root / "etc/nv_tegra_release"),
        jetpack=_debian_version(root / "var/lib/dpkg/status", "nvidia-jetpack"),
        packages=packages,
        extras={
            extra: [name for name in wanted if packages[name] is None]
            for extra, wanted in sorted(by_extra.items())
            if extra
        },
    )


def _requirements() -> dict[str, list[str]]:
    """List the names of dependencies by extra; those of every installation under an empty name."""
    try:
        lines: Iterable[str] = metadata.requires("ds2deploy") or []
    except metadata.PackageNotFoundError:  # run from its sources
        return {}
    found: dict[str, list[str]] = {}
    for line in lines:
        name, extra = FIRST_WORD.match(line), EXTRA.search(line)
        if name and name[0] != "ds2deploy":
            found.setdefault(extra[1] if extra else "", []).append(name[0])
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _first_line(path: Path) -> str:
    return _read(path).partition("\n")[0].strip()


def _distribution(path: Path) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read(path), re.MULTILINE)
    return found[1] if found else ""


def _debian_version(status: Path, package: str) -> str:
    pattern = rf"^Package: {re.escape(package)}\n(?:.+\n)*?Version: (.+)$"
    found = re.search(pattern, _read(status), re.MULTILINE)
    return found[1] if found else ""
