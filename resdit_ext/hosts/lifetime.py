"""What a host may keep longer than the generation that it belongs to, without keeping that.

Forge's kin have a generation's last unet until the next one begins, and do not clean up after an error.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable


def teller(p: object, subject: str, say: Callable[[object, str], None]) -> Callable[[str], None]:
    """The function that tells a generation's user something of a subject, as long as there is the generation.

    Args:
        p: the host's object of the generation.
        subject: what each message begins with.
        say: (p, message) tells the user.
    """
    generation = weakref.ref(p)

    def tell(message: str) -> None:
        if (alive := generation()) is not None:
            say(alive, subject + message)

    return tell


def release_with(p: object, kept: object) -> None:
    """Have `kept.release()` called when the generation is gone, if there still is `kept` then."""
    reference = weakref.ref(kept)  # or what all passes made would stay until then

    def release() -> None:
        if (alive := reference()) is not None:
            alive.release()

    weakref.finalize(p, release).atexit = False
