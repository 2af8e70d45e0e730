"""Training, resuming, evaluation and reports."""
