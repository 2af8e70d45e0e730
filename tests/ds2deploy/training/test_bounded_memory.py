"""A training gives freed memory back, every so many steps and after each validation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ds2deploy.config import Recipe
from ds2deploy.training import loop
from ds2deploy.training.train import train


def test_freed_memory_is_returned_after_steps_and_validations(
    tone_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
):
    given: list[int] = []
    monkeypatch.setattr(loop, "TRIM_STEPS", 2)
    monkeypatch.setattr(loop, "give_back_freed_memory", lambda: given.append(1))
    # Thirty utterances in batches of eight: four steps an epoch, then a validation.
    train(tone_recipe.changed("training", epochs=2))
    assert len(given) == 2 * (2 + 1)


def test_a_training_bounds_what_onednn_keeps(tone_recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    """Before anything is computed: later it has no effect."""
    order: list[str] = []
    for name in ("bound_primitive_cache", "check_hardware", "_load_data"):
        monkeypatch.setattr(f"ds2deploy.training.train.{name}", noted(name, order))
    with pytest.raises(StoppedHereError):
        train(tone_recipe)
    assert order == ["bound_primitive_cache", "check_hardware", "_load_data"]


class StoppedHereError(Exception):
    """Ends a training that has shown what it was to show."""


def noted(name: str, order: list[str]) -> Callable[..., None]:
    def call(*_: object) -> None:
        order.append(name)
        if name == "_load_data":
            raise StoppedHereError

    return call
