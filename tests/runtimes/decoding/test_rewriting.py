"""Any decoder's words can be rewritten, and what transcripts promise holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ds2deploy
from ds2deploy.export.parity.speech import synthesize

RATE = 16_000
SPEECH = [synthesize(RATE, 2 * RATE + 4000 * i, seed=i) for i in range(3)]
DECODERS = {
    "greedy": None,
    "beam": ds2deploy.DecoderConfig(beam=8, nbest=3),
    "hot words": ds2deploy.DecoderConfig(beam=8, hot_words={"NINE": 1.0}),
}


def brackets(word: str) -> str:
    """Small letters in brackets, and no word that begins with Z."""
    return "" if word.startswith("Z") else f"<{word.lower()}>"


def rewritten(text: str) -> str:
    return " ".join(filter(None, map(brackets, text.split())))


@pytest.fixture(scope="module", params=DECODERS)
def pair(request: Any, streaming_checkpoint: Path) -> Any:
    """A recogniser, and one with the same decoder whose words are rewritten."""
    decoder = DECODERS[request.param]
    other = ds2deploy.rewrite_words(decoder, brackets)
    return tuple(ds2deploy.load(streaming_checkpoint, decoder=one) for one in (decoder, other))


def check(found: ds2deploy.Transcript, plain: ds2deploy.Transcript) -> None:
    assert found.text == rewritten(plain.text) == " ".join(word.text for word in found.words)
    kept = [word for word in plain.words if brackets(word.text)]
    assert [(w.start, w.end, w.confidence) for w in found.words] == [
        (w.start, w.end, w.confidence) for w in kept
    ]
    assert [one.text for one in found.alternatives] == [
        rewritten(one.text) for one in plain.alternatives
    ]
    assert (found.chars, found.confidence, found.score) == (
        plain.chars, plain.confidence, plain.score,
    )  # fmt: skip


def test_recordings(pair):
    plain, other = (recognizer.transcribe(SPEECH, RATE) for recognizer in pair)
    for one, found in zip(plain, other, strict=True):
        check(found, one)
    assert any("<" in found.text for found in other)
    assert sum(len(one.words) for one in other) < sum(len(one.words) for one in plain)


def test_streams_with_segments_keep_what_is_promised(pair):
    sound = np.concatenate([SPEECH[0], np.zeros(RATE, np.float32), SPEECH[1]])
    rules = ds2deploy.Endpoint(silence_s=0.3)
    told = [run_stream(recognizer, sound, rules) for recognizer in pair]
    for one, found in zip(*told, strict=True):
        check(found, one)
    assert len(told[0]) > 1


def run_stream(recognizer: Any, sound: np.ndarray, rules: Any) -> list[ds2deploy.Transcript]:
    """Transcripts of the segments; the updates are checked on the way."""
    found: list[ds2deploy.Transcript] = []
    words: list[str] = []
    with recognizer.stream(RATE, endpoint=rules) as stream:
        for piece in np.array_split(sound, 40):
            update = stream.accept(piece)
            for segment in update.segments:
                if len(segment.words) >= len(words):
                    assert [w.text for w in segment.words][: len(words)] == words
                words = []
            found += update.segments
            words += [word.text for word in update.words]
            assert update.stable == " ".join(words)
            assert update.tail == " ".join(word.text for word in update.tail_words)
        found.append(stream.finish())
    return [one for one in found if one.chars]


def test_hot_words_pass_through(streaming_checkpoint: Path):
    greedy = ds2deploy.load(streaming_checkpoint, decoder=ds2deploy.rewrite_words(None, str.lower))
    with pytest.raises(ds2deploy.ConfigError, match="DecoderConfig"):
        greedy.transcribe(SPEECH[0], RATE, hot_words=["NINE"])
    config = ds2deploy.DecoderConfig(beam=32)
    lower = ds2deploy.rewrite_words(config, str.lower)
    plain, other = (ds2deploy.load(streaming_checkpoint, decoder=one) for one in (config, lower))
    texts = {}
    for name, recognizer in (("plain", plain), ("other", other)):
        once = recognizer.transcribe(SPEECH[0], RATE, hot_words={"NINE": 9.0})
        with recognizer.stream(RATE) as stream:
            stream.set_hot_words({"NINE": 9.0})
            stream.accept(SPEECH[0])
            streamed = stream.finish()
        with recognizer.pool() as pool:
            pooled = pool.open(RATE, hot_words={"NINE": 9.0})
            pooled.accept(SPEECH[0])
            pooled.finish()
            pool.drain()
        texts[name] = [once.text, streamed.text, pooled.transcript.text]
        assert once.hot_words == streamed.hot_words == ("NINE",)
    assert texts["other"] == [text.lower() for text in texts["plain"]]
    assert all("nine" in text for text in texts["other"])


def test_a_decoder_file_can_be_rewritten(tmp_path: Path, streaming_checkpoint: Path):
    with pytest.raises(ds2deploy.MissingFileError, match=r"none\.decoder"):
        ds2deploy.rewrite_words(tmp_path / "none.decoder", str.lower)
    with pytest.raises(ds2deploy.ConfigError, match="instance of int"):
        ds2deploy.rewrite_words(5, str.lower)  # type: ignore[arg-type]
