"""Demonstration of all steps on synthetic speech: train, export, verify, transcribe."""
