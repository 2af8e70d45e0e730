"""CTC decoding of log-probabilities to text."""
