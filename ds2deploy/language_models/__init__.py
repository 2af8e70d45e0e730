"""Making of language models (`.lm` files) from text or ARPA files."""
