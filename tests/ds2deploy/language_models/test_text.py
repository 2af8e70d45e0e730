"""Text for a language model: normalized, counted, and what is left out is named."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest

from ds2deploy.data.text_normalization import Change
from ds2deploy.language_models.source_file import SourceFile, open_source
from ds2deploy.language_models.text import Corpus, TextReader, TextReport
from ds2deploy.runtimes.alphabet import ENGLISH, Alphabet
from ds2deploy.runtimes.errors import TextError
from tests.ds2deploy.language_models.models import read_corpus


def read(*texts: bytes, labels: str = ENGLISH) -> tuple[Corpus, TextReport]:
    reader = TextReader(Alphabet(labels))
    for i, text in enumerate(texts):
        reader.read(SourceFile(Path(f"{i}.txt"), io.BytesIO(text)))
    return reader.finish()


def sentences(corpus: Corpus) -> list[str]:
    joined = " ".join(corpus.words[i] for i in corpus.ids)
    assert joined.startswith("<s> ")
    assert joined.endswith(" </s>")
    return joined[4:-5].split(" </s> <s> ")


def test_a_sentence_is_a_line_in_the_labels():
    corpus, report = read("Hello,  World!\n\n \nisn\u2019t it\u2014fine\n...\ncafe\u0301".encode())
    assert sentences(corpus) == ["HELLO WORLD", "ISN'T IT FINE", "CAFE"]
    assert corpus.words == sorted(corpus.words)
    expected = ["HELLO", "WORLD", "ISN'T", "IT", "FINE", "CAFE", "<s>", "</s>", "<unk>"]
    assert set(corpus.words) == set(expected)
    assert (report.sentences, report.words, report.left_out) == (3, 6, 0)
    assert Change("\u2019", "'", 1) in report.characters
    assert Change(".", "", 3) in report.characters


def test_changes_are_counted_for_every_occurrence_of_a_word():
    _, report = read(b"well, well, well\nwell,")
    assert report.characters == [Change(",", "", 3)]


def test_lines_that_cannot_be_spelled_are_left_out_and_named():
    corpus, report = read(b"ONE\nROUTE 66\nTWO", "\u00fcber\n\u4e2d THREE\n".encode())
    assert sentences(corpus) == ["ONE", "TWO", "UBER"]
    assert "ROUTE" not in corpus.words  # only words of lines that are used
    assert report.left_out == 2
    assert report.examples == [
        "0.txt: line 2: no label for '6'",
        "1.txt: line 2: no label for '\u4e2d'",
    ]
    assert Change("6", None, 2) in report.characters


def test_words_with_a_meaning_of_their_own_are_left_out():
    corpus, report = read(b"a <s> b\nb a", labels="_abs<>/ ")
    assert sentences(corpus) == ["b a"]
    assert "<s>" in report.examples[0]


def test_characters_have_spaces_between_words_only():
    corpus = read_corpus("AB C\nB", "characters")
    assert sentences(corpus) == ["A B <space> C", "B"]
    assert corpus.words == ["</s>", "<s>", "<space>", "<unk>", "A", "B", "C"]


def test_labels_without_a_space_have_no_lines_of_two_words():
    corpus, report = read("中文\n中 文\n".encode(), labels="_中文")
    assert sentences(corpus) == ["中文"]
    assert report.left_out == 1
    assert sentences(read_corpus("中文", "characters", "_中文")) == ["中 文"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_text_editors(encoding):
    assert sentences(read("ÉTÉ A\r\nB".encode(encoding))[0]) == ["ETE A", "B"]


@pytest.mark.parametrize("text", [b"", b"\n\n", b"123\n", b"... !"])
def test_no_usable_line_is_an_error_with_the_labels(text):
    with pytest.raises(TextError, match=r"0\.txt.*ABC.*--labels"):
        read(text)


def test_latin_1_is_an_error_with_the_remedy():
    with pytest.raises(TextError, match="iconv"):
        read("\u00e9t\u00e9".encode("latin-1"))


def test_binary_files_are_refused():
    with pytest.raises(TextError, match="binary data"):
        read(b"\x7fELF\0\0")


def test_a_truncated_gzip_file_is_named(tmp_path: Path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"HELLO WORLD\n" * 1000, mtime=0)[:-12])
    with pytest.raises(TextError, match=r"a\.gz: damaged gzip"), open_source(path) as source:
        TextReader(Alphabet()).read(source)
