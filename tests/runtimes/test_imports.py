"""What a device does not have is not needed, and dependencies point one way."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ds2deploy.runtimes.backends import BACKENDS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch", "lightning", "onnx", "lhotse", "onnxruntime", "scipy", "jiwer", "polygraphy",
    "cuda.bindings", "tensorrt", "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx",
    *(backend.module for backend in BACKENDS if backend.module),
)  # fmt: skip
MODULES = sorted(
    "ds2deploy." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "runtimes").rglob("*.py")
    if path.stem != "__init__"
)


def run(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=600
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def loaded_after(code: str) -> set[str]:
    """Those of the heavy packages that a fresh interpreter has loaded after some code."""
    report = f"print('LOADED', *sorted(set({HEAVY!r}) & set(sys.modules)))"
    output = run("-c", f"import sys\n{code}\n{report}")
    return set(output.rsplit("LOADED", 1)[1].split())


def processor_s(*arguments: str) -> float:
    """Processor time of a fresh interpreter, the least of five: what else runs hardly counts."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    runs = []
    for _ in range(5):
        before = spent()
        run(*arguments)
        runs.append(spent() - before)
    return min(runs)


def test_the_check_sees_what_is_loaded():
    assert loaded_after("sys.modules['torch'] = sys") == {"torch"}


def test_importing_ds2deploy_loads_nothing_heavy():
    assert loaded_after("import ds2deploy; dir(ds2deploy); ds2deploy.Transcript") == set()


def test_importing_the_whole_runtime_loads_nothing_heavy():
    assert {"ds2deploy.runtimes.onnx.session", "ds2deploy.runtimes.session"} <= set(MODULES)
    assert loaded_after("\n".join(f"import {module}" for module in MODULES)) == set()


def test_looking_up_the_entry_points_loads_nothing_heavy():
    assert loaded_after("import ds2deploy; ds2deploy.load; ds2deploy.Recognizer") == set()


def test_building_engines_on_a_device_loads_nothing_heavy():
    """TensorRT and ONNX Runtime are imported when they are asked for; torch and onnx never."""
    code = "import ds2deploy.export.tensorrt.engines, ds2deploy.cli.export_report"
    assert loaded_after(f"{code}, ds2deploy.export.tensorrt.options") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["transcribe", "--help"], ["train", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = f"""
from ds2deploy.cli.app import main
sys.argv = ["ds2deploy", *{arguments!r}]
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
"""
    assert loaded_after(code) == set()


# Ratios, and none of them close: measured, 1.1 to 1.2, and 1.4 to 1.6.


def test_importing_ds2deploy_takes_little_more_than_python_itself():
    assert processor_s("-c", "import ds2deploy") < 2 * processor_s("-c", "pass")


def test_help_takes_little_more_than_importing_typer():
    assert processor_s("-m", "ds2deploy", "--help") < 3 * processor_s("-c", "import typer")


# Who imports whom, read from the sources


def imports_of(path: Path) -> Iterator[str]:
    """Names of all modules that a file imports, wherever in it; `from a import b` gives a.b too."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import in line {node.lineno}"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from _dynamic(node)


def _dynamic(call: ast.Call) -> Iterator[str]:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in ("import_module", "__import__") and call.args:
        argument = call.args[0]
        if isinstance(argument, ast.Constant):
            yield str(argument.value)


APPLICATION = {ROOT / "ds2deploy" / "cli", ROOT / "ds2deploy" / "demo"}
"""Folders that may import the exporter."""


def offenders(folder: str, *refused: str, allowed: str | None = None) -> list[str]:
    """Imports in a folder of one of the packages, unless of the allowed part of it."""

    def within(module: str, package: str) -> bool:
        return module == package or module.startswith(f"{package}.")

    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    return [
        f"{path.relative_to(ROOT)}: {module}"
        for path in paths
        if not APPLICATION & {*path.parents}
        for module in imports_of(path)
        if any(within(module, package) for package in refused)
        and not (allowed and within(module, allowed))
    ]


def test_the_runtime_imports_nothing_else_of_the_project():
    assert offenders("runtimes", "ds2deploy", "export", allowed="ds2deploy.runtimes") == []


def test_the_library_never_imports_the_exporter():
    assert offenders("ds2deploy", "ds2deploy.export", "export") == []


def test_the_scan_sees_imports_inside_functions(tmp_path):
    source = tmp_path / "module.py"
    source.write_text(
        "def f():\n    from ds2deploy import export\n    import importlib\n"
        "    importlib.import_module('ds2deploy.training.train')\n"
    )
    assert {"ds2deploy.export", "ds2deploy.training.train"} <= set(imports_of(source))


def test_the_command_line_and_the_exporter_do_import_it():
    # Otherwise the scan above would prove nothing.
    assert any(
        m.startswith("ds2deploy.export")
        for m in imports_of(ROOT / "ds2deploy" / "cli" / "export.py")
    )
    assert offenders("export", "ds2deploy.runtimes") != []
