"""`prepare` on folders as people have them: any format, any name, links, and what is locked."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

from ds2deploy.cli.app import app
from ds2deploy.data.cuts import audio_path, read_audio, transcript
from ds2deploy.data.listing import list_files, looks_like_sound
from ds2deploy.data.manifest import read_manifest, read_usable
from ds2deploy.data.preparation import PrepareOptions, Report, prepare
from ds2deploy.data.screening import Screening
from ds2deploy.loading import load
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import ManifestError
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.training.evaluation import evaluate

RATE = 8000
SPEECH = np.random.default_rng(0).uniform(-0.3, 0.3, RATE).astype(np.float32)
LATIN_1 = os.fsdecode(b"caf\xe9")
BOM = b"\xef\xbb\xbf"


def record(path: Path, kind: str = "WAV", subtype: str | None = None, text: str | None = "ONE"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # soundfile encodes names strictly
        soundfile.write(file, SPEECH, RATE, format=kind, subtype=subtype)
    if text is not None:
        path.with_suffix(".txt").write_text(text)
    return path


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def prepared(source: Path, **options: object) -> tuple[set[str], Report]:
    """Names of the recordings that are used, and the report."""
    out = source.parent / "out"
    sets, report = prepare(source, out, Alphabet(), PrepareOptions(leave_out=True, **options))
    return {Path(audio_path(cut)).name for cuts in sets.values() for cut in cuts}, report


FORMATS = {
    "a.caf": ("CAF", None), "b.sph": ("NIST", None), "c.oga": ("OGG", "VORBIS"),
    "d.voc": ("VOC", None), "e.rf64": ("RF64", None), "f.aifc": ("AIFF", None),
    "g.w64": ("W64", None), "h.au": ("AU", None), "i.snd": ("AU", None), "j.flac": ("FLAC", None),
    "k.mp3": ("MP3", None), "l.opus": ("OGG", "OPUS"), "m.WAV": ("WAV", None),
    "n.wave": ("WAV", None), "named by its owner": ("FLAC", None), "o.2024": ("WAV", None),
    "p.avr": ("AVR", None), "q.htk": ("HTK", None), "r.sf": ("IRCAM", None),
    "s.gsm": ("RAW", "GSM610"), "t.pvf": ("PVF", None),
}  # fmt: skip


def test_every_format_that_libsndfile_reads_is_used(tmp_path: Path):
    for name, (kind, subtype) in FORMATS.items():
        record(tmp_path / "in" / name, kind, subtype)
    (tmp_path / "in" / "README.md").write_text("recordings")
    used, report = prepared(tmp_path / "in")
    assert used == set(FORMATS)
    assert (report.listed, report.used, report.unreadable) == (len(FORMATS), len(FORMATS), 0)


def test_upper_case_transcripts(tmp_path: Path):
    path = record(tmp_path / "in" / "A.WAV")
    path.with_suffix(".txt").rename(path.with_suffix(".TXT"))
    assert prepared(tmp_path / "in")[0] == {"A.WAV"}


def test_what_looks_like_sound_and_cannot_be_read_is_named(tmp_path: Path):
    folder = tmp_path / "in"
    record(folder / "good.wav")
    odd = {
        "a.m4a": b"\0\0\0\x20ftypM4A ", "b.webm": b"\x1aE\xdf\xa3", "c.amr": b"#!AMR\n",
        "d.raw": bytes(100), "e.wav": b"hello", "f.wav": b"", "g.mp4": b"",
    }  # fmt: skip
    for name, content in odd.items():
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".txt").write_text("ONE")
    os.mkfifo(folder / "pipe.wav")
    (folder / "nowhere.wav").symlink_to("missing.wav")
    (folder / "self.wav").symlink_to("self.wav")
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(folder)  # the path of a socket is short
        try:
            server.bind("socket.wav")
        finally:
            os.chdir(here)
    used, report = prepared(folder)
    assert used == {"good.wav"}
    named = [*odd, "pipe.wav", "nowhere.wav", "self.wav", "socket.wav"]
    for name in named:
        assert sum(f"/{name}: " in line for line in report.left_out) == 1, name
    assert (report.used, report.unreadable) == (1, len(named))
    assert report.listed == 1 + len(named)
    assert "ffmpeg" in next(line for line in report.left_out if "a.m4a" in line)
    assert "ffmpeg -f s16le" in next(line for line in report.left_out if "d.raw" in line)
    out = run("prepare", folder, tmp_path / "again", "--leave-out").stdout
    assert f"{len(named)} of {report.listed} utterances left out, {len(named)} of them" in out


def test_the_original_of_a_converted_recording_is_passed_over(tmp_path: Path):
    record(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    assert prepared(tmp_path / "in")[1].left_out == []


def test_a_folder_that_is_named_like_a_recording(tmp_path: Path):
    record(tmp_path / "in" / "a.wav" / "b.wav")
    assert prepared(tmp_path / "in")[0] == {"b.wav"}


def test_links_to_folders_are_followed_once_and_loops_end(tmp_path: Path):
    record(tmp_path / "elsewhere" / "far.wav")
    record(tmp_path / "in" / "speaker" / "near.wav")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "a link").symlink_to("speaker")
    (tmp_path / "in" / "speaker" / "loop").symlink_to("..")
    (tmp_path / "in" / "self").symlink_to("self")
    used, report = prepared(tmp_path / "in")
    assert used == {"near.wav", "far.wav"}
    assert report.left_out == []
    files = list_files(tmp_path / "in").files
    assert tmp_path / "in" / "speaker" / "near.wav" in files
    assert tmp_path / "in" / "linked" / "far.wav" in files


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Refuses a path, as the system does to everybody but root."""
    refused: set[Path] = set()

    def guard(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def guarded(path: object, *arguments: object, **options: object) -> object:
            if Path(str(path)) in refused:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *arguments, **options)

        monkeypatch.setattr(owner, name, guarded)

    guard(os, "scandir")
    guard(Path, "read_bytes")
    guard(Path, "is_file")

    def lock(path: Path) -> Path:
        refused.add(path)
        return path

    return lock


def test_a_locked_folder_is_named(tmp_path: Path, locked: Callable[[Path], Path]):
    record(tmp_path / "in" / "good.wav")
    folder = locked(record(tmp_path / "in" / "secret" / "b.wav").parent)
    used, report = prepared(tmp_path / "in")
    assert used == {"good.wav"}
    (line,) = report.left_out
    assert line.startswith(f"{folder}: ")
    assert "Permission denied" in line
    assert (report.listed, report.used, report.unreadable) == (2, 1, 1)
    error = run("prepare", folder, tmp_path / "again", code=2).stderr
    assert error.startswith(f"ds2deploy: {folder}: ")


def test_a_locked_transcript_is_named(tmp_path: Path, locked: Callable[[Path], Path]):
    record(tmp_path / "in" / "good.wav")
    text = locked(record(tmp_path / "in" / "b.wav").with_suffix(".txt"))
    used, report = prepared(tmp_path / "in")
    assert used == {"good.wav"}
    (line,) = report.left_out
    assert line.startswith(f"{text}: cannot be read (Permission denied)")
    assert report.unreadable == 0


def test_a_locked_recording_of_a_list_is_named(tmp_path: Path, locked: Callable[[Path], Path]):
    record(tmp_path / "a.wav")
    audio = locked(record(tmp_path / "b.wav"))
    long = "c" * 300 + ".wav"
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"a.wav,a.txt\nb.wav,b.txt\n{long},a.txt\n")
    used, report = prepared(manifest)
    assert used == {"a.wav"}
    assert [line.split(": ")[0] for line in report.left_out] == [
        str(audio),
        str(tmp_path / long),
    ]
    assert report.unreadable == 2


def test_a_locked_list_of_a_corpus_does_not_end_it(tmp_path: Path, locked: Callable[[Path], Path]):
    for chapter in ("1", "2"):
        place = tmp_path / "in" / "train-clean" / "19" / chapter
        record(place / f"19-{chapter}-0.flac", "FLAC", text=None)
        (place / f"19-{chapter}.trans.txt").write_text(f"19-{chapter}-0 ONE\n")
    listing = locked(place / "19-2.trans.txt")
    used, report = prepared(tmp_path / "in", layout="librispeech")
    assert used == {"19-1-0.flac"}
    (line,) = report.left_out
    assert line.startswith(f"{listing}: ")


def test_an_odd_name_does_not_end_the_digit_data_set(tmp_path: Path):
    for name in ("7_jackson_32", "8_jackson_33", "take two"):
        record(tmp_path / "in" / f"{name}.wav", text=None)
    used, report = prepared(tmp_path / "in", layout="fsdd")
    assert used == {"7_jackson_32.wav", "8_jackson_33.wav"}
    assert len(report.left_out) == 1


# Names that are not UTF-8 -------------------------------------------------------------------------


@pytest.fixture
def latin(tmp_path: Path) -> Path:
    """A manifest of recordings whose names are Latin-1."""
    for i in range(3):
        record(tmp_path / "in" / LATIN_1 / f"{LATIN_1}{i}.wav")
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
            assert len(read_audio(cut, RATE)) == round(cut.duration * RATE)
            cut.id.encode()


def test_names_that_are_not_utf8_are_evaluated(latin: Path, small_onnx: Path):
    document = json.loads(run("evaluate", small_onnx, latin, "--json").stdout.encode())
    assert document["hypotheses"][0]["audio"].endswith(".wav")
    assert r"caf\xe9" in document["hypotheses"][0]["audio"]
    json.loads((latin.parent / "report.json").read_bytes().decode())


def test_names_that_are_not_utf8_in_a_list(tmp_path: Path):
    record(tmp_path / f"{LATIN_1}.wav")
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
    audio = record(tmp_path / "a.wav")
    texts = set()
    for model in (small_onnx, small_checkpoint):
        copy = tmp_path / f"{LATIN_1}{model.suffix}"
        shutil.copy(model, copy)
        texts.add(run("transcribe", copy, audio).stdout)
        run("inspect", copy, "--json").stdout.encode()
        with load(copy) as recognizer:
            recognizer.description.to_json().encode()
    assert len(texts) == 1


# Lists and transcripts ----------------------------------------------------------------------------

ENCODINGS = {
    "UTF-8 with a mark": lambda text: BOM + text.encode(),
    "UTF-16, little": lambda text: text.encode("utf-16"),
    "UTF-16, big": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
}


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_a_byte_order_mark_is_no_part_of_a_text(encode: Callable[[str], bytes], tmp_path: Path):
    audio = record(tmp_path / "in" / "a.wav", text=None)
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
    from ds2deploy.recipes import load_recipe

    path = tmp_path / "mine.toml"
    path.write_bytes(BOM + b'labels = "_AB "\n')
    assert load_recipe(str(path)).labels == "_AB "


def test_blank_lines_of_a_list_are_no_utterances(tmp_path: Path):
    record(tmp_path / "a.wav")
    manifest = tmp_path / "m.csv"
    manifest.write_bytes(b"\r\n  \r\na.wav,a.txt\r\n\r\n , \r\n\n")
    assert len(read_manifest(manifest)) == 1
    assert prepared(manifest)[0] == {"a.wav"}


def test_a_bad_line_of_a_list_is_named(tmp_path: Path):
    record(tmp_path / "a.wav")
    manifest = tmp_path / "m.csv"
    manifest.write_text("a.wav,a.txt\none,two,three\n")
    used, report = prepared(manifest)
    assert used == {"a.wav"}
    assert report.left_out[0].startswith(f"{manifest}: line 2 has 3 fields")
    manifest = tmp_path / "m.json"
    samples = [{"wav_path": "a.wav", "transcript_path": "a.txt"}, {"wav_path": "a.wav"}, 7]
    manifest.write_text(json.dumps({"root_path": ".", "samples": samples}))
    used, report = prepared(manifest)
    assert used == {"a.wav"}
    assert [line.split(": ")[1] for line in report.left_out] == ["sample 2", "sample 3"]


@pytest.mark.parametrize("name", ["M.CSV", "M.JSON", "M.JSONL", "M.JSONL.GZ", "m.Csv"])
def test_names_of_lists_in_capitals(name: str, tmp_path: Path, small_onnx: Path):
    audio = record(tmp_path / "A.WAV")
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


# What can be used, of what cannot -----------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A list with two good utterances among five."""
    names = ("a", "gone", "digits", "blank", "b")
    for name in names:
        record(tmp_path / f"{name}.wav")
    (tmp_path / "gone.wav").unlink()
    (tmp_path / "digits.txt").write_text("ROUTE 66")
    (tmp_path / "blank.txt").write_text("\n")
    manifest = tmp_path / "m.csv"
    manifest.write_text("".join(f"{name}.wav,{name}.txt\n" for name in names))
    return manifest


def test_evaluate_leaves_out_what_cannot_be_used(mixed: Path, small_onnx: Path):
    result = run("evaluate", small_onnx, mixed, "--json", code=1)
    document = json.loads(result.stdout)
    assert document["utterances"] == 2
    found = {Path(item["audio"]).stem: item["of"] for item in document["failed"]}
    assert found == {"gone": "recording", "blank": "transcript", "digits": "transcript"}
    assert len(result.stderr.splitlines()) == 3
    assert "'6'" in result.stderr
    text = run("evaluate", small_onnx, mixed, code=1).stdout
    assert "1 broken recording left out; 2 unusable transcripts left out" in text


def test_evaluate_fails_where_nothing_can_be_used(mixed: Path, small_onnx: Path):
    mixed.write_text("gone.wav,gone.txt\ndigits.wav,digits.txt\n")
    result = run("evaluate", small_onnx, mixed, code=2)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "gone.wav" in line
    assert "none of the other 1 utterances" in line


def test_evaluate_in_python_leaves_out_the_same(mixed: Path, small_onnx: Path):
    cuts, unusable = read_usable(mixed)
    with load(small_onnx) as recognizer:
        result = evaluate(recognizer, cuts, str(mixed), unusable=unusable)
    assert (result.utterances, len(result.failed)) == (2, 3)


def test_inspect_counts_what_cannot_be_used(mixed: Path):
    result = run("inspect", mixed, "--json", code=1)
    details = json.loads(result.stdout)["details"]
    assert (details["utterances"], len(details["left_out"])) == (3, 2)
    assert len(result.stderr.splitlines()) == 2
    assert "2 that cannot be used" in run("inspect", mixed, code=1).stdout


def test_inspect_of_several_files_goes_on(mixed: Path, small_onnx: Path):
    text = mixed.with_name("a.txt")
    result = run("inspect", mixed.with_name("a.wav"), text, small_onnx, code=1)
    assert "recording" in result.stdout
    assert "ONNX artifact" in result.stdout
    (line,) = result.stderr.splitlines()
    assert str(text) in line
    result = run("inspect", mixed.with_name("a.wav"), text, "--json", code=1)
    first, second = json.loads(result.stdout)["files"]
    assert first["details"]["kind"] == "recording"
    assert second["file"] == str(text)
    assert str(text) in second["error"]
    run("inspect", text, mixed.with_name("no.wav"), code=2)


# The recipe ---------------------------------------------------------------------------------------


def test_screening_has_the_frames_of_the_recipe(tmp_path: Path):
    record(tmp_path / "in" / "good.wav", text="ONE")
    record(tmp_path / "in" / "fast.wav", text="ABCDEFGHIJKLMNOP" * 2)  # 50 frames at 10 ms
    assert len(prepared(tmp_path / "in")[0]) == 2
    features = FeatureConfig(sample_rate=8000, stride_ms=20)
    used, report = prepared(tmp_path / "in", screening=Screening(features=features))
    assert used == {"good.wav"}
    assert "CTC cannot align" in report.left_out[0]
    recipe = tmp_path / "slow.toml"
    recipe.write_text('labels = "_ENO "\n[features]\nsample_rate = 8000\nstride_ms = 20\n')
    command = ("prepare", tmp_path / "in", tmp_path / "mine", "--leave-out", "--recipe", recipe)
    document = json.loads(run(*command, "--json").stdout)
    assert document["used"] == 1
    assert document["labels"] == "_ENO "
    assert document["options"]["screening"]["features"]["sample_rate"] == 8000
    faster = ("--set", "features.stride_ms=5", "--labels", "_ABCDEFGHIJKLMNOP ")
    assert json.loads(run(*command, *faster, "--json").stdout)["used"] == 2
    line = run("prepare", tmp_path / "in", tmp_path / "x", *faster[:2], code=2).stderr
    assert "--recipe" in line


def test_samples_are_screened_at_the_rate_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import ds2deploy.data.screening as module

    record(tmp_path / "in" / "good.wav")
    rates: list[int] = []
    read = module.read_audio
    monkeypatch.setattr(
        module, "read_audio", lambda cut, rate: (rates.append(rate), read(cut, rate))[1]
    )
    features = FeatureConfig(sample_rate=8000)
    prepared(tmp_path / "in", screening=Screening(features=features, read=True))
    assert rates == [8000]


def test_threads_and_workers_of_a_recipe_are_bounded():
    from ds2deploy.config import Recipe, within_cores

    recipe = Recipe().changed("training", threads=1000).changed("data", workers=999)
    bounded, changes = within_cores(recipe, 4)
    assert (bounded.training.threads, bounded.data.workers) == (4, 4)
    assert len(changes) == 2
    assert all("4 cores" in line for line in changes)
    assert within_cores(Recipe(), 1) == (Recipe(), [])


def test_train_says_that_it_takes_fewer_threads(tone_toml: Path):
    call = ["train", tone_toml, "--set", "training.threads=100000", "--set", "data.train=no.jsonl"]
    lines = run(*call, code=2).stderr.splitlines()
    assert lines[0].startswith("ds2deploy: training.threads = 100000: ")


def test_suffixes_decide_what_looks_like_sound(tmp_path: Path):
    for name in ("a.wav", "a.M4A", "a.raw"):
        assert looks_like_sound(tmp_path / name)
    for name in ("a.txt", "a.pdf", "wav", "n" * 251 + ".amr"):
        assert looks_like_sound(tmp_path / name) == name.endswith(".amr")
