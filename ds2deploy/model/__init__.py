"""Reference network in PyTorch, its checkpoints, and importers of other checkpoints."""
