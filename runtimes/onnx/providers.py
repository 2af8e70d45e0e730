"""ONNX Runtime's ways to a GPU: its CUDA, TensorRT and TensorRT-RTX providers.

ONNX Runtime itself takes the next provider, with a warning at most, where the one that was
asked for is not there or does not take the graph. Here that is an error that says why.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.engine_description import Profile
from ds2deploy.runtimes.errors import RuntimeUnavailableError
from ds2deploy.runtimes.onnx.obstacles import (
    PROVIDERS,
    REMEDIES,
    Obstacle,
    Provider,
    obstacle,
    register_rtx,
)
from ds2deploy.runtimes.tensors import input_tensors, profile_shapes

TENSORRT_PROFILE = Profile(batch=(1, 4, 16), frames=(1, 501, 3001))
"""Shapes that ONNX Runtime's TensorRT provider builds for: left to itself, it builds again, for
minutes, at every length that it has not met."""

TF32_OPTION = (1, 18)
"""The release of ONNX Runtime from which its CUDA provider can be told to compute without TF32."""


def configure(
    onnxruntime: Any,
    options: Any,
    provider: Provider,
    index: int,
    path: Path,
    description: ArtifactDescription | None,
) -> list[Any]:
    """Ask for a provider.

    Args:
        onnxruntime: the package.
        options: options of the session; RTX is requested there.
        provider: provider to use.
        index: index of the GPU.
        path: path of the model, for errors and for the files of TensorRT next to it.
        description: description of the model, if it is known.

    Returns:
        The session's `providers`.

    Raises:
        RuntimeUnavailableError: it is not there.
    """
    if provider == "cpu":
        return [PROVIDERS["cpu"]]
    hindrance = obstacle(onnxruntime, provider, index)
    if hindrance is not None:
        raise _unavailable(path, provider, hindrance)
    if provider == "rtx":
        # The whole graph or none of it: what the parser refuses would run on the CPU, unasked.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        cache = str(path.with_suffix(".rtx-cache").resolve())
        devices = [register_rtx(onnxruntime)[index]]
        options.add_provider_for_devices(devices, {"nv_runtime_cache_path": cache})
        return []
    settings = {"device_id": str(index)}
    if provider == "cuda" and _version(onnxruntime) >= TF32_OPTION:
        # fp32 means fp32. With TF32, the default, the factors of convolutions and products keep 10
        # bits: a trained model's log-probabilities were 1.07e-2 off, on an H200.
        settings["use_tf32"] = "0"
    if provider == "tensorrt":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        precision = "fp32" if description is None else description.precision
        settings |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(path.parent.resolve()),
            "trt_engine_cache_prefix": path.name,
        }
        if precision in ("fp16", "bf16"):  # an older release refuses an option that it lacks
            settings[f"trt_{precision}_enable"] = "True"
        if description is not None:
            settings |= _profile_settings(description)
    return [(PROVIDERS[provider], settings)]


def _version(onnxruntime: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", onnxruntime.__version__)[:2])


def _profile_settings(description: ArtifactDescription) -> dict[str, str]:
    profile, blocks = TENSORRT_PROFILE, description.blocks
    if blocks is not None:
        profile = Profile(batch=profile.batch, frames=(blocks.frames,) * 3)
    shapes = {
        tensor.name: profile_shapes(tensor, profile, description.features)
        for tensor in input_tensors(description)
    }
    return {
        f"trt_profile_{which}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, sizes[i]))}" for name, sizes in shapes.items()
        )
        for i, which in enumerate(("min", "opt", "max"))
    }


def check(session: Any, provider: Provider, path: Path) -> None:
    """Refuse a session that runs on something else than was asked for.

    Raises:
        RuntimeUnavailableError: says what it would run on.
    """
    has = session.get_providers()
    if PROVIDERS[provider] not in has[: 1 if provider != "cpu" else None]:
        reason = f"{PROVIDERS[provider]} did not start; ONNX Runtime would run on {has[0]} instead"
        raise _unavailable(path, provider, Obstacle(reason, REMEDIES[provider]))


def _unavailable(path: Path, provider: Provider, found: Obstacle) -> RuntimeUnavailableError:
    return RuntimeUnavailableError(
        f"{path}: --runtime {provider}: {found.reason}; {found.remedy}; for details: ds2deploy "
        "doctor"
    )
