"""CSV and TSV files with a recording and its transcript in each line."""

from __future__ import annotations

from pathlib import Path

import pytest
from lhotse import CutSet

from ds2deploy.data.cuts import audio_path, transcript
from ds2deploy.data.manifest import read_manifest
from ds2deploy.data.preparation import PrepareOptions, prepare
from ds2deploy.runtimes.alphabet import ENGLISH, Alphabet
from ds2deploy.runtimes.errors import (
    AlphabetError,
    AudioError,
    Ds2Error,
    ManifestError,
    MissingFileError,
)
from tests.ds2deploy.data.recordings import write_utterance

LETTERS = "_,'ABCDEFGHIJKLMNOPQRSTUVWXYZ "


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Recordings a.wav, b.wav and c.wav without transcripts."""
    for name in "abc":
        write_utterance(tmp_path / f"{name}.wav")
        (tmp_path / f"{name}.txt").unlink()
    return tmp_path


def texts(cuts: CutSet) -> dict[str, str]:
    return {Path(audio_path(cut)).name: transcript(cut) for cut in cuts}


def table(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def prepared(path: Path, labels: str = ENGLISH) -> dict[str, str]:
    options = PrepareOptions(valid_share=0.0)
    manifests, _ = prepare(path, path.parent / "out", Alphabet(labels), options)
    return texts(manifests["train"])


def refused(path: Path, error: type[Ds2Error] = MissingFileError) -> str:
    with pytest.raises(error) as raised:
        prepared(path)
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("header", ["", "file,text\n", "Path,Sentence\n", "wav , transcript\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_texts_with_and_without_a_header(folder: Path, header: str, mark: bytes):
    path = table(folder, mark + f"{header}a.wav,GO\nb.wav,TURN  LEFT \n".encode())
    expected = {"a.wav": "GO", "b.wav": "TURN LEFT"}
    assert prepared(path) == expected
    assert texts(read_manifest(path)) == expected


def test_a_header_above_files(folder: Path):
    for name in "ab":
        (folder / f"{name}.txt").write_text(f"TEXT {name.upper()}")
    path = table(folder, "audio,transcript\na.wav,a.txt\nb.wav,b.txt\n")
    assert prepared(path) == {"a.wav": "TEXT A", "b.wav": "TEXT B"}


def test_a_header_is_only_in_the_first_line(folder: Path):
    assert "file: no such file" in refused(table(folder, "a.wav,GO\nfile,text\n"))


def test_a_recording_named_like_a_header(folder: Path):
    (folder / "a.wav").rename(folder / "file")
    assert prepared(table(folder, "file,text\nb.wav,GO\n")) == {"file": "text", "b.wav": "GO"}


@pytest.mark.parametrize(("name", "line"), [
    ("t.csv", 'a.wav,"WELL, ""GO"", HE SAID"\n'), ("t.tsv", 'a.wav\t"WELL, ""GO"", HE SAID"\n'),
])  # fmt: skip
def test_quotes_and_commas(folder: Path, name: str, line: str):
    path = table(folder, line, name)
    assert prepared(path, LETTERS + '"') == {"a.wav": 'WELL, "GO", HE SAID'}


def test_tabs_separate_the_fields_of_tsv(folder: Path):
    path = table(folder, "file\ttext\na.wav\tWELL, GO\n", "t.TSV")
    assert prepared(path, LETTERS) == {"a.wav": "WELL, GO"}


def test_an_unquoted_comma_is_refused_with_the_form(folder: Path):
    message = refused(table(folder, "a.wav,WELL, GO\n"), ManifestError)
    assert "line 1 has 3 fields" in message
    assert '`a.wav,"the text, quoted"`' in message


@pytest.mark.parametrize("field", ["a.txt", "a b.TXT", "texts/a", "texts\\a", "a.lab", "/x/go"])
def test_a_missing_transcript_file_is_never_text(folder: Path, field: str):
    for header in ("", "file,text\n"):
        message = refused(table(folder, f"{header}a.wav,{field}\nb.wav,GO\n"))
        assert field in message
        assert "`a.wav,a.txt`" in message


def test_a_file_in_any_line_makes_all_lines_files(folder: Path):
    (folder / "first").write_text("GO")
    assert "second: no such file" in refused(table(folder, "a.wav,first\nb.wav,second\n"))


def test_a_missing_recording(folder: Path):
    message = refused(table(folder, "file,text\ngone.wav,GO\nb.wav,GO\n"))
    assert message.startswith(f"{folder / 'gone.wav'}: no such file")


def test_an_unknown_header_is_refused_with_the_form(folder: Path):
    message = refused(table(folder, "Aufnahme,Wortlaut\na.wav,GO\n"))
    assert "Aufnahme: no such file" in message
    assert "`file,text`" in message


@pytest.mark.parametrize(("line", "cause"), [
    ("a.wav,\n", "no transcript"), (",GO\n", "no recording"), ("a.wav;GO\n", "1 field;"),
])  # fmt: skip
def test_an_incomplete_line(folder: Path, line: str, cause: str):
    message = refused(table(folder, line), ManifestError)
    assert "line 1" in message
    assert cause in message


def test_text_that_is_not_utf_8(folder: Path):
    message = refused(table(folder, b"a.wav,CAF\xe9\n"), ManifestError)
    assert "line 1" in message
    assert "UTF-8" in message


def test_a_text_longer_than_a_file_name(folder: Path):
    words = "GO " * 50_000
    message = refused(table(folder, f"a.wav,{words[:120_000]}\n"), AudioError)
    assert "a.wav" in message  # more characters than CTC can place


def test_a_character_without_a_label_is_still_refused(folder: Path):
    assert "a.wav" in refused(table(folder, "a.wav,ROUTE 66\n"), AlphabetError)
