"""Readers of unpacked corpora: one file for each layout, and a registry."""
