"""Train DeepSpeech 2, export it to ONNX, run it without PyTorch, and prove that they agree.

    import ds2deploy

    recognizer = ds2deploy.load("model.onnx")
    print(recognizer.transcribe("a.wav").text)

Importing this package loads no heavy modules; its names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ds2deploy.version import __version__ as __version__

if TYPE_CHECKING:
    from ds2deploy.loading import load as load
    from ds2deploy.runtimes.decoding.config import DecoderConfig as DecoderConfig
    from ds2deploy.runtimes.decoding.decoder import Decoder as Decoder
    from ds2deploy.runtimes.decoding.decoder import HotWordDecoder as HotWordDecoder
    from ds2deploy.runtimes.decoding.decoder import MakeDecoder as MakeDecoder
    from ds2deploy.runtimes.decoding.greedy import GreedyDecoder as GreedyDecoder
    from ds2deploy.runtimes.decoding.greedy import GreedyState as GreedyState
    from ds2deploy.runtimes.decoding.rewriting import RewritingDecoder as RewritingDecoder
    from ds2deploy.runtimes.decoding.rewriting import rewrite_words as rewrite_words
    from ds2deploy.runtimes.decoding.transcript import Alternative as Alternative
    from ds2deploy.runtimes.decoding.transcript import Span as Span
    from ds2deploy.runtimes.decoding.transcript import Transcript as Transcript
    from ds2deploy.runtimes.decoding.transcript import Update as Update
    from ds2deploy.runtimes.decoding.transcript import Word as Word
    from ds2deploy.runtimes.errors import AlphabetError as AlphabetError
    from ds2deploy.runtimes.errors import AudioError as AudioError
    from ds2deploy.runtimes.errors import BackPressureError as BackPressureError
    from ds2deploy.runtimes.errors import ConfigError as ConfigError
    from ds2deploy.runtimes.errors import DeviceError as DeviceError
    from ds2deploy.runtimes.errors import Ds2Error as Ds2Error
    from ds2deploy.runtimes.errors import FeaturesError as FeaturesError
    from ds2deploy.runtimes.errors import ManifestError as ManifestError
    from ds2deploy.runtimes.errors import MissingFileError as MissingFileError
    from ds2deploy.runtimes.errors import ModelFileError as ModelFileError
    from ds2deploy.runtimes.errors import ParityError as ParityError
    from ds2deploy.runtimes.errors import RuntimeUnavailableError as RuntimeUnavailableError
    from ds2deploy.runtimes.errors import StreamError as StreamError
    from ds2deploy.runtimes.errors import TrainingError as TrainingError
    from ds2deploy.runtimes.recognizer import Recognizer as Recognizer
    from ds2deploy.runtimes.streaming.endpoint import Endpoint as Endpoint
    from ds2deploy.runtimes.streaming.pool import PooledStream as PooledStream
    from ds2deploy.runtimes.streaming.pool import StreamPool as StreamPool
    from ds2deploy.runtimes.streaming.stream import Stream as Stream

_ERRORS = (
    "AlphabetError",
    "AudioError",
    "BackPressureError",
    "ConfigError",
    "DeviceError",
    "Ds2Error",
    "FeaturesError",
    "ManifestError",
    "MissingFileError",
    "ModelFileError",
    "ParityError",
    "RuntimeUnavailableError",
    "StreamError",
    "TrainingError",
)
_HOMES = {
    "Alternative": "ds2deploy.runtimes.decoding.transcript",
    "DecoderConfig": "ds2deploy.runtimes.decoding.config",
    "Decoder": "ds2deploy.runtimes.decoding.decoder",
    "Endpoint": "ds2deploy.runtimes.streaming.endpoint",
    "GreedyDecoder": "ds2deploy.runtimes.decoding.greedy",
    "GreedyState": "ds2deploy.runtimes.decoding.greedy",
    "HotWordDecoder": "ds2deploy.runtimes.decoding.decoder",
    "load": "ds2deploy.loading",
    "MakeDecoder": "ds2deploy.runtimes.decoding.decoder",
    "Recognizer": "ds2deploy.runtimes.recognizer",
    "rewrite_words": "ds2deploy.runtimes.decoding.rewriting",
    "RewritingDecoder": "ds2deploy.runtimes.decoding.rewriting",
    "Span": "ds2deploy.runtimes.decoding.transcript",
    "PooledStream": "ds2deploy.runtimes.streaming.pool",
    "Stream": "ds2deploy.runtimes.streaming.stream",
    "StreamPool": "ds2deploy.runtimes.streaming.pool",
    "Transcript": "ds2deploy.runtimes.decoding.transcript",
    "Update": "ds2deploy.runtimes.decoding.transcript",
    "Word": "ds2deploy.runtimes.decoding.transcript",
    **dict.fromkeys(_ERRORS, "ds2deploy.runtimes.errors"),
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ds2deploy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
