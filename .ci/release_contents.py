"""Compares a wheel and an sdist with the source tree that they were built from."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "ds2deploy": "ds2deploy",
    "export": "ds2deploy/export",
    "runtimes": "ds2deploy/runtimes",
}
"""Folders of the tree, and where the wheel has them."""

TYPED = {f"{place}/py.typed" for place in PACKAGES.values()}
SDIST = {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "examples/README.md"}


def expected_files() -> set[str]:
    """List what the wheel has to contain: sources, recipes, the server's page, type markers."""
    return {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in PACKAGES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def main(wheel: Path, sdist: Path) -> int:
    """Print what is missing, left over or inconsistent; 1 if there is anything, else 0."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    version = wheel.name.split("-")[1]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.search(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    problems = [f"{wheel.name}: missing {name}" for name in sorted(expected_files() - packed)]
    problems += [f"{wheel.name}: unexpected {name}" for name in sorted(packed - expected_files())]
    problems += [f"{wheel.name}: missing {name}" for name in sorted(TYPED - packed)]
    problems += [f"{sdist.name}: missing {name}" for name in sorted(SDIST - names)]
    if released is None or released[1] != version:
        problems.append(f"CHANGELOG.md: its newest section is not {version}; add that section")
    print(
        "\n".join(problems)
        or f"{len(packed)} files in the wheel and {len(names)} in the sdist match the source tree"
    )
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
