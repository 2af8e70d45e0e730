"""Bulk transcription on Ray: the same lines, whatever actor or node dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest
import soundfile

from ds2deploy.bulk import run as bulk_run
from ds2deploy.bulk.run import make_header, run_bulk
from ds2deploy.bulk.worker import Job
from ds2deploy.export.parity.speech import synthesize

ray = pytest.importorskip("ray", reason="ray is of the extra bulk")
ray_engine = pytest.importorskip("ds2deploy.bulk.ray_engine")

pytestmark = pytest.mark.slow

RATE = 16_000


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for i in range(8):
        samples = synthesize(RATE, int(RATE * (0.3 + 0.15 * i)), seed=i)
        soundfile.write(folder / f"{i}.wav", samples, RATE)
    (folder / "8.wav").write_bytes(b"RIFF of no use")
    path = folder / "list.txt"
    path.write_text("".join(f"{folder / f'{i % 9}.wav'}\n" for i in range(360)))
    return path


@pytest.fixture
def job(digits_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(bulk_run, "CHUNK", 12)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return Job(model=str(digits_onnx), header=make_header(digits_onnx, None), threads=1)


def lines_of(out: Path) -> list[bytes]:
    return sorted(
        line for path in out.glob("part-*.jsonl") for line in path.read_bytes().splitlines(True)
    )


@pytest.fixture
def expected(job: Job, listed: Path, tmp_path: Path) -> list[bytes]:
    run_bulk(listed, tmp_path / "local", job)
    found = lines_of(tmp_path / "local")
    assert len(found) == 360
    return found


def test_an_actor_that_dies_loses_nothing(
    job: Job, listed: Path, expected: list[bytes], tmp_path: Path
):
    killed = []

    def kill_one(_: object) -> None:
        if killed:
            return
        mine = psutil.Process().children(recursive=True)
        actors = [one for one in mine if "ray::_Actor" in " ".join(one.cmdline() or [one.name()])]
        if actors:
            killed.append(actors[0].pid)
            os.kill(actors[0].pid, signal.SIGKILL)

    run_bulk(listed, tmp_path / "ray", job, engine="ray", workers=2, on_progress=kill_one)
    assert killed
    assert lines_of(tmp_path / "ray") == expected


@pytest.mark.parametrize(
    ("device", "runtime", "gpus"),
    [(None, None, 0), ("cpu", None, 0), ("cuda:1", None, 1), (None, "cuda", 1), (None, "rtx", 1)],
)
def test_an_actor_on_a_gpu_reserves_one(
    job: Job, device: str | None, runtime: str | None, gpus: int, monkeypatch: pytest.MonkeyPatch
):
    reserved: list[int] = []

    def remote(num_cpus: int, num_gpus: int) -> Any:
        reserved.append(num_gpus)
        return lambda actor: SimpleNamespace(remote=lambda job: None)

    monkeypatch.setattr(ray_engine.ray, "remote", remote)
    ray_engine._Actors(msgspec.structs.replace(job, device=device, runtime=runtime), iter(()), 1)
    assert reserved == [gpus]


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield found
    ray.shutdown()
    found.shutdown()


def test_nodes_may_go_and_come(
    job: Job, listed: Path, expected: list[bytes], tmp_path: Path, cluster: Any
):
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    count = 0

    def disturb(_: object) -> None:
        nonlocal count
        count += 1
        if count == 30:
            cluster.remove_node(nodes[0], allow_graceful=False)
        elif count == 100:
            cluster.add_node(num_cpus=1)

    run_bulk(listed, tmp_path / "ray", job, engine="ray", workers=2, on_progress=disturb)
    assert count == 360
    assert lines_of(tmp_path / "ray") == expected
