"""Bulk transcription of corpora of any size, resumable, on one machine or a Ray cluster."""
