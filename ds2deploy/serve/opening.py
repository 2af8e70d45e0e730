"""Opening of a model as a streaming model or a model of whole utterances."""

from __future__ import annotations

from collections.abc import Callable

from ds2deploy.runtimes.errors import StreamError
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.serve.limits import Limits
from ds2deploy.serve.measuring import MeasuredSession
from ds2deploy.serve.metrics import Metrics
from ds2deploy.serve.models import Model
from ds2deploy.serve.streaming_model import StreamingModel
from ds2deploy.serve.turn import Turn
from ds2deploy.serve.whole_model import WholeModel


def open_model(
    name: str,
    load: Callable[[], Recognizer],
    limits: Limits,
    metrics: Metrics,
    turn: Turn,
    tick_s: float = 0.0,
) -> Model:
    """Open a model as `StreamingModel` or `WholeModel`, in the event loop's thread.

    See `Model` for the arguments.
    """

    def measured() -> Recognizer:
        found = load()
        return Recognizer(MeasuredSession(found.session), lambda *_: found.decoder)

    first = measured()
    kind = StreamingModel if _can_stream(first) else WholeModel
    opened = iter([first])
    return kind(name, lambda: next(opened, None) or measured(), limits, metrics, turn, tick_s)


def _can_stream(recognizer: Recognizer) -> bool:
    try:
        recognizer.pool().close()
    except StreamError:
        return False
    return True
