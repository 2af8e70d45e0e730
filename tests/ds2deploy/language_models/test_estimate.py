"""The estimator against what KenLM's lmplz wrote for the same texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2deploy.language_models.estimate import FALLBACK, estimate, find_discounts
from tests.ds2deploy.language_models.models import (
    LICENSE,
    SMALL,
    backed_off,
    entries,
    ngrams_of,
    read_corpus,
)

SAVED = json.loads(Path(__file__).with_name("lmplz.json").read_text())
"""Every n-th entry that lmplz of KenLM 0.3.0 wrote with --discount_fallback, for sentences that
`TextReader` had normalized."""

WITHIN = 1e-6
"""lmplz computes in float32 and writes eight digits; the largest difference is 2.5e-7."""


@pytest.mark.parametrize(
    "saved", SAVED, ids=lambda s: f"{s['text']}-{s['kind']}-{s['order']}-{s['prune']}"
)
def test_entries_equal_those_of_lmplz(saved):
    text = SMALL if saved["text"] == "small" else LICENSE.read_text()
    ngrams = ngrams_of(text, saved["order"], saved["kind"], tuple(saved["prune"]))
    assert [len(order.word) for order in ngrams.orders] == saved["counts"]
    found = {gram: (p, b) for order in entries(ngrams) for gram, p, b in order}
    assert len(saved["entries"]) > 20
    for gram, (probability, backoff) in saved["entries"].items():
        assert found[gram] == pytest.approx((probability, backoff), abs=WITHIN), gram


def test_orders_with_too_little_text_take_fixed_discounts():
    assert estimate(*read_corpus(SMALL), 3).fallback == [2, 3]
    assert estimate(*read_corpus(LICENSE.read_text()), 3).fallback == []


def test_discounts_follow_chen_and_goodman():
    # 4 n-grams that occur once, 3 twice, 2 three times, 1 four times.
    counts = np.repeat([1, 2, 3, 4, 9], [4, 3, 2, 1, 1])
    y = 4 / (4 + 2 * 3)
    expected = [0, 1 - 2 * y * 3 / 4, 2 - 3 * y * 2 / 3, 3 - 4 * y * 1 / 2]
    assert find_discounts(counts) == pytest.approx(expected)


@pytest.mark.parametrize(
    "counts", [[], [1, 1, 2], [1, 2, 3, *[4] * 9], [5, 6], [1, 1, 2, 2, *[3] * 4]]
)
def test_discounts_that_cannot_be_estimated(counts):
    assert find_discounts(np.array(counts, int)) is None
    assert FALLBACK == (0.5, 1.0, 1.5)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text("ABC ", min_size=1, max_size=12), min_size=1, max_size=8).filter(
        lambda lines: any(line.strip() for line in lines)
    ),
    st.integers(1, 4),
    st.sampled_from([(), (0, 1), (0, 0, 1), (0, 1, 2)]),
)
def test_probabilities_sum_to_one_after_every_history(lines, order, prune):
    ngrams = ngrams_of("\n".join(lines), order, prune=prune[:order])
    table = {gram: (p, b) for grams in entries(ngrams) for gram, p, b in grams}
    words = [word for word in ngrams.words if word != "<s>"]
    for history in ["", *table]:
        if "</s>" not in history:
            total = sum(10 ** backed_off(table, history.split(), word) for word in words)
            assert total == pytest.approx(1, abs=1e-9), history
