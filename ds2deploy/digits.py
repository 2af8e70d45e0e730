"""The words of the digit corpora: the one that is recorded and the one that is synthesised."""

DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
