"""Bad options in an API request are answered with 422 and the field's name, before any picture is begun."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import deque
from collections.abc import Awaitable, Callable

from ..errors import ResDiTError, quoted
from ..version import TITLE
from .options import parse_request

NAME = TITLE.lower()  # hosts compare names in lower case
PATHS = ("/sdapi/v1/txt2img", "/sdapi/v1/img2img")
LONG = 1 << 20  # bytes; a longer body is read in a thread, while the server goes on with other requests
DEEPEST = 8  # lists and objects in each other; options need three
SURROGATE = re.compile("[\ud800-\udfff]")


def may_name_us(body: bytes) -> bool:
    """False only for a JSON text without an entry of ours, found without parsing: a picture in it may have 100 MB.

    A JSON string may hold any of the title's letters as an escape, all of which begin with `\\u00`; and JSON that is
    not in UTF-8 spells the title otherwise.
    """
    return NAME.encode() in body.lower() or rb"\u00" in body or json.detect_encoding(body) != "utf-8"


def entries_of(body: bytes) -> dict[str, object]:
    """The entries under our title, which may be in capitals or not; none where the host will refuse the whole body."""
    if not may_name_us(body):
        return {}
    try:
        scripts = dict(json.loads(body)["alwayson_scripts"])  # `dict`, as hosts with pydantic 1 take a list of pairs
    except (ValueError, TypeError, LookupError, RecursionError):
        return {}
    return {name: entry for name, entry in scripts.items() if isinstance(name, str) and name.lower() == NAME}


def flaw_in(value: object, depth: int = 0) -> str | None:
    """What in a JSON value the host could not write into its answer, which repeats the request; None if nothing.

    With its page a host writes by orjson, which takes 64 bits; with --nowebui by Python's json, which refuses NaN.
    """
    if isinstance(value, int):
        return None if -(1 << 63) <= value < 1 << 64 else f" is {quoted(value)}; it must be a number of at most 64 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else f" is {value!r}; it must be a finite number"
    if isinstance(value, str):
        return f" is {quoted(value)}; it must be without half a surrogate pair" if SURROGATE.search(value) else None
    if not isinstance(value, (list, dict)):
        return None
    if depth == DEEPEST:
        return f" is {quoted(value)}; it must be at most {DEEPEST} lists and objects deep"
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if flaw := flaw_in(key) or flaw_in(inner, depth + 1):
            return f"[{quoted(key)}]{flaw}"
    return None


def check_entry(name: str, entry: object) -> None:
    """Raise ResDiTError naming the field of an entry of ours that would make the host or our script fail."""
    where = f"alwayson_scripts[{quoted(name)}]"
    if not isinstance(entry, dict):
        raise ResDiTError(f"{where} is {quoted(entry)}; it must be an object, with the options in its list args")
    args = entry.get("args", [])
    if not isinstance(args, list):
        raise ResDiTError(
            f"args is {quoted(args)}; it must be a list, whose first item may be an object of named options"
        )
    parse_request(tuple(args))
    if flaw := flaw_in(entry):
        raise ResDiTError(f"{where}{flaw}")


def problem_in(body: bytes) -> str | None:
    """What is wrong with the ResDiT arguments in a request's JSON body, or None; other faults are the host's."""
    try:
        for name, entry in entries_of(body).items():
            check_entry(name, entry)
    except ResDiTError as error:
        return str(error)
    return None


def route_of(scope: dict) -> str:
    """The path inside the application: some servers put the path that it is served at before it, some do not."""
    path, root = scope["path"], scope.get("root_path", "")
    return path[len(root) :] if path.startswith(f"{root}/") else path


async def read(receive: Callable[[], Awaitable[dict]]) -> tuple[deque[dict], str | None]:
    """All messages of a request's body, and what is wrong in it, if anything; a client may leave before its end."""
    messages, more = deque(), True
    while more:
        messages.append(await receive())
        more = messages[-1]["type"] == "http.request" and messages[-1].get("more_body", False)
    if messages[-1]["type"] != "http.request":
        return messages, None
    body = b"".join(message.get("body", b"") for message in messages)
    return messages, problem_in(body) if len(body) <= LONG else await asyncio.to_thread(problem_in, body)


class Validation:
    """ASGI middleware that reads the two generation requests, and answers those whose ResDiT options are bad."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or route_of(scope) not in PATHS:
            await self.app(scope, receive, send)
            return
        messages, problem = await read(receive)
        if problem is None:

            async def receive_again() -> dict:
                return messages.popleft() if messages else await receive()

            await self.app(scope, receive_again, send)
            return
        answer = json.dumps({"error": "ResDiTError", "detail": f"{TITLE}: {problem}"}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 422, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def add_validation(app: object) -> None:
    """Put the check in front of a FastAPI application, once, even if it has started already."""
    if any(middleware.cls is Validation for middleware in app.user_middleware):
        return
    app.middleware_stack = None  # an application that has started refuses new middleware otherwise, and builds it anew
    app.add_middleware(Validation)
