"""The inputs that have a line: each counts as often as it was added."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ds2deploy.bulk.done import DoneInputs
from ds2deploy.bulk.inputs import Input

INPUTS = st.builds(
    Input,
    st.sampled_from(["a.wav", "b.wav", "s3://c/d.wav", "\udce4.wav"]),
    st.sampled_from([0.0, 1.5]),
    st.sampled_from([None, 2.0]),
)


@given(st.lists(INPUTS), st.lists(INPUTS))
def test_it_is_a_bag(added: list[Input], asked: list[Input]):
    done, expected = DoneInputs(), Counter(added)
    for item in added:
        done.add(item)
    assert len(done) == len(added)
    for item in asked:
        assert done.take(item) == (expected[item] > 0)
        expected[item] -= 1


def test_halves_of_keys_that_are_equal(monkeypatch):
    """Inputs whose keys agree in the first half are told apart by the second."""
    monkeypatch.setattr(
        "ds2deploy.bulk.done._key", lambda item: bytes(8) + item.audio.encode().ljust(8, b"\0")
    )
    done = DoneInputs()
    for name in ("a", "b", "b"):
        done.add(Input(name))
    assert [done.take(Input(name)) for name in "bcabb"] == [True, False, True, True, False]


def test_sixteen_bytes_each():
    done = DoneInputs()
    for i in range(1000):
        done.add(Input(str(i)))
    assert len(done._keys) == 16_000
