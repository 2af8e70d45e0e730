"""Who may import whom: `docs/scripts/imports.py` reads the sources, this file judges them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load_script() -> Any:
    path = ROOT / "docs" / "scripts" / "imports.py"
    spec = importlib.util.spec_from_file_location("imports_of_the_project", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


imports = load_script()


@pytest.fixture(scope="module")
def modules() -> dict[str, set[str]]:
    return imports.module_graph(imports.module_files())


def test_the_scan_finds_the_modules_and_their_imports(modules):
    assert len(modules) > 100
    assert "runtimes.recognizer" in modules["loading"]
    assert any(other.startswith("export.") for name in modules for other in modules[name])


def test_no_import_goes_to_a_layer_above(modules):
    assert imports.upward_imports(modules) == []


def test_no_circle_between_packages(modules):
    assert imports.find_circle(imports.box_graph(modules)) == []


def test_no_circle_between_modules(modules):
    assert imports.find_circle({name: found for name, found in modules.items() if name}) == []


def write_project(root: Path, files: dict[str, str]) -> dict[str, set[str]]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return imports.module_graph(imports.module_files(root))


@pytest.mark.parametrize(
    "line",
    [
        "from ds2deploy.cli.app import main",
        "from ds2deploy.cli import app",
        "import ds2deploy.cli.app",
        "def f():\n    from ds2deploy.cli import app",
        "import importlib\nimportlib.import_module('ds2deploy.cli.app')",
    ],
)
def test_an_import_of_a_layer_above_is_found(tmp_path: Path, line: str):
    files = {"ds2deploy/cli/app.py": "", "ds2deploy/cli/__init__.py": "", "runtimes/new.py": line}
    found = imports.upward_imports(write_project(tmp_path, files))
    assert found == ["runtimes.new -> cli.app"]


def test_an_import_of_the_package_itself_is_found(tmp_path: Path):
    files = {"ds2deploy/__init__.py": "", "runtimes/new.py": "from ds2deploy import load"}
    assert imports.upward_imports(write_project(tmp_path, files)) == ["runtimes.new -> ds2deploy"]


def test_a_circle_is_found(tmp_path: Path):
    files = {
        "export/onnx/a.py": "from ds2deploy.export.parity import b",
        "export/parity/b.py": "from ds2deploy.export.onnx.c import x",
        "export/onnx/c.py": "",
    }
    graph = write_project(tmp_path, files)
    assert imports.find_circle(graph) == []
    circle = imports.find_circle(imports.box_graph(graph))
    assert circle == ["export.onnx", "export.parity", "export.onnx"]


def test_a_module_without_a_layer_is_refused(tmp_path: Path):
    graph = write_project(tmp_path, {"ds2deploy/new.py": "from ds2deploy import config"})
    with pytest.raises(ValueError, match="LAYERS"):
        imports.upward_imports({**graph, "new": {"config"}})


def test_the_picture_is_current(modules):
    drawn = imports.draw(imports.box_graph(modules))
    written = (ROOT / "docs" / "images" / "imports.svg").read_text("utf-8")
    assert drawn == written, "python docs/scripts/imports.py docs/images/imports.svg"
