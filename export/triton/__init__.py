"""Model repositories of NVIDIA Triton: configuration, and a simulation that checks it."""
