"""Time, memory and size of making and opening language models.

    python benchmarks/language_model.py [--quick] [--json] [--out DIR]

The text is random, with words from Zipf's distribution. Each sentence is either new, or an earlier
one with a few words replaced, so that longer n-grams repeat as in real text. `ds2deploy lm` runs in
a separate process, which prints its peak memory.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from report import Result, Table, arguments, at_most, deliver, progress
from startup import COMMAND, WATCHED, process

from ds2deploy.bench.timing import take_turns
from ds2deploy.runtimes.decoding.language_model import LanguageModel, read_language_model

ORDER = 5
MAKE_GOAL_S, MEMORY_GOAL_MB = 10.0, 400.0
LOAD_GOAL_S, BYTES_GOAL = 0.1, 20.0
LOADED = 1_000_000
"""Number of n-grams of the model with which the goal for opening is measured."""

VOCABULARY, SENTENCE = 30_000, 12
NEW, REPLACED = 0.5, 2
"""Share of new sentences, and share of words that are replaced in the others."""


def zipf_text(words: int, seed: int = 0) -> str:
    """Make a text with about `words` words."""
    random = np.random.default_rng(seed)
    letters = np.array(list("ETAOINSHRDLU"))
    names = ["".join(random.choice(letters, 2 + i.bit_length() // 2)) for i in range(VOCABULARY)]
    share = 1 / np.arange(1, VOCABULARY + 1)
    drawn = random.choice(VOCABULARY, (words // SENTENCE, SENTENCE), p=share / share.sum())
    for i in range(1, len(drawn)):
        if random.random() > NEW:
            replaced = random.integers(0, SENTENCE, REPLACED)
            new = drawn[i, replaced]
            drawn[i] = drawn[random.integers(i)]
            drawn[i, replaced] = new
    return "".join(" ".join(names[word] for word in line) + "\n" for line in drawn.tolist())


def make(text: Path, out: Path) -> tuple[float, float]:
    """Run `ds2deploy lm`, and measure its seconds and peak memory (10^6 bytes)."""
    began = time.perf_counter()
    done = process(WATCHED + COMMAND, "lm", str(text), "--out", str(out), "--order", str(ORDER))
    took = time.perf_counter() - began
    return took, float(done.stderr.split()[-1]) * 2**20 / 1e6


def score_us(model: LanguageModel, hypotheses: int, rounds: int) -> float:
    """Measure the median time of a call with a number of hypotheses, in microseconds."""
    random = np.random.default_rng(0)
    took = []
    states = np.full(hypotheses, model.start)
    for _ in range(rounds):
        words = random.integers(0, len(model), hypotheses)
        began = time.perf_counter()
        states, _ = model.score(states, words)
        took.append(time.perf_counter() - began)
    return 1e6 * statistics.median(took)


def measure(words: int, rounds: int, quick: bool = False) -> Result:
    """Make a model from a text, and another one for the goal of opening; open and use both.

    Args:
        words: number of words in the text.
        rounds: number of rounds of opening and scoring.
        quick: True for the sizes of a test.
    """
    with tempfile.TemporaryDirectory(prefix="ds2deploy-") as name:
        text, path = Path(name, "text"), Path(name, "words.lm")
        text.write_text(zipf_text(words))
        progress(f"making a language model from a text of {words} words")
        make_s, peak_mb = make(text, path)
        model = read_language_model(path)
        counts = model.header.counts
        size = path.stat().st_size
        opening = take_turns({"open": lambda: read_language_model(path)}, rounds)
        opened_s = statistics.median(opening["open"])
        scores = {n: score_us(model, n, rounds) for n in (1, 64, 1024)}
    grams = sum(counts)
    per_million_s = opened_s * LOADED / grams
    return Result(
        name="language-model",
        title=f"A language model of {words:,} words, order {ORDER}",
        quick=quick,
        goals=[
            at_most("ds2deploy lm: time", MAKE_GOAL_S, make_s, "s"),
            at_most("ds2deploy lm: peak memory", MEMORY_GOAL_MB, peak_mb, "MB"),
            at_most("size per n-gram, with the vocabulary", BYTES_GOAL, size / grams, "bytes"),
            at_most("opening, per million n-grams", 1000 * LOAD_GOAL_S, 1000 * per_million_s, "ms"),
        ],
        tables=[
            Table(
                "Scoring random words, one call",
                ["hypotheses", "p50 (us)"],
                [[str(n), f"{took:.0f}"] for n, took in scores.items()],
            ),
            Table(
                "N-grams",
                ["order", "n-grams"],
                [[str(n), f"{count:,}"] for n, count in enumerate(counts, 1)],
            ),
        ],
        data={
            "counts": list(counts),
            "size": size,
            "make_s": make_s,
            "peak_mb": peak_mb,
            "open_s": opened_s,
            "score_us": {str(n): took for n, took in scores.items()},
        },
    )


def main() -> None:
    """Measure, and print or write the result."""
    options = arguments(__doc__ or "").parse_args()
    found = measure(20_000, 20, quick=True) if options.quick else measure(1_000_000, 200)
    deliver(found, options)


if __name__ == "__main__":
    main()
