"""The deployed network as an ONNX graph."""
