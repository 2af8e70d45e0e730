"""Checks the list of licences and the software bill of materials of an environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

OWN = "ds2deploy"
"""The project, whose version is not in pyproject.toml."""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def main(licences: Path, materials: Path) -> int:
    """Print how many packages have which licence; 1 if one or a version is missing, else 0."""
    rows = [line.strip("| ").split("|") for line in licences.read_text().splitlines()[2:]]
    packages = {row[0].strip(): row[2].strip() for row in rows}
    document = json.loads(materials.read_text())
    components = [document["metadata"]["component"], *document["components"]]
    listed = {_plain(one["name"]): one.get("version") for one in components}
    problems = [
        f"{name}: its licence is unknown"
        for name, one in packages.items()
        if one in ("", "UNKNOWN")
    ]
    problems += [
        f"{name}: missing in {materials.name}" for name in packages if _plain(name) not in listed
    ]
    problems += [
        f"{name}: its version is unknown"
        for name, version in listed.items()
        if not version and name != OWN
    ]
    counts = {one: list(packages.values()).count(one) for one in sorted(set(packages.values()))}
    print(f"{licences}: {len(packages)} packages")
    print("\n".join(f"  {count:3} {licence}" for licence, count in counts.items()))
    print("\n".join(problems))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
