"""A bad input: exit code 2, one line that names the file and the remedy, nothing written.

Every damage goes through one command, and every command that reads such a file gets one damage.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
import pytest
import soundfile
import torch
from onnx import TensorProto, helper
from typer.testing import CliRunner

from ds2deploy.cli.app import app
from ds2deploy.config import Recipe
from ds2deploy.data.preparation import PrepareOptions, prepare
from ds2deploy.runtimes.alphabet import Alphabet

RATE = 8000
SPEECH = np.random.default_rng(0).uniform(-0.3, 0.3, RATE // 2).astype(np.float32)
LONG = np.tile(SPEECH, 8)
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\6\0\0\0\x1f\x15\xc4\x89" + bytes(200)

MISSING, FOLDER = object(), object()


class Models(NamedTuple):
    """A good one of either kind."""

    checkpoint: Path
    onnx: Path


@pytest.fixture
def models(small_checkpoint: Path, small_onnx: Path) -> Models:
    return Models(small_checkpoint, small_onnx)


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Calls the command line with something bad, checks how it ends, gives the line on stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> str:
        before = contents(tmp_path)
        capfd.readouterr()
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 2, (result.output, result.exception)
        assert isinstance(result.exception, SystemExit)
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert "Traceback" not in result.stderr
        assert capfd.readouterr() == ("", ""), "a library in C wrote past Python"
        assert contents(tmp_path) == before, "something was written"
        return result.stderr

    return call


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below a folder; None stands for a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def put(path: Path, content: bytes | object) -> Path:
    if content is FOLDER:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    return path


def sound(samples: np.ndarray, format_: str = "WAV", subtype: str = "FLOAT") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=format_, subtype=subtype)
    return buffer.getvalue()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


# Recordings -----------------------------------------------------------------------------------

RECORDINGS: dict[str, tuple[str, bytes | object, str]] = {
    "missing": ("a.wav", MISSING, "no such file"),
    "a folder": ("a.wav", FOLDER, "is a directory; expected an audio file"),
    "empty": ("a.wav", b"", "empty file (0 bytes); expected audio: record or copy it again"),
    "0 samples": ("a.wav", sound(SPEECH[:0]), "0 samples; expected speech"),
    "1 sample": ("a.wav", sound(SPEECH[:1]), "1 sample (0.12 ms); expected at least 10 ms"),
    "NaN": ("a.wav", sound(np.append(SPEECH, np.float32("nan"))), "NaN or infinite"),
    "infinity": ("a.wav", sound(np.append(SPEECH, np.float32("inf"))), "NaN or infinite"),
    "text": ("a.wav", b"one two three\n" * 20, "not audio in a supported format"),
    "an image": ("a.wav", PNG, "not audio in a supported format"),
    "a truncated header": ("a.wav", sound(SPEECH)[:30], "not audio in a supported format"),
    "truncated WAV": ("a.wav", half(sound(SPEECH)), "truncated, its end is missing; copy"),
    "truncated FLAC": ("a.flac", half(sound(SPEECH, "FLAC", "PCM_16")), "damaged"),
    "FLAC without its last bytes": ("a.flac", sound(SPEECH, "FLAC", "PCM_16")[:-9], "damaged"),
    "truncated Vorbis": ("a.ogg", half(sound(LONG, "OGG", "VORBIS")), "truncated, its end"),
    "truncated Opus": ("a.opus", half(sound(LONG, "OGG", "OPUS")), "truncated, its end"),
}


@pytest.mark.parametrize("case", RECORDINGS)
def test_transcribe_refuses_a_recording(
    case: str, refused: Callable[..., str], models: Models, tmp_path: Path
) -> None:
    name, content, words = RECORDINGS[case]
    path = put(tmp_path / name, content)
    line = refused("transcribe", models.onnx, path)
    assert str(path) in line
    assert words in line


@pytest.mark.parametrize("options", [("--json",), ("--format", "srt"), ("--stream",)])
def test_no_format_begins_for_a_bad_recording(
    options: tuple[str, ...], refused: Callable[..., str], streaming_onnx: Path, tmp_path: Path
) -> None:
    path = put(tmp_path / "a.wav", RECORDINGS["NaN"][1])
    assert str(path) in refused("transcribe", streaming_onnx, path, *options)


@pytest.mark.parametrize("case", ["NaN", "text", "truncated WAV", "truncated Opus"])
def test_inspect_refuses_a_recording(
    case: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    name, content, _ = RECORDINGS[case]
    path = put(tmp_path / name, content)
    line = refused("inspect", path)
    assert str(path) in line
    assert "convert it" in line if case == "text" else "copy" in line or "convert" in line


@pytest.mark.parametrize(
    ("case", "command"),
    [
        ("missing", "evaluate"), ("truncated WAV", "evaluate"), ("truncated FLAC", "export"),
        ("NaN", "verify"),
    ],
)  # fmt: skip
def test_commands_refuse_a_recording_of_the_manifest(
    case: str, command: str, refused: Callable[..., str], models: Models, tmp_path: Path
) -> None:
    name, content, words = RECORDINGS[case]
    path = tmp_path / name
    alone = cut_manifest(tmp_path, [(path, "TWO")]).rename(tmp_path / "alone.jsonl.gz")
    path.unlink()
    put(path, content)
    # Of several, `evaluate` leaves a broken one out: see test_many_files.py.
    calls = {
        "evaluate": ("evaluate", models.onnx, alone),
        "export": ("export", models.checkpoint, "--out", ".", "--audio", alone),
        "verify": ("verify", models.onnx, models.checkpoint, "--audio", alone),
    }
    line = refused(*calls[command])
    assert str(path) in line
    assert words in line


def test_export_makes_no_folder_when_the_audio_is_bad(
    refused: Callable[..., str], models: Models, tmp_path: Path
) -> None:
    audio = put(tmp_path / "nan.wav", RECORDINGS["NaN"][1])
    manifest = cut_manifest(tmp_path, [(audio, "ONE")])
    assert str(audio) in refused(
        "export", models.checkpoint, "--out", "deploy", "--audio", manifest
    )


@pytest.mark.parametrize("case", ["0 samples", "text"])
def test_prepare_refuses_a_recording(
    case: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    name, content, _ = RECORDINGS[case]
    path = put(folder / name, content)
    path.with_suffix(".txt").write_text("one")
    assert str(path) in refused("prepare", folder, "data")


# Models ---------------------------------------------------------------------------------------


def edited(checkpoint: Path, edit: Callable[[dict[str, Any]], object]) -> bytes:
    document = torch.load(checkpoint, weights_only=True)
    edit(document)
    return saved(document)


def saved(document: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


def recipe_of(document: dict[str, Any]) -> dict[str, Any]:
    recipe = document["ds2deploy"]["recipe"]
    assert isinstance(recipe, dict)
    return recipe


def described(model: Path, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """An ONNX file of ours with another description."""
    proto = onnx.load(model)
    (entry,) = proto.metadata_props
    document = json.loads(entry.value)
    edit(document)
    entry.value = json.dumps(document)
    return bytes(proto.SerializeToString())


def rewritten(model: Path, description: str) -> bytes:
    proto = onnx.load(model)
    proto.metadata_props[0].value = description
    return bytes(proto.SerializeToString())


def another_projects_onnx() -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [values[0]], [values[1]]
    )
    opset = [helper.make_opsetid("", 18)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


def fewer_labels(document: dict[str, Any]) -> None:
    document["labels"] = document["labels"][:-1]


MODELS: dict[str, tuple[str, Callable[[Models], bytes | object], str]] = {
    "missing": ("m.onnx", lambda good: MISSING, "no such file; expected a model"),
    "missing checkpoint": ("m.ckpt", lambda good: MISSING, "no such file; expected a"),
    "a folder": ("m.ckpt", lambda good: FOLDER, "is a directory; expected a"),
    "text": ("m.txt", lambda good: b"hello", "not a model; expected an artif"),
    "a recording": ("m.wav", lambda good: sound(SPEECH), "not a model; expected an artif"),
    "an empty ONNX": ("m.onnx", lambda good: b"", "empty file (0 bytes); export it again"),
    "an empty checkpoint": ("m.ckpt", lambda good: b"", "copy the checkpoint again"),
    "an image named .ckpt": ("m.ckpt", lambda good: PNG, "torch.save"),
    "an image named .onnx": ("m.onnx", lambda good: PNG, "export it again"),
    "a truncated ONNX": ("m.onnx", lambda good: half(good.onnx.read_bytes()), "copy it again"),
    "an ONNX without its last byte": (
        "m.onnx", lambda good: good.onnx.read_bytes()[:-1], "copy it again",
    ),
    "a checkpoint named .onnx": (
        "m.onnx", lambda good: good.checkpoint.read_bytes(), "export it again",
    ),
    "an ONNX named .ckpt": (
        "m.ckpt", lambda good: good.onnx.read_bytes(), "torch.save",
    ),
    "another project's ONNX": (
        "m.onnx", lambda good: another_projects_onnx(), "ds2deploy export CHECKPOINT --out FOLDER",
    ),
    "an ONNX of a newer format": (
        "m.onnx", lambda good: described(good.onnx, lambda d: d.update(format_version=4)),
        "artifact format 4; this version of ds2deploy reads formats up to 3: pip install -U",
    ),
    "an ONNX of a newer format with more in it": (
        "m.onnx",
        lambda good: described(good.onnx, lambda d: d.update(format_version=4, kind="new", x=1)),
        "artifact format 4; this version of ds2deploy reads formats up to 3: pip install -U",
    ),
    "a description that is not JSON": (
        "m.onnx", lambda good: rewritten(good.onnx, '{"format_ver'), "its description is damaged",
    ),
    "a description that is a list": (
        "m.onnx", lambda good: rewritten(good.onnx, "[1, 2]"), "its description is damaged",
    ),
    "a description without labels": (
        "m.onnx", lambda good: described(good.onnx, lambda d: d.pop("labels")), "export it again",
    ),
    "a description with a label twice": (
        "m.onnx", lambda good: described(good.onnx, lambda d: d.update(labels="_AA")),
        "export it again",
    ),
    "a description of fewer labels": (
        "m.onnx", lambda good: described(good.onnx, fewer_labels), "export it again",
    ),
    "a description of other features": (
        "m.onnx", lambda good: described(good.onnx, lambda d: d["features"].update(window_ms=20)),
        "export it again",
    ),
    "a description without its statistics": (
        "m.onnx",
        lambda good: described(good.onnx, lambda d: d["features"].update(normalize="global")),
        "export it again",
    ),
    "a description with a sample rate of another world": (
        "m.onnx",
        lambda good: described(good.onnx, lambda d: d["features"].update(sample_rate=10**30)),
        "export it again",
    ),
    "a description of other tensors": (
        "m.onnx", lambda good: described(good.onnx, lambda d: d.update(inputs=["a", "b"])),
        "export it again",
    ),
    "a truncated checkpoint": (
        "m.ckpt", lambda good: half(good.checkpoint.read_bytes()), "copy it again",
    ),
    "a checkpoint without its last bytes": (
        "m.ckpt", lambda good: good.checkpoint.read_bytes()[:-9], "copy it again",
    ),
    "the start of a checkpoint": (
        "m.ckpt", lambda good: good.checkpoint.read_bytes()[:100], "copy it again",
    ),
    "another project's checkpoint": (
        "m.ckpt", lambda good: saved({"model": {"weight": torch.zeros(3)}, "epoch": 3}),
        "expected a checkpoint of ds2deploy or deepspeech.pytorch 3",
    ),
    "a tensor alone": ("m.pt", lambda good: saved(torch.zeros(3)), "expected a dict"),
    "a checkpoint of a newer format": (
        "m.ckpt",
        lambda good: edited(good.checkpoint, lambda d: d["ds2deploy"].update(format_version=2)),
        "reads formats up to 1: pip install -U ds2deploy",
    ),
    "a checkpoint of another label count": (
        "m.ckpt",
        lambda good: edited(good.checkpoint, lambda d: fewer_labels(recipe_of(d))),
        "restore the original",
    ),
    "a checkpoint of another size": (
        "m.ckpt",
        lambda good: edited(good.checkpoint, lambda d: recipe_of(d)["model"].update(hidden=16)),
        "restore the original",
    ),
    "a checkpoint with fewer weights": (
        "m.ckpt",
        lambda good: edited(good.checkpoint, lambda d: d["state_dict"].popitem()),
        "of its recipe are missing",
    ),
    "a checkpoint with more weights": (
        "m.ckpt",
        lambda good: edited(good.checkpoint, lambda d: d["state_dict"].update(x=torch.zeros(1))),
        "weights 'x' are not in its recipe",
    ),
    "a checkpoint without weights": (
        "m.ckpt", lambda good: edited(good.checkpoint, lambda d: d.pop("state_dict")),
        "contains no weights",
    ),
    "a checkpoint with other things for weights": (
        "m.ckpt", lambda good: edited(good.checkpoint, lambda d: d.update(state_dict=[1, 2])),
        "contains no weights",
    ),
    "a checkpoint with numbers for weights": (
        "m.ckpt",
        lambda good: edited(
            good.checkpoint, lambda d: d.update(state_dict=dict.fromkeys(d["state_dict"], 1))
        ),
        "of its recipe are missing",
    ),
    "a checkpoint without a recipe": (
        "m.ckpt", lambda good: edited(good.checkpoint, lambda d: d["ds2deploy"].pop("recipe")),
        "damaged recipe",
    ),
    "a checkpoint whose header is a list": (
        "m.ckpt", lambda good: edited(good.checkpoint, lambda d: d.update(ds2deploy=[1])),
        "damaged recipe",
    ),
    "a checkpoint with an unknown key": (
        "m.ckpt",
        lambda good: edited(good.checkpoint, lambda d: recipe_of(d).update(mystery=1)),
        "damaged recipe",
    ),
    "a checkpoint without its statistics": (
        "m.ckpt",
        lambda good: edited(
            good.checkpoint, lambda d: recipe_of(d)["features"].update(normalize="global")
        ),
        "damaged recipe",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_transcribe_refuses_a_model(
    case: str, refused: Callable[..., str], models: Models, tmp_path: Path
) -> None:
    name, make, words = MODELS[case]
    path = put(tmp_path / name, make(models))
    line = refused("transcribe", path, put(tmp_path / "a.wav", sound(SPEECH)))
    assert str(path) in line
    assert words in line


@pytest.mark.parametrize(
    "case",
    [
        "missing", "a folder", "an image named .onnx", "a truncated ONNX",
        "a description of fewer labels", "a truncated checkpoint", "another project's checkpoint",
        "a checkpoint of another size",
    ],
)  # fmt: skip
def test_inspect_refuses_a_model(
    case: str, refused: Callable[..., str], models: Models, tmp_path: Path
) -> None:
    name, make, _ = MODELS[case]
    path = put(tmp_path / name, make(models))
    assert str(path) in refused("inspect", path)


@pytest.mark.parametrize(
    ("case", "command"),
    [
        ("a truncated checkpoint", "evaluate"),
        ("missing checkpoint", "export"),
        ("a recording", "export"),
        ("a checkpoint of another size", "export"),
        ("a truncated ONNX", "export"),
        ("an ONNX named .ckpt", "verify the checkpoint"),
        ("another project's checkpoint", "verify the checkpoint"),
        ("missing", "verify"),
        ("another project's ONNX", "verify"),
        ("a description that is a list", "verify"),
        ("a description of other features", "verify"),
    ],
)
def test_commands_refuse_a_model(
    case: str, command: str, refused: Callable[..., str], models: Models, tmp_path: Path
) -> None:
    name, make, _ = MODELS[case]
    path = put(tmp_path / name, make(models))
    audio = put(tmp_path / "a.wav", sound(SPEECH))
    calls: dict[str, tuple[object, ...]] = {
        "evaluate": ("evaluate", path, cut_manifest(tmp_path, [(audio, "ONE")])),
        "export": ("export", path, "--out", "deploy", "--precision", "fp32,fp16"),
        "verify the checkpoint": ("verify", models.onnx, path),
        "verify": ("verify", path, models.checkpoint),
    }
    if path.suffix == ".onnx":
        calls["export"] = ("export", path, "--out", "deploy", "--rtx")
    assert str(path) in refused(*calls[command])


def test_export_refuses_an_artifact_of_its_own(refused: Callable[..., str], models: Models) -> None:
    line = refused("export", models.onnx, "--out", "deploy")
    assert f"{models.onnx}: " in line
    assert "checkpoint" in line


def test_inspect_refuses_a_damaged_parity_report(
    refused: Callable[..., str], models: Models, tmp_path: Path
) -> None:
    for i, report in enumerate(({}, {"cases": []}, {"cases": [1]}, {"cases": [{}], "passed": 1})):
        edit = functools.partial(dict.update, parity=report)
        path = put(tmp_path / f"{i}.onnx", described(models.onnx, edit))
        assert f"{path}: its parity report is damaged; export it again" in refused("inspect", path)


# Manifests and transcripts --------------------------------------------------------------------


def cut_manifest(folder: Path, utterances: Iterable[tuple[Path, str]]) -> Path:
    """lhotse's format, as `ds2deploy prepare` writes it; makes the audio that is not there."""
    listed = folder / "listed"
    listed.mkdir(exist_ok=True)
    for audio, _ in utterances:
        if not audio.exists():
            put(audio, sound(SPEECH))
    return _prepared(json_manifest(folder, utterances), listed)


def _prepared(source: Path, out: Path) -> Path:
    characters = "_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz 0123456789é'"
    prepare(source, out, Alphabet(characters), PrepareOptions(valid_share=0.0))
    source.unlink()
    return out / "train.jsonl.gz"


def json_manifest(folder: Path, utterances: Iterable[tuple[Path, str]]) -> Path:
    """deepspeech.pytorch 3's format."""
    samples = [
        {"wav_path": str(audio), "transcript_path": str(written(folder, audio, text))}
        for audio, text in utterances
    ]
    path = folder / "manifest.json"
    path.write_text(json.dumps({"root_path": str(folder), "samples": samples}))
    return path


def csv_manifest(folder: Path, utterances: Iterable[tuple[Path, str]]) -> Path:
    """deepspeech.pytorch 2's format."""
    path = folder / "manifest.csv"
    path.write_text("".join(f"{a},{written(folder, a, text)}\n" for a, text in utterances))
    return path


def written(folder: Path, audio: Path, text: str) -> Path:
    path = folder / f"{audio.stem}.txt"
    path.write_text(text)
    return path


FORMATS = {"lhotse": cut_manifest, "JSON": json_manifest, "CSV": csv_manifest}


def recipe_file(folder: Path, recipe: Recipe) -> Path:
    """A recipe in TOML; sections are written out, None is what is left away."""
    document = msgspec.to_builtins(recipe)
    sections = {name: value for name, value in document.items() if isinstance(value, dict)}
    lines = [f"labels = {json.dumps(document['labels'])}"]
    for name, section in sections.items():
        lines += [
            f"[{name}]",
            *(f"{k} = {json.dumps(v)}" for k, v in section.items() if v is not None),
        ]
    path = folder / "recipe.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def training(tmp_path: Path, small_recipe: Recipe) -> list[object]:
    """A call of `train` that would succeed, in a folder of its own."""
    good = tmp_path / "good"
    good.mkdir()
    manifest = cut_manifest(good, [(good / "good.wav", "GOOD")])
    return [
        "train", recipe_file(tmp_path, small_recipe), "--set", "training.run=run",
        "--set", f"data.train={manifest}", "--set", f"data.valid={manifest}",
    ]  # fmt: skip


def readers(models: Models, training: list[object], manifest: Path) -> list[tuple[object, ...]]:
    """All commands that read a manifest, `prepare` aside."""
    return [
        ("inspect", manifest),
        ("evaluate", models.onnx, manifest),
        ("export", models.checkpoint, "--out", "deploy", "--audio", manifest),
        ("verify", models.onnx, models.checkpoint, "--audio", manifest),
        (*training, "--set", f"data.train={manifest}"),
        (*training, "--set", f"data.valid={manifest}"),
    ]


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_an_utterance_whose_audio_is_missing(
    make: Callable[..., Path],
    refused: Callable[..., str],
    models: Models,
    training: list[object],
    tmp_path: Path,
) -> None:
    first, second = (put(tmp_path / name, sound(SPEECH)) for name in ("a.wav", "b.wav"))
    manifest = make(tmp_path, [(first, "ONE"), (second, "TWO")])
    second.unlink()
    if make is cut_manifest:
        # `evaluate` and `inspect` go on without it: see test_many_files.py.
        calls = [c for c in readers(models, training, manifest) if c[0] in ("verify", "train")]
    else:
        calls = [
            ("prepare", manifest, "data"),
            ("export", models.checkpoint, "--out", "deploy", "--audio", manifest),
        ]
    for call in calls:
        line = refused(*call)
        assert str(second) in line
        assert str(manifest) in line


GOOD_LINE = b'{"id": "x", "start": 0, "duration": 1, "channel": 0, "type": "MonoCut"}\n'
MANIFESTS: dict[str, tuple[str, bytes | object, str]] = {
    "missing": ("m.jsonl.gz", MISSING, "no such file; expected a manifest"),
    "a folder": ("m.jsonl.gz", FOLDER, "is a directory; expected a manifest"),
    "an empty jsonl": ("m.jsonl", b"", "contains no utterances"),
    "an empty jsonl.gz": ("m.jsonl.gz", gzip.compress(b""), "contains no utterances"),
    "0 bytes of jsonl.gz": ("m.jsonl.gz", b"", "contains no utterances"),
    "an empty JSON": ("m.json", b"", "expected JSON with root_path and samples"),
    "an empty list of samples": (
        "m.json", b'{"root_path": ".", "samples": []}', "contains no utterances",
    ),
    "an empty CSV": ("m.csv", b"", "contains no utterances"),
    "not gzip": ("m.jsonl.gz", b"hello\n" * 9, "ds2deploy prepare"),
    "truncated gzip": ("m.jsonl.gz", half(gzip.compress(os.urandom(500))), "ds2deploy prepare"),
    "an unfinished line": ("m.jsonl", GOOD_LINE[:40], "ds2deploy prepare"),
    "a line that is a list": ("m.jsonl", b"[1, 2]\n", "ds2deploy prepare"),
    "a line that is a number": ("m.jsonl", b"1\n", "ds2deploy prepare"),
    "another project's lines": (
        "m.jsonl", b'{"audio": "a.wav", "text": "one"}\n', "ds2deploy prepare",
    ),
    "a cut without a recording": ("m.jsonl", GOOD_LINE, "has no recording"),
    "an image as jsonl": ("m.jsonl", PNG, "ds2deploy prepare"),
    "an image as JSON": ("m.json", PNG, "expected JSON with root_path and samples"),
    "JSON of other things": (
        "m.json", b'{"audio": []}', "expected JSON with root_path and samples",
    ),
    "JSON that is a list": ("m.json", b"[1, 2]", "expected JSON with root_path and samples"),
    "JSON with a number for a path": (
        "m.json", b'{"root_path": ".", "samples": [{"wav_path": 1, "transcript_path": 2}]}',
        "expected JSON with root_path and samples",
    ),
    "an image as CSV": ("m.csv", PNG, "expected audio,transcript lines"),
    "CSV with three fields": (
        "m.csv", b"a,b,c\n", "line 1 has 3 fields; expected audio,transcript",
    ),
    "CSV with a zero byte": ("m.csv", b"a\0.wav,b.txt\n", "m.csv"),
    "another suffix": ("m.txt", b"a,b\n", "not a manifest; expected .jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("case", MANIFESTS)
def test_evaluate_refuses_a_manifest(
    case: str, refused: Callable[..., str], models: Models, tmp_path: Path
) -> None:
    name, content, words = MANIFESTS[case]
    manifest = put(tmp_path / name, content)
    line = refused("evaluate", models.onnx, manifest)
    assert str(manifest) in line
    assert words in line


def test_every_reader_refuses_a_damaged_manifest(
    refused: Callable[..., str], models: Models, training: list[object], tmp_path: Path
) -> None:
    manifest = put(tmp_path / "m.jsonl", GOOD_LINE[:40])
    for call in readers(models, training, manifest):
        line = refused(*call)
        assert str(manifest) in line
        assert "ds2deploy prepare" in line


@pytest.mark.parametrize(
    "case", ["missing", "an unfinished line", "an image as JSON", "an empty CSV"]
)
def test_prepare_refuses_a_damaged_or_empty_manifest(
    case: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    name, content, _ = MANIFESTS[case]
    manifest = put(tmp_path / name, content)
    assert str(manifest) in refused("prepare", manifest, "data")


def test_prepare_refuses_a_folder_without_recordings(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "recordings").mkdir()
    put(tmp_path / "recordings" / "a.txt", b"one")
    assert "recordings: contains no recordings;" in refused("prepare", "recordings", "data")
    assert "expected a name such as 7_jackson_32.wav" in refused(
        "prepare", put_good(tmp_path).parent, "data", "--layout", "fsdd"
    )


def put_good(folder: Path) -> Path:
    """A recording with its transcript."""
    put(folder / "good.txt", b"good")
    return put(folder / "good.wav", sound(SPEECH))


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_a_transcript_with_characters_that_have_no_label(
    make: Callable[..., Path],
    refused: Callable[..., str],
    models: Models,
    training: list[object],
    tmp_path: Path,
) -> None:
    audio = put(tmp_path / "cafe.wav", sound(SPEECH))
    manifest = make(
        tmp_path, [(put(tmp_path / "a.wav", sound(SPEECH)), "ONE"), (audio, "Caf\u00e9 24")]
    )
    # `evaluate` goes on without it: see test_many_files.py.
    calls: list[tuple[object, ...]] = [("prepare", manifest, "data")]
    if make is cut_manifest:
        calls = [(*training, "--set", f"data.{name}={manifest}") for name in ("train", "valid")]
    for call in calls:
        line = refused(*call)
        assert f"{audio}: " in line
        assert "'2', '4', '\u00c9'" in line
        assert "correct the transcript" in line


def test_prepare_refuses_a_transcript_with_characters_that_have_no_label(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    put_good(folder)
    put(folder / "b.wav", sound(SPEECH))
    put(folder / "b.txt", b"route 66")
    line = refused("prepare", folder, "data")
    assert f"{folder / 'b.wav'}: no label for '6' in 'route 66'; correct the transcript" in line


TRANSCRIPTS: dict[str, tuple[bytes | object, str]] = {
    "missing": (MISSING, "no such file"),
    "a folder": (FOLDER, "no such file"),
    "empty": (b"", "empty"),
    "blank": (b" \n\t\n", "empty"),
    "Latin-1": (b"caf\xe9", "not UTF-8"),
}


@pytest.mark.parametrize("case", TRANSCRIPTS)
def test_prepare_refuses_a_transcript_file(
    case: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    content, words = TRANSCRIPTS[case]
    folder = tmp_path / "recordings"
    folder.mkdir()
    audio = put(folder / "a.wav", sound(SPEECH))
    text = put(folder / "a.txt", content)
    line = refused("prepare", folder, "data")
    assert f"{text}: {words}" in line
    assert f"the transcript of {audio}" in line


@pytest.mark.parametrize("make", [json_manifest, csv_manifest])
def test_every_reader_refuses_a_transcript_file(
    make: Callable[..., Path],
    refused: Callable[..., str],
    models: Models,
    training: list[object],
    tmp_path: Path,
) -> None:
    audio = put(tmp_path / "a.wav", sound(SPEECH))
    manifest = make(tmp_path, [(audio, "A")])
    text = put(tmp_path / "a.txt", b"")
    calls = [("prepare", manifest, "data"), ("inspect", manifest)]
    if make is json_manifest:
        calls = readers(models, training, manifest)
    for call in calls:
        line = refused(*call)
        assert str(text) in line
        assert str(audio) in line


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a text that is a number": lambda cut: cut["supervisions"][0].update(text=1),
    "a duration that is a word": lambda cut: cut.update(duration="long"),
    "a path that is a number": lambda cut: cut["recording"]["sources"][0].update(source=1),
    "a recording without a file": lambda cut: cut["recording"].update(sources=[]),
    "no identity": lambda cut: cut.pop("id"),
    "a key too many": lambda cut: cut.update(mystery=1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cut(
    damage: str, refused: Callable[..., str], models: Models, tmp_path: Path
) -> None:
    path = cut_manifest(tmp_path, [(put(tmp_path / "a.wav", sound(SPEECH)), "ONE")])
    cut = json.loads(gzip.decompress(path.read_bytes()))
    DAMAGES[damage](cut)
    manifest = put(tmp_path / "m.jsonl", json.dumps(cut).encode() + b"\n")
    line = refused("evaluate", models.onnx, manifest)
    assert str(manifest) in line
    assert "ds2deploy prepare" in line


@pytest.mark.parametrize("text", [None, "", "  "])
def test_a_cut_without_a_transcript(
    text: str | None,
    refused: Callable[..., str],
    models: Models,
    training: list[object],
    tmp_path: Path,
) -> None:
    audio = put(tmp_path / "a.wav", sound(SPEECH))
    path = cut_manifest(tmp_path, [(audio, "ONE")])
    cut = json.loads(gzip.decompress(path.read_bytes()))
    if text is None:
        cut["supervisions"] = []
    else:
        cut["supervisions"][0]["text"] = text
    manifest = put(tmp_path / "m.jsonl", json.dumps(cut).encode() + b"\n")
    calls = readers(models, training, manifest) if text is None else [("inspect", manifest)]
    for call in calls:
        assert f"{manifest}: {audio} has no transcript" in refused(*call)


# Recipes and trainings ------------------------------------------------------------------------

RECIPES: dict[str, tuple[bytes | object, str]] = {
    "missing": (MISSING, "no such file; expected a recipe in TOML, or one of"),
    "a folder": (FOLDER, "is a directory; expected a recipe in TOML, or one of"),
    "an unknown key": (
        b"[training]\nepoch = 3\n",
        "training: unknown key `epoch`; known keys are run, epochs,",
    ),
    "an unknown section": (b"[optimiser]\nname = 'sgd'\n", "unknown key `optimiser`"),
    "a wrong type": (
        b"[training]\nepochs = 'many'\n",
        "training.epochs: expected a whole number, got text",
    ),
    "a value for a section": (
        b"training = 3\n",
        "training: expected a section, got a whole",
    ),
    "an unknown choice": (
        b"[model]\nrnn = 'transformer'\n",
        "model.rnn: invalid value 'transformer'; expected lstm, gru, rnn",
    ),
    "a number out of range": (b"[training]\nepochs = 0\n", "training.epochs = 0: expected above 0"),
    "an infinite window": (b"[features]\nwindow_ms = inf\n", "features.window_ms = inf: expected"),
    "labels with one twice": (
        b"labels = '_AAB'\n",
        "expected the blank followed by each character once",
    ),
    "not TOML": (b"epochs: 3\n", "invalid TOML ("),
    "an image": (PNG, "not UTF-8 text; expected a recipe in TOML"),
    "no manifests": (b"", "data.train: no manifest; add --set data.train=MANIFEST"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_train_refuses_a_recipe(case: str, refused: Callable[..., str], tmp_path: Path) -> None:
    content, words = RECIPES[case]
    recipe = put(tmp_path / "my.toml", content)
    line = refused("train", recipe)
    assert words in line
    assert str(recipe) in line or case == "no manifests"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epochs", "expected section.key=value"),
        ("", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("labels.x=3", "labels is a key, not a section"),
        ("training.epoch=3", "training: unknown key `epoch`"),
        (
            "training.epochs=many",
            "expected a whole number, got text; example: 20",
        ),
        (
            "augment.speed=1.1",
            "expected a list, got a number; example: [1.0,1.0]",
        ),
        ('training.export=["bf16"]', "invalid value 'bf16'; expected fp32, fp16, int8"),
        ("training.epochs=", "training.epochs=: expected a whole number, got text"),
        ("training.epochs=-1", "training.epochs = -1: expected above 0"),
        ("data.join=[3, 1]", "data.join = [3, 1]: expected the smaller value first"),
        ("training=3", "training=3: expected a section, got a whole number"),
    ],
)
def test_train_refuses_an_override(
    override: str, words: str, refused: Callable[..., str], training: list[object]
) -> None:
    assert words in refused(*training, "--set", override)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("best.ckpt", "start it again"),
        ("last.ckpt", "resume it"),
        ("metrics.jsonl", "start it again"),
    ],
)
def test_train_leaves_a_training_alone(
    name: str, way: str, refused: Callable[..., str], training: list[object], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    put(tmp_path / "run" / name, b"precious")
    line = refused(*training)
    assert (
        f"run: contains a training; {way} with --resume, or choose another folder with --set"
        in line
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file, nothing to resume; omit --resume"),
        (b"", "empty file (0 bytes)"),
        (PNG, "cannot be resumed"),
        (saved({"a": 1}), "cannot be resumed"),
        (half(saved({"a": torch.zeros(1000)})), "copy it again"),
    ],
    ids=["no folder", "empty", "an image", "another project's", "truncated"],
)
def test_resume_refuses_a_checkpoint(
    content: bytes | None,
    words: str,
    refused: Callable[..., str],
    training: list[object],
    tmp_path: Path,
) -> None:
    if content is not None:
        (tmp_path / "run").mkdir()
        put(tmp_path / "run" / "last.ckpt", content)
    line = refused(*training, "--resume")
    assert f"{Path('run') / 'last.ckpt'}: " in line
    assert words in line


def test_resume_refuses_a_checkpoint_that_is_not_a_trainings_last(
    refused: Callable[..., str], training: list[object], models: Models, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    put(tmp_path / "run" / "last.ckpt", models.checkpoint.read_bytes())
    assert "cannot be resumed" in refused(*training, "--resume")


def begun(document: dict[str, Any], epochs: object = 0) -> None:
    """Make a checkpoint one that a training left in its first epoch."""
    position = {"step": 1, "epochs": epochs}
    document.update(position=position, precision={}, optimizer_states=[], lr_schedulers=[])


def test_resume_refuses_a_checkpoint_that_does_not_say_where_it_was(
    refused: Callable[..., str], training: list[object], models: Models, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    for edit in (lambda document: begun(document, "x"), lambda d: d.update(position="x")):
        edited_bytes = edited(models.checkpoint, lambda d, edit=edit: (begun(d), edit(d)))
        put(tmp_path / "run" / "last.ckpt", edited_bytes)
        assert "damaged position of the training" in refused(*training, "--resume")


@pytest.mark.parametrize("line", [PNG, b"[1]", b"{"], ids=["an image", "a list", "unfinished"])
def test_resume_refuses_damaged_metrics(
    line: bytes, refused: Callable[..., str], training: list[object], models: Models, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    put(tmp_path / "run" / "last.ckpt", edited(models.checkpoint, begun))
    put(tmp_path / "run" / "metrics.jsonl", line + b"\n")
    assert f"{Path('run') / 'metrics.jsonl'}: damaged line (" in refused(
        *training, "--resume", "--set", "training.epochs=2"
    )


def test_train_refuses_a_run_folder_that_is_a_file(
    refused: Callable[..., str], training: list[object], tmp_path: Path
) -> None:
    put(tmp_path / "run", b"precious")
    assert "run: File exists; expected a folder, not a file" in refused(*training)


@pytest.mark.parametrize("workers", [0, 1])
def test_train_names_a_recording_that_turns_out_bad(
    workers: int, training: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    audio = put(tmp_path / "nan.wav", sound(SPEECH * np.float32("nan")))
    good = [(tmp_path / f"{i}.wav", "ONE") for i in range(3)]
    manifest = cut_manifest(tmp_path, [(audio, "ONE"), *good])
    arguments = [*training, "--set", f"data.train={manifest}", "--set", f"data.workers={workers}"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert f"{audio}: contains samples that are NaN or infinite; " in result.stderr
    assert "Traceback" not in result.stderr


# Options --------------------------------------------------------------------------------------


def test_export_refuses_a_file_as_its_folder(
    refused: Callable[..., str], models: Models, tmp_path: Path
) -> None:
    out = put(tmp_path / "deploy", b"precious")
    line = refused("export", models.checkpoint, "--out", out)
    assert f"{out}: is a file; expected a folder for the artifacts" in line


def test_export_refuses_a_folder_below_a_file(
    refused: Callable[..., str], models: Models, tmp_path: Path
) -> None:
    out = put(tmp_path / "deploy", b"precious") / "below"
    line = refused("export", models.checkpoint, "--out", out)
    assert f"{out}: Not a directory; expected a folder, not a file" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precision", "int4"), "--precision 'int4': expected one or more of fp32, fp16"),
        (("--precision", "fp32,int4"), "--precision 'int4': expected one or more of fp32, fp16"),
        (("--precision", ""), "--precision '': expected one or more of fp32, fp16"),
    ],
)
def test_export_refuses_an_option(
    options: tuple[str, ...], words: str, refused: Callable[..., str], models: Models
) -> None:
    assert words in refused("export", models.checkpoint, "--out", "deploy", *options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--layout", "tree"), "--layout tree: expected one of folder, librispeech"),
        (("--labels", "_AA"), "expected the blank followed by each character once"),
        (("--split-by", "word"), "'utterance', 'speaker'"),
        (("--set", "model.hidden=8"), "--recipe"),
        (("--join", "2"), "--join 2: expected MIN,MAX, whole numbers"),
        (("--join", "6,2"), "--join 6,2: expected MIN,MAX"),
    ],
)
def test_prepare_refuses_an_option(
    options: tuple[str, ...], words: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "recordings").mkdir()
    put_good(tmp_path / "recordings")
    assert words in refused("prepare", "recordings", "data", *options)


def test_prepare_refuses_a_file_as_its_folder(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    put_good(tmp_path / "recordings")
    out = put(tmp_path / "data", b"precious")
    assert f"{out}: is a file; expected a folder" in refused("prepare", "recordings", out)


def test_transcribe_refuses_a_format(
    refused: Callable[..., str], models: Models, tmp_path: Path
) -> None:
    audio = put(tmp_path / "a.wav", sound(SPEECH))
    line = refused("transcribe", models.onnx, audio, "--format", "pdf")
    assert "'--format'" in line
    assert all(f"'{name}'" in line for name in ("pdf", "text", "json", "srt", "vtt"))
    line = refused("transcribe", models.onnx, audio, audio, "--format", "srt")
    assert "--format srt: " in line
    assert "--format json" in line


@pytest.mark.parametrize(
    ("device", "kind", "command"),
    [
        ("tpu", "onnx", "transcribe"), ("cuda:x", "onnx", "transcribe"), ("", "onnx", "transcribe"),
        ("cuda", "onnx", "transcribe"), ("cuda", "checkpoint", "transcribe"),
        ("mps", "checkpoint", "evaluate"),
    ],
)  # fmt: skip
def test_a_device_that_is_not_there(
    device: str,
    kind: str,
    command: str,
    refused: Callable[..., str],
    models: Models,
    tmp_path: Path,
) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    audio = put(tmp_path / "a.wav", sound(SPEECH))
    model = getattr(models, kind)
    given = audio if command == "transcribe" else cut_manifest(tmp_path, [(audio, "ONE")])
    line = refused(command, model, given, "--device", device)
    assert model.name in line
    if device != "cuda":
        assert f"{device!r}" in line
        assert "cpu, cuda" in line


def test_train_refuses_a_gpu_that_is_not_there(
    refused: Callable[..., str], training: list[object]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    line = refused(*training, "--set", "training.accelerator=gpu")
    assert "use cpu or auto" in line
    line = refused(*training, "--set", "training.precision=16-mixed")
    assert "use 32-true or bf16-mixed" in line


# A process of its own: nothing that a library prints at import or at exit hides here.


@pytest.mark.parametrize("command", ["transcribe", "train"])
def test_one_line_from_a_real_process(
    command: str, models: Models, training: list[object], tmp_path: Path
) -> None:
    bad = put(tmp_path / "bad.wav", half(sound(SPEECH)))
    call = [*training, "--set", f"data.train={put(tmp_path / 'bad.json', b'{')}"]
    if command == "transcribe":
        call = ["transcribe", models.onnx, bad]
    done = subprocess.run(
        [sys.executable, "-m", "ds2deploy", *map(str, call)],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    # On a machine that takes its time there are lines of progress beside it.
    progress = re.compile(r"(training|transcribing)(: |, for )")
    lines = [line for line in done.stderr.splitlines() if not progress.match(line)]
    assert len(lines) == 1, done.stderr
    assert str(tmp_path / "bad.") in done.stderr
