"""Version of ds2deploy."""

__version__ = "0.1.0"
