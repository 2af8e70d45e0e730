"""A decoder of one's own writes its words everywhere: texts, times, partial texts, evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile

import ds2deploy
from ds2deploy.data.manifest import read_manifest
from ds2deploy.data.preparation import PrepareOptions, prepare
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.training.evaluation import evaluate

RATE = 8000
SPOKEN = {"jackson": "31", "nicolas": "72", "theo": "968"}
DIGITS = ["ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE"]


class TitleCase(ds2deploy.GreedyDecoder):
    """Greedy's words with a capital and small letters; `chars` are the labels that were read."""

    def update(
        self, state: ds2deploy.GreedyState, duration_s: float = float("inf")
    ) -> ds2deploy.Update:
        found = super().update(state, duration_s)
        words, tail = titled(found.words), titled(found.tail_words)
        return ds2deploy.Update(title(found.stable), title(found.tail), words, tail)

    def finish(self, state: ds2deploy.GreedyState, duration_s: float) -> ds2deploy.Transcript:
        found = super().finish(state, duration_s)
        return msgspec.structs.replace(found, text=title(found.text), words=titled(found.words))


def title(text: str) -> str:
    return " ".join(word.capitalize() for word in text.split())  # str.title gives Don'T


def titled(words: Sequence[ds2deploy.Word]) -> tuple[ds2deploy.Word, ...]:
    return tuple(msgspec.structs.replace(word, text=title(word.text)) for word in words)


@pytest.fixture(scope="module")
def recordings(spoken_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Strings of digits, each with its transcript beside it."""
    folder = tmp_path_factory.mktemp("strings")
    for speaker, digits in SPOKEN.items():
        parts = [
            soundfile.read(spoken_digits / f"{digit}_{speaker}_{i}.wav", dtype="float32")[0]
            for i, digit in enumerate(digits)
        ]
        soundfile.write(folder / f"{speaker}.wav", np.concatenate(parts), RATE)
        text = " ".join(DIGITS[int(digit)] for digit in digits)
        (folder / f"{speaker}.txt").write_text(f"{text}\n")
    return sorted(folder.glob("*.wav"))


@pytest.fixture(scope="module")
def pair(streaming_checkpoint: Path) -> list[ds2deploy.Recognizer]:
    """Greedy, and ours."""
    return [ds2deploy.load(streaming_checkpoint, decoder=one) for one in (None, TitleCase)]


def check(found: ds2deploy.Transcript, plain: ds2deploy.Transcript) -> None:
    assert found.text == title(plain.text) == " ".join(word.text for word in found.words)
    assert found.words == titled(plain.words)  # with their times and confidence
    assert (found.chars, found.score) == (plain.chars, plain.score)


@pytest.mark.parametrize("model", ["streaming_checkpoint", "digits_checkpoint"])
def test_recordings(model: str, recordings: list[Path], request: pytest.FixtureRequest):
    path = request.getfixturevalue(model)
    greedy, ours = (ds2deploy.load(path, decoder=one) for one in (None, TitleCase))
    found = ours.transcribe(recordings)
    for one, plain in zip(found, greedy.transcribe(recordings), strict=True):
        check(one, plain)
    expected = ["Three One", "Seven Two", "Nine Six Eight"]
    assert [one.text for one in found] == expected
    many = {item.index: item.result.text for item in ours.transcribe_many(recordings)}
    assert [many[i] for i in range(len(expected))] == expected


@pytest.mark.parametrize("endpoint", [None, ds2deploy.Endpoint(silence_s=0.5)])
def test_streams(
    pair: list[ds2deploy.Recognizer], recordings: list[Path], endpoint: ds2deploy.Endpoint | None
):
    sound = soundfile.read(recordings[-1], dtype="float32")[0]
    sound = np.concatenate([sound, np.zeros(RATE, np.float32), sound])
    updates, ends = [], []
    for recognizer in pair:
        with recognizer.stream(RATE, endpoint=endpoint) as stream:
            updates.append([stream.accept(piece) for piece in np.array_split(sound, 25)])
            ends.append(stream.finish())
    check(ends[1], ends[0])
    for plain, ours in zip(*updates, strict=True):
        assert (ours.stable, ours.tail, ours.text) == tuple(
            map(title, (plain.stable, plain.tail, plain.text))
        )
        assert ours.words == titled(plain.words)
        assert ours.tail_words == titled(plain.tail_words)
        for segments in zip(ours.segments, plain.segments, strict=True):
            check(*segments)
    assert any(update.words for update in updates[1])
    assert any(update.tail for update in updates[1])
    assert any(update.segments for update in updates[1]) == (endpoint is not None)


def test_a_pool(pair: list[ds2deploy.Recognizer], recordings: list[Path]):
    greedy, ours = pair
    partial: list[str] = []
    with ours.pool() as pool:
        streams = [pool.open(RATE, name=path.stem) for path in recordings]
        for stream, path in zip(streams, recordings, strict=True):
            stream.accept(soundfile.read(path, dtype="float32")[0])
            stream.finish()
        while pool.wait(0):
            partial += [tick.update.text for tick in pool.tick()]
    for stream, plain in zip(streams, greedy.transcribe(recordings), strict=True):
        check(stream.transcript, plain)
    assert any(partial)
    assert partial == list(map(title, partial))


def test_evaluation_counts_no_case(
    pair: list[ds2deploy.Recognizer], recordings: list[Path], tmp_path: Path
):
    prepare(recordings[0].parent, tmp_path, Alphabet(), PrepareOptions(valid_share=0.0))
    cuts = read_manifest(tmp_path / "train.jsonl.gz")
    greedy, ours = (evaluate(recognizer, cuts, "strings") for recognizer in pair)
    assert ours.hypotheses == greedy.hypotheses
    assert ours.wer == 0
    assert ours.utterances == len(SPOKEN)
