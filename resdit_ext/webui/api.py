"""Bad options in an API request are answered with 422 and the field's name, before any image is begun."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from ..errors import ResDiTError
from .options import parse_request

TITLE = "resdit high-res"
PATHS = ("/sdapi/v1/txt2img", "/sdapi/v1/img2img")


def problem_in(body: bytes) -> str | None:
    """What is wrong with the ResDiT arguments in a request's JSON body, or None; other faults are the host's."""
    try:
        scripts = json.loads(body).get("alwayson_scripts") or {}
        found = next((value for name, value in scripts.items() if name.lower() == TITLE), None)
    except (ValueError, AttributeError):
        return None
    args = found.get("args", []) if isinstance(found, dict) else None
    if found is None or not args:
        return None
    if not isinstance(args, list):
        return f"args is {args!r}; it must be a list, whose first item may be an object of named options"
    try:
        parse_request(tuple(args))
    except ResDiTError as error:
        return str(error)
    return None


class Validation:
    """ASGI middleware that reads the two generation requests, and answers those whose ResDiT options are bad."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in PATHS:
            await self.app(scope, receive, send)
            return
        body, messages = b"", []
        while True:
            message = await receive()
            messages.append(message)
            body += message.get("body", b"")
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        problem = problem_in(body)
        if problem is None:
            replay = iter(messages)

            async def receive_again() -> dict:
                return next(replay, None) or await receive()

            await self.app(scope, receive_again, send)
            return
        answer = json.dumps({"error": "ResDiTError", "detail": f"ResDiT High-Res: {problem}"}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 422, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def add_validation(app: object) -> None:
    """Put the check in front of a FastAPI application, once, even if it has started already."""
    if any(middleware.cls is Validation for middleware in app.user_middleware):
        return
    app.middleware_stack = None  # an application that has started refuses new middleware otherwise
    app.add_middleware(Validation)
    app.middleware_stack = app.build_middleware_stack()
