"""The version of this package, equal to the server's version."""

__version__ = "0.1.0"
