"""Cache of TensorRT-RTX's compiled kernels, beside the engine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ds2deploy.runtimes.errors import DeviceError, one_line
from ds2deploy.runtimes.files import whole_file

LOG = logging.getLogger("ds2deploy")

CACHE_SUFFIX = ".cache"
"""Added to the engine's name."""


class RuntimeCache:
    """Kernels that TensorRT-RTX compiled for this GPU, kept for the next start.

    Attributes:
        config: configuration for new execution contexts.
    """

    def __init__(self, config: Any, path: Path) -> None:
        if config is None:
            raise DeviceError("TensorRT-RTX could not create a runtime configuration")
        self._path = path
        self.config = config
        self._cache = self._load() or config.create_runtime_cache()
        if self._cache is None:
            raise DeviceError("TensorRT-RTX could not create a runtime cache")
        self._stored = self._content()
        if not config.set_runtime_cache(self._cache):
            LOG.warning(
                "%s: TensorRT-RTX cannot use a cache; every start compiles the engine again", path
            )

    def save(self) -> None:
        """Write it beside the engine where it has changed; a folder that takes no file is no
        error, only a slow next start.
        """
        try:
            content = self._content()
            if content == self._stored:
                return
            with whole_file(self._path) as temporary:
                temporary.write_bytes(content)
        except (OSError, RuntimeError) as error:
            LOG.warning(
                "%s: cannot be written (%s); the next start compiles the engine again",
                self._path,
                one_line(error),
            )

    def _load(self) -> Any:
        """Read the cache in the file; None if there is none that can be used."""
        if not self._path.is_file():
            return None
        cache = self.config.create_runtime_cache()
        try:
            if cache is not None and cache.deserialize(self._path.read_bytes()):
                return cache
            reason = "not a cache of this library version and GPU"
        except (OSError, RuntimeError) as error:
            reason = one_line(error)
        LOG.warning("%s: ignored (%s); TensorRT-RTX compiles the engine again", self._path, reason)
        return None

    def _content(self) -> bytes:
        content = self._cache.serialize()
        return b"" if content is None else bytes(content)
