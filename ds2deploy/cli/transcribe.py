"""`ds2deploy transcribe`: recordings or a stream to text."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ds2deploy.cli.errors import complain, error_text, exit_where_broken
from ds2deploy.cli.options import Device, Json, RuntimeName, Threads, runtime_name
from ds2deploy.cli.printing import print_json, print_json_line, print_line, progress
from ds2deploy.output import escape_control
from ds2deploy.runtimes.errors import FILE_ERRORS, AudioError, ConfigError, Ds2Error

if TYPE_CHECKING:
    from ds2deploy.runtimes.audio.pcm import PcmStream
    from ds2deploy.runtimes.decoding.greedy import Transcript
    from ds2deploy.runtimes.recognizer import Recognizer

STDIN = Path("-")
"""Argument that stands for raw audio on standard input."""


def transcribe(
    model: Annotated[Path, typer.Argument(readable=False, help="Artifact or checkpoint.")],
    audio: Annotated[
        list[Path],
        typer.Argument(
            readable=False,
            help="Recordings of any format and rate; - is raw audio, or WAV, on stdin.",
        ),
    ],
    format_: Annotated[
        str, typer.Option("--format", help="text, json, srt or vtt (subtitles).")
    ] = "text",
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="Print words as they are recognized; with --json, one object per line."
        ),
    ] = False,
    rate: Annotated[
        int | None,
        typer.Option(
            min=1, help="Sample rate of raw 16-bit mono on stdin (Hz); by default the model's."
        ),
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(help="Split recordings longer than this into windows (seconds); default 60."),
    ] = None,
    device: Device = None,
    runtime: RuntimeName = None,
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Print the text of recordings, or of a live stream.

    Several recordings give one line each, with the name of the file. Broken ones are named on
    stderr and the others are transcribed; then the exit code is 1, or 2 if all are broken.

    Example: ds2deploy transcribe model.onnx a.wav --format srt

    While it is spoken: arecord -f S16_LE -r 16000 | ds2deploy transcribe --stream model.onnx -
    """
    from ds2deploy.loading import load
    from ds2deploy.runtimes.decoding.subtitles import Format, to_srt, to_vtt

    kind = "json" if json else format_
    if kind not in get_args(Format):
        raise ConfigError(f"--format {format_}: expected {', '.join(get_args(Format))}")
    if kind in ("srt", "vtt") and len(audio) > 1:
        raise ConfigError(
            f"--format {kind}: subtitles are of one recording, {len(audio)} given; "
            "give one at a time, or use --format json"
        )
    if kind in ("srt", "vtt") and stream:
        raise ConfigError(f"--format {kind}: subtitles are made at the end; leave --stream out")
    if stream and window is not None:
        raise ConfigError(f"--window {window:g}: a stream needs no windows; leave it out")
    piped = STDIN in audio
    if piped and len(audio) > 1:
        raise ConfigError(f"{STDIN}: standard input is one recording; give it alone")
    if rate is not None and not piped:
        raise ConfigError(f"--rate {rate}: is for raw audio on standard input ({STDIN})")
    with load(model, device, runtime_name(runtime), threads) as recognizer:
        if stream:
            _follow_each(recognizer, audio, rate, kind == "json")
            return
        if len(audio) > 1:
            _transcribe_many(recognizer, audio, window, kind == "json")
            return
        if piped:
            pcm = _pipe(recognizer, rate)
            transcript = recognizer.transcribe_pieces(pcm, pcm.format.sample_rate, window, pcm.name)
        else:
            transcript = recognizer.transcribe(audio[0], window_s=window)
    if kind == "json":
        print_json({"transcripts": [_named(audio[0], transcript)]})
    elif kind == "srt":
        typer.echo(to_srt(transcript), nl=False)
    elif kind == "vtt":
        typer.echo(to_vtt(transcript), nl=False)
    else:
        typer.echo(transcript.text)


def _transcribe_many(
    recognizer: Recognizer, audio: list[Path], window: float | None, json: bool
) -> None:
    """Print texts in the order of the input, each as soon as those before it are there."""
    found: dict[int, Transcript | Ds2Error] = {}
    printed, broken, audio_s = 0, 0, 0.0
    with (
        progress("transcribing", len(audio)) as advance,
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
        print_json({"transcripts": [_named(path, found[i]) for i, path in enumerate(audio)]})
    exit_where_broken(broken, len(audio))


def _follow_each(recognizer: Recognizer, audio: list[Path], rate: int | None, json: bool) -> None:
    """Print what is said in recordings as it comes, one after the other."""
    broken = 0
    for path in audio:
        try:
            _follow(recognizer, path, rate, json, len(audio) > 1)
        except FILE_ERRORS as error:
            broken += 1
            complain(error_text(error))
            if json:
                print_json_line({**_named(path, error), "final": True})
    exit_where_broken(broken, len(audio))


def _follow(
    recognizer: Recognizer, path: Path, rate: int | None, json: bool, several: bool
) -> None:
    """Print what is said in one recording, or on standard input, as it comes."""
    from ds2deploy.cli.live_display import (
        Display,
        JsonDisplay,
        LineDisplay,
        WordDisplay,
        follow,
        recording_pieces,
    )

    display: Display
    prefix = f"{escape_control(str(path))}\t" if several else ""
    if json:
        display = JsonDisplay(print_json_line, str(path))
    elif sys.stdout.isatty():
        display = LineDisplay(sys.stdout, prefix)
    else:
        display = WordDisplay(sys.stdout, prefix)
    if path == STDIN:
        pcm = _pipe(recognizer, rate)
        follow(recognizer, pcm, pcm.format.sample_rate, display, pcm.name)
    else:
        own = recognizer.description.features.sample_rate
        follow(recognizer, recording_pieces(path, own), own, display, str(path))


def _pipe(recognizer: Recognizer, rate: int | None) -> PcmStream:
    from ds2deploy.runtimes.audio.pcm import PcmStream

    own = recognizer.description.features.sample_rate
    if sys.stdin is None:
        raise AudioError("standard input: closed; expected raw audio, or a WAV stream")
    return PcmStream(sys.stdin.buffer, rate or own, name="standard input", told=rate is not None)


def _named(path: Path, result: Transcript | Ds2Error) -> dict[str, Any]:
    import msgspec

    if isinstance(result, Ds2Error):
        return {"audio": str(path), "error": error_text(result)}
    return {"audio": str(path), **msgspec.to_builtins(result)}
