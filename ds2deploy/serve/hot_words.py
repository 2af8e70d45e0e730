"""Checks of the hot words of a request or stream."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Sequence

from ds2deploy.runtimes.errors import AlphabetError, ConfigError
from ds2deploy.serve.limits import RefusedError
from ds2deploy.serve.models import Model

MOST_HOT_WORDS = 1000
"""Maximum number of hot words in one request or stream."""

PREFIX = re.compile("^hot words?: ")
"""Start of a decoder's errors, which the name of the parameter replaces."""


def check_hot_words(hot_words: Sequence[str], param: str, model: Model | None = None) -> None:
    """Check the hot words of a request, before they are given to its decoder.

    Args:
        hot_words: phrases of a client.
        param: name of the parameter that contains them.
        model: model that has to look for them; None checks only their number.

    Raises:
        RefusedError: there are more than `MOST_HOT_WORDS`, one has a weight, or the model is
            served without a beam search.
    """
    if len(hot_words) > MOST_HOT_WORDS:
        raise _unusable(f"{len(hot_words)} phrases; send at most {MOST_HOT_WORDS}", param)
    if model is None or not hot_words:
        return
    if not model.takes_hot_words:
        raise _unusable(
            f"model {model.name!r} is served without a beam search, which hot words need; start "
            "`ds2deploy serve` with --beam 64, --hotwords or --lm",
            param,
        )
    for phrase in hot_words:
        if ":" in phrase and ":" not in model.labels:
            raise _unusable(
                f"{phrase[:60]!r}: no label for ':'; hot words of a request have no weights, send "
                "the phrase alone",
                param,
            )


@contextlib.contextmanager
def naming(param: str, hot_words: Collection[str] | None) -> Iterator[None]:
    """Refuse hot words that a decoder cannot look for, and name their parameter.

    Args:
        param: name of the parameter that contains them.
        hot_words: phrases of a client; without any, errors of the decoder stay as they are.

    Raises:
        RefusedError: a phrase is empty or too long, or has characters without a label.
    """
    try:
        yield
    except (AlphabetError, ConfigError) as error:
        if not hot_words:
            raise
        raise _unusable(PREFIX.sub("", str(error)), param) from None


def _unusable(reason: str, param: str) -> RefusedError:
    return RefusedError(400, f"{param}: {reason}", "invalid_value", param)
