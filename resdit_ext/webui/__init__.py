"""The WebUI side: one option table, the accordion, infotext, API and the hooks of a generation."""
