"""The session on TensorRT and TensorRT-RTX."""
