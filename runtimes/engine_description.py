"""Description of a TensorRT engine: how and for which GPUs and shapes it was built."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from ds2deploy.runtimes.features import FeatureConfig

Flavor = Literal["tensorrt", "rtx"]
"""TensorRT, or TensorRT-RTX."""

Compatibility = Literal["none", "ampere_plus", "same_compute_capability"]
"""TensorRT's hardware compatibility levels: other GPUs that an engine runs on."""


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The optimisation profile: shapes that an engine takes.

    Attributes:
        batch: minimum, optimum and maximum number of utterances or streams.
        frames: minimum, optimum and maximum number of feature frames of the longest utterance.
            Shorter ones are padded by the runtime.
    """

    batch: tuple[int, int, int]
    frames: tuple[int, int, int]

    def seconds(self, features: FeatureConfig) -> tuple[float, float, float]:
        """Return the frames as durations."""
        shortest, optimum, longest = (seconds_of_frames(count, features) for count in self.frames)
        return shortest, optimum, longest


def frames_of(duration_s: float, features: FeatureConfig) -> int:
    """Feature frames of so much audio: one per stride, and the one at the start."""
    return features.frames(math.ceil(duration_s * features.sample_rate - 1e-6))


def seconds_of_frames(frames: int, features: FeatureConfig) -> float:
    """Find the least audio that has so many feature frames."""
    return (frames - 1) * features.stride / features.sample_rate


class BuildFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Time and memory that building took.

    Attributes:
        parse_s: seconds to parse the ONNX file.
        build_s: seconds to build the engine.
        network_check_s: seconds to compare the parsed network with the checkpoint.
        engine_check_s: seconds to compare the engine with it; None where no GPU ran it.
        peak_memory_mb: largest resident memory of the process that built, in 10^6 bytes.
        layers: number of layers of the parsed network.
    """

    parse_s: float
    build_s: float
    network_check_s: float
    engine_check_s: float | None
    peak_memory_mb: float
    layers: int


class EngineDescription(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Facts of an engine: library, GPUs, shapes, checks.

    Attributes:
        flavor: library that built it, and alone can run it.
        version: version of that library.
        compute_capabilities: compute capabilities of the GPUs that it runs on, such as `8.9`.
        hardware_compatibility: further GPUs that it runs on.
        profile: the shapes that it takes.
        workspace_mb: limit of the scratch memory, in 2^20 bytes; None left TensorRT's own.
        optimization_level: level of the builder, 0 to 5; None left TensorRT's own.
        onnx_sha256: SHA-256 of the file that was parsed.
        engine_sha256: SHA-256 of the engine.
        size: size of the engine, in bytes.
        network_parity: report of the parsed network, evaluated on the CPU.
        compared_with: runtime and file that the network, and the engine, were compared with.
        verification: line that states which checks were run.
        rebuild: the command that builds it again.
        build: time and memory of the build.
        seal: SHA-256 of the whole document with an empty seal: a document that was edited by
            hand, or that belongs to another engine, is refused.
    """

    flavor: Flavor
    version: str
    compute_capabilities: tuple[str, ...]
    hardware_compatibility: Compatibility = "none"
    profile: Profile
    workspace_mb: int | None = None
    optimization_level: int | None = None
    onnx_sha256: str
    engine_sha256: str
    size: int
    network_parity: dict[str, Any]
    compared_with: str
    verification: str
    rebuild: str
    build: BuildFacts
    seal: str = ""


def runs_on(engine: EngineDescription, compute_capability: str) -> bool:
    """Tell if an engine runs on GPUs of that compute capability, such as `8.9`."""
    major = int(compute_capability.partition(".")[0])
    newer = engine.hardware_compatibility == "ampere_plus" and major >= 8
    return newer or compute_capability in engine.compute_capabilities
