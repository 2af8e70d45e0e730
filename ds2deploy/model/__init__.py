"""The reference network in PyTorch, its checkpoints, and importers of other checkpoints."""
