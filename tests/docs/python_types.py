"""Types that names on the pages have, as far as annotations tell them."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
import typing
from dataclasses import dataclass
from operator import or_
from typing import Any

ITERABLES = (list, tuple, set, frozenset, *(
    getattr(collections.abc, name)
    for name in ("Iterator", "Iterable", "Sequence", "Generator", "Collection")
))  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """Module, class or function itself; `bound` if its first parameter is already given."""

    value: Any
    bound: bool = False


@dataclass(frozen=True)
class Instance:
    """Value of a type, such as `Recognizer` or `tuple[Word, ...]`."""

    kind: Any


Value = Thing | Instance | None
"""Known thing, instance of a known type, or None for what is not known."""


def ours(value: Any) -> bool:
    """Tell whether a module, class or function belongs to ds2deploy."""
    name = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
    return str(name).partition(".")[0] == "ds2deploy" and not typing.get_args(value)


def fields(kind: Any) -> tuple[Any, ...]:
    """List the types of what a tuple is unpacked to."""
    named = [hints(kind)[name] for name in getattr(kind, "_fields", ())]
    return tuple(named) or typing.get_args(kind)


def hints(value: Any) -> dict[str, Any]:
    """Resolve the annotations of a class or function; none if one of them cannot be."""
    try:
        return typing.get_type_hints(value)
    except (NameError, TypeError):  # a name that is imported for type checkers only
        return {}


def instance(kind: Any) -> Instance | None:
    """Make an instance of an annotation, without `| None`."""
    parts = [part for part in members(kind) if part is not type(None)]
    return None if not parts or parts[0] is Any else Instance(functools.reduce(or_, parts))


def members(kind: Any) -> tuple[Any, ...]:
    """List the members of a union; another type is the only one."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else () if kind is None else (kind,)


def element(value: Value) -> Value:
    """Find what an iteration over a value gives, if it is a list in any of its types."""
    parts = members(value.kind) if isinstance(value, Instance) else ()
    lists = [part for part in parts if typing.get_origin(part) in ITERABLES]
    return instance(typing.get_args(lists[0])[0]) if lists else None
