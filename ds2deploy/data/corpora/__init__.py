"""Corpora as they are unpacked: one file for each layout, and one registry of them all."""
