"""What an installation lacks, and the command that adds it."""

from __future__ import annotations

import importlib.util

from ds2deploy.runtimes.errors import RuntimeUnavailableError


def require(module: str, extra: str) -> None:
    """Refuse to go on without a package.

    Args:
        module: that is about to be imported.
        extra: of ds2deploy that brings it.

    Raises:
        RuntimeUnavailableError: it is not installed; names the extra.
    """
    if importlib.util.find_spec(module) is None:
        raise RuntimeUnavailableError(
            f"this needs {module}, which is not installed: pip install 'ds2deploy[{extra}]'"
        )
