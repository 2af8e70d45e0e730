"""The GPUs that TensorRT-RTX knows. It builds for them anywhere, and loads nothing on others."""

from __future__ import annotations

import shlex

from ds2deploy.runtimes.tensorrt.cuda import Device

RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities: Turing, Ampere, Ada and Blackwell; no Jetson, no Hopper."""


def on_another_gpu(device: Device) -> str:
    """Explain that TensorRT-RTX does not know a GPU; empty where it knows it."""
    if device.compute_capability in RTX_CAPABILITIES:
        return ""
    return (
        f"TensorRT-RTX does not support {device.name}, compute capability "
        f"{device.compute_capability} (supported: {', '.join(RTX_CAPABILITIES)})"
    )


def tensorrt_command(rebuild: str) -> str:
    """Turn the command that built an engine with TensorRT-RTX into TensorRT's."""
    words = shlex.split(rebuild)
    if "--targets" in words:  # TensorRT builds for the GPU that it runs on
        at = words.index("--targets")
        del words[at : at + 2]
    return shlex.join("--trt" if word == "--rtx" else word for word in words)
