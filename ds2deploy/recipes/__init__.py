"""Recipe files: built-in recipes, the user's own, and changes by `--set`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import msgspec

from ds2deploy.config import Recipe
from ds2deploy.recipes.stages import STAGES, named_stage, split_stages
from ds2deploy.runtimes.errors import DECODING_ERRORS, ConfigError, missing_file
from ds2deploy.text_files import decode_text

TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a section",
}
"""Types in msgspec's messages, in words."""


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, or the first stage of one that has several; see `load_stages`."""
    return load_stages(name, overrides)[0]


def load_stages(name: str, overrides: Sequence[str] = ()) -> tuple[Recipe, ...]:
    """Read the stages of a recipe, of which most have one.

    Args:
        name: path of a TOML file, or name of a built-in recipe.
        overrides: changes of the form `section.key=value`, with the value in TOML; a bare word is
            a string. They apply to all stages; `stages.NUMBER.section.key=value` applies to one.
            Of two changes of a key, the later one counts.

    Returns:
        The recipe, and one recipe for each of its tables `[[stages]]`, which changes keys of it.

    Raises:
        MissingFileError: there is neither a file nor a built-in recipe of this name.
        ConfigError: the file is not TOML, a key is unknown, a value has the wrong type, or a stage
            changes nothing, or what is the same in all stages.
    """
    source, content = _read(name)
    try:
        document = msgspec.toml.decode(decode_text(content))
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: not UTF-8 text; expected a recipe in TOML") from None
    except DECODING_ERRORS as error:
        raise ConfigError(f"{source}: invalid TOML ({error}); correct it") from None
    documents = split_stages(document, source)
    changes = [_Change.read(override, len(documents)) for override in overrides]
    stages = []
    for number, stage in enumerate(documents, start=1):
        own = [change for change in changes if change.stage in (None, number)]
        for change in own:
            change.apply(stage)
        stages.append(_recipe(stage, source if number == 1 else f"{source}: stage {number}", own))
    return tuple(stages)


def _recipe(document: dict[str, Any], source: str, changes: Sequence[_Change]) -> Recipe:
    try:
        return msgspec.convert(document, Recipe)
    except UnicodeError:  # an argument is not UTF-8
        raise ConfigError(f"{source}: a value of --set is not UTF-8; expected text") from None
    except DECODING_ERRORS as error:
        raise ConfigError(_explain(error, source, changes)) from None


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
    raise missing_file(path, f"a recipe in TOML, or one of {', '.join(recipe_names())}")


class _Change(NamedTuple):
    """Change of a key by `--set`.

    Attributes:
        override: argument of `--set`.
        stage: number of the stage, from 1; None changes all.
        name: name of the key, with its sections.
        value: value in TOML, or a bare word.
    """

    override: str
    stage: int | None
    name: str
    value: str

    @classmethod
    def read(cls, override: str, stages: int) -> _Change:
        """Split an argument of `--set`, for a recipe with a number of stages."""
        name, equals, value = override.partition("=")
        stage, name = named_stage(name.strip(), stages)
        if not equals or not name.rpartition(".")[2]:
            raise ConfigError(f"--set {override}: expected section.key=value")
        return cls(override, stage, name, value)

    def apply(self, document: dict[str, Any]) -> None:
        """Change the key in a recipe."""
        *sections, key = self.name.split(".")
        for section in sections:
            document = document.setdefault(section, {})
            if not isinstance(document, dict):
                raise ConfigError(
                    f"--set {self.override}: {section} is a key, not a section; expected "
                    "section.key=value"
                )
        document[key] = _value(self.value)


def _value(text: str) -> Any:
    try:
        return msgspec.toml.decode(f"value = {text}")["value"]
    except RecursionError:
        raise ConfigError(f"--set: {text[:20]}... is nested too deeply; simplify it") from None
    except DECODING_ERRORS:
        return text


def _explain(error: Exception, source: str, changes: Sequence[_Change]) -> str:
    """Turn msgspec's error into one line: source, path of the key, and its allowed values.

    Examples: `my.toml: training.epochs: expected a whole number, got text` and
    `--set training.epochs=x: expected a whole number, got text`.
    """
    message, _, key_path = str(error).partition(" - at `$")
    key_path = key_path.rstrip("`").lstrip(".")
    path = re.sub(r"\[.*", "", key_path)  # drop the index of a list's element
    if "unknown field" in message:
        key = message.rpartition("field `")[2].rstrip("`")
        message = message.replace("Object contains unknown field", "unknown key")
        section = getattr(Recipe(), path) if path else Recipe()
        known = section.__struct_fields__ if path else (*section.__struct_fields__, STAGES)
        message += f"; known keys are {', '.join(known)}"
        path = f"{path}.{key}".lstrip(".")
    elif path:
        message = _plain(message) + _expected_values(path)
    if key_path and not message.startswith(f"{key_path}."):
        message = f"{key_path}: {message}"
    for change in changes:
        name = change.name
        if (path and f"{name}.".startswith(f"{path}.")) or message.startswith(f"{name} "):
            source, message = f"--set {change.override}", message.removeprefix(f"{name}: ")
    return f"{source}: {message}"


def _plain(message: str) -> str:
    """Replace msgspec's names of types by words, such as `int` by a whole number."""
    return re.sub(
        "`([^`]+)`",
        lambda found: " or ".join(
            TYPES.get(name, name) for name in found[1].split(" | ") if name != "null"
        ),
        (message[:1].lower() + message[1:]).replace("enum value", "value"),
    )


def _expected_values(path: str) -> str:
    """List the words that are allowed for a key, or give its default."""
    *sections, key = path.split(".")
    section = getattr(Recipe(), sections[0]) if sections else Recipe()
    kind = get_type_hints(type(section)).get(key)
    parts = (kind, *get_args(kind))
    words = [word for part in parts for word in get_args(part) if isinstance(word, str)]
    if words:
        return f"; expected {', '.join(words)}"
    default = getattr(section, key, None)
    if isinstance(default, msgspec.Struct):
        return ""
    return f"; example: {msgspec.json.encode(default).decode()}"
