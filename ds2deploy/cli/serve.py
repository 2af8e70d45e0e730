"""The command `ds2deploy serve`, which serves models over HTTP and WebSockets."""

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

MODELS_HELP = (
    "Models to serve: artifacts or checkpoints. Clients select one by its file name without "
    "suffix, or by the name in NAME=FILE."
)
HOST_HELP = "Address of the network interface to listen on."
PORT_HELP = "TCP port to listen on; 0 takes a free one."
KEY_HELP = (
    f"API key that clients must send. Default: the environment variable {KEY_VARIABLE}, or no key."
)
WYOMING_HELP = "TCP port for Home Assistant (Wyoming protocol). Default: off."
CERT_HELP = "TLS certificate chain (PEM); turns on HTTPS, together with --tls-key."
TLS_KEY_HELP = "Private key of the TLS certificate (PEM)."
STREAMS_HELP = "Maximum number of live streams per model. Default: measured at start-up."
UPLOADS_HELP = "Maximum number of uploads that are processed at the same time."
UPLOAD_MB_HELP = "Maximum size of an upload (MB)."
AUDIO_HELP = "Maximum length of the audio in an upload (seconds)."
IDLE_HELP = "Close a WebSocket that sends nothing for this time (seconds)."
DRAIN_HELP = "Time that streams and requests have to finish after SIGTERM (seconds)."
TICK_HELP = (
    "Start batches only at multiples of this interval (seconds); 0 starts a batch as soon as the "
    "previous one ends."
)


def serve(
    models: Annotated[list[str], argument("MODEL", MODELS_HELP)],
    host: Annotated[str, option("ADDRESS", HOST_HELP, NETWORK)] = "127.0.0.1",
    port: Annotated[int, option("PORT", PORT_HELP, NETWORK, min=0, max=65535)] = 8000,
    api_key: Annotated[str | None, option("KEY", KEY_HELP, NETWORK)] = None,
    wyoming_port: Annotated[
        int | None, option("PORT", WYOMING_HELP, NETWORK, min=0, max=65535)
    ] = None,
    tls_cert: Annotated[Path | None, option("FILE", CERT_HELP, NETWORK)] = None,
    tls_key: Annotated[Path | None, option("FILE", TLS_KEY_HELP, NETWORK)] = None,
    streams: Annotated[int | None, option("COUNT", STREAMS_HELP, LIMITS, min=1)] = None,
    uploads: Annotated[int, option("COUNT", UPLOADS_HELP, LIMITS, min=1)] = 8,
    upload_mb: Annotated[float, option("MB", UPLOAD_MB_HELP, LIMITS)] = 25.0,
    audio: Annotated[float, option("SECONDS", AUDIO_HELP, LIMITS)] = 3600.0,
    idle: Annotated[float, option("SECONDS", IDLE_HELP, LIMITS)] = 60.0,
    drain: Annotated[float, option("SECONDS", DRAIN_HELP, LIMITS)] = 30.0,
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

    The server offers OpenAI's transcription API, WebSockets for live audio, health checks and
    metrics. After SIGTERM it lets streams and requests finish; a second SIGTERM ends it at once.

    Example: ds2deploy serve model.onnx --port 8000
    """
    require("fastapi", "serve")
    if wyoming_port is not None:
        require("wyoming", "serve")
    from ds2deploy.serve.limits import Limits
    from ds2deploy.serve.run import Address, run_server
    from ds2deploy.serve.server import Server

    if (tls_key is None) != (tls_cert is None):
        raise ConfigError("--tls-cert and --tls-key: give both or neither")
    chosen = choose_decoder(decoder, lm, beam, hotwords, phrases, lexicon, None)
    name = known_runtime(runtime)
    loads = {
        key: _opener(path, device, name, threads, chosen) for key, path in _named(models).items()
    }
    limits = Limits(
        streams=streams, uploads=uploads, upload_mb=upload_mb, audio_s=audio, idle_s=idle,
        drain_s=drain,
    )  # fmt: skip
    key = _key(api_key)
    address = Address(
        host=host, port=port, tls_cert=tls_cert, tls_key=tls_key, wyoming_port=wyoming_port
    )
    run_server(
        lambda: Server(loads, limits, api_key=key, tick_s=tick),
        address,
        lambda url: complain(f"serving {', '.join(loads)} at {url}"),
    )


def _key(option: str | None) -> str | None:
    """Read the API key from the option or the environment; None if neither is set.

    Raises:
        ConfigError: the key is empty, or no HTTP header can carry it.
    """
    key, source = (option, "--api-key") if option is not None else (None, KEY_VARIABLE)
    if key is None and (key := os.environ.get(KEY_VARIABLE)) is None:
        return None
    if not key:
        raise ConfigError(f"{source}: empty; set a key, or leave it unset to serve without one")
    if not all("!" <= character <= "~" for character in key):
        raise ConfigError(
            f"{source}: contains characters that an HTTP header cannot carry; use ASCII letters, "
            "digits and signs, without spaces"
        )
    return key


def _opener(
    path: Path, device: str | None, runtime: str | None, threads: int, decoder: MakeDecoder | None
) -> Callable[[], Recognizer]:
    def opened() -> Recognizer:
        from ds2deploy.loading import load

        return load(path, device, runtime, threads, decoder)

    return opened


def _named(models: list[str]) -> dict[str, Path]:
    """Map names to model files: the name of NAME=FILE, or the file name without suffix."""
    found: dict[str, Path] = {}
    for value in models:
        name, equals, path = value.partition("=")
        if not equals or Path(value).exists():
            name, path = Path(value).stem, value
        if not name or not path:
            raise ConfigError(f"{value}: expected FILE, or NAME=FILE")
        if name in found:
            raise ConfigError(f"{value}: another model has the name {name!r}; use NAME=FILE")
        found[name] = Path(path)
    return found
