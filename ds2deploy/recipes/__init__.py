"""Recipe files: built-in recipes, the user's own, and changes by `--set`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from ds2deploy.config import Recipe
from ds2deploy.runtimes.errors import DECODING_ERRORS, ConfigError, MissingFileError
from ds2deploy.text_files import decode_text


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name: path of a TOML file, or name of a built-in recipe.
        overrides: changes of the form `section.key=value`, with the value in TOML; a bare word is
            a string.

    Raises:
        MissingFileError: there is neither a file nor a built-in recipe of this name.
        ConfigError: the file is not TOML, a key is unknown, or a value has the wrong type.
    """
    source, content = _read(name)
    try:
        document = msgspec.toml.decode(decode_text(content))
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: not a text file; expected a recipe in TOML") from None
    except DECODING_ERRORS as error:
        raise ConfigError(f"{source}: not TOML ({error})") from None
    for override in overrides:
        _override(document, override)
    try:
        return msgspec.convert(document, Recipe)
    except UnicodeError:  # an argument is not UTF-8
        raise ConfigError(f"{source}: a value of --set is not UTF-8; expected text") from None
    except DECODING_ERRORS as error:
        raise ConfigError(_explain(error, source, overrides)) from None


def recipe_names() -> list[str]:
    """List the names of the built-in recipes."""
    folder = resources.files(__name__)
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml"))


def _read(name: str) -> tuple[str, bytes]:
    path = Path(name)
    if path.is_file():
        return name, path.read_bytes()
    if name in recipe_names():
        return name, (resources.files(__name__) / f"{name}.toml").read_bytes()
    kind = "is a directory" if path.is_dir() else "no such file"
    raise MissingFileError(
        f"{name}: {kind}; expected a recipe in TOML, or one of {', '.join(recipe_names())}"
    )


def _override(document: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    *sections, key = name.strip().split(".")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected section.key=value")
    for section in sections:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise ConfigError(
                f"--set {override}: {section} is a key, not a section; expected section.key=value"
            )
    document[key] = _value(value)


def _value(text: str) -> Any:
    try:
        return msgspec.toml.decode(f"value = {text}")["value"]
    except RecursionError:
        raise ConfigError(f"--set: {text[:20]}... is nested too deeply; expected a value") from None
    except DECODING_ERRORS:
        return text


def _explain(error: Exception, source: str, overrides: Sequence[str]) -> str:
    """Turn msgspec's error into one line: source, path of the key, and its allowed values.

    Examples: `my.toml: training.epochs: Expected ...` and
    `--set training.epochs=x: Expected ...`.
    """
    message, _, key_path = str(error).partition(" - at `$")
    key_path = key_path.rstrip("`").lstrip(".")
    path = re.sub(r"\[.*", "", key_path)  # drop the index of a list's element
    if "unknown field" in message:
        key = message.rpartition("field `")[2].rstrip("`")
        message = message.replace("Object contains unknown field", "unknown key")
        section = getattr(Recipe(), path) if path else Recipe()
        message += f"; known keys are {', '.join(section.__struct_fields__)}"
        path = f"{path}.{key}".lstrip(".")
    elif path:
        message += _expected_values(path)
    if key_path and not message.startswith(f"{key_path}."):
        message = f"{key_path}: {message}"
    for override in overrides:
        name = override.partition("=")[0].strip()
        if (path and f"{name}.".startswith(f"{path}.")) or message.startswith(f"{name} "):
            source = f"--set {override}"
    return f"{source}: {message}"


def _expected_values(path: str) -> str:
    """List the words that are allowed for a key, or give its default."""
    *sections, key = path.split(".")
    section = getattr(Recipe(), sections[0]) if sections else Recipe()
    kind = get_type_hints(type(section)).get(key)
    parts = (kind, *get_args(kind))
    words = [word for part in parts for word in get_args(part) if isinstance(word, str)]
    if words:
        return f"; expected {', '.join(words)}"
    default = msgspec.json.encode(getattr(section, key, None)).decode()
    return "" if isinstance(getattr(section, key, None), msgspec.Struct) else f", such as {default}"
