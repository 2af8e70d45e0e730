"""Names and texts in any encoding, and lists with blank or bad lines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ds2deploy.data.cuts import audio_path, read_audio, transcript
from ds2deploy.data.manifest import read_manifest
from ds2deploy.data.preparation import PrepareOptions, prepare
from ds2deploy.loading import load
from ds2deploy.recipes import load_recipe
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import ManifestError
from tests.ds2deploy.data.recordings import LATIN_1, prepared, run, write_utterance

BOM = b"\xef\xbb\xbf"

ENCODINGS = {
    "UTF-8 with a mark": lambda text: BOM + text.encode(),
    "UTF-16, little": lambda text: text.encode("utf-16"),
    "UTF-16, big": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
}


@pytest.fixture
def latin(tmp_path: Path) -> Path:
    """A manifest of recordings whose names are Latin-1."""
    for i in range(3):
        write_utterance(tmp_path / "in" / LATIN_1 / f"{LATIN_1}{i}.wav")
    prepare(
        tmp_path / "in", tmp_path / "out", Alphabet(), PrepareOptions(join=(3, 3), valid_share=0.4)
    )
    return tmp_path / "out" / "train.jsonl.gz"


def test_names_that_are_not_utf8_come_back_from_a_manifest(latin: Path):
    for name, count in (("train", 1), ("valid", 2), ("valid-joined", 1)):
        cuts = read_manifest(latin.with_name(f"{name}.jsonl.gz"))
        assert len(cuts) == count
        for cut in cuts:
            assert Path(audio_path(cut)).name.startswith(LATIN_1)
            assert len(read_audio(cut, 8000)) == round(cut.duration * 8000)
            cut.id.encode()


def test_names_that_are_not_utf8_are_evaluated(latin: Path, small_onnx: Path):
    document = json.loads(run("evaluate", small_onnx, latin, "--json").stdout.encode())
    assert document["hypotheses"][0]["audio"].endswith(".wav")
    assert r"caf\xe9" in document["hypotheses"][0]["audio"]
    json.loads((latin.parent / "report.json").read_bytes().decode())


def test_names_that_are_not_utf8_in_a_list(tmp_path: Path):
    write_utterance(tmp_path / f"{LATIN_1}.wav")
    manifest = tmp_path / "m.csv"
    manifest.write_bytes(b"caf\xe9.wav,caf\xe9.txt\n")
    assert prepared(manifest)[0] == {f"{LATIN_1}.wav"}
    manifest = tmp_path / "m.json"
    manifest.write_bytes(
        b'{"root_path": ".", "samples": [{"wav_path": "caf\xe9.wav", '
        b'"transcript_path": "caf\xe9.txt"}]}'
    )
    assert prepared(manifest)[0] == {f"{LATIN_1}.wav"}


def test_a_model_whose_name_is_not_utf8(small_onnx: Path, small_checkpoint: Path, tmp_path: Path):
    audio = write_utterance(tmp_path / "a.wav")
    texts = set()
    for model in (small_onnx, small_checkpoint):
        copy = tmp_path / f"{LATIN_1}{model.suffix}"
        shutil.copy(model, copy)
        texts.add(run("transcribe", copy, audio).stdout)
        run("inspect", copy, "--json").stdout.encode()
        with load(copy) as recognizer:
            recognizer.description.to_json().encode()
    assert len(texts) == 1


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_a_byte_order_mark_is_no_part_of_a_text(encode: Callable[[str], bytes], tmp_path: Path):
    audio = write_utterance(tmp_path / "in" / "a.wav", text=None)
    audio.with_suffix(".txt").write_bytes(encode("ONE TWO"))
    sets, _ = prepare(tmp_path / "in", tmp_path / "out", Alphabet(), PrepareOptions())
    assert [transcript(cut) for cut in sets["train"]] == ["ONE TWO"]
    line = (tmp_path / "line").with_suffix(".jsonl")
    sets["train"].to_file(line)
    lists = {
        "m.csv": "in/a.wav,in/a.txt\n",
        "m.json": json.dumps(
            {
                "root_path": "in",
                "samples": [{"wav_path": "a.wav", "transcript_path": "a.txt"}],
            }
        ),
        "m.jsonl": line.read_text(),
    }
    for name, text in lists.items():
        path = tmp_path / name
        path.write_bytes(encode(text))
        assert [audio_path(cut) for cut in read_manifest(path)] == [str(audio)], name


def test_a_byte_order_mark_in_a_recipe(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_bytes(BOM + b'labels = "_AB "\n')
    assert load_recipe(str(path)).labels == "_AB "


def test_blank_lines_of_a_list_are_no_utterances(tmp_path: Path):
    write_utterance(tmp_path / "a.wav")
    manifest = tmp_path / "m.csv"
    manifest.write_bytes(b"\r\n  \r\na.wav,a.txt\r\n\r\n , \r\n\n")
    assert len(read_manifest(manifest)) == 1
    assert prepared(manifest)[0] == {"a.wav"}


def test_a_bad_line_of_a_list_is_named(tmp_path: Path):
    write_utterance(tmp_path / "a.wav")
    manifest = tmp_path / "m.csv"
    manifest.write_text("a.wav,a.txt\none,two,three\n")
    used, report = prepared(manifest)
    assert used == {"a.wav"}
    assert report.left_out[0].startswith(f"{manifest}: line 2 has 3 fields")
    for bad in (
        f"a.wav,{'x' * 200_000}",
        f'a.wav,"{"x" * 200_000}',
        '"a.wav,a.txt',
        "b\rc.wav,b.txt",
    ):
        manifest.write_bytes(f"{bad}\na.wav,a.txt\n".encode())
        used, report = prepared(manifest)
        assert used == {"a.wav"}
        (line,) = report.left_out
        assert line.startswith(f"{manifest}: line 1 ")
        assert "audio,transcript" in line
    manifest = tmp_path / "m.json"
    samples = [{"wav_path": "a.wav", "transcript_path": "a.txt"}, {"wav_path": "a.wav"}, 7]
    manifest.write_text(json.dumps({"root_path": ".", "samples": samples}))
    used, report = prepared(manifest)
    assert used == {"a.wav"}
    assert [line.split(": ")[1] for line in report.left_out] == ["sample 2", "sample 3"]


@pytest.mark.parametrize("name", ["M.CSV", "M.JSON", "M.JSONL", "M.JSONL.GZ", "m.Csv"])
def test_names_of_lists_in_capitals(name: str, tmp_path: Path, small_onnx: Path):
    audio = write_utterance(tmp_path / "A.WAV")
    manifest = tmp_path / name
    if "JSONL" in name:
        out = tmp_path / "out"
        prepare(tmp_path, out, Alphabet(), PrepareOptions())
        if name.endswith(".GZ"):
            shutil.copy(out / "train.jsonl.gz", manifest)
        else:
            read_manifest(out / "train.jsonl.gz").to_file(tmp_path / "m.jsonl")
            (tmp_path / "m.jsonl").rename(manifest)
    elif name == "M.JSON":
        sample = {"wav_path": "A.WAV", "transcript_path": "A.txt"}
        manifest.write_text(json.dumps({"root_path": ".", "samples": [sample]}))
    else:
        manifest.write_text("A.WAV,A.txt\n")
    assert [audio_path(cut) for cut in read_manifest(manifest)] == [str(audio)]
    assert "manifest of 1 utterances" in run("inspect", manifest).stdout
    if "JSONL" not in name:
        assert prepared(manifest)[0] == {"A.WAV"}


def test_a_manifest_is_never_run_as_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    manifest = Path("pipe:touch found;.jsonl")
    manifest.write_text("{}\n")
    with pytest.raises(ManifestError):
        read_manifest(manifest)
    assert not Path("found;.jsonl").exists()
    assert not Path("found").exists()
