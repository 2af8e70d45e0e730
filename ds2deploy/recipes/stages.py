"""Stages of a recipe: the recipe itself, and one for each table `[[stages]]` of changed keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ds2deploy.runtimes.errors import ConfigError

STAGES = "stages"

ONE_NETWORK = "all stages train one network; set it for the whole recipe"
WHOLE_RUN = "it belongs to the whole run; set it for the whole recipe"

FIXED = {
    "labels": ONE_NETWORK,
    "model": ONE_NETWORK,
    "features": ONE_NETWORK,
    "training.run": WHOLE_RUN,
    "training.export": WHOLE_RUN,
    "training.start": "a stage starts from the best checkpoint of the one before; remove the key",
    STAGES: "a stage has no stages of its own; remove the key",
}
"""Keys and sections that no stage may change, each with the reason and the remedy."""

CHANGEABLE = ("model.norm_eps",)
"""Keys of those sections that a stage may change."""


def split_stages(document: dict[str, Any], source: str) -> list[dict[str, Any]]:
    """Split a recipe into one document for each of its stages.

    Args:
        document: recipe as read from TOML.
        source: name of the recipe, for messages.

    Returns:
        The documents, which share no section; the first is the recipe without its `[[stages]]`,
        and each of the others is the recipe with the keys of one table changed.

    Raises:
        ConfigError: a stage changes nothing, or a key that is the same in all stages.
    """
    recipe = {name: value for name, value in document.items() if name != STAGES}
    tables = document.get(STAGES, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{source}: stages: expected tables [[stages]], one for each stage")
    for number, table in enumerate(tables, start=2):
        keys = list(_keys(table))
        if not keys:
            raise ConfigError(
                f"{source}: stage {number} changes nothing; add a key to its [[stages]], or "
                "remove it"
            )
        for key in keys:
            check_key(key, f"{source}: stage {number}")
    return [_merged(recipe, table) for table in ({}, *tables)]


def named_stage(name: str, count: int) -> tuple[int | None, str]:
    """Split the name of a key that `--set` changes, such as `stages.2.training.epochs`.

    Args:
        name: name of the key, perhaps with a stage.
        count: number of stages of the recipe.

    Returns:
        The number of the stage, from 1, and the name without it; None stands for all stages.

    Raises:
        ConfigError: the recipe has no such stage, or the key is the same in all stages.
    """
    if name.partition(".")[0] != STAGES:
        return None, name
    _, _, rest = name.partition(".")
    number, _, key = rest.partition(".")
    numbers = [str(stage) for stage in range(1, count + 1)]
    if number not in numbers or not key:
        known = "1" if count == 1 else f"1 to {count}"
        raise ConfigError(
            f"--set {name}: expected stages.NUMBER.section.key=value; the stages of this recipe "
            f"are {known}"
        )
    check_key(key, f"--set {name}")
    return int(number), key


def check_key(key: str, source: str) -> None:
    """Refuse a key that is the same in all stages.

    Raises:
        ConfigError: the key is one of them.
    """
    for fixed, reason in FIXED.items():
        if f"{key}.".startswith(f"{fixed}.") and key not in CHANGEABLE:
            raise ConfigError(f"{source}: {key}: {reason}")


def _keys(table: Mapping[str, Any]) -> Iterator[str]:
    """List the keys of a stage's table, with their sections."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from (f"{name}.{key}" for key in value)
        else:
            yield name


def _merged(recipe: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a recipe with the keys of a stage's table changed."""
    merged = {
        name: dict(value) if isinstance(value, dict) else value for name, value in recipe.items()
    }
    for name, value in table.items():
        section = merged.get(name, {})
        both = isinstance(section, dict) and isinstance(value, dict)
        merged[name] = section | value if both else value
    return merged
