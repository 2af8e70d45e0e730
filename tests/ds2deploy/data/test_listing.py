"""`prepare` on folders as people have them: any format, links, and locked files."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ds2deploy.data.listing import list_files, looks_like_sound
from tests.ds2deploy.data.recordings import prepared, run, write_utterance

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
        write_utterance(tmp_path / "in" / name, kind, subtype)
    (tmp_path / "in" / "README.md").write_text("recordings")
    used, report = prepared(tmp_path / "in")
    assert used == set(FORMATS)
    assert (report.listed, report.used, report.unreadable) == (len(FORMATS), len(FORMATS), 0)


def test_upper_case_transcripts(tmp_path: Path):
    path = write_utterance(tmp_path / "in" / "A.WAV")
    path.with_suffix(".txt").rename(path.with_suffix(".TXT"))
    assert prepared(tmp_path / "in")[0] == {"A.WAV"}


def test_unreadable_sound_files_are_named(tmp_path: Path):
    folder = tmp_path / "in"
    write_utterance(folder / "good.wav")
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
    write_utterance(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    assert prepared(tmp_path / "in")[1].left_out == []


def test_a_folder_that_is_named_like_a_recording(tmp_path: Path):
    write_utterance(tmp_path / "in" / "a.wav" / "b.wav")
    assert prepared(tmp_path / "in")[0] == {"b.wav"}


def test_links_to_folders_are_followed_once_and_loops_end(tmp_path: Path):
    write_utterance(tmp_path / "elsewhere" / "far.wav")
    write_utterance(tmp_path / "in" / "speaker" / "near.wav")
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
    write_utterance(tmp_path / "in" / "good.wav")
    folder = locked(write_utterance(tmp_path / "in" / "secret" / "b.wav").parent)
    used, report = prepared(tmp_path / "in")
    assert used == {"good.wav"}
    (line,) = report.left_out
    assert line.startswith(f"{folder}: ")
    assert "Permission denied" in line
    assert (report.listed, report.used, report.unreadable) == (2, 1, 1)
    error = run("prepare", folder, tmp_path / "again", code=2).stderr
    assert error.startswith(f"ds2deploy: {folder}: ")


def test_a_locked_transcript_is_named(tmp_path: Path, locked: Callable[[Path], Path]):
    write_utterance(tmp_path / "in" / "good.wav")
    text = locked(write_utterance(tmp_path / "in" / "b.wav").with_suffix(".txt"))
    used, report = prepared(tmp_path / "in")
    assert used == {"good.wav"}
    (line,) = report.left_out
    assert line.startswith(f"{text}: cannot be read (Permission denied)")
    assert report.unreadable == 0


def test_a_locked_recording_of_a_list_is_named(tmp_path: Path, locked: Callable[[Path], Path]):
    write_utterance(tmp_path / "a.wav")
    audio = locked(write_utterance(tmp_path / "b.wav"))
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
        write_utterance(place / f"19-{chapter}-0.flac", "FLAC", text=None)
        (place / f"19-{chapter}.trans.txt").write_text(f"19-{chapter}-0 ONE\n")
    listing = locked(place / "19-2.trans.txt")
    used, report = prepared(tmp_path / "in", layout="librispeech")
    assert used == {"19-1-0.flac"}
    (line,) = report.left_out
    assert line.startswith(f"{listing}: ")


def test_an_odd_name_does_not_end_the_digit_data_set(tmp_path: Path):
    for name in ("7_jackson_32", "8_jackson_33", "take two"):
        write_utterance(tmp_path / "in" / f"{name}.wav", text=None)
    used, report = prepared(tmp_path / "in", layout="fsdd")
    assert used == {"7_jackson_32.wav", "8_jackson_33.wav"}
    assert len(report.left_out) == 1


def test_suffixes_decide_what_looks_like_sound(tmp_path: Path):
    for name in ("a.wav", "a.M4A", "a.raw"):
        assert looks_like_sound(tmp_path / name)
    for name in ("a.txt", "a.pdf", "wav", "n" * 251 + ".amr"):
        assert looks_like_sound(tmp_path / name) == name.endswith(".amr")
