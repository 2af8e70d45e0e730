"""Write the table of all recipe keys: `python docs/scripts/recipe.py docs/reference/recipe.md`."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from ds2deploy.config import Recipe
from ds2deploy.runtimes.alphabet import ENGLISH

INTRODUCTION = """# Recipes

A recipe is a TOML file, or the name of one that comes with ds2deploy (`ds2deploy/recipes/`).
[Train](../training.md#2-recipe) explains how to choose one. All keys are optional; an unknown key
is an error. On the command line, `--set section.key=value` overrides a key, in all stages of a
recipe that has several; `--set stages.2.section.key=value` overrides it in one stage.

```toml
labels = "{labels}"

[model]
hidden = 512

[training]
epochs = 30
```

This page is generated from `ds2deploy/config.py`. Types and defaults are written as in TOML. TOML
has no value for None: omit a key to leave it at a default of none.
"""

STAGES = """## [[stages]]

Each table is one more stage of the training ([Stages](../training.md#stages)): the recipe with the
keys of the table changed. Keys are written with their section, such as `training.epochs = 16`. A
stage starts from the best checkpoint of the previous one. No stage changes `labels`, `[features]`,
`[model]` (apart from `norm_eps`), `training.run`, `training.start` or `training.export`.
"""

NAMES = {int: "integer", float: "number", str: "text", bool: "`true` or `false`"}
PLURALS = {int: "integers", float: "numbers"}
NUMBERS = {2: "two"}


def reference() -> str:
    """Make the whole page in Markdown."""
    parts = [INTRODUCTION.format(labels=ENGLISH)]
    sections = _fields(Recipe)
    parts.append(_table("Above all sections", "", Recipe, ("labels",)))
    for name, kind in sections.items():
        if name != "labels":
            parts.append(_table(f"[{name}]", _first_paragraph(kind), kind, tuple(_fields(kind))))
    return "\n".join([*parts, STAGES])


def _table(title: str, summary: str, kind: Any, keys: tuple[str, ...]) -> str:
    hints, meanings, defaults = _fields(kind), attributes(kind), kind()
    lines = [f"## {title}\n", *([f"{summary}\n"] if summary else [])]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in keys:
        meaning = meanings[key][:1].upper() + meanings[key][1:]
        cells = (f"`{key}`", _type(hints[key]), _default(getattr(defaults, key)), meaning)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, ""])


def _fields(kind: Any) -> dict[str, Any]:
    """List the keys of a section with their types."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in msgspec.structs.fields(kind)}


def attributes(kind: Any) -> dict[str, str]:
    """Read the meanings of the keys from the section `Attributes` of a docstring."""
    _, _, listed = (kind.__doc__ or "").partition("Attributes:\n")
    found: dict[str, list[str]] = {}
    for line in listed.splitlines():
        if match := re.match(r" {8}(\w+): (.*)", line):
            found[match[1]] = [match[2]]
        elif line.startswith(" " * 12) and found:
            next(reversed(found.values())).append(line.strip())
    return {name: " ".join(lines) for name, lines in found.items()}


def _first_paragraph(kind: Any) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _type(hint: Any) -> str:
    """Describe a type in the words of TOML."""
    return " or ".join(_alternatives(hint))


def _alternatives(hint: Any) -> Iterator[str]:
    arguments = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        for part in arguments:
            if part is not type(None):
                yield from _alternatives(part)
    elif get_origin(hint) is Literal:
        yield ", ".join(f'`"{value}"`' for value in arguments)
    elif get_origin(hint) is tuple and arguments[-1] is Ellipsis:
        yield f"list of {PLURALS.get(arguments[0]) or _type(arguments[0])}"
    elif get_origin(hint) is tuple:
        yield f"list of {NUMBERS[len(arguments)]} {PLURALS[arguments[0]]}"
    else:
        yield NAMES[hint]


def _default(value: Any) -> str:
    """Write a default as TOML."""
    if value is None:
        return "none"
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(part) for part in value)}]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), "utf-8")
