"""ARPA files: as other programs write them, damaged in every section, and in other labels."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
import pytest

from ds2deploy.language_models.make import LanguageModelOptions, make_language_model
from ds2deploy.runtimes.alphabet import ENGLISH, Alphabet
from ds2deploy.runtimes.errors import AlphabetError, ConfigError, ModelFileError
from tests.ds2deploy.language_models.models import LICENSE, arpa_text, model_of, ngrams_of

TINY = """\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-1.5 <unk>
-99\t<s>\t-0.5
-0.7\t</s>
-0.6\tA\t-0.25
-0.4\tB\t-0.1

\\2-grams:
-0.3\t<s> A\t-0.2
-0.2\tA B\t0.1
-0.1\tB </s>

\\3-grams:
-0.05\t<s> A B

\\end\\
"""


def read(folder: Path, text: str | bytes, name: str = "x.arpa", **options):
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return model_of(path, folder, **options)


def log10(model, *words: str, history: str = "") -> float:
    state = np.array([model.empty if not history else model.start])
    for word in history.split()[1:]:
        state, _ = model.score(state, model.word_ids([word]))
    total = 0.0
    for word in words:
        state, score = model.score(state, model.word_ids([word]))
        total += float(score[0]) / np.log(10)
    return total


def test_scores_back_off(tmp_path: Path):
    model = read(tmp_path, TINY)
    assert model.header.counts == (5, 3, 1)
    assert log10(model, "A", history="<s>") == pytest.approx(-0.3, abs=1e-6)
    assert log10(model, "B", history="<s> A") == pytest.approx(-0.05, abs=1e-6)
    # "<s> A A" backs off from "<s> A" and from "A" to the unigram.
    assert log10(model, "A", history="<s> A") == pytest.approx(-0.2 - 0.25 - 0.6, abs=1e-6)
    # "B" follows "<s> A B": the state is that of "A B", whose back-off is positive.
    assert log10(model, "B", history="<s> A B") == pytest.approx(0.1 - 0.1 - 0.4, abs=1e-6)
    assert log10(model, "NEVER") == pytest.approx(-1.5, abs=1e-6)


def as_irstlm_counts(text: str) -> str:
    return text.replace("ngram 1=5", "ngram  1=   5").replace("\ngram 3", "\n\nngram  3")


@pytest.mark.parametrize(
    "change",
    [
        as_irstlm_counts,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\t", " "),
        lambda text: "\ufeff\n\n" + text,
        lambda text: "made by hand\n\n" + text,
        # As the CMU toolkit explains its files; AN4's own is one.
        lambda text: "a beginning: \\data\\\nngram 1=nr\n\\1-grams:\nan end: \\end\\\n\n" + text,
        lambda text: text.replace("<unk>", "<UNK>"),
        lambda text: text.replace("-99\t<s>", "-99.0000\t<s>"),
        lambda text: text + "\nwhat follows is not read",
        lambda text: text.lower(),
        lambda text: gzip.compress(text.encode()),
    ],
)
def test_variants_of_the_format_give_the_same_scores(tmp_path: Path, change):
    one, other = read(tmp_path, TINY), read(tmp_path, change(TINY), "y.arpa")
    assert one.header.counts == other.header.counts
    ids = np.arange(len(one))
    for state in (one.empty, one.start):
        states = np.full(len(one), state)
        np.testing.assert_array_equal(one.score(states, ids), other.score(states, ids))


def test_sections_may_be_empty_at_the_end(tmp_path: Path):
    text = TINY.replace("ngram 3=1", "ngram 3=0").replace("-0.05\t<s> A B\n", "")
    assert read(tmp_path, text).header.counts == (5, 3, 0)


def test_a_missing_unknown_word_gets_a_hundred(tmp_path: Path):
    text = TINY.replace("-1.5 <unk>\n", "").replace("ngram 1=5", "ngram 1=4")
    assert log10(read(tmp_path, text), "NEVER") == pytest.approx(-100, abs=1e-4)


def test_a_missing_suffix_is_no_fault(tmp_path: Path):
    # SRILM's pruning leaves "<s> A B" without "A B".
    text = TINY.replace("-0.2\tA B\t0.1\n", "").replace("ngram 2=3", "ngram 2=2")
    model = read(tmp_path, text)
    assert log10(model, "B", history="<s> A") == pytest.approx(-0.05, abs=1e-6)
    assert log10(model, "</s>", history="<s> A B") == pytest.approx(-0.1, abs=1e-6)


def test_the_longest_suffix_that_there_is_takes_the_place_of_a_missing_one(tmp_path: Path):
    sections = [
        ["<unk>", "<s>", "</s>", *"ABCDX"],
        ["X A", "A B", "B C"],
        ["X A B", "B C D"],
        ["X A B C"],  # and no "A B C"
    ]
    lines = ["\\data\\", *(f"ngram {n}={len(grams)}" for n, grams in enumerate(sections, 1))]
    for n, grams in enumerate(sections, 1):
        lines += [f"\\{n}-grams:", *(f"-0.{n}\t{gram}" for gram in grams)]
    model = read(tmp_path, "\n".join([*lines, "\\end\\"]))
    assert log10(model, *"XABCD") == pytest.approx(-0.1 - 0.2 - 0.3 - 0.4 - 0.3, abs=1e-6)


DAMAGE = [
    ("ngram 1=5\nngram 2=3\nngram 3=1\n", "", 3),
    ("ngram 2=3\n", "", 3),
    ("ngram 1=5", "ngram 1=6", 12),
    ("ngram 1=5", "ngram 1=4", 11),
    ("ngram 2=3", "ngram 2=9", 17),
    ("ngram 3=1", "ngram 3=2", 20),
    ("ngram 3=1\n", "", 17),
    ("\\2-grams:\n", "", 13),
    ("\\2-grams:", "\\4-grams:", 13),
    ("-0.6\tA", "x\tA", 10),
    ("-0.6\tA\t-0.25", "-0.6\tA\ty", 10),
    ("-0.6\tA", "nan\tA", 10),
    ("-0.6\tA\t-0.25", "-0.6\tA\tinf", 10),
    ("-0.3\t<s> A", "-inf\t<s> A", 14),
    ("-0.05\t", "0.05\t", 19),
    ("-0.05\t", "-1e38\t", 19),
    ("-0.6\tA\t-0.25", "-0.6", 10),
    ("-0.2\tA B", "-0.2\tA B B B", 15),
    ("-0.2\tA B", "-0.2\tA C", 15),
    ("-0.05\t<s> A B", "-0.05\tB A B", 19),
    ("-0.4\tB", "-0.4\tA", 11),
    ("-0.2\tA B", "-0.2\t<s> A", 15),
    ("-99\t<s>", "-99\tC", 11),
    ("-0.7\t</s>", "-0.7\tC", 11),
    ("\\end\\\n", "", 20),
    ("-0.1\tB </s>\n\n\\3-grams:\n-0.05\t<s> A B\n\n\\end\\\n", "", 15),
]


@pytest.mark.parametrize(("old", "new", "line"), DAMAGE)
def test_damage_names_the_line_and_writes_nothing(tmp_path: Path, old, new, line):
    assert TINY.count(old) == 1
    with pytest.raises(ModelFileError) as caught:
        read(tmp_path, TINY.replace(old, new))
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "x.arpa"))
    assert f": line {line}:" in message
    assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["x.arpa"]


def test_bytes_that_are_not_utf_8(tmp_path: Path):
    with pytest.raises(ModelFileError, match="UTF-8"):
        read(tmp_path, TINY.replace("A", "\u00e9").encode("latin-1"))


def test_every_truncation_is_an_error(tmp_path: Path):
    whole = TINY.rstrip().encode()
    for length in range(len("\\data\\\n"), len(whole)):
        with pytest.raises(ModelFileError):
            read(tmp_path, whole[:length])


def test_arpa_files_of_other_labels_are_refused(tmp_path: Path):
    with pytest.raises(AlphabetError, match=r"x\.arpa.*--labels"):
        read(tmp_path, TINY, labels="_абв ")
    with pytest.raises(AlphabetError, match="--characters"):
        read(tmp_path, TINY.replace("A", "AB").replace("B", "BA"), kind="characters")


def test_words_that_fall_together_in_the_labels_are_refused(tmp_path: Path):
    with pytest.raises(AlphabetError, match="'a'"):
        read(tmp_path, TINY.replace("B", "a"))


def test_a_few_words_of_other_labels_are_counted(tmp_path: Path):
    path, out = tmp_path / "x.arpa", tmp_path / "x.lm"
    path.write_text(TINY.replace("\tB", "\tB2").replace(" B", " B2"))
    report = make_language_model([path], out, Alphabet(ENGLISH), LanguageModelOptions())
    assert report.unspellable == 1


def test_options_of_the_estimation_are_refused_with_an_arpa_file(tmp_path: Path):
    with pytest.raises(ConfigError, match="--order"):
        read(tmp_path, TINY, order=3)
    with pytest.raises(ConfigError, match="--prune"):
        read(tmp_path, TINY, prune=(0, 1))
    paths = [tmp_path / "x.arpa", LICENSE]
    with pytest.raises(ConfigError, match="alone"):
        make_language_model(paths, tmp_path / "y.lm", Alphabet(), LanguageModelOptions())


@pytest.mark.parametrize("space", ["|", "<space>"])
def test_the_space_of_a_character_model_has_two_names(tmp_path: Path, space):
    model = read(tmp_path, TINY.replace("A", space), kind="characters")
    assert "<space>" in model.words
    assert model.dense().score.shape[1] == len(ENGLISH)


@pytest.mark.parametrize(
    ("kind", "prune"), [("words", ()), ("words", (0, 1, 1)), ("characters", ())]
)
def test_text_and_the_arpa_file_of_its_n_grams_give_the_same_model(tmp_path: Path, kind, prune):
    text = LICENSE.read_text()
    direct = model_of(LICENSE, tmp_path, kind=kind, order=4, prune=prune)
    through = read(tmp_path, arpa_text(ngrams_of(text, 4, kind, prune)), kind=kind)
    assert direct.words == through.words
    assert direct.header.counts == through.header.counts
    states = np.full(1000, direct.start)
    choose = np.random.default_rng(0)
    for _ in range(20):
        words = choose.integers(0, len(direct), 1000)
        # The same states, as they are numbered by the words of their n-grams.
        one, other = direct.score(states, words), through.score(states, words)
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_allclose(one[1], other[1], atol=1e-5)
        states = one[0]


def test_scores_equal_those_of_kenlm(tmp_path: Path):
    kenlm = pytest.importorskip("kenlm", reason="pip install 'ds2deploy[peers]'")
    path = tmp_path / "license.arpa"
    path.write_text(arpa_text(ngrams_of(LICENSE.read_text(), 4)))
    theirs, ours = kenlm.Model(str(path)), model_of(path, tmp_path)
    words = [word for word in ours.words if not word.startswith("<")]
    text = LICENSE.read_text().upper().split()
    choose, differences = random.Random(0), []
    for _ in range(500):
        sentence = choose.choices([*words, "NEVERHEARD"], k=choose.randint(1, 9))
        at = choose.randrange(len(text) - 20)
        sentence = choose.choice([sentence, text[at : at + 9]])
        state = np.array([ours.start])
        for word, (score, _, _) in zip(
            [*sentence, "</s>"], theirs.full_scores(" ".join(sentence)), strict=True
        ):
            state, own = ours.score(state, ours.word_ids([word]))
            differences.append(abs(float(own[0]) / np.log(10) - score))
    assert len(differences) > 2000
    assert max(differences) < 1e-6
