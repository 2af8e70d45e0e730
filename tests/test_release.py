"""The release: versions that the documentation states, type markers, and the public workflow."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ds2deploy.bulk import run as bulk
from ds2deploy.model import checkpoint
from ds2deploy.runtimes import artifact
from ds2deploy.runtimes.decoding import decoder_file, language_model_file
from ds2deploy.version import __version__

ROOT = Path(__file__).parents[1]
MODULES = {
    "runtimes/artifact.py": artifact,
    "ds2deploy/model/checkpoint.py": checkpoint,
    "runtimes/decoding/language_model_file.py": language_model_file,
    "runtimes/decoding/decoder_file.py": decoder_file,
    "ds2deploy/bulk/run.py": bulk,
}


@pytest.fixture(scope="module")
def stated() -> dict[str, str]:
    """Versions of `docs/release.md`, by the file that declares them."""
    lines = (ROOT / "docs" / "release.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip(" `") for cell in line.split("|")] for line in lines if line[:1] == "|"]
    return {row[3]: row[2] for row in rows if len(row) == 6}


@pytest.mark.parametrize("path", MODULES)
def test_documented_format_is_that_of_the_code(path: str, stated: dict[str, str]) -> None:
    assert stated[path] == str(MODULES[path].FORMAT_VERSION)


def test_version_is_the_same_everywhere(stated: dict[str, str]) -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert released[0] == __version__ == stated["ds2deploy/version.py"]
    install = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert set(re.findall(r"ds2deploy-([\d.]+)-py3", install)) == {__version__}


@pytest.mark.parametrize("folder", ["ds2deploy", "export", "runtimes"])
def test_packages_are_marked_as_typed(folder: str) -> None:
    assert (ROOT / folder / "py.typed").exists()


def test_workflow_runs_the_checks_in_every_python() -> None:
    yaml = pytest.importorskip("yaml", reason="the extra clients is not installed")
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pythons = re.findall(r"Python :: (3\.\d+)", project)
    assert jobs["checks"]["strategy"]["matrix"]["python"] == pythons
    assert jobs["checks"]["steps"][-1]["run"] == "bash .ci/run"
    assert "secrets." not in text
    used = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert [one for one in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", one)] == []


HOLE = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "b", "skip_reason": "not in the database"}


@pytest.mark.parametrize(
    ("known", "report", "code", "printed"),
    [
        (None, None, 0, "NOT CHECKED"),
        ([SKIPPED], [SKIPPED], 0, "NOT CHECKED"),
        ([HOLE], [{"name": "b", "version": "2", "vulns": []}], 0, "0 known vulnerabilities"),
        ([HOLE], [SKIPPED], 0, "b: not checked"),
        ([HOLE], [HOLE], 1, "CVE-1"),
    ],
)
def test_audit_trusts_only_a_database_that_reports_a_known_vulnerability(
    known: list[Any] | None,
    report: list[Any] | None,
    code: int,
    printed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "release_audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def audit(requirements: list[str]) -> dict[str, Any] | None:
        found = known if requirements == [module.VULNERABLE] else report
        return None if found is None else {"dependencies": found}

    monkeypatch.setattr(module, "audit", audit)
    components = [{"name": "ds2deploy", "version": "1"}, {"name": "b", "version": "2"}]
    (tmp_path / "bill.json").write_text(json.dumps({"components": components}))
    assert module.main(tmp_path / "bill.json") == code
    assert printed in capsys.readouterr().out
