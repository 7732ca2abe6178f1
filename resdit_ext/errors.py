"""The two errors a caller can expect."""


class ResDiTError(ValueError):
    """A value is out of range; the message quotes it, the allowed range and what to do."""


class Unsupported(ResDiTError):
    """A model or host lacks what the method needs; the message is the reason, fit to show to a user."""
