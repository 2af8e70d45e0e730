"""Options of an engine's builder, checked before anything is built."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec

from ds2deploy.export.tensorrt.profiles import (
    BATCH,
    SECONDS,
    check_order,
    engine_profile,
    seconds_of,
)
from ds2deploy.runtimes.artifact import Blocks, ModelShape, Precision
from ds2deploy.runtimes.engine_description import Compatibility, Flavor, Profile
from ds2deploy.runtimes.errors import ConfigError, require
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.tensorrt.rtx_devices import RTX_CAPABILITIES

RTX_DEFAULT = tuple(capability for capability in RTX_CAPABILITIES if capability != "7.5")
"""Without targets an engine is compiled for Ampere and later."""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of an engine.

    Attributes:
        flavor: TensorRT or TensorRT-RTX.
        batch: minimum, optimum and maximum number of utterances or streams.
        seconds: minimum, optimum and maximum duration of the longest utterance of a batch; None
            is the default, and what a streaming model has.
        workspace_mb: limit of its scratch memory, in 2^20 bytes; None is TensorRT's own.
        optimization_level: 0 (builds fast) to 5 (runs fast); None is the builder's own.
        timing_cache: file that remembers which kernels were fast; TensorRT only.
        hardware_compatibility: other GPUs that it should run on; TensorRT only.
        targets: compute capabilities to compile for; RTX only, empty for its default.

    Raises:
        ConfigError: an option that the library does not take, or a value out of range.
    """

    flavor: Flavor
    batch: tuple[int, ...] = BATCH
    seconds: tuple[float, ...] | None = None
    workspace_mb: int | None = None
    optimization_level: int | None = None
    timing_cache: str | None = None
    hardware_compatibility: Compatibility = "none"
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_order("--batch", self.batch, "1,4,16")
        if self.seconds is not None:
            check_order("--seconds", self.seconds, "0.5,5,30")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"--optimization-level {self.optimization_level}: expected 0 to 5")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise ConfigError(f"--workspace {self.workspace_mb}: expected at least 1 MiB")
        if self.flavor == "rtx":
            self._check_rtx()
        elif self.targets:
            raise ConfigError(
                "--targets: TensorRT builds only for the GPU of this machine; build on the target "
                "machine, use --rtx, or use --hardware-compatibility for newer GPUs"
            )

    def _check_rtx(self) -> None:
        for target in self.targets:
            if target not in RTX_CAPABILITIES:
                raise ConfigError(
                    f"--targets {target}: TensorRT-RTX supports the compute capabilities "
                    f"{', '.join(RTX_CAPABILITIES)}"
                    + ("; for a Jetson, use --trt on it" if target in ("8.7", "7.2") else "")
                )
        if self.hardware_compatibility != "none":
            raise ConfigError(
                "--hardware-compatibility: not available with --rtx; give the compute capabilities "
                "of the GPUs instead: --targets 8.6,8.9"
            )
        if self.timing_cache is not None:
            raise ConfigError("--timing-cache: not available with --rtx; omit it")

    def profile(self, features: FeatureConfig, blocks: Blocks | None) -> Profile:
        """Return the optimisation profile, in the frames of a model.

        Raises:
            ConfigError: durations for a streaming model.
        """
        if blocks is not None and self.seconds is not None:
            raise ConfigError(
                "--seconds, --profile-from: the blocks of a stream all have one length; omit the "
                "option (--batch is the number of simultaneous streams)"
            )
        return engine_profile(features, self.batch, self.seconds or SECONDS, blocks)

    def target_pairs(self) -> tuple[tuple[int, int], ...]:
        """Return the targets as major and minor numbers."""
        return tuple((int(t.split(".")[0]), int(t.split(".")[1])) for t in self.targets)

    def command(self, blocks: Blocks | None) -> list[str]:
        """Return the options as the command line has them, for a model with such blocks."""
        words = ["--trt" if self.flavor == "tensorrt" else "--rtx"]
        seconds = () if blocks is not None else self.seconds or SECONDS
        for option, value in (
            ("--batch", ",".join(map(str, self.batch))),
            ("--seconds", ",".join(f"{duration:g}" for duration in seconds) or None),
            ("--workspace", self.workspace_mb),
            ("--optimization-level", self.optimization_level),
            ("--timing-cache", self.timing_cache),
            ("--targets", ",".join(self.targets) or None),
        ):
            words += [] if value is None else [option, str(value)]
        if self.hardware_compatibility != "none":
            words += ["--hardware-compatibility", self.hardware_compatibility]
        return words


def engine_options(
    *,
    trt: bool,
    rtx: bool,
    batch: tuple[int, ...] | None,
    seconds: tuple[float, ...] | None,
    profile_from: Path | None,
    workspace_mb: int | None,
    optimization_level: int | None,
    timing_cache: Path | None,
    hardware_compatibility: str | None,
    targets: str | None,
) -> list[EngineOptions]:
    """Return the options of every flavour that the command line asks for.

    Options of one flavour alone go to that one.

    Raises:
        ConfigError: an option that none of them takes, or a value that is not one.
        ManifestError: `profile_from` is damaged.
    """
    if seconds is not None and profile_from is not None:
        raise ConfigError(
            "--seconds, --profile-from: both set the duration of the audio; give only one"
        )
    given = {
        "--batch": batch,
        "--seconds": seconds,
        "--profile-from": profile_from,
        "--workspace": workspace_mb,
        "--optimization-level": optimization_level,
        "--timing-cache": timing_cache,
        "--hardware-compatibility": hardware_compatibility,
        "--targets": targets,
    }
    unused = [name for name, value in given.items() if value is not None]
    if unused and not (trt or rtx):
        raise ConfigError(f"{unused[0]}: only for engines; add --trt or --rtx")
    compatibility = hardware_compatibility or "none"
    if compatibility not in get_args(Compatibility):
        raise ConfigError(
            f"--hardware-compatibility {compatibility}: expected "
            f"{', '.join(get_args(Compatibility))}"
        )
    if profile_from is not None:
        seconds = _durations(profile_from)
    wanted: dict[Flavor, bool] = {"tensorrt": trt, "rtx": rtx}
    flavors = [flavor for flavor, is_wanted in wanted.items() if is_wanted]
    both = trt and rtx
    made = []
    for flavor in flavors:
        for_trt, for_rtx = not both or flavor == "tensorrt", not both or flavor == "rtx"
        made.append(
            EngineOptions(
                flavor=flavor,
                batch=BATCH if batch is None else batch,
                seconds=seconds,
                workspace_mb=workspace_mb,
                optimization_level=optimization_level,
                timing_cache=str(timing_cache) if timing_cache and for_trt else None,
                hardware_compatibility=compatibility if for_trt else "none",  # type: ignore[arg-type]
                targets=parse_targets(targets) if targets is not None and for_rtx else (),
            )
        )
    return made


def _durations(manifest: Path) -> tuple[float, float, float]:
    require("lhotse", "train")
    from ds2deploy.data.manifest import read_manifest

    return seconds_of([float(cut.duration) for cut in read_manifest(manifest)])


def parse_targets(text: str) -> tuple[str, ...]:
    """Compute capabilities, as `8.6,8.9`.

    Raises:
        ConfigError: not numbers such as 8.9.
    """
    targets = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for target in targets:
        if not re.fullmatch(r"\d{1,2}\.\d", target):
            raise ConfigError(f"--targets {text}: expected compute capabilities, such as 8.6,8.9")
    return targets


def refuse_what_no_parser_takes(model: ModelShape, precision: Precision, checkpoint: str) -> None:
    """Refuse combinations that TensorRT does not take, before anything is built.

    Raises:
        ConfigError: such a combination; with the reason, and what to choose.
    """
    if precision == "int8":
        raise ConfigError(
            f"{checkpoint}: TensorRT cannot run int8 LSTMs (int8 is for ONNX Runtime on a CPU); "
            "choose --precision fp16 for an engine"
        )
    if model.rnn == "gru" and precision == "bf16":
        raise ConfigError(
            f"{checkpoint}: TensorRT cannot parse a GRU in bf16; choose --precision fp16 or fp32, "
            "or train an LSTM"
        )
