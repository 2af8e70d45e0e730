"""The whole way on synthetic speech: train, export, verify, transcribe."""
