"""Bulk transcription: corpora of any size, on one machine or a Ray cluster, resumable."""
