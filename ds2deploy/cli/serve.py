"""`ds2deploy serve`: models behind HTTP and WebSockets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ds2deploy.cli.decoding import Beam, Decoder, HotWords, Lexicon, Lm, Phrases, choose_decoder
from ds2deploy.cli.errors import complain
from ds2deploy.cli.options import Device, RuntimeName, Threads, argument, known_runtime, option
from ds2deploy.runtimes.errors import ConfigError, require

if TYPE_CHECKING:
    from ds2deploy.runtimes.decoding.decoder import MakeDecoder
    from ds2deploy.runtimes.recognizer import Recognizer

NETWORK, LIMITS = "Network", "Limits"

KEY_VARIABLE = "DS2DEPLOY_API_KEY"

MODELS_HELP = "Artifacts or checkpoints; clients name them by file name, or by NAME=FILE."
KEY_HELP = f"Key that clients must send. Default: the environment variable {KEY_VARIABLE}, or none."
WYOMING_HELP = "TCP port for Home Assistant (Wyoming protocol). Default: none."
STREAMS_HELP = "Maximum of live streams for each model. Default: measured at the start."
TICK_HELP = "Begin batches only at multiples of so many seconds; 0 when the last one has ended."


def serve(
    models: Annotated[list[str], argument("MODEL...", MODELS_HELP)],
    host: Annotated[str, option("ADDRESS", "Interface to listen on.", NETWORK)] = "127.0.0.1",
    port: Annotated[
        int, option("PORT", "TCP port; 0 takes a free one.", NETWORK, min=0, max=65535)
    ] = 8000,
    api_key: Annotated[str | None, option("KEY", KEY_HELP, NETWORK)] = None,
    wyoming_port: Annotated[
        int | None, option("PORT", WYOMING_HELP, NETWORK, min=0, max=65535)
    ] = None,
    tls_cert: Annotated[Path | None, option("FILE", "Certificate chain (PEM).", NETWORK)] = None,
    tls_key: Annotated[Path | None, option("FILE", "Its private key (PEM).", NETWORK)] = None,
    streams: Annotated[int | None, option("COUNT", STREAMS_HELP, LIMITS, min=1)] = None,
    uploads: Annotated[
        int, option("COUNT", "Recordings that are decoded at a time.", LIMITS, min=1)
    ] = 8,
    upload_mb: Annotated[float, option("MB", "Maximum size of an upload.", LIMITS)] = 25.0,
    audio: Annotated[float, option("SECONDS", "Maximum of audio in an upload.", LIMITS)] = 3600.0,
    idle: Annotated[
        float, option("SECONDS", "Close a WebSocket that sends nothing for so long.", LIMITS)
    ] = 60.0,
    drain: Annotated[
        float, option("SECONDS", "Time to finish streams after SIGTERM.", LIMITS)
    ] = 30.0,
    tick: Annotated[float, option("SECONDS", TICK_HELP, LIMITS, min=0.0, max=10.0)] = 0.0,
    decoder: Decoder = None,
    lm: Lm = None,
    beam: Beam = None,
    hotwords: HotWords = None,
    phrases: Phrases = None,
    lexicon: Lexicon = None,
    device: Device = None,
    runtime: RuntimeName = None,
    threads: Threads = 0,
) -> None:
    """Serve models over HTTP and WebSockets.

    OpenAI's transcription API, a WebSocket for live audio, health and metrics. SIGTERM lets streams
    and requests finish; a second one ends at once.

    Example: ds2deploy serve model.onnx --port 8000
    """
    require("fastapi", "serve")
    if wyoming_port is not None:
        require("wyoming", "serve")
    from ds2deploy.serve.limits import Limits
    from ds2deploy.serve.run import Address, run_server
    from ds2deploy.serve.server import Server

    if (tls_key is None) != (tls_cert is None):
        raise ConfigError("--tls-cert and --tls-key: give both, or neither")
    chosen = choose_decoder(decoder, lm, beam, hotwords, phrases, lexicon, None)
    name = known_runtime(runtime)
    loads = {
        key: _opener(path, device, name, threads, chosen) for key, path in _named(models).items()
    }
    limits = Limits(
        streams=streams, uploads=uploads, upload_mb=upload_mb, audio_s=audio, idle_s=idle,
        drain_s=drain,
    )  # fmt: skip
    key = api_key or os.environ.get(KEY_VARIABLE) or None
    address = Address(
        host=host, port=port, tls_cert=tls_cert, tls_key=tls_key, wyoming_port=wyoming_port
    )
    run_server(
        lambda: Server(loads, limits, api_key=key, tick_s=tick),
        address,
        lambda url: complain(f"serving {', '.join(loads)} at {url}"),
    )


def _opener(
    path: Path, device: str | None, runtime: str | None, threads: int, decoder: MakeDecoder | None
) -> Callable[[], Recognizer]:
    def opened() -> Recognizer:
        from ds2deploy.loading import load

        return load(path, device, runtime, threads, decoder)

    return opened


def _named(models: list[str]) -> dict[str, Path]:
    """Name each model: NAME=FILE, or the stem of the file."""
    found: dict[str, Path] = {}
    for value in models:
        name, equals, path = value.partition("=")
        if not equals or Path(value).exists():
            name, path = Path(value).stem, value
        if not name or name in found:
            raise ConfigError(f"{value}: two models named {name!r}; give them names: NAME=FILE")
        found[name] = Path(path)
    return found
