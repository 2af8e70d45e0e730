"""Benchmark of latency, real-time factor and memory of models on this machine."""
