"""Looks for known vulnerabilities in the packages of a bill of materials, with pip-audit.

pip-audit skips a package that its database does not have. Where the index that it asks has no
database at all, it skips every package and reports no known vulnerabilities. So an old release that
has known vulnerabilities is looked up first: where it is not reported, nothing was checked.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

VULNERABLE = "jinja2==2.11.2"
OWN = "ds2deploy"


def audit(requirements: list[str]) -> dict[str, Any] | None:
    """Return pip-audit's report; None where it cannot reach its database."""
    with tempfile.TemporaryDirectory() as folder:
        path, report = Path(folder, "requirements.txt"), Path(folder, "report.json")
        path.write_text("\n".join(requirements))
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(path), "--no-deps"]
        command += [
            "--disable-pip",
            "--progress-spinner=off",
            "--format=json",
            f"--output={report}",
        ]
        subprocess.run(command, capture_output=True, check=False, timeout=600)
        if not report.exists():
            return None
        found: dict[str, Any] = json.loads(report.read_text())
        return found


def main(materials: Path) -> int:
    """Print vulnerabilities; 1 if there are any, 0 if there are none or no database answers."""
    known = audit([VULNERABLE])
    if known is None or not any(one.get("vulns") for one in known["dependencies"]):
        print("NOT CHECKED: no database of vulnerabilities can be reached; connect to a network")
        return 0
    components = json.loads(materials.read_text())["components"]
    pinned = [f"{one['name']}=={one['version']}" for one in components if one["name"] != OWN]
    report = audit(pinned)
    assert report is not None, "pip-audit wrote no report"
    bad = 0
    for one in report["dependencies"]:
        if "skip_reason" in one:
            print(f"{one['name']}: not checked: {one['skip_reason']}")
        for hole in one.get("vulns", []):
            bad += 1
            print(f"{one['name']} {one['version']}: {hole['id']}, fixed in {hole['fix_versions']}")
    print(f"{len(pinned)} packages: {bad} known vulnerabilities")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
