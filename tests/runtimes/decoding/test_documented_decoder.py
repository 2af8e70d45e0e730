"""The decoder of `docs/decoding.md` runs as the page has it, and keeps what decoders promise."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ds2deploy
from ds2deploy.export.parity.speech import synthesize
from ds2deploy.runtimes.alphabet import Alphabet

PAGE = Path(__file__).parents[3] / "docs" / "decoding.md"
RATE = 16_000
LABELS = "_AB "
FRAME_S = 0.02


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> type[ds2deploy.GreedyDecoder]:
    """The class in the page's last block, which anyone may copy."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    path = tmp_path_factory.mktemp("copied") / "sentence_case.py"
    path.write_text(blocks[-1])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: type[ds2deploy.GreedyDecoder] = module.SentenceCase
    return found


def joined(words: tuple[ds2deploy.Word, ...]) -> str:
    return " ".join(word.text for word in words)


def check(found: ds2deploy.Transcript, plain: ds2deploy.Transcript) -> None:
    assert found.text == plain.text.capitalize() == joined(found.words)
    times = [[(word.start, word.end) for word in one.words] for one in (found, plain)]
    assert times[0] == times[1]


@given(blocks=st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=6))
def test_words_of_updates_never_change(documented, blocks: list[list[int]]):
    ours, greedy = (
        make(Alphabet(LABELS), FRAME_S) for make in (documented, ds2deploy.GreedyDecoder)
    )
    states = ours.start(live=True), greedy.start(live=True)
    told: tuple[ds2deploy.Word, ...] = ()
    for best in blocks:
        log_probs = np.log(np.full((len(best), len(LABELS)), 0.1, np.float32))
        log_probs[np.arange(len(best)), best] = np.log(0.7)
        for decoder, state in zip((ours, greedy), states, strict=True):
            decoder.advance([state], [log_probs])
        update, plain = ours.update(states[0]), greedy.update(states[1])
        told += update.words
        assert update.stable == joined(told)
        assert update.tail == joined(update.tail_words)
        assert update.text == plain.text.capitalize()
    duration_s = FRAME_S * sum(map(len, blocks))
    found = ours.finish(states[0], duration_s)
    check(found, greedy.finish(states[1], duration_s))
    assert found.words[: len(told)] == told


def test_recordings_and_streams(documented, streaming_checkpoint: Path):
    speech = [synthesize(RATE, 2 * RATE + 4000 * i, seed=i) for i in range(3)]
    ours, greedy = (ds2deploy.load(streaming_checkpoint, decoder=one) for one in (documented, None))
    found, plain = (one.transcribe(speech, RATE) for one in (ours, greedy))
    for pair in zip(found, plain, strict=True):
        check(*pair)
    assert any(len(one.words) > 1 for one in found)
    told: tuple[ds2deploy.Word, ...] = ()
    with ours.stream(RATE) as stream:
        for piece in np.array_split(speech[-1], 20):
            told += stream.accept(piece).words
        end = stream.finish()
    assert end.words == found[-1].words
    assert end.words[: len(told)] == told
    assert told
