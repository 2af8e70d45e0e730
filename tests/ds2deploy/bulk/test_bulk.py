"""Bulk transcription: one line for each input, whatever dies in between."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

import ds2deploy
from ds2deploy.bulk import run as bulk_run
from ds2deploy.bulk.inputs import Input, read_inputs
from ds2deploy.bulk.local import Chunk, run_local
from ds2deploy.bulk.results import Header, Results
from ds2deploy.bulk.run import make_header, run_bulk
from ds2deploy.bulk.worker import Job, Worker
from ds2deploy.cli.app import app
from ds2deploy.export.parity.speech import synthesize
from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.errors import ConfigError, DeviceError, ManifestError, MissingFileError

RATE = 16_000
HEADER = Header(format_version=1, model_sha256="m", decoder_sha256="d")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of different lengths, two of them unusable."""
    folder = tmp_path_factory.mktemp("recordings")
    for i in range(20):
        samples = synthesize(RATE, int(RATE * (0.3 + 0.15 * (i % 7))), seed=i)
        soundfile.write(folder / f"{i:02}.wav", samples, RATE)
    (folder / "13.wav").write_bytes(b"RIFF of no use")
    (folder / "14.wav").write_bytes(b"")
    return folder


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_run, "CHUNK", 6)


def job_of(model: Path, decoder: DecoderConfig | None = None) -> Job:
    header = make_header(model, decoder)
    return Job(model=str(model), header=header, threads=1, decoder=decoder)


def lines_of(out: Path) -> list[bytes]:
    return sorted(
        line for path in out.glob("part-*.jsonl") for line in path.read_bytes().splitlines(True)
    )


def texts_of(out: Path) -> dict[str, str]:
    entries = map(json.loads, lines_of(out))
    return {Path(entry["audio"]).name: entry.get("text", entry.get("kind")) for entry in entries}


def test_every_input_has_a_line(small_onnx: Path, digits_onnx: Path, recordings: Path, tmp_path):
    report = run_bulk(recordings, tmp_path / "out", job_of(digits_onnx), price=2.0)
    with ds2deploy.load(digits_onnx, threads=1) as recognizer:
        expected: dict[str, Any] = {"13.wav": "NotAudioError", "14.wav": "AudioError"}
        for path in recordings.iterdir():
            if path.name not in expected:
                expected[path.name] = recognizer.transcribe(path).text
    assert texts_of(tmp_path / "out") == expected
    assert len(set(expected.values())) > 8
    assert (report.inputs, report.transcripts, report.failed) == (20, 18, 2)
    assert report.cost is not None
    entry = next(e for e in map(json.loads, lines_of(tmp_path / "out")) if "text" in e)
    assert {"audio", "text", "words", "confidence", "key", "duration"} <= set(entry)


def test_workers_and_interruptions_change_no_byte(
    small_chunks, digits_onnx: Path, recordings: Path, tmp_path: Path
):
    job = job_of(digits_onnx)
    run_bulk(recordings, tmp_path / "one", job)
    run_bulk(recordings, tmp_path / "two", job, workers=2)
    assert lines_of(tmp_path / "two") == lines_of(tmp_path / "one")

    class StoppedError(Exception):
        pass

    for most in (1, 5, 4, 30):
        count = 0

        def progress(_: object, most: int = most) -> None:
            nonlocal count
            count += 1
            if count == most:
                raise StoppedError

        try:
            report = run_bulk(recordings, tmp_path / "cut", job, on_progress=progress)
        except StoppedError:
            continue
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "one")
    assert report.skipped == 10
    again = run_bulk(recordings, tmp_path / "cut", job)
    assert (again.skipped, again.transcripts, again.failed) == (20, 0, 2)
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "one")


def test_half_a_line_is_repaired(digits_onnx: Path, recordings: Path, tmp_path: Path):
    job = job_of(digits_onnx)
    run_bulk(recordings, tmp_path / "out", job)
    whole = lines_of(tmp_path / "out")
    shard = tmp_path / "out" / "part-00000.jsonl"
    shard.write_bytes(shard.read_bytes()[:-40])
    assert run_bulk(recordings, tmp_path / "out", job).skipped == 19
    assert lines_of(tmp_path / "out") == whole


def test_a_recording_that_changed_is_recognised_again(
    digits_onnx: Path, recordings: Path, tmp_path: Path
):
    folder = tmp_path / "audio"
    folder.mkdir()
    for name in ("00.wav", "01.wav", "13.wav"):
        (folder / name).write_bytes((recordings / name).read_bytes())
    job = job_of(digits_onnx)
    run_bulk(folder, tmp_path / "out", job)
    before = texts_of(tmp_path / "out")
    (folder / "13.wav").write_bytes((recordings / "05.wav").read_bytes())
    report = run_bulk(folder, tmp_path / "out", job)
    assert (report.skipped, report.transcripts, report.failed) == (2, 1, 0)
    after = texts_of(tmp_path / "out")
    assert before["13.wav"] == "NotAudioError"
    assert after == {**before, "13.wav": after["13.wav"]}
    assert len(lines_of(tmp_path / "out")) == 3


def test_inputs_that_repeat_have_a_line_each(digits_onnx: Path, recordings: Path, tmp_path: Path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{recordings / '03.wav'}\n\n" * 3)
    job = job_of(digits_onnx)
    assert run_bulk(listed, tmp_path / "out", job).transcripts == 3
    assert len(lines_of(tmp_path / "out")) == 3
    listed.write_text(f"{recordings / '03.wav'}\n" * 5)
    assert run_bulk(listed, tmp_path / "out", job).skipped == 3
    assert len(lines_of(tmp_path / "out")) == 5


def test_another_model_or_decoder_is_refused(
    small_onnx: Path, digits_onnx: Path, recordings: Path, tmp_path: Path
):
    run_bulk(recordings, tmp_path / "out", job_of(digits_onnx))
    with pytest.raises(ConfigError, match=r"another decoder; choose another --out"):
        run_bulk(recordings, tmp_path / "out", job_of(digits_onnx, DecoderConfig(beam=4)))
    with pytest.raises(ConfigError, match=r"another model; choose another --out"):
        run_bulk(recordings, tmp_path / "out", job_of(small_onnx))


def test_manifests_of_several_kinds(recordings: Path, tmp_path: Path):
    cut = {
        "id": "a", "start": 0.1, "duration": 0.2, "channel": 0, "type": "MonoCut",
        "recording": {"duration": 0.3, "sources": [{"type": "file", "source": "a.wav"}]},
    }  # fmt: skip
    whole = {**cut, "start": 0, "duration": 0.3}
    nemo = {"audio_filepath": "b.wav", "duration": 3.0, "text": "x"}
    part = {"audio": "c.wav", "start": 1, "duration": 2}
    path = tmp_path / "m.jsonl.gz"
    path.write_bytes(
        gzip.compress(b"\n".join(json.dumps(e).encode() for e in (cut, whole, nemo, part)))
    )
    assert list(read_inputs(path)) == [
        Input("a.wav", 0.1, 0.2), Input("a.wav"), Input("b.wav"), Input("c.wav", 1.0, 2.0),
    ]  # fmt: skip
    (tmp_path / "bad.jsonl").write_text('{"audio": "a.wav"}\n{"text": "no audio"}\n')
    with pytest.raises(ManifestError, match=r"bad\.jsonl: line 2: .*expected a cut or recording"):
        list(read_inputs(tmp_path / "bad.jsonl"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ManifestError, match="copy it again"):
        list(read_inputs(path))
    with pytest.raises(MissingFileError, match="expected a folder"):
        list(read_inputs(tmp_path / "nowhere"))


def test_a_part_of_a_recording(digits_onnx: Path, recordings: Path, tmp_path: Path):
    samples, _ = soundfile.read(recordings / "06.wav", dtype="float32")
    manifest = tmp_path / "m.jsonl"
    entries = [
        {"audio": str(recordings / "06.wav"), "start": s, "duration": 0.5} for s in (0.25, 9)
    ]
    manifest.write_text("\n".join(map(json.dumps, entries)))
    report = run_bulk(manifest, tmp_path / "out", job_of(digits_onnx))
    with ds2deploy.load(digits_onnx, threads=1) as recognizer:
        expected = recognizer.transcribe(samples[4000:12000], RATE).text
    found = {e["offset"]: e for e in map(json.loads, lines_of(tmp_path / "out"))}
    assert found[0.25]["text"] == expected
    assert "ends before 9 s" in found[9.0]["error"]
    assert report.failed == 1


def test_cloud_paths(digits_onnx: Path, recordings: Path, tmp_path: Path):
    fsspec = pytest.importorskip("fsspec", reason="fsspec is of the extra bulk")
    with fsspec.open("memory://bucket/03.wav", "wb") as file:
        file.write((recordings / "03.wav").read_bytes())
    worker = Worker(job_of(digits_onnx))
    chunk = [Input("memory://bucket/03.wav"), Input("memory://bucket/none.wav")]
    found = {one.index: json.loads(one.line) for one in worker.run(chunk)}
    with ds2deploy.load(digits_onnx, threads=1) as recognizer:
        assert found[0]["text"] == recognizer.transcribe(recordings / "03.wav").text
    assert found[1]["kind"] == "MissingFileError"


def test_manifests_that_lhotse_wrote(digits_onnx: Path, recordings: Path, tmp_path: Path):
    """Cuts and recordings, on disk and behind a URL: the texts of the files themselves."""
    from lhotse import CutSet, MonoCut, Recording, RecordingSet

    here = Recording.from_file(recordings / "06.wav", recording_id="here")
    source = here.sources[0]
    there = Recording.from_dict(
        here.to_dict() | {
            "id": "there",
            "sources": [source.to_dict() | {"type": "url", "source": f"file://{source.source}"}],
        }
    )  # fmt: skip
    cuts = [one.to_cut() for one in (here, there)]
    cuts.append(MonoCut("part", start=0.25, duration=0.5, channel=0, recording=there))
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    RecordingSet.from_recordings([here, there]).to_file(tmp_path / "recordings.jsonl.gz")

    job = job_of(digits_onnx)
    with ds2deploy.load(digits_onnx, threads=1) as recognizer:
        whole = recognizer.transcribe(recordings / "06.wav").text
        samples, _ = soundfile.read(recordings / "06.wav", dtype="float32")
        part = recognizer.transcribe(samples[4000:12000], RATE).text
    assert whole != part
    found = {}
    for name in ("cuts", "recordings"):
        assert run_bulk(tmp_path / f"{name}.jsonl.gz", tmp_path / name, job).failed == 0
        entries = list(map(json.loads, lines_of(tmp_path / name)))
        found[name] = sorted((e["audio"], e.get("offset", 0), e["text"]) for e in entries)
    url = f"file://{source.source}"
    assert found["recordings"] == [(source.source, 0, whole), (url, 0, whole)]
    assert found["cuts"] == [(source.source, 0, whole), (url, 0, whole), (url, 0.25, part)]


def test_urls_that_cannot_be_read_have_a_line(digits_onnx: Path, tmp_path: Path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"none-such://bucket/a.wav\nfile://{tmp_path}/none.wav\n")
    report = run_bulk(listed, tmp_path / "out", job_of(digits_onnx))
    assert report.errors == {"AudioError": 1, "MissingFileError": 1}
    lines = [json.loads(line) for line in lines_of(tmp_path / "out")]
    assert all(entry["error"].startswith(entry["audio"]) for entry in lines)


def test_memory_that_is_short_halves_the_chunk(
    digits_onnx: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch
):
    worker = Worker(job_of(digits_onnx))
    chunk = [Input(str(path)) for path in sorted(recordings.glob("0*.wav"))]
    expected = {one.index: json.loads(one.line)["text"] for one in worker.run(chunk)}
    attempt, sizes = Worker._attempt, []

    def short(self: Worker, part: Any, indices: Any) -> Any:
        sizes.append(len(part))
        if len(part) > 2 or any(one.audio.endswith("04.wav") for one in part):
            raise MemoryError
        return attempt(self, part, indices)

    monkeypatch.setattr(Worker, "_attempt", short)
    found = {one.index: json.loads(one.line) for one in worker.run(chunk)}
    assert sizes[0] == 10
    assert sorted(found) == list(range(10))
    assert found[4]["error"] == "out of memory"
    assert {i: e["text"] for i, e in found.items() if i != 4} == {
        i: text for i, text in expected.items() if i != 4
    }


def test_full_disk_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with Results(tmp_path / "out", HEADER) as results:
        results.write(b'{"audio":"a","size":-1,"mtime_ns":0,"text":"A"}\n')
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:10]))
        with pytest.raises(OSError, match="disk is full"):
            results.write(b'{"audio":"b","size":-1,"mtime_ns":0,"text":"B"}\n')
    monkeypatch.undo()
    with Results(tmp_path / "out", HEADER) as results:
        wanted = dict(results.missing([Input("a"), Input("b")]))
    assert wanted == {Input("a"): False, Input("b"): True}
    assert len(lines_of(tmp_path / "out")) == 1


def test_shards_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ds2deploy.bulk.results.SHARD_LINES", 4)
    for start in (0, 5):
        with Results(tmp_path / "out", HEADER) as results:
            for i in range(start, start + 5):
                results.write(f'{{"audio":"{i}","size":-1,"mtime_ns":0,"text":""}}\n'.encode())
    counts = [len(p.read_bytes().splitlines()) for p in sorted((tmp_path / "out").glob("part*"))]
    assert counts == [4, 4, 2]


DYING = """
import os, signal
from ds2deploy.bulk import local

class Dying(local.Worker):
    def run(self, chunk):
        if any(item.audio.endswith("07.wav") for item in chunk):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(chunk)

def work(job, connection):
    local.Worker = Dying
    local._work(job, connection)
"""
"""Module of a worker that dies of one recording; its process imports it by name."""


@pytest.mark.slow
def test_a_recording_that_kills_workers_is_named(
    digits_onnx: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "dying_worker.py").write_text(DYING)
    monkeypatch.syspath_prepend(tmp_path)
    import dying_worker

    monkeypatch.setattr("ds2deploy.bulk.local._work", dying_worker.work)
    paths = sorted(recordings.glob("0*.wav"))
    chunks = [
        Chunk([Input(str(path)) for path in paths[i : i + 5]], frozenset(range(5))) for i in (0, 5)
    ]
    found = [json.loads(one.line) for one in run_local(job_of(digits_onnx), chunks, 1)]
    by_name = {Path(entry["audio"]).name: entry for entry in found}
    assert len(found) == 10
    assert sorted(by_name) == [path.name for path in paths]
    assert "07.wav: the workers that read it died" in by_name["07.wav"]["error"]
    assert all("text" in entry for name, entry in by_name.items() if name != "07.wav")


@pytest.mark.slow
def test_sigkill_of_the_command_loses_nothing_that_was_written(
    digits_onnx: Path, recordings: Path, tmp_path: Path
):
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{path}\n" for path in sorted(recordings.iterdir())) * 12)
    command = [
        sys.executable, "-m", "ds2deploy", "bulk", str(digits_onnx), str(listed), "--threads", "1",
    ]  # fmt: skip
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=False, capture_output=True)
    whole = lines_of(tmp_path / "whole")
    assert len(whole) == 240
    out = tmp_path / "killed"
    for least in (20, 90, 170):
        running = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.DEVNULL)
        while running.poll() is None and len(lines_of(out)) < least:
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.wait()
        for path in out.glob("part-*.jsonl"):
            assert path.read_bytes().endswith(b"\n")
    code = subprocess.run(
        [*command, "--out", str(out)], check=False, capture_output=True
    ).returncode
    assert code == 1  # two recordings cannot be read
    assert lines_of(out) == whole


def test_the_command(digits_onnx: Path, recordings: Path, tmp_path: Path):
    out = tmp_path / "out"
    call = [
        "bulk",
        str(digits_onnx),
        str(recordings),
        "--out",
        str(out),
        "--threads",
        "1",
        "--json",
    ]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 1, done.output
    report = json.loads(done.stdout)
    assert report["inputs"] == 20
    assert report["errors"] == {"AudioError": 1, "NotAudioError": 1}
    again = CliRunner().invoke(app, [*call[:-1]])
    assert "20 done before" in again.stderr


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda call: [*call[:1], "nowhere.onnx", *call[2:]], "expected a model"),
        (lambda call: [*call[:2], "nowhere", *call[3:]], "expected a folder"),
        (lambda call: [*call, "--address", "auto"], "--engine ray"),
        (lambda call: [*call, "--workers", "0"], "--workers"),
    ],
)
def test_wrong_calls_are_told_in_one_line(
    change: Callable[[list[str]], list[str]], remedy: str, digits_onnx: Path, recordings: Path,
    tmp_path: Path,
):  # fmt: skip
    call = ["bulk", str(digits_onnx), str(recordings), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, change(call))
    assert done.exit_code == 2
    assert remedy in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_workers_that_die_at_their_start_end_the_command(digits_onnx: Path, recordings: Path):
    job = job_of(digits_onnx)
    gone = Job(model=str(recordings / "none.onnx"), header=job.header)
    chunk = Chunk([Input(str(recordings / "01.wav"))], frozenset({0}))
    with pytest.raises((MissingFileError, DeviceError)):
        list(run_local(gone, [chunk], 1))


def test_silence_is_a_transcript(digits_onnx: Path, tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE, np.float32), RATE)
    with pytest.warns(UserWarning, match="silence"):
        found = list(Worker(job_of(digits_onnx)).run([Input(str(tmp_path / "a.wav"))]))
    assert not found[0].error


def test_a_folder_without_recordings_is_reported(digits_onnx: Path, tmp_path: Path):
    (tmp_path / "in").mkdir()
    call = ["bulk", str(digits_onnx), str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0
    assert f"{tmp_path / 'in'}: contains no recordings" in done.stderr
