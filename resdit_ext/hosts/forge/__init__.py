"""Forge, Forge Neo and ersatzForge."""
