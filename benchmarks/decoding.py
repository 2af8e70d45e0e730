"""Time of the beam search per second of audio: single, batched and streaming, with various models.

    python benchmarks/decoding.py [--quick] [--json] [--out DIR]

The posteriors are simulated: as those of a network trained with CTC, they are sharp, mostly blank,
and uncertain at errors. The text is that of `language_model.py`; its words are the lexicon, and the
language models are made from other sentences. Decoding uses one thread in numpy, and its processor
time is measured. Cases run in turns; goals apply to the medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from language_model import zipf_text
from models import LARGE, TINY, make_checkpoint, network_run, shape_name, write_onnx
from report import Result, Table, arguments, at_most, deliver, progress

import ds2deploy
from ds2deploy.bench.timing import take_turns
from ds2deploy.language_models.make import Kind, LanguageModelOptions, make_language_model
from ds2deploy.runtimes.alphabet import ENGLISH, Alphabet
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.decoding.decoder import decode_batch
from ds2deploy.runtimes.decoding.greedy import GreedyDecoder
from ds2deploy.runtimes.features import FloatArray

FRAME_S = 0.02
LETTERS_PER_S = 13.0
DOUBT = 0.15
"""Share of letters that the simulated network confuses with another letter."""

ALONE_GOAL_MS, TOGETHER_GOAL_MS = 5.0, 1.0
"""Goals in ms per second of audio: one utterance with beam 64; each of 64 streams with beam 16."""
STREAMS, BLOCK_FRAMES = 64, 16
HOT_GOAL = 1.1
NETWORK_GOAL = 0.25
HOT_COUNTS = (1, 100, 5000)


def simulated(text: str, labels: str, random: np.random.Generator) -> FloatArray:
    """Simulate the log-probabilities of a network for a text: (frames, labels) float32."""
    alphabet = Alphabet(labels)
    spoken = alphabet.encode(text)
    frames = max(2 * len(spoken) + 4, round(len(spoken) / LETTERS_PER_S / FRAME_S))
    logits = random.normal(-12.0, 2.0, (frames, len(alphabet)))
    logits[:, 0] = 0.0
    at = np.sort(random.choice(frames // 2 - 1, len(spoken), replace=False)) * 2 + 1
    for frame, label in zip(at.tolist(), spoken, strict=True):
        logits[frame, 0] = random.normal(-4.0, 1.5)
        logits[frame, label] = 0.0
        if random.random() < DOUBT:
            others = random.integers(1, len(alphabet), 3)
            logits[frame, others] = random.normal(-1.0, 1.5, 3)
            logits[frame, 0] = random.normal(-1.0, 1.5)
        # A letter's peak is one or two frames long.
        logits[frame + 1, label] = random.normal(-2.0, 2.0)
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def whole(settings: DecoderConfig, sounds: Sequence[FloatArray]) -> Callable[[], object]:
    """Decode whole utterances in one call."""
    decoder = settings(Alphabet(ENGLISH), FRAME_S)
    lengths = np.array([len(sound) for sound in sounds])
    padded = np.zeros((len(sounds), lengths.max(), len(ENGLISH)), np.float32)
    for rows, sound in zip(padded, sounds, strict=True):
        rows[: len(sound)] = sound
    return lambda: decode_batch(decoder, padded, lengths, (FRAME_S * lengths).tolist())


def streams(settings: DecoderConfig, sounds: Sequence[FloatArray]) -> Callable[[], object]:
    """Decode live streams, block by block, with an update after each."""
    decoder = settings(Alphabet(ENGLISH), FRAME_S)

    def run() -> None:
        states = [decoder.start(live=True) for _ in sounds]
        for start in range(0, max(map(len, sounds)), BLOCK_FRAMES):
            decoder.advance(states, [sound[start : start + BLOCK_FRAMES] for sound in sounds])
            for state in states:
                decoder.update(state)
        for state, sound in zip(states, sounds, strict=True):
            decoder.finish(state, FRAME_S * len(sound))

    return run


def measure(words: int, utterances: int, rounds: int, shape: ModelShape, quick: bool) -> Result:
    """Time every case in turns.

    Args:
        words: number of words in the text of the language models.
        utterances: number of utterances or streams that are decoded together.
        rounds: number of measured rounds.
        shape: network whose time is compared, in int8.
        quick: True for the sizes of a test.
    """
    random = np.random.default_rng(0)
    lines = zipf_text(words).splitlines()
    spoken = random.choice(len(lines), utterances, replace=False)
    sounds = [simulated(lines[i], ENGLISH, random) for i in spoken.tolist()]
    seconds = [FRAME_S * len(sound) for sound in sounds]
    with tempfile.TemporaryDirectory(prefix="ds2deploy-") as name:
        models = _language_models(lines, set(spoken.tolist()), Path(name))
        hot = _hot_words(lines)
        plain, words_lm = DecoderConfig(beam=64), DecoderConfig(beam=64, lm=models["words"])
        alone = {
            "greedy": GreedyDecoder,
            "beam 64": plain,
            "beam 64, words": words_lm,
            "beam 64, characters": DecoderConfig(beam=64, lm=models["characters"]),
            "beam 64, closed list": DecoderConfig(beam=64, phrases=tuple(dict.fromkeys(lines))),
        }
        together = {
            "beam 16": DecoderConfig(beam=16),
            "beam 16, words": DecoderConfig(beam=16, lm=models["words"]),
            "beam 16, characters": DecoderConfig(beam=16, lm=models["characters"]),
            "beam 64, words": words_lm,
        }
        boosted = {
            count: DecoderConfig(beam=64, hot_words=dict.fromkeys(hot[:count], 0.8))
            for count in (0, *HOT_COUNTS)
        }
        longest = int(np.argmax(seconds))
        cases = {
            **{("alone", name): whole(case, sounds[longest:][:1]) for name, case in alone.items()},
            **{("batch", name): whole(case, sounds) for name, case in alone.items()},
            **{("streams", name): streams(case, sounds) for name, case in together.items()},
            **{("hot", str(count)): whole(case, sounds[:8]) for count, case in boosted.items()},
        }
        took = take_turns({" ".join(case): run for case, run in cases.items()}, rounds, 1, progress)
        share = _share_of_network(shape, words_lm, rounds, Path(name))
    audio = {
        "alone": seconds[longest], "batch": sum(seconds), "streams": sum(seconds),
        "hot": sum(seconds[:8]),
    }  # fmt: skip
    per_second = {
        (kind, name): [1000 * one / audio[kind] for one in took[f"{kind} {name}"]]
        for kind, name in cases
    }
    medians = {case: statistics.median(values) for case, values in per_second.items()}
    one_phrase = per_second["hot", str(HOT_COUNTS[0])]
    hot_ratio = max(
        statistics.median(
            many / one for many, one in zip(per_second["hot", str(count)], one_phrase, strict=True)
        )
        for count in HOT_COUNTS[1:]
    )
    return Result(
        name="decoding",
        title=f"Decoding: {utterances} utterances of {min(seconds):.1f} to {max(seconds):.1f} s",
        quick=quick,
        goals=[
            at_most(
                "beam 64 with words, one utterance, for a second of audio",
                ALONE_GOAL_MS,
                medians["alone", "beam 64, words"],
                "ms",
            ),
            at_most(
                f"beam 16 with words, each of {utterances} streams, for a second of audio",
                TOGETHER_GOAL_MS,
                medians["streams", "beam 16, words"],
                "ms",
            ),
            at_most("100 or 5,000 hot words against 1", HOT_GOAL, hot_ratio),
            at_most(
                f"beam 64 with words against the network, {shape_name(shape)} int8",
                NETWORK_GOAL,
                share,
            ),
        ],
        tables=[
            Table(
                "Milliseconds of one core for a second of audio",
                ["", "one utterance", f"{utterances} utterances in a batch"],
                [
                    [name, f"{medians['alone', name]:.2f}", f"{medians['batch', name]:.2f}"]
                    for name in alone
                ],
            ),
            Table(
                f"{utterances} live streams, {BLOCK_FRAMES} frames at a time",
                ["", "ms for a second of each"],
                [[name, f"{medians['streams', name]:.2f}"] for name in together],
            ),
            Table(
                "Hot words, 8 utterances in a batch, beam 64",
                ["phrases", "ms for a second of audio"],
                [[str(count), f"{medians['hot', str(count)]:.2f}"] for count in boosted],
            ),
        ],
        data={
            "ms_per_s": {f"{kind} {name}": value for (kind, name), value in medians.items()},
            "of_network": share,
        },
    )


def _language_models(lines: Sequence[str], left_out: set[int], folder: Path) -> dict[str, str]:
    """Make a word 3-gram and a character 6-gram from the lines that are not spoken."""
    text = folder / "text"
    text.write_text("\n".join(line for i, line in enumerate(lines) if i not in left_out) + "\n")
    made = {}
    kinds: tuple[tuple[Kind, int], ...] = (("words", 3), ("characters", 6))
    for kind, order in kinds:
        path = folder / f"{kind}.lm"
        options = LanguageModelOptions(kind=kind, order=order)
        make_language_model([text], path, Alphabet(ENGLISH), options)
        made[kind] = str(path)
    return made


def _hot_words(lines: Sequence[str]) -> list[str]:
    """Make phrases of two words, some of which occur in the text."""
    found = dict.fromkeys(" ".join(line.split()[:2]) for line in lines)
    random = np.random.default_rng(1)
    letters = np.array(list("ETAOINSHRDLU"))
    while len(found) < HOT_COUNTS[-1]:
        found["".join(random.choice(letters, 9))] = None
    return list(found)


def _share_of_network(
    shape: ModelShape, settings: DecoderConfig, rounds: int, folder: Path
) -> float:
    """Measure the time of a beam search as a share of the network's time for the same audio."""
    checkpoint = make_checkpoint(shape, folder)
    random = np.random.default_rng(2)
    sound = simulated(zipf_text(12, 3).strip()[:130], ENGLISH, random)
    with ds2deploy.load(write_onnx(checkpoint, folder, "int8"), threads=1) as recognizer:
        cases = {
            "network": network_run(recognizer.session, 1, FRAME_S * len(sound)),
            "beam": whole(settings, [sound]),
        }
        # Processor time, in which other load matters less.
        took = take_turns(cases, max(rounds, 5), progress=progress, clock=time.process_time)
    return statistics.median(
        beam / network for beam, network in zip(took["beam"], took["network"], strict=True)
    )


def main() -> None:
    """Measure, and print or write the result."""
    options = arguments(__doc__ or "").parse_args()
    if options.quick:
        found = measure(2_000, 4, 1, TINY, quick=True)
    else:
        found = measure(200_000, STREAMS, 7, LARGE, quick=False)
    deliver(found, options)


if __name__ == "__main__":
    main()
