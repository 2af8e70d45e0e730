"""Inspection of files: models, language models, decoder settings, manifests and recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ds2deploy.loading import file_kind
from ds2deploy.runtimes.artifact import ArtifactDescription, ModelShape
from ds2deploy.runtimes.decoding.config import DecoderConfig, as_tuple
from ds2deploy.runtimes.decoding.decoder_file import SUFFIX as DECODER_SUFFIX
from ds2deploy.runtimes.decoding.decoder_file import read_content
from ds2deploy.runtimes.decoding.language_model_file import SUFFIX as LANGUAGE_MODEL_SUFFIX
from ds2deploy.runtimes.decoding.language_model_file import read_file
from ds2deploy.runtimes.errors import (
    MissingFileError,
    ModelFileError,
    NotAudioError,
    missing_file,
    require,
)
from ds2deploy.runtimes.tensorrt.engine_file import SUFFIX as ENGINE_SUFFIX
from ds2deploy.runtimes.tensorrt.engine_file import read_engine
from ds2deploy.runtimes.tensorrt.library import NAMES


def inspect_file(path: str | Path) -> dict[str, Any]:
    """Collect facts about a file as text by name; the entry `details` contains them as data.

    Raises:
        MissingFileError: the file does not exist.
        ModelFileError, ManifestError, AudioError: the file is of no known kind, or damaged.
    """
    path = Path(path)
    if _is_pipe(path):
        return _recording(path)  # it can only be read once
    if not path.is_file():
        raise missing_file(path, "a model, a manifest or a recording")
    if path.name.endswith(f"{ENGINE_SUFFIX}.json"):
        engine = path.with_suffix("")
        raise ModelFileError(f"{path}: the description of an engine; inspect {engine}")
    if path.name.lower().endswith((".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv")):
        return _manifest(path)
    if path.suffix.lower() == ".onnx":
        return _artifact(path)
    if path.suffix == ENGINE_SUFFIX:
        return _engine(path)
    if path.suffix == LANGUAGE_MODEL_SUFFIX:
        return _language_model(path)
    if path.suffix == DECODER_SUFFIX:
        return _decoder(path)
    try:
        file_kind(path)
    except (ModelFileError, PermissionError):
        return _recording(path)
    return _checkpoint(path)


def _is_pipe(path: Path) -> bool:
    """Return True if a path is a pipe: a FIFO, or a shell's `<(command)`."""
    try:
        return path.is_fifo()
    except OSError:  # its folder may not be entered
        raise MissingFileError(
            f"{path}: cannot be reached; check the permissions of its folder"
        ) from None


def _artifact(path: Path) -> dict[str, Any]:
    from ds2deploy.runtimes.onnx.session import describe_artifact

    description = describe_artifact(path)
    return {
        "file": f"{path}, {path.stat().st_size / 1e6:.1f} MB",
        "is": f"ONNX artifact, {description.kind}, {description.precision}, {description.input} in",
        **_model(description),
        **_streaming(description),
        "inputs": ", ".join(description.inputs),
        "outputs": ", ".join(description.outputs),
        "from": f"{description.source.name} ({description.source.kind}, "
        f"sha256 {description.source.sha256[:12]})",
        "parity": _parity(description, path),
        "made by": description.created_by,
        "details": {**_plain(description), "kind": "artifact", "size": path.stat().st_size},
    }


def _engine(path: Path) -> dict[str, Any]:
    description, engine, _ = read_engine(path)
    features = description.features
    low, usual, high = engine.profile.seconds(features)
    batch = engine.profile.batch
    build = engine.build
    more = "" if engine.hardware_compatibility == "none" else f", {engine.hardware_compatibility}"
    return {
        "file": f"{path}, {engine.size / 1e6:.1f} MB",
        "is": f"{NAMES[engine.flavor]} engine, {description.kind}, {description.precision}, "
        f"{description.input} in",
        **_model(description),
        "runs with": f"{NAMES[engine.flavor]} {engine.version}, compute capability "
        f"{', '.join(engine.compute_capabilities)}{more}",
        **_streaming(description),
        "takes": f"{batch[0]} to {batch[2]} streams, tuned for {batch[1]}"
        if description.blocks is not None
        else f"{batch[0]} to {batch[2]} utterances of {low:g} to {high:g} s, tuned for "
        f"{batch[1]} of {usual:g} s",
        "built in": f"{build.build_s:g} s and {build.peak_memory_mb:.0f} MB of memory, from "
        f"{build.layers} layers",
        "from": f"{description.source.name} ({description.source.kind}, "
        f"sha256 {description.source.sha256[:12]})",
        "verified": engine.verification,
        "compared with": engine.compared_with,
        "network": _report(engine.network_parity, path),
        "engine": "not run" if description.parity is None else _report(description.parity, path),
        "rebuild": engine.rebuild,
        "made by": description.created_by,
        "details": {**_plain(description), "kind": "engine", "size": engine.size},
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    require("torch", "train")
    from ds2deploy.model.load import load_checkpoint

    checkpoint = load_checkpoint(path)
    parameters = sum(parameter.numel() for parameter in checkpoint.network.parameters())
    return {
        "file": f"{path}, {path.stat().st_size / 1e6:.1f} MB",
        "is": f"checkpoint of {checkpoint.source.kind}, {parameters:,} parameters",
        **_model(checkpoint.description()),
        "metrics": ", ".join(f"{name} {value:.4g}" for name, value in checkpoint.metrics.items())
        or "none in the file",
        "sha256": checkpoint.source.sha256,
        "details": {
            "kind": "checkpoint",
            "size": path.stat().st_size,
            "parameters": parameters,
            "recipe": _plain(checkpoint.recipe),
            "metrics": checkpoint.metrics,
            "source": _plain(checkpoint.source),
        },
    }


def _decoder(path: Path) -> dict[str, Any]:
    content = read_content(path)
    usual, settings = msgspec.to_builtins(DecoderConfig()), msgspec.to_builtins(content.settings)
    given = {name: value for name, value in settings.items() if value != usual[name]}
    return {
        "file": f"{path}",
        "is": "settings of a beam search",
        "labels": f"{len(content.labels)}: {content.labels}",
        "language model": ", ".join(as_tuple(content.settings.lm)) or "none",
        "settings": ", ".join(f"{name} {value}" for name, value in given.items() if name != "lm"),
        "tuned": ", ".join(f"{name} {value}" for name, value in content.tuned.items()) or "no",
        "details": {**_plain(content), "kind": "decoder"},
    }


def _language_model(path: Path) -> dict[str, Any]:
    header, _ = read_file(path)
    size = path.stat().st_size
    return {
        "file": f"{path}, {size / 1e6:.1f} MB",
        "is": f"language model of {header.kind}, order {header.order}, {header.made}",
        "n-grams": ", ".join(f"{count:,}" for count in header.counts),
        "labels": f"{len(header.labels)}: {header.labels}",
        "from": ", ".join(f"{s.name} (sha256 {s.sha256[:12]})" for s in header.sources),
        "made by": header.created_by,
        "details": {**_plain(header), "kind": "language model", "size": size},
    }


def _model(description: ArtifactDescription) -> dict[str, Any]:
    model, features = description.model, description.features
    directions = "bidirectional" if model.bidirectional else f"lookahead {model.lookahead}"
    return {
        "model": f"{model.layers} x {model.rnn} of {_sizes(model)}, {directions}",
        "labels": f"{len(description.labels)}: {description.labels}",
        "features": f"{features.sample_rate} Hz, {features.bins} bins, {features.window} "
        f"{features.window_ms:g} ms every {features.stride_ms:g} ms, "
        f"normalize {features.normalize}",
    }


def _sizes(model: ModelShape) -> str:
    """Units of the layers, and what of the model `compress` made smaller."""
    parts = [
        "/".join(map(str, (model.units if isinstance(model.hidden, tuple) else [model.hidden])))
    ]
    if model.ranks:
        parts.append("input ranks " + "/".join(str(rank or "full") for rank in model.ranks))
    if model.maps != ModelShape().maps:
        parts.append("{} and {} maps".format(*model.maps))
    return ", ".join(parts)


def _streaming(description: ArtifactDescription) -> dict[str, Any]:
    """Describe blocks, latency and feature statistics of a streaming artifact."""
    blocks, features = description.blocks, description.features
    if blocks is None:
        return {}
    block_ms = 1000 * blocks.frames * features.stride / features.sample_rate
    parts = blocks.parts()
    total = parts.pop("total")
    facts = {
        "blocks": f"{block_ms:g} ms, {blocks.frames} frames; row j of log_probs is output frame "
        f"position / 2 - {blocks.output_delay} + j",
        "latency": f"at most {total:g} ms: "
        + ", ".join(f"{name} {part:g}" for name, part in parts.items()),
    }
    if description.statistics_from is not None:
        facts["statistics"] = f"of {description.statistics_from}, instead of each utterance's own"
    return facts


def _parity(description: ArtifactDescription, path: Path) -> str:
    if description.parity is None:
        return "no report in the file"
    return _report(description.parity, path)


def _report(report: dict[str, Any], path: Path) -> str:
    try:
        worst = max(case["max_difference"] for case in report["cases"])
        own = report.get("pytorch_difference")  # older reports lack it
        beside = "" if own is None else f" of float64 (PyTorch's float32: {own:.1e})"
        verdict = "passed" if report["passed"] else "FAILED"
        return (
            f"{verdict} on {report['runtime']}, {len(report['cases'])} shapes, "
            f"{report['speech']} speech: log-probabilities within {worst:.1e}{beside}"
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ModelFileError(f"{path}: its parity report is damaged; export it again") from None


def _manifest(path: Path) -> dict[str, Any]:
    require("lhotse", "train")
    from ds2deploy.data.cuts import speaker, transcript
    from ds2deploy.data.manifest import read_usable

    cuts, unusable = read_usable(path)
    if not len(cuts):
        raise unusable[0].error
    durations = [float(cut.duration) for cut in cuts]
    characters = sorted(set("".join(transcript(cut) for cut in cuts)))
    left_out = {"left out": f"{len(unusable)} unusable utterances"} if unusable else {}
    return {
        "file": str(path),
        "is": f"manifest of {len(durations)} utterances",
        **left_out,
        "audio": f"{sum(durations) / 3600:.3f} h, {min(durations):.2f} to {max(durations):.2f} s",
        "speakers": len({speaker(cut) for cut in cuts}),
        "characters": "".join(characters),
        "details": {
            "kind": "manifest",
            "utterances": len(durations),
            "audio_s": round(sum(durations), 3),
            "shortest_s": min(durations),
            "longest_s": max(durations),
            "left_out": [str(item.error) for item in unusable],
        },
    }


def _recording(path: Path) -> dict[str, Any]:
    from ds2deploy.data.listing import looks_like_sound
    from ds2deploy.runtimes.audio.loading import measure_audio

    try:
        facts = measure_audio(path, read=True)
    except NotAudioError:
        if looks_like_sound(path):
            raise  # the message contains the command that converts it
        raise ModelFileError(
            f"{path}: not a readable model, manifest or recording; "
            "expected .onnx, .ckpt, .lm, .decoder, .jsonl, .jsonl.gz, .json, .csv, .tsv or audio"
        ) from None
    return {
        "file": str(path),
        "is": f"recording, {facts.format}, {facts.subtype}",
        "audio": f"{facts.duration_s:.3f} s, {facts.sample_rate} Hz, {facts.channels} channels",
        "details": {
            "kind": "recording",
            "duration_s": facts.duration_s,
            "sample_rate": facts.sample_rate,
            "channels": facts.channels,
        },
    }


def _plain(struct: msgspec.Struct) -> dict[str, Any]:
    plain = msgspec.to_builtins(struct)
    assert isinstance(plain, dict)
    return plain
