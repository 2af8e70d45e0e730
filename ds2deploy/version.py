"""Version of ds2deploy."""

__version__ = "1.0.0"
