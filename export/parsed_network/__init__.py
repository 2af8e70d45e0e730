"""The network that TensorRT parsed, evaluated on the CPU."""
