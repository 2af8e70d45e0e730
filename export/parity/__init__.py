"""The parity check: what is compared, with which reference, on which speech."""
