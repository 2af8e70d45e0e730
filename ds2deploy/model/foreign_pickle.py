"""Read what another project saved with `torch.save`, without running anything that it names.

A pickle is a program: it names functions and has them called. Here every name becomes an inert
class of ours, except the plain containers and numbers, and except tensors, which numpy rebuilds
from the bytes in the archive. Neither torch nor the other project needs to be installed.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.errors import MissingFileError, ModelFileError

# A file of torch before 1.6 begins with a pickle of this number.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")

# Elements of each storage type as they lie in the file; bfloat16, which numpy lacks, as its bits.
_STORAGE_DTYPES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "<u2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "u1",
    "torch.storage.UntypedStorage": "u1",
}


class _RefusedError(Exception):
    """Why a checkpoint is not read, without the path with which the message begins."""


class Foreign:
    """An object of a class that a pickle names; it can do nothing but hold what it was given.

    `name` is dotted ("omegaconf.dictconfig.DictConfig"), `args` and `kwargs` what the constructor
    was to be called with, `state` what the object was to be restored from (None: nothing),
    `entries` and `elements` what was to be put into it as into a dict, a list or a set. The class
    or function itself is a subclass of `Foreign`, with nothing but a `name`.
    """

    name: str = ""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any]
    state: Any = None
    entries: dict[Any, Any]
    elements: list[Any]

    # A class, made by __new__ alone: the opcode NEWOBJ accepts nothing else.
    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Keep what the class was to be called with."""
        made = super().__new__(cls)
        made.args, made.kwargs, made.entries, made.elements = args, kwargs, {}, []
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, value: Any) -> None:
        """Keep what the pickle puts into an object that is like a list, or a set."""
        self.elements.append(value)

    add = append

    def __repr__(self) -> str:
        return f"<foreign {self.name}>"


class _Tensor(Foreign):
    """Stands for torch's `_rebuild_tensor_v2`: gives a read-only view of a storage."""

    def __new__(cls, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
        if not (isinstance(storage, np.ndarray) and storage.ndim == 1 and storage.flags.forc):
            raise _RefusedError("a tensor without a storage")
        if not (type(shape) is type(strides) is tuple and len(shape) == len(strides)):
            raise _RefusedError("a tensor whose shape and strides do not match")
        if any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
            raise _RefusedError("a tensor whose shape, strides or offset are not counts")
        if rest[2:] not in ((), ({},)):
            raise _RefusedError("a conjugate or negated view; expected a plain tensor")
        if 0 in shape:
            return np.empty(shape, storage.dtype)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if last >= storage.size:
            raise _RefusedError(f"a tensor ends at element {last} of a storage of {storage.size}")
        # A view, not a copy: an expanded tensor (stride 0) may be far larger than its storage.
        steps = tuple(stride * storage.itemsize for stride in strides)
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


class _Parameter(Foreign):
    """Stands for torch's `_rebuild_parameter`, with or without state: gives its tensor."""

    def __new__(cls, data: Any, *_: Any) -> Any:
        return data


class _Bytes(Foreign):
    """Stands for the ways to write bytes in protocol 2, which has them as latin-1 text.

    The real `bytes` would also take a size to allocate, or a codec to import.
    """

    def __new__(cls, content: Any = b"", encoding: Any = "latin1") -> Any:
        if isinstance(content, str) and encoding in ("latin1", "latin-1"):
            return content.encode("latin1")
        if isinstance(content, bytes):
            return content
        raise _RefusedError("bytes that are not latin-1 text")


class _ByteArray(_Bytes):
    """Stands for `bytearray`, likewise."""

    def __new__(cls, *args: Any) -> Any:
        return bytearray(super().__new__(cls, *args))


class _OrderedDict(OrderedDict[Any, Any]):
    """An OrderedDict on which a pickle cannot set attributes, such as its own `items`."""

    def __setstate__(self, state: Any) -> None:
        """Drop what torch hangs on a state_dict: the version numbers of its modules."""


# All that a name can become besides an inert class. Up to protocol 2, which is torch's, Python 3
# writes the names of Python 2 (long, unicode).
_KNOWN_NAMES: dict[str, Any] = {
    **{f"builtins.{kind.__name__}": kind for kind in (dict, list, set, frozenset, tuple)},
    **{f"builtins.{kind.__name__}": kind for kind in (int, float, complex, str, bool)},
    "builtins.long": int,
    "builtins.unicode": str,
    "builtins.Ellipsis": ...,
    "builtins.bytes": _Bytes,
    "builtins.bytearray": _ByteArray,
    "_codecs.encode": _Bytes,
    "collections.OrderedDict": _OrderedDict,
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch._utils._rebuild_parameter": _Parameter,
    "torch._utils._rebuild_parameter_with_state": _Parameter,
}


class _Archive:
    """The zip file that `torch.save` writes: `<folder>/data.pkl` and `<folder>/data/<key>`."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._zip = archive
        names = archive.namelist()
        pickles = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _RefusedError("a zip archive without its data.pkl; expected a torch checkpoint")
        self._folder = pickles[0].partition("/")[0]
        # Older files do not say.
        order = self.member("byteorder") if f"{self._folder}/byteorder" in names else b"little"
        if order != b"little":
            raise _RefusedError(f"byte order {order[:8]!r}; re-save it on a little-endian machine")

    def member(self, name: str) -> bytes:
        """Return a member, stored as torch does it: so never longer than the file is."""
        info = self._zip.getinfo(f"{self._folder}/{name}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise _RefusedError(f"{name!r} is compressed; expected an archive as torch writes it")
        return self._zip.read(info)

    def storage(self, key: str, kind: str, size: int) -> npt.NDArray[Any]:
        """Return the elements (size,) of a storage, bfloat16 as float32."""
        if kind not in _STORAGE_DTYPES:
            raise _RefusedError(f"tensors in a {kind!r} cannot be read")
        data, dtype = self.member(f"data/{key}"), np.dtype(_STORAGE_DTYPES[kind])
        if len(data) != size * dtype.itemsize:
            raise _RefusedError(f"storage {key!r} has {len(data)} bytes for {size} {dtype.name}")
        stored = np.frombuffer(data, dtype)
        if kind == "torch.BFloat16Storage":
            return (stored.astype("<u4") << 16).view("<f4")
        # A numpy bool whose byte is neither 0 nor 1 misbehaves.
        return stored != 0 if kind == "torch.BoolStorage" else stored


class _InertUnpickler(pickle.Unpickler):
    """Unpickler for which a name is a name, and a persistent id a storage of the archive."""

    def __init__(self, data: bytes, archive: _Archive) -> None:
        super().__init__(io.BytesIO(data))
        self._archive = archive
        self._names = dict(_KNOWN_NAMES)
        self._storages: dict[tuple[str, str, int], npt.NDArray[Any]] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        """Return what stands for a name, always the same class; import nothing."""
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in self._names:
            self._names[full] = type("Foreign", (Foreign,), {"name": full})
        return self._names[full]

    def persistent_load(self, pid: Any, /) -> npt.NDArray[Any]:
        """Return the storage that torch describes as ("storage", type, key, device, size)."""
        if not (type(pid) is tuple and len(pid) == 5 and pid[0] == "storage"):
            raise _RefusedError("a reference to something that is not a storage")
        _, kind, key, _, size = pid
        if not (_is_name(kind) and type(key) is str and type(size) is int):
            raise _RefusedError("a storage without type, key or size")
        wanted = (key, kind.name, size)
        if wanted not in self._storages:
            self._storages[wanted] = self._archive.storage(*wanted)
        return self._storages[wanted]


def _is_name(value: Any) -> bool:
    """Tell a class or function that the pickle names from an object made by one."""
    return isinstance(value, type) and issubclass(value, Foreign)


def _unpickle(archive: _Archive) -> dict[Any, Any]:
    data = archive.member("data.pkl")
    for opcode, argument, _ in pickletools.genops(data):
        # These fetch what this process has registered under a number; find_class is not asked.
        if opcode.name in ("EXT1", "EXT2", "EXT4"):
            raise _RefusedError("a pickle with extension codes")
        # The unpickler allocates this many slots at once.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > len(data):
            raise _RefusedError("a pickle that numbers more objects than it has bytes")
    checkpoint = _InertUnpickler(data, archive).load()
    if not isinstance(checkpoint, dict):
        kind = checkpoint.name if isinstance(checkpoint, Foreign) else type(checkpoint).__name__
        raise _RefusedError(f"holds a {kind!r}; expected a dict with a state_dict")
    return checkpoint


def read_foreign_checkpoint(path: Path) -> dict[Any, Any]:
    """Read a checkpoint that any project wrote with `torch.save`; run nothing that it names.

    Returns the pickled dict. Tensors and parameters are read-only numpy arrays (views of a
    storage that they may share; bfloat16 as float32); plain containers, numbers and text are
    themselves; everything else is a `Foreign`, sparse and float8 tensors included. Raises
    `MissingFileError` where there is no file, and `ModelFileError` for another format, damage,
    complex or quantised tensors, or a top level that is not a dict.

    The format: torch/serialization.py of torch 2.13.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise MissingFileError(f"{path}: {found}; expected a checkpoint")
    with path.open("rb") as file:
        start = file.read(32)
        try:
            with zipfile.ZipFile(file) as archive:
                return _unpickle(_Archive(archive))
        # Damaged bytes make zipfile, pickle and numpy fail in a dozen ways; all mean the same.
        except Exception as error:
            raise ModelFileError(f"{path}: {_reason(error, start)}") from error


def _reason(error: Exception, start: bytes) -> str:
    """Say in one line why a file that begins with `start` was not read."""
    if isinstance(error, _RefusedError):
        return str(error)
    if _LEGACY_MAGIC in start:
        save = "torch.save(torch.load(old), new)"
        return f"in torch's format from before 1.6; re-save it with a current torch: {save}"
    if not start.startswith(b"PK"):
        return "not a checkpoint of torch.save: no zip archive"
    detail = " ".join(str(error).split()) or type(error).__name__
    return f"damaged checkpoint ({detail}); copy or download it again"


def plain(value: Any) -> Any:
    """Turn the settings in a foreign checkpoint into plain Python: dict, list, numbers, text.

    An omegaconf container or node gives its content, a dataclass the dict of its fields, an enum
    member its value, a class or function the last part of its name ("GRU"). A `Foreign` of any
    other kind is left as it is. Raises `ModelFileError`, without a path, where the settings
    contain themselves.
    """
    try:
        return _plain(value, {})
    except (RecursionError, TypeError) as error:
        raise ModelFileError("settings that contain themselves, or nest too deeply") from error


_UNDER_WAY = object()


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """Convert a value, once: `done` has the result for each container's id, or `_UNDER_WAY`."""
    if _is_name(value):
        return value.name.rpartition(".")[2]
    if not isinstance(value, dict | list | tuple | set | frozenset | Foreign):
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
        return {_plain(key, done): _plain(item, done) for key, item in value.items()}
    return type(value)(_plain(item, done) for item in value)


def _plain_object(value: Any, done: dict[int, Any]) -> Any:
    if value.entries or value.elements:
        return _plain(value.entries or value.elements, done)
    if isinstance(value.state, dict):
        # omegaconf: a container has _content, a node _val. Their _parent leads back up.
        for content in ("_content", "_val"):
            if content in value.state:
                return _plain(value.state[content], done)
        return {key: _plain(item, done) for key, item in value.state.items() if key != "_parent"}
    # An enum member: its class was to be called with its value.
    if value.state is None and len(value.args) == 1:
        member = value.args[0]
        if _is_name(member) or isinstance(member, str | int | float):
            return _plain(member, done)
    return value
