"""A session on ONNX Runtime."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.artifact import METADATA_KEY, ArtifactDescription, read_description
from ds2deploy.runtimes.errors import (
    MissingFileError,
    ModelFileError,
    RuntimeUnavailableError,
)
from ds2deploy.runtimes.features import FeatureExtractor, FloatArray, IntArray

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxSession:
    """Runs an exported ONNX file.

    Args:
        path: the artifact.
        device: `cpu`, `cuda`, `cuda:1`, ...
        threads: of the CPU; 0 takes one per core.
        description: overrides the one in the file, for an exporter that has not written it yet.

    Raises:
        MissingFileError: no such file.
        ModelFileError: damaged, or not exported by ds2deploy.
        RuntimeUnavailableError: ONNX Runtime, or the device's provider, is not there.
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "cpu",
        threads: int = 0,
        description: ArtifactDescription | None = None,
    ) -> None:
        path = Path(path)
        if not path.is_file():
            raise MissingFileError(f"{path}: no such file; expected an ONNX artifact")
        if path.stat().st_size == 0:
            raise ModelFileError(f"{path}: empty file (0 bytes); export it again")
        self._session = _open(path, device, threads)
        self.description = description or _describe(self._session, path)
        self.runtime = f"onnxruntime {device}"

    def run(self, features: FloatArray, lengths: IntArray) -> tuple[FloatArray, IntArray]:
        """Run the network; see `Session.run`."""
        names = self.description.inputs
        feed = dict(zip(names, (features, lengths), strict=True))
        log_probs, output_lengths = self._session.run(list(self.description.outputs), feed)
        return log_probs, output_lengths


def _open(path: Path, device: str, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError:
        extra = "gpu" if device.startswith("cuda") else "cpu"
        raise RuntimeUnavailableError(
            f"{path}: ONNX Runtime is not installed: pip install 'ds2deploy[{extra}]'"
        ) from None
    kind, _, index = device.partition(":")
    if kind not in PROVIDERS or (index and not (kind == "cuda" and index.isdecimal())):
        raise RuntimeUnavailableError(
            f"{path}: device {device!r} is not one of {', '.join(PROVIDERS)}"
        )
    provider = PROVIDERS[kind]
    choice = (provider, {"device_id": index}) if index else provider
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeUnavailableError(
            f"{path}: the installed ONNX Runtime has no {provider}: "
            "pip uninstall -y onnxruntime && pip install 'ds2deploy[gpu]'"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that spin between two calls take the cores from feature extraction and from other
    # sessions: measured, torch beside such a session ran at half its speed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[choice])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise ModelFileError(
            f"{path}: not an ONNX model that can be read, or damaged "
            f"({_first_line(error)}); export it again"
        ) from None
    if provider not in session.get_providers():
        raise RuntimeUnavailableError(
            f"{path}: ONNX Runtime could not start {provider} on this machine; "
            "`ds2deploy doctor` says what is missing"
        )
    return session


def _describe(session: Any, path: Path) -> ArtifactDescription:
    document = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if document is None:
        raise ModelFileError(
            f"{path}: an ONNX model, but not one of ds2deploy's (it holds no description); "
            "export a checkpoint with `ds2deploy export`"
        )
    description = read_description(document, str(path))
    _check_description(description, session, path)
    return description


def _check_description(description: ArtifactDescription, session: Any, path: Path) -> None:
    """Refuse here, and not in the middle of a run, a description that is not the graph's."""
    try:
        labels = len(Alphabet(description.labels))
        bins = FeatureExtractor(description.features).config.bins
    except ValueError as error:
        raise ModelFileError(
            f"{path}: its description is damaged ({error}); export it again"
        ) from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    names = (tuple(i.name for i in inputs), tuple(o.name for o in outputs))
    if (
        names != (description.inputs, description.outputs)
        or inputs[0].shape[2:3] != [bins]
        or outputs[0].shape[2:] != [labels]
    ):
        raise ModelFileError(
            f"{path}: its description ({bins} bins in, {labels} labels out) is not its graph's; "
            "export it again"
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)[:160]
