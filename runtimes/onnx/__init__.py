"""The session on ONNX Runtime."""
