"""A row for the API: how long a large request takes through the check of its options."""

from __future__ import annotations

import asyncio
import json
import statistics

from ...version import TITLE
from ...webui.api import PATHS, Validation
from .table import Row, seconds

MEGABYTES, PART, ROUNDS = 80, 65536, 5  # a server hands a body on in parts of 64 KiB


def request(megabytes: int, entry: dict[str, object]) -> list[dict[str, object]]:
    """The ASGI messages of an img2img request whose picture has that size, with an entry of ours."""
    picture = "A" * (megabytes * 1_000_000)
    body = json.dumps({"init_images": [picture], "alwayson_scripts": {TITLE: entry}}).encode()
    parts = (body[start : start + PART] for start in range(0, len(body), PART))
    return [{"type": "http.request", "body": part, "more_body": True} for part in parts] + [{"type": "http.request"}]


def pass_through(messages: list[dict[str, object]]) -> list[dict[str, object]]:
    """What the application behind the check receives."""
    incoming, received = iter(messages), []

    async def application(_scope: dict, receive: object, _send: object) -> None:
        received.append(await receive())
        while received[-1].get("more_body"):
            received.append(await receive())

    async def receive() -> dict[str, object]:
        return next(incoming)

    asyncio.run(Validation(application)({"type": "http", "method": "POST", "path": PATHS[1]}, receive, None))
    return received


def rows(megabytes: int = MEGABYTES) -> list[Row]:
    """The request with options of ours, which has to be parsed."""
    messages = request(megabytes, {"args": [{"size": "4K"}]})
    if pass_through(messages) != messages:
        raise AssertionError("the request does not reach the application as it was sent")
    times = [seconds(lambda: pass_through(messages), "cpu") for _ in range(ROUNDS)]
    what = f"an img2img request of {megabytes} MB through the check of options"
    return [Row(what, "< 1", statistics.median(times), (min(times), max(times)), " s", "timed, cpu")]
