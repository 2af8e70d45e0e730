"""Readers of files from outside: the public function of each, and the errors that it may raise."""

from __future__ import annotations

import gzip
import io
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import seeds
import soundfile

from ds2deploy.runtimes.errors import AudioWarning, Ds2Error

MEMBERS = 50
"""Utterances of a manifest that are looked at, at most: a case is to take milliseconds."""


class Target(NamedTuple):
    """A reader.

    Attributes:
        name: name of the reader.
        seeds: makes contents that it takes.
        read: reads a content in the current folder, which holds what `furnish` left there.
        kind: `binary`, `text` or `pickle`, which decides how contents are changed.
        tokens: words of the format.
        writes: pattern of what a library in C writes to stderr, which nothing here can keep it
            from.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[bytes], object]
    kind: str = "binary"
    tokens: tuple[bytes, ...] = ()
    writes: str = ""


def is_explained(error: BaseException) -> bool:
    """Check that the command line prints one line for it: what is wrong with which file."""
    return isinstance(error, Ds2Error) or (isinstance(error, OSError) and bool(error.strerror))


def furnish(folder: Path) -> None:
    """Write what manifests point at."""
    soundfile.write(folder / "a.wav", seeds.tone(), seeds.RATE)
    soundfile.write(folder / "b.flac", seeds.tone(channels=2), seeds.RATE)
    (folder / "a.txt").write_text("A B\n")
    (folder / "model.engine").write_bytes(seeds.ENGINE)


def _file(name: str, content: bytes) -> Path:
    path = Path(name)
    path.write_bytes(content)
    return path


def _audio(content: bytes) -> None:
    from ds2deploy.inspection import inspect_file
    from ds2deploy.runtimes.audio.loading import load_audio

    path = _file("case.wav", content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)  # a line for a person
        try:
            load_audio(path, 16_000)
        finally:
            inspect_file(path)


def _pcm(content: bytes) -> None:
    from ds2deploy.runtimes.audio.checks import check_stream_rate
    from ds2deploy.runtimes.audio.pcm import PcmStream
    from ds2deploy.runtimes.audio.samples import mono_pieces, resample_pieces

    stream = PcmStream(io.BytesIO(content), 16_000)
    rate = stream.format.sample_rate
    check_stream_rate(rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)
        for _ in resample_pieces(mono_pieces(stream, rate, "-"), rate, 16_000):
            pass


def _onnx(content: bytes) -> None:
    from ds2deploy.inspection import inspect_file

    _description(content)
    inspect_file("case.onnx")


def _description(content: bytes) -> None:
    from ds2deploy.runtimes.alphabet import Alphabet
    from ds2deploy.runtimes.features import FeatureExtractor
    from ds2deploy.runtimes.onnx.metadata import read_onnx_description

    path = _file("case.onnx", content)
    description = read_onnx_description(path)
    Alphabet(description.labels)
    FeatureExtractor(description.features)


def _engine(content: bytes) -> None:
    from ds2deploy.inspection import inspect_file
    from ds2deploy.runtimes.engine_description import runs_on
    from ds2deploy.runtimes.features import FeatureExtractor
    from ds2deploy.runtimes.tensorrt.engine_file import read_engine

    _file("model.engine.json", seeds.sealed_again(content))
    description, engine, _ = read_engine(Path("model.engine"))
    runs_on(engine, "8.9")
    FeatureExtractor(description.features)
    inspect_file("model.engine")


def _recipe(content: bytes) -> None:
    from ds2deploy.recipes import load_recipe

    load_recipe(str(_file("case.toml", content)))


def _overrides(content: bytes) -> None:
    from ds2deploy.recipes import load_recipe

    load_recipe("demo", content.decode("utf-8", "surrogateescape").split("\n"))


def _manifest(name: str, content: bytes) -> None:
    from ds2deploy.data.cuts import read_audio
    from ds2deploy.data.manifest import check_transcripts, read_manifest
    from ds2deploy.inspection import inspect_file
    from ds2deploy.runtimes.alphabet import Alphabet

    path = _file(name, content)
    cuts = list(read_manifest(path))[:MEMBERS]
    inspect_file(path)
    check_transcripts(cuts, Alphabet("_AB "), path)
    for cut in cuts[:3]:
        read_audio(cut, seeds.RATE)


def _listed(name: str, content: bytes) -> None:
    from ds2deploy.data.preparation import PrepareOptions, prepare
    from ds2deploy.runtimes.alphabet import Alphabet

    path = _file(name, content)
    prepare(path, Path("out"), Alphabet("_AB "), PrepareOptions(leave_out=True))


def _transcript(content: bytes) -> None:
    from ds2deploy.data.utterance import with_transcript

    if error := with_transcript(Path("a.wav"), _file("case.txt", content)).error:
        raise error


@cache
def _archive(foreign: bool) -> seeds.Archive:
    return seeds.Archive(seeds.foreign_checkpoint() if foreign else seeds.checkpoint())


def _checkpoint(content: bytes) -> None:
    from ds2deploy.inspection import inspect_file

    inspect_file(_file("case.ckpt", content))


def _resumed(content: bytes) -> None:
    from ds2deploy.recipes import load_recipe
    from ds2deploy.training.resuming import begin, begun_recipe
    from ds2deploy.training.run_folder import RunFolder

    _file("last.ckpt", _archive(False).around(content))
    sizes = ["model.rnn=gru", "model.hidden=4", "model.layers=2", "features.sample_rate=1000"]
    begun_recipe(RunFolder(Path()))
    begin(RunFolder(Path()), load_recipe("demo", [*sizes, "labels=_AB "]), resume=True)


def _metrics(content: bytes) -> None:
    from ds2deploy.training.run_folder import RunFolder

    _file("metrics.jsonl", content)
    folder = RunFolder(Path())
    folder.best_metrics()
    folder.rewind(3)


def _language_model(content: bytes) -> None:
    from ds2deploy.inspection import inspect_file
    from ds2deploy.runtimes.decoding.language_model import read_language_model

    path = _file("case.lm", seeds.summed_again(content))
    inspect_file(path)
    model = read_language_model(path)
    model.check_labels(model.header.labels)
    states, words = np.full(len(model), model.start), np.arange(len(model))
    for _ in range(4):
        states, scores = model.score(states, words)
        assert not np.isnan(scores).any()
    model.word_ids(model.words)
    if model.kind == "characters":
        model.dense()


def _decoder(content: bytes) -> None:
    from ds2deploy.inspection import inspect_file
    from ds2deploy.runtimes.alphabet import Alphabet
    from ds2deploy.runtimes.decoding.decoder import decode_batch
    from ds2deploy.runtimes.decoding.decoder_file import read_decoder_file

    path = _file("case.decoder", content)
    inspect_file(path)
    settings = read_decoder_file(path)
    rows = np.log(np.full((1, 5, 4), 0.25, np.float32))
    decode_batch(settings(Alphabet("_AB "), 0.02), rows, np.array([5]), [0.1])


def _text(name: str, content: bytes) -> None:
    from ds2deploy.language_models.make import LanguageModelOptions, make_language_model
    from ds2deploy.runtimes.alphabet import Alphabet
    from ds2deploy.runtimes.decoding.language_model import read_language_model

    path, out = _file(name, content), Path("out.lm")
    make_language_model([path], out, Alphabet("_AB "), LanguageModelOptions())
    len(read_language_model(out).words)


WAV_WORDS = (b"RIFF", b"RIFX", b"RF64", b"WAVE", b"fmt ", b"data", b"ds64", b"fact", b"LIST",
             b"JUNK", b"bext", b"\xff\xff\xff\xff", b"\xfe\xff")  # fmt: skip
AUDIO_WORDS = (*WAV_WORDS, b"fLaC", b"OggS", b"vorbis", b"OpusHead", b"ID3", b"Xing", b"FORM",
               b"AIFC", b"COMM", b"SSND", b".snd", b"caff", b"desc", b"pakt", b"kuki", b"\xff\xfb",
               b"Creative Voice File\x1a", b"NIST_1A\n   1024\n")  # fmt: skip
MPG123 = r"\s*(Note: |Warning: |\[src/libmpg123)"
ARPA_WORDS = (b"\\data\\", b"\\1-grams:", b"\\2-grams:", b"\\end\\", b"ngram 1=", b"\n", b"\t",
              b"-99", b"nan", b"inf", b"1e400", b"<unk>", b"<s>", b"</s>", b"A B")  # fmt: skip
JSON_WORDS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"{", b"}", b"[", b"]", b",", b":", b"\n")
CUT_WORDS = (*JSON_WORDS, b'"type": "url"', b'"type": "command"', b'"transforms": []',
             b'"features": {}', b'"PaddingCut"', b'"MultiCut"', b'"snr": -1e9', b"a.wav",
             b"b.flac")  # fmt: skip
TOML_WORDS = (*JSON_WORDS, b"=", b".", b"#", b"[[data]]", b"[model]", b"'", b'"""', b"a.b.c = 1")


def _gzipped(contents: Sequence[bytes]) -> list[bytes]:
    return [gzip.compress(content, mtime=0) for content in contents]


TARGETS = {
    target.name: target
    for target in (
        Target("audio", seeds.sounds, _audio, tokens=AUDIO_WORDS, writes=MPG123),
        Target("pcm", seeds.streams, _pcm, tokens=WAV_WORDS),
        Target("onnx", seeds.onnx_files, _onnx, tokens=(b"\x72\x80\x01", b"ds2deploy")),
        Target(
            "onnx-document",
            seeds.descriptions,
            lambda content: _description(seeds.onnx_file(content)),
            "text",
            JSON_WORDS,
        ),
        Target("engine", seeds.engine_descriptions, _engine, "text", JSON_WORDS),
        Target("recipe", seeds.recipes, _recipe, "text", TOML_WORDS),
        Target("set", seeds.overrides, _overrides, "text", TOML_WORDS),
        Target(
            "cuts",
            seeds.cut_manifests,
            lambda content: _manifest("case.jsonl", content),
            "text",
            CUT_WORDS,
        ),
        Target(
            "cuts-gzip",
            lambda: _gzipped(seeds.cut_manifests()),
            lambda content: _manifest("case.jsonl.gz", content),
        ),
        Target(
            "manifest-json",
            seeds.json_manifests,
            lambda content: _manifest("case.json", content),
            "text",
            JSON_WORDS,
        ),
        Target(
            "manifest-csv",
            seeds.csv_manifests,
            lambda content: _manifest("case.csv", content),
            "text",
            (b",", b'"', b"\r", b"\0", b"\xef\xbb\xbf", b"\xff\xfe"),
        ),
        Target(
            "prepare-json",
            seeds.json_manifests,
            lambda content: _listed("case.json", content),
            "text",
            JSON_WORDS,
        ),
        Target(
            "prepare-csv",
            seeds.csv_manifests,
            lambda content: _listed("case.csv", content),
            "text",
            (b",", b'"', b"\r", b"\0", b"\xef\xbb\xbf", b"\xff\xfe"),
        ),
        Target("language-model", seeds.language_models, _language_model, tokens=JSON_WORDS),
        Target(
            "decoder", seeds.decoders, _decoder, "text", (*JSON_WORDS, b"null", b"1e999", b"A B")
        ),
        Target(
            "arpa",
            lambda: [seeds.ARPA],
            lambda content: _text("case.arpa", content),
            "text",
            ARPA_WORDS,
        ),
        Target(
            "text",
            lambda: [b"A B\nB, A\n\nA\n", "A\u2014B\r\n\u00c4 B".encode("utf-16")],
            lambda content: _text("case.txt", content),
            "text",
            (b"\0", b"\r", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"1", b"\\data\\\n"),
        ),
        Target(
            "text-gzip",
            lambda: _gzipped([b"A B\nB A\n", seeds.ARPA]),
            lambda content: _text("case.gz", content),
        ),
        Target("transcript", lambda: [b"A B\n", b"\xef\xbb\xbfA\r\nB"], _transcript, "text"),
        Target(
            "checkpoint",
            lambda: [_archive(False).pickle],
            lambda content: _checkpoint(_archive(False).around(content)),
            "pickle",
        ),
        Target(
            "deepspeech",
            lambda: [_archive(True).pickle],
            lambda content: _checkpoint(_archive(True).around(content)),
            "pickle",
        ),
        Target("archive", seeds.small_archives, _checkpoint, tokens=(b"PK\1\2", b"PK\5\6")),
        Target("resumed", lambda: [_archive(False).pickle], _resumed, "pickle"),
        Target(
            "metrics",
            lambda: [
                b'{"kind": "valid", "step": 1, "wer": 0.5, "cer": null, "epoch": 1}\n'
                b'{"kind": "train", "step": 2, "loss": 1.5}\n'
            ],
            _metrics,
            "text",
            JSON_WORDS,
        ),
    )
}
