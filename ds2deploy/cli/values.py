"""Conversion of plain values of options, without pydantic.

typer converts the values of a command with pydantic, which takes a third of the time of
`ds2deploy transcribe` to import. Most values need none of it: options that are not given, text,
paths, numbers in digits, and choices. All others, and all errors, are left to typer.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

NOT_PLAIN = object()
"""Mark of a value that only typer can convert."""

NUMBER = re.compile(r"\d{1,15}(\.\d{1,15})?", re.ASCII)


def convert_plain_values(parameters: list[Any]) -> list[Any]:
    """Make parameters convert plain values themselves, and return them.

    Releases of typer whose parameters have no `type_descriptor` do not use pydantic.
    """
    for parameter in parameters:
        if hasattr(parameter, "type_descriptor") and "process_value" not in vars(parameter):
            parameter.process_value = partial(_process, parameter, parameter.process_value)
    return parameters


def _process(parameter: Any, by_typer: Any, ctx: Any, value: Any) -> Any:
    """Convert and check the value of a parameter, as its method `process_value` does."""
    given = plain_value(parameter, value)
    if given is NOT_PLAIN or (parameter.required and parameter.value_is_missing(given)):
        return by_typer(ctx, value)
    return given if parameter.callback is None else parameter.callback(ctx, parameter, given)


def plain_value(parameter: Any, value: Any) -> Any:
    """Convert the value of a parameter, or return `NOT_PLAIN`."""
    several = parameter.multiple or parameter.nargs == -1
    if value is None:
        return () if several else None
    annotation, settings = parameter.type_descriptor.annotation, parameter.type_descriptor
    if not several:
        return _convert(annotation, settings.parameter_info, value)
    if get_origin(annotation) is not list or isinstance(value, str):
        return NOT_PLAIN
    items = [_convert(get_args(annotation)[0], settings.parameter_info, item) for item in value]
    return NOT_PLAIN if NOT_PLAIN in items else items


def _convert(annotation: Any, settings: Any, value: Any) -> Any:
    if settings.parser is not None:
        return NOT_PLAIN
    if get_origin(annotation) is Literal:
        return value if value in get_args(annotation) else NOT_PLAIN
    if annotation in (int, float):
        return _number(annotation, settings, value)
    if annotation in (str, bool):
        return value if type(value) is annotation else NOT_PLAIN
    checked = settings.exists or settings.readable or settings.resolve_path
    if annotation is Path and isinstance(value, (str, Path)) and not checked:
        return Path(value)
    return NOT_PLAIN


def _number(kind: Any, settings: Any, value: Any) -> Any:
    """Convert digits, or a default, to a number within the limits of its option."""
    if isinstance(value, str):
        if not (match := NUMBER.fullmatch(value)) or (match[1] and kind is int):
            return NOT_PLAIN
    elif type(value) not in (int, kind):
        return NOT_PLAIN
    number = kind(value)
    below = settings.min is not None and number < settings.min
    above = settings.max is not None and number > settings.max
    return NOT_PLAIN if below or above else number
