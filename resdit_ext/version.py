"""The name and the version, apart so that packaging can read them without importing torch."""

TITLE = "ResDiT High-Res"
__version__ = "0.5.0"
