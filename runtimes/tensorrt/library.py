"""TensorRT and TensorRT-RTX: one API in packages of several names.

Both are imported here and nowhere else, by the name that is asked for; neither takes the place of
the other.
"""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import NamedTuple

from ds2deploy.runtimes.engine_description import Flavor
from ds2deploy.runtimes.errors import RuntimeUnavailableError, one_line

NAMES: dict[Flavor, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}

OLDEST: dict[Flavor, tuple[int, int]] = {"tensorrt": (10, 3), "rtx": (1, 7)}
"""Releases before these lack what is used here."""

# TensorRT-RTX in the order of preference: its own package; or its bindings, for which ONNX
# Runtime's plugin brings the libraries and loads them when it is imported.
RTX_PACKAGES = (
    ("tensorrt_rtx",),
    ("onnxruntime_ep_nv_tensorrt_rtx", "tensorrt_rtx_bindings"),
)
PACKAGES: dict[Flavor, tuple[tuple[str, ...], ...]] = {
    "tensorrt": (("tensorrt",),),
    "rtx": RTX_PACKAGES,
}


class TensorRt(NamedTuple):
    """One of the two libraries, imported.

    Attributes:
        flavor: TensorRT or TensorRT-RTX.
        version: release, such as `10.3.0`.
        module: its Python API.
    """

    flavor: Flavor
    version: str
    module: ModuleType

    @property
    def title(self) -> str:
        """Name and version for people: `TensorRT-RTX 1.7.1.116`."""
        return f"{NAMES[self.flavor]} {self.version}"


def import_tensorrt(flavor: Flavor) -> TensorRt:
    """Import one of the two libraries.

    Raises:
        RuntimeUnavailableError: it is not installed, does not load, or is too old.
    """
    reason = ""
    for packages in PACKAGES[flavor]:
        try:
            module = [importlib.import_module(name) for name in packages][-1]
            version = str(module.__version__)
        except ModuleNotFoundError as error:
            # Of the packages that are partly there, what they lack tells more than that the
            # others are not there at all.
            reason = f"no module {error.name}" if error.name else str(error)
            continue
        except (ImportError, OSError, AttributeError, RuntimeError) as error:
            reason = one_line(error, 160)
            break
        return _new_enough(TensorRt(flavor, version, module))
    raise RuntimeUnavailableError(
        f"{NAMES[flavor]} cannot be imported ({reason}): {install_command(flavor)}"
    )


def any_tensorrt() -> TensorRt:
    """Whichever of the two is there, TensorRT first.

    Raises:
        RuntimeUnavailableError: neither is; names the command that installs one.
    """
    for flavor in NAMES:
        try:
            return import_tensorrt(flavor)
        except RuntimeUnavailableError:
            continue
    raise RuntimeUnavailableError(
        "parsing the network needs TensorRT or TensorRT-RTX, and neither can be imported: "
        f"{install_command('rtx')}"
    )


def install_command(flavor: Flavor) -> str:
    """Command that installs the library on this machine."""
    import platform

    if flavor == "tensorrt" and platform.machine() == "aarch64":
        return (
            "on a Jetson: apt install python3-libnvinfer, and make the environment with python3 -m "
            "venv --system-site-packages"
        )
    return f"pip install 'ds2deploy[{flavor}]'"


def _new_enough(library: TensorRt) -> TensorRt:
    found = tuple(int(part) for part in re.findall(r"\d+", library.version)[:2])
    if found < OLDEST[library.flavor]:
        oldest = ".".join(map(str, OLDEST[library.flavor]))
        raise RuntimeUnavailableError(
            f"{library.title} is too old; expected {oldest} or newer: "
            f"{install_command(library.flavor)}"
        )
    return library
