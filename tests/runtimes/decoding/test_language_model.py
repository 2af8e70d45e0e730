"""Language models in memory: scores, states, tables, damaged files, shared memory."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2deploy.runtimes.alphabet import ENGLISH
from ds2deploy.runtimes.decoding import language_model
from ds2deploy.runtimes.decoding.language_model import LanguageModel, read_language_model
from ds2deploy.runtimes.decoding.language_model_file import MAGIC, PREAMBLE, layout
from ds2deploy.runtimes.errors import ConfigError, MissingFileError, ModelFileError
from tests.ds2deploy.language_models.models import (
    LICENSE,
    SMALL,
    backed_off,
    entries,
    model_of,
    ngrams_of,
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return model_of(LICENSE, tmp_path_factory.mktemp("words"), order=4)


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return model_of(LICENSE, tmp_path_factory.mktemp("characters"), kind="characters", order=5)


@pytest.mark.parametrize(("order", "prune"), [(1, ()), (2, ()), (4, ()), (4, (0, 1))])
def test_scores_are_those_of_the_definition(tmp_path: Path, order, prune):
    model = model_of(LICENSE, tmp_path, order=order, prune=prune)
    ngrams = ngrams_of(LICENSE.read_text(), order, prune=prune)
    table = {gram: (p, b) for grams in entries(ngrams) for gram, p, b in grams}
    text = [w for line in LICENSE.read_text().upper().split("\n") for w in [*line.split(), "</s>"]]
    choose = random.Random(0)
    for _ in range(60):
        at = choose.randrange(len(text) - 12)
        history, state = ["<s>"], np.array([model.start])
        for word in [*text[at : at + 6], *choose.choices(model.words, k=4), "SURELYNOT"]:
            known = word if word in model.words else "<unk>"
            state, score = model.score(state, model.word_ids([word]))
            kept = history[max(0, len(history) - order + 1) :] if order > 1 else []
            expected = backed_off(table, kept, known) * np.log(10)
            assert score[0] == pytest.approx(expected, abs=3e-6), (history, word)
            history.append(known)


def test_many_hypotheses_at_once_score_as_one_by_one(words: LanguageModel):
    choose = np.random.default_rng(0)
    states = np.full(200, words.start)
    for _ in range(5):
        ids = choose.integers(0, len(words), 200)
        to, scores = words.score(states, ids)
        for i in range(0, 200, 17):
            one, score = words.score(states[i : i + 1], ids[i : i + 1])
            assert (one[0], score[0]) == (to[i], scores[i])
        states = to
    assert states.max() * len(words) > 2**15  # products of small integers do not overflow
    small = words.score(states.astype(np.int16), ids.astype(np.int16))
    np.testing.assert_array_equal(small, words.score(states, ids))
    none = np.zeros(0, np.int64)
    assert [len(result) for result in words.score(none, none)] == [0, 0]


def test_states_are_as_short_as_they_can_be(tmp_path: Path):
    model = model_of(SMALL, tmp_path, order=3)

    def state_after(*history: str) -> int:
        state = np.array([model.start])
        for word in history:
            state, _ = model.score(state, model.word_ids([word]))
        return int(state[0])

    # Nothing follows RED or FLOWER but the end, whatever stands before "IS RED".
    assert state_after("ROSE", "IS", "A") == state_after("THE", "ROSE", "IS", "A")
    assert state_after("FLOWER", "THE", "THE", "A", "A") == state_after("A", "A")
    assert state_after("NEVERHEARD") == model.empty
    assert state_after("</s>") == model.empty
    assert state_after("ROSE", "IS", "RED", "</s>") == model.empty  # though "RED </s>" is an entry
    assert model.start != model.empty


def test_the_end_is_a_word_like_others(words: LanguageModel):
    states = np.arange(50)
    ids = np.full(50, words.words.index("</s>"))
    np.testing.assert_array_equal(words.end_score(states), words.score(states, ids)[1])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 1 << 30), max_size=6))
def test_probabilities_sum_to_one_in_every_state(words: LanguageModel, path: list[int]):
    state = np.array([words.start])
    for step in path:
        state, _ = words.score(state, np.array([step % len(words)]))
    ids = np.flatnonzero(np.array(words.words) != "<s>")
    _, scores = words.score(np.full(len(ids), state[0]), ids)
    assert np.exp(scores).sum() == pytest.approx(1, abs=1e-5)


def test_ids_of_few_and_of_many_words_agree(words: LanguageModel, monkeypatch):
    asked = [*words.words, "NEVERHEARD", "", "\u4e2d", "ZZZZZ"]
    few = [int(words.word_ids([word])[0]) for word in asked]
    assert few == [*range(len(words)), *[words.unknown] * 4]
    monkeypatch.setattr(language_model, "MANY_WORDS", 0)
    assert words.word_ids(asked).tolist() == few


def test_tables_of_characters_equal_the_scores(tmp_path: Path):
    labels = ENGLISH + "ÄÖ"  # two that no text has, so that they are unknown
    characters = model_of(LICENSE, tmp_path, labels, kind="characters", order=5)
    dense = characters.dense()
    assert (dense.next.dtype, dense.score.dtype, dense.end.dtype) == (np.int32, *[np.float32] * 2)
    states = np.arange(len(dense.end))
    assert 0 <= characters.start < len(states)
    names = ["<space>" if label == " " else label for label in labels]
    for label, i in list(zip(names, characters.word_ids(names), strict=True))[1:]:
        to, scores = characters.score(states, np.full(len(states), i))
        column = names.index(label)
        np.testing.assert_array_equal(dense.next[:, column], to)
        np.testing.assert_allclose(dense.score[:, column], scores, atol=1e-5)
    np.testing.assert_allclose(dense.end, characters.end_score(states), atol=1e-5)


def test_tables_of_words_and_tables_that_are_too_large_are_refused(
    words: LanguageModel, characters: LanguageModel, monkeypatch
):
    with pytest.raises(ConfigError, match="words"):
        words.dense()
    monkeypatch.setattr(language_model, "MOST_DENSE_BYTES", 1000)
    with pytest.raises(ConfigError, match="--order"):
        characters.dense()


def test_a_model_of_other_labels_is_refused_with_the_remedy(words: LanguageModel):
    words.check_labels(ENGLISH)
    words.check_labels("-" + ENGLISH[1:])
    with pytest.raises(ConfigError, match=r"ds2deploy lm TEXT --out LICENSE\.lm --labels"):
        words.check_labels("_abc ")


def test_a_model_takes_twenty_bytes_per_n_gram(words: LanguageModel):
    for kind, length in layout(words.header.counts):
        assert np.dtype(kind).itemsize <= 8
        assert length <= sum(words.header.counts) + 1
    vocabulary = sum(len(word) + 4 for word in words.words)
    grams = sum(words.header.counts)
    assert words.path.stat().st_size - vocabulary < 20 * grams + 1000


def test_pickled_models_open_the_file_again(words: LanguageModel):
    other = pickle.loads(pickle.dumps(words))  # noqa: S301
    states, ids = np.arange(100), np.arange(100)
    np.testing.assert_array_equal(words.score(states, ids), other.score(states, ids))


def test_processes_share_the_arrays(words: LanguageModel):
    code = f"""
from pathlib import Path
from ds2deploy.runtimes.decoding.language_model import read_language_model
model = read_language_model(Path({str(words.path)!r}))
maps = [line for line in open("/proc/self/smaps").read().split("VmFlags")
        if {str(words.path)!r} in line]
print(model._keys.flags.writeable, model._keys.flags.owndata, len(maps),
      *(line.split()[1] for line in maps[0].splitlines() if line.startswith("Private_Dirty")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "1", "0"]


# Damage


def rewritten(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def with_checksum(content: bytes) -> bytes:
    checksum = zlib.crc32(content[PREAMBLE:]).to_bytes(4, "little")
    return content[: PREAMBLE - 4] + checksum + content[PREAMBLE:]


def test_a_missing_file_and_other_files(tmp_path: Path):
    with pytest.raises(MissingFileError, match=r"no\.lm"):
        read_language_model(tmp_path / "no.lm")
    for content in (b"", b"text", b"\\data\\\nngram 1=3\n", MAGIC[:-1], MAGIC[:-1] + b"x" * 99):
        with pytest.raises(ModelFileError, match=r"a\.lm.*ds2deploy lm"):
            read_language_model(rewritten(tmp_path / "a.lm", content))


def test_every_truncation_is_an_error(words: LanguageModel, tmp_path: Path):
    content = words.path.read_bytes()
    choose = random.Random(0)
    lengths = [*range(PREAMBLE + 8), *choose.sample(range(len(content)), 200), len(content) - 1]
    for length in lengths:
        with pytest.raises(ModelFileError, match=r"a\.lm"):
            read_language_model(rewritten(tmp_path / "a.lm", content[:length]))
    with pytest.raises(ModelFileError):
        read_language_model(rewritten(tmp_path / "a.lm", content + b"x"))


def test_a_changed_byte_is_an_error(words: LanguageModel, tmp_path: Path):
    content = words.path.read_bytes()
    choose = random.Random(0)
    for at in [*range(400), *choose.sample(range(len(content)), 200)]:
        changed = bytearray(content)
        changed[at] ^= 1 << choose.randrange(8)
        with pytest.raises(ModelFileError, match=r"a\.lm"):
            read_language_model(rewritten(tmp_path / "a.lm", bytes(changed)))


def test_a_newer_format_is_named(words: LanguageModel, tmp_path: Path):
    content = words.path.read_bytes().replace(b'"format_version":1', b'"format_version":2')
    with pytest.raises(ModelFileError, match=r"format 2.*pip install -U"):
        read_language_model(rewritten(tmp_path / "a.lm", content))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"kind":"words"', b'"kind":"sound"'),
        (b'"counts":[416,', b'"counts":[415,'),
        (b'"counts":[416,', b'"counts":[  2,'),
        (b'"counts":[416,', b'"counts":[-16,'),
        (b'"counts":[416,', b'"counts":["a",'),
        (b'"counts"', b'"county"'),
        (b'"format_version":1', b'"format_version":x'),
    ],
)
def test_a_header_with_a_wrong_field_is_an_error(words: LanguageModel, tmp_path: Path, old, new):
    content = words.path.read_bytes()
    assert content.count(old) == 1
    with pytest.raises(ModelFileError, match=r"a\.lm.*damaged"):
        read_language_model(rewritten(tmp_path / "a.lm", with_checksum(content.replace(old, new))))


def test_arrays_made_up_by_someone_never_crash_or_hang_a_search(tmp_path: Path):
    model = model_of(SMALL, tmp_path, order=3)
    content = model.path.read_bytes()
    start = len(content) - sum(
        np.dtype(kind).itemsize * length for kind, length in layout(model.header.counts)
    ) - sum(len(word) for word in model.words)  # fmt: skip
    choose, opened = random.Random(0), 0
    for _ in range(1500):
        changed = bytearray(content)
        at = choose.randrange(start, len(content) - 8)
        changed[at : at + 4] = choose.choice([choose.randbytes(4), b"\xff" * 4, b"\0" * 4])
        path = rewritten(tmp_path / "a.lm", with_checksum(bytes(changed)))
        with suppress(ModelFileError):
            other = read_language_model(path)
            states, ids = np.full(len(other), other.start), np.arange(len(other))
            for _ in range(4):
                states, scores = other.score(states, ids)
                assert not np.isnan(scores).any()
            len(other.words)
            opened += 1
    assert opened > 100  # other scores are no damage that can be seen


def test_the_header_is_json_that_anyone_can_read(words: LanguageModel):
    content = words.path.read_bytes()
    length = int.from_bytes(content[len(MAGIC) : len(MAGIC) + 4], "little")
    header = json.loads(content[PREAMBLE : PREAMBLE + length])
    assert header["labels"] == ENGLISH
    assert header["sources"][0]["name"] == "LICENSE"
    assert (PREAMBLE + length) % 8 == 0
