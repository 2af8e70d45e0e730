"""Good files of every kind, made anew and always the same: what the mutators begin with."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import soundfile

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.artifact import METADATA_KEY, ArtifactDescription, read_description
from ds2deploy.runtimes.tensorrt.engine_file import sealed

RATE = 8000
ENGINE = b"an engine, as far as its description goes"

SOUNDS = (
    ("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"),
    ("WAV", "GSM610"), ("WAVEX", "PCM_24"), ("RF64", "PCM_16"), ("W64", "PCM_16"),
    ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("CAF", "ALAC_16"), ("VOC", "PCM_U8"),
    ("NIST", "PCM_16"), ("SVX", "PCM_16"), ("PAF", "PCM_16"), ("IRCAM", "PCM_16"),
    ("MAT5", "FLOAT"), ("WVE", "ALAW"), ("HTK", "PCM_16"), ("AVR", "PCM_16"), ("XI", "DPCM_16"),
    ("SDS", "PCM_16"),
    ("MPC2K", "PCM_16"), ("PVF", "PCM_16"), ("MAT4", "PCM_16"),
)  # fmt: skip


def tone(duration_s: float = 0.1, channels: int = 1) -> np.ndarray:
    """A tone that grows: (samples, channels)."""
    time = np.arange(round(RATE * duration_s)) / RATE
    sound = np.sin(2 * np.pi * 440 * time) * time / time[-1] / 2
    return np.repeat(sound[:, None], channels, axis=1)


def sound(container: str, subtype: str, channels: int = 1) -> bytes:
    """A short recording."""
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(channels=channels), RATE, subtype, format=container)
    content = buffer.getvalue()
    if container == "OGG":  # its serial number is drawn anew each time
        content = _with_serial(content)
    return content


def sounds() -> list[bytes]:
    """Make a recording in each container, and in stereo."""
    found = []
    for container, subtype in SOUNDS:
        if soundfile.check_format(container, subtype):
            found.append(sound(container, subtype))
    return [*found, sound("WAV", "PCM_16", 2), sound("FLAC", "PCM_16", 2), unsized_wav()]


def streams() -> list[bytes]:
    """Make streams as they come through a pipe."""
    kinds = ("PCM_16", "PCM_U8", "PCM_24", "PCM_32", "FLOAT")
    return [*(sound("WAV", kind) for kind in kinds), sound("WAVEX", "PCM_16", 2), unsized_wav(),
            (tone() * 9999).astype("<i2").tobytes()]  # fmt: skip


def unsized_wav() -> bytes:
    """A WAV stream that left its sizes at zero, as GStreamer's."""
    content = bytearray(sound("WAV", "PCM_16"))
    content[4:8] = content[40:44] = bytes(4)
    return bytes(content)


def descriptions() -> list[bytes]:
    """Documents of artifacts: offline, streaming, and of an engine."""
    statistics = {"mean": (0.1,) * 11, "deviation": (0.5,) * 11, "normalize": "global"}
    blocks = dict.fromkeys(("window_ms", "convolutions_ms", "lookahead_ms", "waiting_ms"), 10.0)
    plain = {
        "format_version": 3, "kind": "offline", "input": "features", "precision": "fp32",
        "labels": "_AB ", "features": {"sample_rate": 1000, "window_ms": 20.0, "stride_ms": 10.0},
        "model": {"rnn": "lstm", "hidden": 4, "layers": 2, "bidirectional": True},
        "source": {"name": "best.ckpt", "sha256": "0" * 64, "kind": "ds2deploy"},
        "parity": {"passed": True, "runtime": "onnxruntime", "speech": "digits",
                   "cases": [{"max_difference": 1e-6, "shape": [1, 9]}]},
        "created_by": "ds2deploy 0",
    }  # fmt: skip
    streaming = plain | {"kind": "streaming", "blocks": {"frames": 32, "output_delay": 9} | blocks}
    streaming["features"] = plain["features"] | statistics  # type: ignore[operator]
    return [json.dumps(document).encode() for document in (plain, streaming)]


def engine_descriptions() -> list[bytes]:
    """Documents that stand beside `ENGINE`."""
    engine = {
        "flavor": "rtx", "version": "1.7", "compute_capabilities": ["8.9"],
        "profile": {"batch": [1, 4, 8], "frames": [8, 400, 1600]}, "onnx_sha256": "0" * 64,
        "engine_sha256": hashlib.sha256(ENGINE).hexdigest(), "size": len(ENGINE),
        "network_parity": {"passed": True, "runtime": "numpy", "speech": "digits",
                           "cases": [{"max_difference": 1e-6}]},
        "compared_with": "torch", "verification": "network", "rebuild": "ds2deploy export a --rtx",
        "build": {"parse_s": 1.0, "build_s": 2.0, "network_check_s": 3.0, "engine_check_s": None,
                  "peak_memory_mb": 99.0, "layers": 300},
    }  # fmt: skip
    found = []
    for content in descriptions():
        document = json.dumps(json.loads(content) | {"engine": engine})
        found.append(sealed(read_description(document, "seed")).to_json().encode())
    return found


def sealed_again(content: bytes) -> bytes:
    """A changed document with the seal that fits it; the same where it cannot be read."""
    try:
        document: ArtifactDescription = read_description(content.decode(), "seed")
        return sealed(document).to_json().encode() if document.engine else content
    except (ValueError, ArithmeticError):
        return content


ARPA = b"""\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-1.5\t<unk>
-99\t<s>\t-0.5
-0.7\t</s>
-0.6\tA\t-0.25
-0.4\tB\t-0.1

\\2-grams:
-0.3\t<s> A\t-0.2
-0.2\tA B\t0.1
-0.1\tB </s>

\\3-grams:
-0.05\t<s> A B

\\end\\
"""


def language_models() -> list[bytes]:
    """Language models of words and of characters."""
    from ds2deploy.language_models.make import LanguageModelOptions, make_language_model

    found = []
    with TemporaryDirectory() as folder:
        text, out = Path(folder, "text"), Path(folder, "out.lm")
        text.write_bytes(b"A B AB\nB A\nA B B\n")
        for kind in ("words", "characters"):
            options = LanguageModelOptions(kind=kind, order=3)  # type: ignore[arg-type]
            make_language_model([text], out, Alphabet("_AB "), options)
            found.append(out.read_bytes())
    return found


def decoders() -> list[bytes]:
    """Settings of a beam search: with few of the fields, and with all."""
    from ds2deploy.runtimes.decoding.config import DecoderConfig
    from ds2deploy.runtimes.decoding.decoder_file import write_decoder_file

    found = []
    with TemporaryDirectory() as folder:
        path = Path(folder, "case.decoder")
        for settings in (
            DecoderConfig(phrases=("A B", "BA"), nbest=3),
            DecoderConfig(lexicon=("A", "AB"), hot_words={"A B": 0.8}, unknown_letter=None),
        ):
            write_decoder_file(path, settings, "_AB ", {"wer": 0.1})
            found.append(path.read_bytes())
    return found


def summed_again(content: bytes) -> bytes:
    """A changed language model with the checksum that fits it."""
    return content[:16] + zlib.crc32(content[20:]).to_bytes(4, "little") + content[20:]


def onnx_files() -> list[bytes]:
    """ModelProto with a few fields before and after the description."""
    return [onnx_file(document) for document in descriptions()]


def onnx_file(document: bytes) -> bytes:
    """A network of two nodes that holds a description."""
    import onnx
    from onnx import TensorProto, helper

    model = json.loads(descriptions()[0])
    inputs = [
        ("features", TensorProto.FLOAT, ["n", 1, 11, "t"]),
        ("lengths", TensorProto.INT64, ["n"]),
    ]
    outputs = [("log_probs", *inputs[0][1:]), ("output_lengths", *inputs[1][1:])]
    nodes = [
        helper.make_node("Identity", [i[0]], [o[0]]) for i, o in zip(inputs, outputs, strict=True)
    ]
    values = [[helper.make_tensor_value_info(*v) for v in side] for side in (inputs, outputs)]
    made = helper.make_model(
        helper.make_graph(nodes, model["kind"], *values),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.helper.set_model_props(made, {"author": "somebody", METADATA_KEY: "?"})
    blank = made.SerializeToString(deterministic=True)
    return blank.replace(_pair(b"?"), _pair(document))


def recipes() -> list[bytes]:
    """Recipes in TOML."""
    return [
        b'labels = "_AB "\n[model]\nrnn = "gru"\nhidden = 16\nlayers = 1\nbidirectional = false\n'
        b"lookahead = 4\nnorm_eps = 1e-3\n[features]\nsample_rate = 8000\nwindow_ms = 20\n"
        b'stride_ms = 10.0\nwindow = "hann"\nscale = 100\nnormalize = "global"\n',
        b'[data]\ntrain = "a.jsonl"\nvalid = "b.jsonl"\nbatch_size = 8\njoin = [1, 3]\n'
        b"pause_s = [0.1, 0.2]\nbatch_duration_s = 30\nworkers = 0\n[augment]\nspeed = [0.9, 1.1]\n"
        b'noise_snr_db = [5, 20]\nnoise_folder = "n"\nnoise_share = 0.5\ntime_masks = 2\n',
        b'[training]\nepochs = 4\nlearning_rate = 5e-3\nschedule = "anneal"\nanneal = 1.1\n'
        b'optimizer = "sgd"\nprecision = "bf16-mixed"\ndevices = 1\nmax_steps = 10\nseed = 1\n'
        b'export = ["fp32", "int8"]\ntensorboard = true\nthreads = 1\nstart = "a.ckpt"\n',
        b"[training]\nepochs = 4\n[[stages]]\ntraining.epochs = 2\ndata.join = [2, 8]\n[[stages]]\n"
        b"model.norm_eps = 1e-3\n[stages.training]\nlearning_rate = 1e-4\n",
    ]


def overrides() -> list[bytes]:
    """Arguments of --set, one a line."""
    return [
        b"model.hidden=4\ntraining.epochs=2\ndata.join=[1,2]\nlabels=_AB",
        b'training.export=["fp32"]\nfeatures.window=hann\naugment.speed=[0.9, 1.1]',
        b"features.scale=100.0\ntraining.max_steps=3\ndata.train=x.jsonl.gz",
        b"stages.1.training.epochs=3\ntraining.seed=1",
    ]


def cut_manifests() -> list[bytes]:
    """Manifests of lhotse cuts: whole, a part, and two joined."""
    recording = {"id": "a", "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
                 "sampling_rate": RATE, "num_samples": 800, "duration": 0.1,
                 "channel_ids": [0]}  # fmt: skip
    spoken = {"id": "a", "recording_id": "a", "start": 0.0, "duration": 0.1, "channel": 0,
              "text": "A B", "speaker": "x"}  # fmt: skip
    cut = {"id": "a", "start": 0.0, "duration": 0.1, "channel": 0, "supervisions": [spoken],
           "recording": recording, "custom": {"source": "a"}, "type": "MonoCut"}  # fmt: skip
    part = cut | {"id": "b", "start": 0.02, "duration": 0.06}
    faster = recording | {"transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]}
    silence = {"id": "s", "duration": 0.05, "sampling_rate": RATE, "feat_value": -23.0,
               "num_samples": 400, "type": "PaddingCut"}  # fmt: skip
    tracks = [{"cut": cut, "type": "MonoCut", "offset": 0.0},
              {"cut": silence, "type": "PaddingCut", "offset": 0.1},
              {"cut": part, "type": "MonoCut", "offset": 0.15, "snr": 10}]  # fmt: skip
    mixed = {"id": "c", "tracks": tracks, "type": "MixedCut"}
    changed = cut | {"id": "d", "recording": faster}
    return ["".join(f"{json.dumps(item)}\n" for item in items).encode()
            for items in ((cut, part), (mixed,), (changed,))]  # fmt: skip


def json_manifests() -> list[bytes]:
    """deepspeech.pytorch's manifests of version 3."""
    samples = [{"wav_path": f"{name}", "transcript_path": "a.txt"} for name in ("a.wav", "b.flac")]
    return [json.dumps({"root_path": ".", "samples": samples}).encode()]


def csv_manifests() -> list[bytes]:
    """deepspeech.pytorch's manifests of version 2, and tables of texts."""
    return [
        b'a.wav,a.txt\nb.flac,a.txt\n"a.wav","a.txt"\n',
        b'file,text\na.wav,GO\nb.flac,"GO, ON"\n',
    ]


class Archive:
    """A checkpoint as `torch.save` writes it, whose pickle can be exchanged.

    Attributes:
        pickle: the program that makes the objects.
    """

    def __init__(self, content: bytes) -> None:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            self._members = {name: archive.read(name) for name in archive.namelist()}
        (self._name,) = (name for name in self._members if name.endswith("/data.pkl"))
        self.pickle = self._members[self._name]

    def around(self, data: bytes) -> bytes:
        """The archive with another pickle."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, member in self._members.items():
                archive.writestr(zipfile.ZipInfo(name), data if name == self._name else member)
        return buffer.getvalue()


def checkpoint() -> bytes:
    """Make a checkpoint of ours, whose weights are zero."""
    import torch

    from ds2deploy.model.checkpoint import KEY, header

    document = {KEY: header(_recipe(), {"wer": 0.5}), "state_dict": _weights()}
    document |= {"position": {"step": 2, "epochs": 1}, "precision": {}, "optimizer_states": [],
                 "lr_schedulers": [], "global_step": 2}  # fmt: skip
    return _saved(torch, document)


def foreign_checkpoint() -> bytes:
    """Make one of deepspeech.pytorch: settings in a foreign class, weights of zero."""
    import torch

    weights = {_their_name(name): tensor for name, tensor in _weights().items()}
    with _class("omegaconf.dictconfig", "DictConfig") as settings:
        model, spectrogram = settings(), settings()
        model._content = {"rnn_type": "gru", "hidden_size": 4, "hidden_layers": 2}
        spectrogram._content = {"sample_rate": 1000, "window_size": 0.02, "window_stride": 0.01,
                                "window": "hamming"}  # fmt: skip
        hyper = {"labels": ["_", "A", "B", " "], "model_cfg": model, "spect_cfg": spectrogram}
        return _saved(torch, {"state_dict": weights, "hyper_parameters": hyper, "epoch": 3})


def small_archives() -> list[bytes]:
    """Archives small enough to be changed as a whole."""
    import torch

    from ds2deploy.model.checkpoint import KEY, header

    tensor = {"output.weight": torch.zeros(4, 4)}
    foreign = {"state_dict": tensor, "hyper_parameters": {"labels": "_A"}}
    return [
        _saved(torch, {KEY: header(_recipe(), {}), "state_dict": tensor}),
        _saved(torch, foreign),
    ]


def _recipe() -> Any:
    from ds2deploy.config import Recipe
    from ds2deploy.runtimes.artifact import ModelShape
    from ds2deploy.runtimes.features import FeatureConfig

    model = ModelShape(rnn="gru", hidden=4, layers=2)
    return Recipe(labels="_AB ", model=model, features=FeatureConfig(sample_rate=1000))


def _weights() -> dict[str, Any]:
    from ds2deploy.model.weights import build_network

    return {name: 0 * tensor for name, tensor in build_network(_recipe()).state_dict().items()}


def _their_name(name: str) -> str:
    for ours, theirs in (
        ("conv.layers.", "conv.seq_module."), (".batch_norm.", ".batch_norm.module."),
        ("lookahead.conv.", "lookahead.0.conv."), ("output_norm.", "fc.0.module.0."),
        ("output.", "fc.0.module.1."),
    ):  # fmt: skip
        name = name.replace(ours, theirs)
    return name


def _saved(torch: Any, document: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


@contextmanager
def _class(module: str, name: str) -> Iterator[type]:
    """A class that pickle finds in a module that need not be installed."""
    made = type(name, (), {"__module__": module})
    before = {part: sys.modules.get(part) for part in (module.partition(".")[0], module)}
    for part in before:
        sys.modules[part] = ModuleType(part)
    setattr(sys.modules[module], name, made)
    yield made
    for part, old in before.items():
        del sys.modules[part]
        if old is not None:
            sys.modules[part] = old


def _pair(document: bytes) -> bytes:
    """The field of ModelProto that holds a description, which need not be text."""
    return _field(14, _field(1, METADATA_KEY.encode()) + _field(2, document))


def _field(number: int, content: bytes) -> bytes:
    """A field of protocol buffers that holds bytes."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _with_serial(content: bytes, serial: int = 1) -> bytes:
    """Ogg pages with a serial number of ours, and the checksums that go with it."""
    pages = [b"OggS" + page for page in content.split(b"OggS")[1:]]
    return b"".join(_checked(page[:14] + struct.pack("<I", serial) + page[18:]) for page in pages)


def _checked(page: bytes) -> bytes:
    """The page with the checksum of RFC 3533: CRC-32 of 0x04c11db7, not reflected."""
    value, blank = 0, page[:22] + bytes(4) + page[26:]
    for byte in blank:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x104C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    return blank[:22] + struct.pack("<I", value) + blank[26:]
