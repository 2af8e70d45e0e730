"""Language models: estimated from text, or read from ARPA files, and written as `.lm` files."""
