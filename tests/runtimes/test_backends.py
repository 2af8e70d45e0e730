"""Every runtime of the table obeys what `load` promises, and is refused what it does not do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from ds2deploy import loading
from ds2deploy.loading import BACKENDS, backends_for, choose_backend, load
from ds2deploy.runtimes.backends import DeviceKind
from ds2deploy.runtimes.errors import RuntimeUnavailableError
from ds2deploy.runtimes.session import usable_cores

DEVICES = get_args(DeviceKind)
ROWS = [(backend, kind) for backend in BACKENDS for kind in backend.files]
NAMES = [f"{backend.name} {kind}" for backend, kind in ROWS]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Any) -> Path:
    """A file that passes for one of the row's kind."""
    monkeypatch.setattr(loading, "file_kind", lambda path: row[1])
    return tmp_path / "model"


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_a_runtime_gets_the_device_or_is_refused(row: Any, device: str, model: Path, monkeypatch):
    backend, kind = row
    opened: list[Any] = []
    spied = [
        item._replace(open=lambda *given: opened.append(given)) if item is backend else item
        for item in BACKENDS
    ]
    monkeypatch.setattr(loading, "BACKENDS", tuple(spied))
    monkeypatch.setattr(loading, "Recognizer", lambda session, make: session)
    if device.partition(":")[0] in backend.devices:
        load(model, device, backend.name, threads=1)
        assert opened == [(model, kind, device, 1)]
        return
    with pytest.raises(RuntimeUnavailableError) as refused:
        load(model, device, backend.name)
    message = str(refused.value)
    assert opened == []
    assert message.startswith(f"{model}: ")
    assert f"--device {device}" in message
    assert f" {backend.name} " in message
    assert "; " in message  # the remedy
    assert "\n" not in message


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_without_a_device_the_first_of_the_row_is_taken(row: Any, model: Path):
    backend, kind = row
    assert choose_backend(model, None, backend.name) == (kind, backend, backend.devices[0])


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_the_remedy_for_a_gpu_is_a_runtime_that_takes_the_file(row: Any, model: Path):
    backend, kind = row
    if "cuda" in backend.devices:
        return
    with pytest.raises(RuntimeUnavailableError) as refused:
        choose_backend(model, "cuda", backend.name)
    other = next(item.name for item in backends_for(kind) if "cuda" in item.devices)
    assert re.search(rf"--runtime {other}\b", str(refused.value))
    assert choose_backend(model, "cuda", other)[2] == "cuda"


def test_rows_are_complete():
    for backend in BACKENDS:
        assert backend.devices, backend.name
        assert set(backend.devices) <= set(DEVICES), backend.name
        assert backend.files, backend.name
    assert len({backend.name for backend in BACKENDS}) == len(BACKENDS)


def test_threads_are_limited_to_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    given: list[int] = []
    fake = BACKENDS[0]._replace(open=lambda path, kind, device, threads: given.append(threads))
    monkeypatch.setattr(loading, "file_kind", lambda path: "onnx")
    monkeypatch.setattr(loading, "BACKENDS", (fake,))
    monkeypatch.setattr(loading, "Recognizer", lambda session, make: session)
    load(tmp_path / "model", threads=10_000)
    assert given == [usable_cores()]
