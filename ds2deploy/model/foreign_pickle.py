"""Reading of deepspeech.pytorch checkpoints with `torch.load`, without running their code.

A pickle is a program that names classes and functions and calls them. `weights_only=True` only
builds tensors and plain containers. The classes of deepspeech.pytorch's settings are replaced by
placeholders, which keep the arguments of the call and do nothing.
"""

from __future__ import annotations

import threading
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ds2deploy.runtimes.errors import ModelFileError, missing_file

INERT_NAMES = (
    *("deepspeech_pytorch.", "omegaconf.", "hydra.", "lightning.", "lightning_fabric."),
    *("pytorch_lightning.", "torch.nn.modules.", "typing.", "enum.", "pathlib.", "numpy."),
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "frozenset", "int")),
    *("builtins.list", "builtins.object", "builtins.str", "builtins.tuple", "builtins.Ellipsis"),
    *("_operator.getitem", "collections.defaultdict"),
)
"""Prefixes of names that are replaced by placeholders; files with other names are refused."""

_LOCK = threading.Lock()  # safe_globals changes a set that all threads share


class _RefusedError(Exception):
    """Reason to refuse a checkpoint; its message has no path yet."""


class Foreign:
    """Inert placeholder for an object in a pickle; each class in it becomes a subclass.

    Attributes:
        name: dotted name of the class or function, such as `omegaconf.dictconfig.DictConfig`.
        args: arguments of the call in the pickle.
        state: state of the object in the pickle; None without one.
    """

    name: str = ""
    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any) -> Any:
        """Keep the arguments of the call."""
        made = super().__new__(cls)
        made.args = args
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<foreign {self.name}>"


def read_foreign_checkpoint(path: Path) -> dict[Any, Any]:
    """Read a checkpoint of deepspeech.pytorch without running anything that it names.

    Returns:
        The pickled dict. Tensors, plain containers, numbers and text are unchanged; objects of the
        classes in `INERT_NAMES` are `Foreign`.

    Raises:
        MissingFileError: the file does not exist.
        ModelFileError: the file has another format, is damaged, names other classes, or does not
            contain a dict.
    """
    if not path.is_file():
        raise missing_file(path, "a checkpoint")
    try:
        _check_archive(path)
        document = _load(path)
    # zipfile and torch raise many classes of errors for damaged bytes.
    except Exception as error:
        raise ModelFileError(f"{path}: {_reason(error)}") from error
    if not isinstance(document, dict):
        kind = document.name if isinstance(document, Foreign) else type(document).__name__
        raise ModelFileError(f"{path}: contains a {kind!r}; expected a dict with a state_dict")
    return plain_items(document)


def plain_items(mapping: dict[Any, Any]) -> dict[Any, Any]:
    """Copy a dict without attributes that a pickle can set on an OrderedDict, such as `items`."""
    return dict(dict.items(mapping))


def _check_archive(path: Path) -> None:
    """Check an archive for problems that torch ignores: wrong checksums and compressed members."""
    if not zipfile.is_zipfile(path):
        raise _RefusedError(
            "truncated, or not written by torch.save; copy it again, or convert a checkpoint from "
            "before torch 1.6 with a current torch: torch.save(torch.load(old), new)"
        )
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise _RefusedError("a compressed archive; write the file with torch.save")
        if len({member.filename for member in members}) < len(members):
            raise _RefusedError("an archive with duplicate members; restore the original")
        if damaged := archive.testzip():
            raise _RefusedError(f"damaged checkpoint ({damaged}); copy or download it again")


def _load(path: Path) -> Any:
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = get_unsafe_globals_in_checkpoint(path)
        if others := sorted(name for name in names if not name.startswith(INERT_NAMES)):
            raise _RefusedError(
                f"not loaded, because it refers to {others[0]!r}, which no checkpoint of "
                "deepspeech.pytorch contains; restore the original"
            )
        with safe_globals([(_stand_in(name), name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True)


def _stand_in(name: str) -> Any:
    if name == "collections.defaultdict":  # torch only fills real dicts
        return lambda *_: {}
    return type("Foreign", (Foreign,), {"name": name})


def _reason(error: Exception) -> str:
    """Explain in one line why a file was not read."""
    if isinstance(error, _RefusedError):
        return str(error)
    # torch surrounds the cause with advice to load the file without protection.
    cause = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
    return f"damaged checkpoint ({cause or type(error).__name__}); copy or download it again"


def plain(value: Any) -> Any:
    """Convert the settings in a foreign checkpoint to plain Python: dict, list, numbers, text.

    An omegaconf container or node becomes its content, a dataclass a dict of its fields, an enum
    member its value, and a class or function the last part of its name ("GRU"). Any other
    `Foreign` stays unchanged.

    Raises:
        ModelFileError: the settings contain themselves; the message has no path.
    """
    try:
        return _plain(value, {})
    except (RecursionError, TypeError) as error:
        raise ModelFileError("settings that contain themselves, or nest too deeply") from error


_UNDER_WAY = object()


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """Convert a value once; `done` maps the id of each container to its result or `_UNDER_WAY`."""
    if isinstance(value, type) and issubclass(value, Foreign):
        return value.name.rpartition(".")[2]
    if not isinstance(value, dict | list | tuple | set | Foreign):
        return value
    if done.get(id(value)) is _UNDER_WAY:
        raise RecursionError
    if id(value) not in done:
        done[id(value)] = _UNDER_WAY
        foreign = isinstance(value, Foreign)
        done[id(value)] = (_plain_object if foreign else _plain_container)(value, done)
    return done[id(value)]


def _plain_container(value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, dict):
        return {_plain(key, done): _plain(item, done) for key, item in dict.items(value)}
    return type(value)(_plain(item, done) for item in value)


def _plain_object(value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value.state, dict):
        # omegaconf: a container has _content, a node _val. Their _parent leads back up.
        for content in ("_content", "_val"):
            if content in value.state:
                return _plain(value.state[content], done)
        fields = dict.items(value.state)
        return {key: _plain(item, done) for key, item in fields if key != "_parent"}
    # An enum member: its class was to be called with its value.
    if value.state is None and len(value.args) == 1:
        member = _plain(value.args[0], done)
        if isinstance(member, str | int | float):
            return member
    return value
