"""Data of a training: corpora, manifests, augmentation and batches."""
