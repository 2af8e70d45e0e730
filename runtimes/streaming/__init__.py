"""Streaming recognition: blocks, state, single streams and pools of streams."""
