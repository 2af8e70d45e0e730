"""The command `ds2deploy transcribe`, which turns recordings or live audio into text."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ds2deploy.cli.decoding import (
    Beam,
    Decoder,
    HotWords,
    Lexicon,
    Lm,
    NBest,
    Phrases,
    choose_decoder,
)
from ds2deploy.cli.errors import complain, error_text, exit_if_failed
from ds2deploy.cli.options import (
    MODEL_HELP,
    STDIN,
    Device,
    Json,
    RuntimeName,
    Threads,
    argument,
    flag,
    known_runtime,
    option,
)
from ds2deploy.heartbeat import file_progress
from ds2deploy.output import escape_control, print_json, print_line
from ds2deploy.runtimes.errors import FILE_ERRORS, AudioError, ConfigError, Ds2Error

if TYPE_CHECKING:
    from ds2deploy.runtimes.audio.pcm import PcmStream
    from ds2deploy.runtimes.decoding.transcript import Transcript
    from ds2deploy.runtimes.recognizer import Recognizer

STREAMING = "Streaming"
"""Title of the option group for live audio."""

AUDIO_HELP = "Recordings of any format and sample rate; - reads raw or WAV audio from stdin."
FORMAT_HELP = "Output format; srt and vtt write subtitles of one recording."
WINDOW_HELP = (
    "Split longer recordings into overlapping windows of this length (seconds). Default: 60."
)
STREAM_HELP = "Print words as soon as they are certain; with --json, one JSON object per line."
ENDPOINT_HELP = "Start a new line after this much silence (seconds), such as 1.2. Default: never."
RATE_HELP = "Sample rate of raw 16-bit mono audio on stdin (Hz). Default: the model's."


def transcribe(
    model: Annotated[Path, argument("MODEL", MODEL_HELP)],
    audio: Annotated[list[Path], argument("AUDIO", AUDIO_HELP)],
    format_: Annotated[
        Literal["text", "json", "srt", "vtt"],
        typer.Option("--format", metavar="text|json|srt|vtt", help=FORMAT_HELP),
    ] = "text",
    window: Annotated[float | None, option("SECONDS", WINDOW_HELP)] = None,
    stream: Annotated[bool, flag("--stream", STREAM_HELP, STREAMING)] = False,
    rate: Annotated[int | None, option("HZ", RATE_HELP, STREAMING, min=1)] = None,
    decoder: Decoder = None,
    lm: Lm = None,
    beam: Beam = None,
    hotwords: HotWords = None,
    phrases: Phrases = None,
    lexicon: Lexicon = None,
    nbest: NBest = None,
    endpoint: Annotated[float | None, option("SECONDS", ENDPOINT_HELP, STREAMING)] = None,
    device: Device = None,
    runtime: RuntimeName = None,
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Print the text that is spoken in recordings.

    With several recordings, each gets one line, the file name before the text. Broken recordings
    are reported on stderr and skipped; the exit code is then 1, or 2 if all are broken.

    Example: ds2deploy transcribe model.onnx a.wav --format srt

    From a microphone: arecord -f S16_LE -r 16000 | ds2deploy transcribe --stream model.onnx -
    """
    from ds2deploy.loading import load

    kind = "json" if json else format_
    _check(kind, stream, window, rate, endpoint, audio, nbest)
    chosen = choose_decoder(decoder, lm, beam, hotwords, phrases, lexicon, nbest)
    with load(model, device, known_runtime(runtime), threads, chosen) as recognizer:
        if stream:
            _transcribe_live(recognizer, audio, rate, kind == "json", endpoint)
        elif len(audio) > 1:
            _transcribe_many(recognizer, audio, window, kind == "json")
        elif STDIN in audio:
            pcm = _standard_input(recognizer, rate)
            _print(
                recognizer.transcribe_pieces(pcm, pcm.format.sample_rate, window, pcm.name),
                audio[0],
                kind,
            )
        else:
            _print(recognizer.transcribe(audio[0], window_s=window), audio[0], kind)


def _check(
    kind: str,
    stream: bool,
    window: float | None,
    rate: int | None,
    endpoint: float | None,
    audio: list[Path],
    nbest: int | None,
) -> None:
    """Raise a ConfigError for values out of range and options that exclude each other."""
    from ds2deploy.runtimes.streaming.endpoint import LONGEST_S

    if nbest is not None and kind != "json":
        raise ConfigError(f"--nbest {nbest}: requires JSON output; add --json")
    if kind in ("srt", "vtt") and len(audio) > 1:
        raise ConfigError(
            f"--format {kind}: expected one recording, not {len(audio)}; run the command once per "
            "recording, or use --format json"
        )
    if kind in ("srt", "vtt") and stream:
        raise ConfigError(f"--format {kind}: subtitles cannot be streamed; omit --stream")
    if endpoint is not None and not stream:
        raise ConfigError(f"--endpoint {endpoint:g}: requires a stream; add --stream")
    if endpoint is not None and not 0 < endpoint < LONGEST_S:
        raise ConfigError(
            f"--endpoint {endpoint:g}: expected seconds, more than 0 and less than {LONGEST_S}, "
            "such as 1.2"
        )
    if stream and window is not None:
        raise ConfigError(f"--window {window:g}: not for streams; omit --window or --stream")
    if STDIN in audio and len(audio) > 1:
        raise ConfigError(
            f"{STDIN}: standard input cannot be combined with recordings; give {STDIN} alone"
        )
    if rate is not None and STDIN not in audio:
        raise ConfigError(
            f"--rate {rate}: only for raw audio on standard input; omit --rate, or give {STDIN} as "
            "AUDIO"
        )


def _print(transcript: Transcript, path: Path, kind: str) -> None:
    from ds2deploy.runtimes.decoding.subtitles import to_srt, to_vtt

    if kind == "json":
        print_json({"transcripts": [_with_name(path, transcript)]})
    elif kind == "text":
        typer.echo(transcript.text)
    else:
        typer.echo(to_srt(transcript) if kind == "srt" else to_vtt(transcript), nl=False)


def _transcribe_many(
    recognizer: Recognizer, audio: list[Path], window: float | None, json: bool
) -> None:
    """Print texts in the order of the input, each as soon as its predecessors are printed."""
    found: dict[int, Transcript | Ds2Error] = {}
    printed, broken, audio_s = 0, 0, 0.0
    with (
        file_progress("transcribing", len(audio)) as advance,
        closing(recognizer.transcribe_many(audio, window_s=window)) as results,
    ):
        for item in results:
            found[item.index] = item.result
            if isinstance(item.result, Ds2Error):
                broken += 1
                complain(error_text(item.result))
            while not json and printed in found:
                result = found.pop(printed)
                if not isinstance(result, Ds2Error):
                    print_line(f"{escape_control(str(audio[printed]))}\t{result.text}")
                printed += 1
            audio_s += item.audio_s
            advance(printed + len(found), audio_s)
    if json:
        print_json({"transcripts": [_with_name(path, found[i]) for i, path in enumerate(audio)]})
    _end(broken, len(audio))


def _transcribe_live(
    recognizer: Recognizer,
    audio: list[Path],
    rate: int | None,
    json: bool,
    endpoint: float | None,
) -> None:
    """Print words of recordings as they become certain, one recording after another."""
    broken = 0
    for path in audio:
        try:
            _follow(recognizer, path, rate, json, len(audio) > 1, endpoint)
        except FILE_ERRORS as error:
            broken += 1
            complain(error_text(error))
            if json:
                print_json({**_with_name(path, error), "final": True}, in_one_line=True)
    _end(broken, len(audio))


def _follow(
    recognizer: Recognizer,
    path: Path,
    rate: int | None,
    json: bool,
    several: bool,
    endpoint: float | None,
) -> None:
    """Print words of one recording, or of standard input, as they become certain."""
    from ds2deploy.cli.live_display import follow, make_display, recording_pieces
    from ds2deploy.runtimes.streaming.endpoint import Endpoint

    rules = None if endpoint is None else Endpoint(silence_s=endpoint)
    display = make_display(path, json, several)
    if path == STDIN:
        pcm = _standard_input(recognizer, rate)
        follow(recognizer, pcm, pcm.format.sample_rate, display, pcm.name, rules)
    else:
        own = recognizer.description.features.sample_rate
        follow(recognizer, recording_pieces(path, own), own, display, str(path), rules)


def _standard_input(recognizer: Recognizer, rate: int | None) -> PcmStream:
    from ds2deploy.runtimes.audio.pcm import PcmStream

    own = recognizer.description.features.sample_rate
    if sys.stdin is None:
        raise AudioError("standard input: closed; expected raw audio, or a WAV stream")
    return PcmStream(sys.stdin.buffer, rate or own, name="standard input", told=rate is not None)


def _with_name(path: Path, result: Transcript | Ds2Error) -> dict[str, Any]:
    import msgspec

    if isinstance(result, Ds2Error):
        return {"audio": str(path), "error": error_text(result)}
    return {"audio": str(path), **msgspec.to_builtins(result)}


def _end(broken: int, total: int) -> None:
    """Report the number of transcribed recordings if some were broken, and exit with the code."""
    if broken and total > 1:
        complain(f"{total - broken} of {total} recordings transcribed")
    exit_if_failed(broken, total)
