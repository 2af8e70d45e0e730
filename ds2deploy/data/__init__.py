"""From recordings with transcripts to batches: corpora, manifests, augmentation."""
