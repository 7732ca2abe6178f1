"""The check in front of the two generation requests: what it answers itself, and that all else passes untouched."""

import asyncio
import json
import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from resdit_ext.webui import api
from resdit_ext.webui.options import BY_NAME, DEFAULTS, parse_request
from tests.api_requests import NAMES, bodies, body, escaped, nested

PATH = "/sdapi/v1/txt2img"
TITLE = "ResDiT High-Res"
MOST = 2000  # characters of a detail, whatever was sent
FIELD = re.compile(rf"ResDiT High-Res: ({'|'.join(BY_NAME)}|preset|args|alwayson_scripts\[.*|unknown field .*) ")


async def through(messages, scope=None, limit=api.LONG):
    """(messages sent, messages the application received, its scopes) of one connection through the check."""
    incoming, sent, received, scopes = iter(messages), [], [], []

    async def application(scope, receive, send):
        scopes.append(scope)
        while True:
            received.append(await receive())
            if received[-1]["type"] != "http.request" or not received[-1].get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive():
        return next(incoming)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": PATH} | (scope or {})
    await api.Validation(application)(scope, receive, send)
    return sent, received, scopes


def parts_of(content, count):
    """A body as a server hands it on: in parts."""
    size = -(-len(content) // count) or 1
    parts = [content[start : start + size] for start in range(0, len(content), size)] or [b""]
    return [{"type": "http.request", "body": part, "more_body": n + 1 < len(parts)} for n, part in enumerate(parts)]


def ask(content, count=2, **scope):
    """(status, detail) of a request; the application has to receive what was sent, part by part."""
    messages = parts_of(content, count)
    sent, received, _ = asyncio.run(through(messages, scope))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    if sent[0]["status"] == 200:
        assert all(a is b for a, b in zip(received, messages, strict=True))
        return 200, None
    assert not received
    headers = dict(sent[0]["headers"])
    assert headers == {b"content-type": b"application/json", b"content-length": str(len(sent[1]["body"])).encode()}
    answer = json.loads(sent[1]["body"])
    assert answer.keys() == {"error", "detail"} and answer["error"] == "ResDiTError"
    return sent[0]["status"], answer["detail"]


def with_args(*args, title=TITLE):
    return body(title, {"args": list(args)})


@pytest.mark.parametrize("title", [TITLE, "resdit high-res", "RESDIT HIGH-RES"])
@pytest.mark.parametrize("spell", [json.dumps, escaped])
def test_bad_options_are_answered_with_422_and_the_field(title, spell):
    content = body(title, {"args": [{"widht": 3}]}, spell)
    assert ask(content)[0] == 422 and "unknown field 'widht'" in ask(content)[1]


@pytest.mark.parametrize(
    "content",
    [
        with_args({"width": 3072}),
        with_args(True, "3K"),
        with_args(),
        with_args({"enabled": False, "cutoff": "none of your business"}),
        with_args({"preset": None}),
        with_args({"nonsense": 1}, title="Another Script"),
        body(TITLE, {}),
        body(TITLE, {"arg": None}),
        b'{"prompt": "a"}',
        b"not json at all",
        b"resdit high-res",
        b"",
        b"[1, 2]",
        b'"ResDiT High-Res"',
        b'{"alwayson_scripts": {"ResDiT High-Res": {"args": [{"width": 1}]}}',
        b'{"alwayson_scripts": {"ResDiT High-Res": {"args": [{"width": \xff}]}}}',
        b'{"alwayson_scripts": 7, "prompt": "ResDiT High-Res"}',
        b'{"alwayson_scripts": null, "prompt": "ResDiT High-Res"}',
        b'{"alwayson_scripts": [["a", []], "ResDiT High-Res"]}',
        b'{"alwayson_scripts": [[7, "ResDiT High-Res"]]}',
        b'{"alwayson_scripts": {"": null, "ResDiT High-Res": {}}}',
        b'{"ResDiT High-Res": {"args": [{"width": 1}]}}',
        b'{"alwayson_scripts": {"ResDiT High-Res": {"args": [{"width": %s}]}}}' % (b"9" * 5000),
        b'{"alwayson_scripts": {"ResDiT High-Res": {"args": %s%s}}}' % (b"[" * 99_999, b"]" * 99_999),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_everything_else_reaches_the_host_unchanged(content, count):
    assert ask(content, count) == (200, None)


WHERE = "alwayson_scripts['ResDiT High-Res']"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"args": {"width": 3072}}, "args is {'width': 3072}; it must be a list"),
        ({"args": {}}, "args is {}; it must be a list"),
        ({"args": None}, "args is None; it must be a list"),
        ({"args": 0}, "args is 0; it must be a list"),
        ({"args": False}, "args is False; it must be a list"),
        ({"args": ""}, "args is ''; it must be a list"),
        ({"args": "all"}, "args is 'all'; it must be a list"),
        (None, f"{WHERE} is None; it must be an object"),
        (0, f"{WHERE} is 0; it must be an object"),
        (["args"], f"{WHERE} is ['args']; it must be an object"),
        ([{"width": 3072}], f"{WHERE} is [{{'width': 3072}}]; it must be an object"),
        ("args", f"{WHERE} is 'args'; it must be an object"),
        ({"args": [{"preset": []}]}, "preset is []; choose one of 'Balanced'"),
        ({"args": [{"preset": {}}]}, "preset is {}; choose one of 'Balanced'"),
        ({"args": [{"size": {}}]}, "size is {}; choose one of 'WebUI'"),
        ({"args": [None]}, "enabled is None; it must be true or false"),
        ({"args": [[]]}, "enabled is []; it must be true or false"),
        ({"args": [{"cutoff": float("nan")}]}, "cutoff is nan; it must be a number"),
        ({"args": [{"width": float("inf")}]}, "width is inf; it must be a whole number"),
        ({"args": [{"width": 10**400}]}, "width is 1000"),
        # What the host itself could not write into its answer, which repeats the request.
        (
            {"args": [{"enabled": False, "cutoff": float("nan")}]},
            f"{WHERE}['args'][0]['cutoff'] is nan; it must be a finite number",
        ),
        ({"args": [False, float("-inf")]}, f"{WHERE}['args'][1] is -inf; it must be a finite number"),
        ({"args": [], "note": "\ud800"}, rf"{WHERE}['note'] is '\ud800'; it must be without half a surrogate pair"),
        ({"\udfff": 1}, rf"{WHERE}['\udfff'] is '\udfff'; it must be without half a surrogate pair"),
        (
            {"args": [False, 1 << 64]},
            f"{WHERE}['args'][1] is 18446744073709551616; it must be a number of at most 64 bits",
        ),
        (
            {"args": [], "note": -(1 << 63) - 1},
            f"{WHERE}['note'] is -9223372036854775809; it must be a number of at most",
        ),
        ({"args": [False, nested(7)]}, f"{WHERE}['args'][1][0][0][0][0][0][0] is []; it must be at most 8 lists and"),
        ({"args": [False, nested(300)]}, f"{WHERE}['args'][1][0][0][0][0][0][0] is [[[[...]]]]; it must be at most 8"),
    ],
)
def test_what_the_host_would_stumble_over_is_named(entry, message):
    status, detail = ask(body(TITLE, entry))
    assert status == 422 and detail.startswith(f"ResDiT High-Res: {message}")


@pytest.mark.parametrize(
    "entry",
    [
        {"args": [False, nested(6)]},
        {"args": [], "note": "\U0001f600"},
        {"args": [False, (1 << 64) - 1, -(1 << 63), True, 1e308]},
    ],
)
def test_what_the_host_can_write_passes(entry):
    assert ask(body(TITLE, entry)) == (200, None)


def test_every_entry_of_ours_is_looked_at():
    scripts = {TITLE: {"args": [{}]}, "Another Script": None, "resdit high-res": {"args": None}}
    status, detail = ask(json.dumps({"alwayson_scripts": scripts}).encode())
    assert status == 422 and "args is None" in detail


def test_of_a_name_that_is_there_twice_the_last_counts_as_it_does_for_the_host():
    good, bad = '"ResDiT High-Res": {"args": []}', '"ResDiT High-Res": {"args": 0}'
    assert ask(f'{{"alwayson_scripts": {{{bad}, {good}}}}}'.encode())[0] == 200
    assert ask(f'{{"alwayson_scripts": {{{good}, {bad}}}}}'.encode())[0] == 422


def test_pairs_instead_of_an_object_are_looked_at_as_some_hosts_take_them():
    assert ask(json.dumps({"alwayson_scripts": [[TITLE, {"args": None}]]}).encode())[0] == 422
    assert ask(json.dumps({"alwayson_scripts": [[TITLE, {"args": []}]]}).encode())[0] == 200


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_that_the_host_reads_are_read(encoding):
    assert ask(with_args({"widht": 3}).decode().encode(encoding))[0] == 422


@pytest.mark.parametrize(
    "value", ["x" * 5_000_000, ["x" * 10_000] * 500, {"y" * 5_000_000: "x"}, [[[["x" * 999] * 99]]]]
)
@pytest.mark.parametrize("place", ["field", "name", "args", "entry"])
def test_an_answer_is_short_whatever_was_sent(place, value):
    if place == "name":
        entry = {"args": [{json.dumps(value): 1}]}
    else:
        entry = {"field": {"args": [{"cutoff": value}]}, "args": {"args": {"a": value}}, "entry": [value]}[place]
    status, detail = ask(body(TITLE, entry))
    assert status == 422 and "..." in detail and len(detail) < MOST


@pytest.mark.parametrize("count", [1, 2, 1000])
@pytest.mark.parametrize("size", [0, 10, api.LONG + 1])
def test_long_and_short_bodies_in_any_number_of_parts(size, count):
    picture = {"init_images": ["A" * size]}
    assert ask(body(TITLE, {"args": [{"cutoff": 7}]}, **picture), count)[0] == 422
    assert ask(body(TITLE, {"args": [{"cutoff": 0.7}]}, **picture), count) == (200, None)


def test_a_long_body_is_read_in_a_thread_and_a_short_one_is_not(monkeypatch):
    threads = []

    async def to_thread(function, *args):
        threads.append(function)
        return function(*args)

    monkeypatch.setattr(api.asyncio, "to_thread", to_thread)
    short = with_args({"cutoff": 7})
    assert ask(short)[0] == 422 and not threads
    assert ask(short + b" " * api.LONG)[0] == 422 and threads == [api.problem_in]


def test_what_cannot_name_us_is_not_parsed(monkeypatch):
    parsed = []
    monkeypatch.setattr(api.json, "loads", lambda text: parsed.append(text) or {})
    for content in (b'{"prompt": "resdit high res"}', rb'{"prompt": "\u4e2d"}', b"", b'{"init_images": ["A"]}'):
        assert api.problem_in(content) is None
    assert not parsed
    for content in (b'{"prompt": "RESDIT high-res"}', rb'{"\u0052": 1}', '{"é": 1}'.encode("utf-16")):
        assert api.problem_in(content) is None
    assert len(parsed) == 3


@pytest.mark.parametrize("complete", [True, False])
def test_a_client_that_leaves_in_the_middle_is_the_hosts_affair(complete):
    """Even where what has come so far is JSON with a bad option."""
    content = with_args({"widht": 3})
    messages = parts_of(content if complete else content[:-9], 2)
    messages[-1]["more_body"] = True
    messages.append({"type": "http.disconnect"})
    sent, received, _ = asyncio.run(through(messages))
    assert sent[0]["status"] == 200 and received == messages


def test_after_the_body_the_application_hears_the_client_itself():
    later = [{"type": "http.disconnect"}]
    heard = []

    async def application(scope, receive, send):
        heard.extend([await receive(), await receive()])

    async def run():
        incoming = iter([*parts_of(b"{}", 1), *later])

        async def receive():
            return next(incoming)

        await api.Validation(application)({"type": "http", "method": "POST", "path": PATH}, receive, None)

    asyncio.run(run())
    assert heard[1] is later[0]


def test_parts_without_a_body_or_an_end_are_as_asgi_has_them():
    content = with_args({"widht": 3})
    messages = [{"type": "http.request", "more_body": True}, {"type": "http.request", "body": content}]
    sent, _, _ = asyncio.run(through(messages))
    assert sent[0]["status"] == 422


@pytest.mark.parametrize(
    "scope",
    [
        {"method": "GET"},
        {"method": "HEAD"},
        {"method": "OPTIONS"},
        {"method": "PUT"},
        {"path": "/sdapi/v1/png-info"},
        {"path": "/sdapi/v1/txt2img/"},
        {"path": "/sub/sdapi/v1/txt2img"},
        {"path": "/sub/sdapi/v1/txt2img", "root_path": "/su"},
        {"path": "/subsdapi/v1/txt2img", "root_path": "/sub"},
        {"type": "websocket"},
        {"type": "lifespan"},
    ],
)
def test_other_connections_are_not_touched(scope):
    """Not even read: what the application receives comes straight from the server."""
    read = []

    async def receive():
        read.append(1)
        return {"type": "http.request", "body": with_args({"widht": 3})}

    async def application(inner, receive_given, send_given):
        assert (inner, receive_given, send_given) == (scope, receive, send) and not read
        read.append("called")

    async def send(_):
        pass

    scope = {"type": "http", "method": "POST", "path": PATH} | scope
    if scope["type"] != "http":
        del scope["method"]
    asyncio.run(api.Validation(application)(scope, receive, send))
    assert read == ["called"]


@pytest.mark.parametrize(
    "scope",
    [
        {"path": "/sdapi/v1/img2img"},
        {"path": "/sdapi/v1/txt2img", "root_path": ""},
        {"path": "/sdapi/v1/txt2img", "root_path": "/sub"},  # a server that leaves the root out of the path
        {"path": "/sub/sdapi/v1/txt2img", "root_path": "/sub"},
        {"path": "/a/b/sdapi/v1/img2img", "root_path": "/a/b"},
    ],
)
def test_both_requests_are_checked_below_any_root(scope):
    assert ask(with_args({"widht": 3}), **scope)[0] == 422


class Order(BaseModel):
    """What the hosts' request has of interest here."""

    prompt: str = ""
    alwayson_scripts: dict = {}


@pytest.fixture(scope="module")
def client():
    """An application that does with our entry what the hosts do, and repeats the request in its answer as they do."""
    app = FastAPI()

    @app.post("/sdapi/v1/txt2img")
    @app.post("/sdapi/v1/img2img")
    def generate(order: Order):
        args = list(DEFAULTS.values())
        for name, entry in order.alwayson_scripts.items():
            if name.lower() == api.NAME and "args" in entry:
                count = min(len(args), len(entry["args"]))
                args[:count] = [entry["args"][i] for i in range(count)]
        parse_request(tuple(args))
        return {"parameters": vars(order)}

    api.add_validation(app)
    with TestClient(app) as client:  # an error inside the application is raised here
        yield client


def post(client, content, path=PATH):
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    return answer.status_code, answer.json()


@settings(max_examples=600)
@example(body(TITLE, {"args": [{"preset": []}]}))
@example(body(TITLE, {"args": [{"preset": {}}]}))
@example(body(TITLE, {"args": None}))
@example(body(TITLE, None))
@example(body(TITLE, {"args": [{"enabled": False, "cutoff": float("nan")}]}))
@example(body(TITLE, {"args": [False, "\ud800"]}))
@example(body(TITLE, {"args": [False, nested(300)]}))
@example(body(TITLE, {"args": [{"cutoff": "1" * 5000}]}))
@given(bodies())
def test_any_entry_is_accepted_or_answered_with_the_fields_name(client, content):
    status, answer = post(client, content)
    if status == 200:
        assert answer["parameters"].keys() == {"prompt", "alwayson_scripts"}
    else:
        assert status == 422 and FIELD.match(answer["detail"]) and len(answer["detail"]) < MOST


@given(st.binary(max_size=80) | st.text(max_size=40).map(lambda text: f'{{"{text}": "ResDiT High-Res"}}'.encode()))
def test_any_body_passes(content):
    assert ask(content) == (200, None)


def test_both_fuzz_and_names_know_every_option():
    assert set(NAMES) >= set(BY_NAME)


def test_the_check_is_added_once(client):
    api.add_validation(client.app)
    assert [middleware.cls for middleware in client.app.user_middleware] == [api.Validation]
    assert post(client, with_args({"widht": 3}), "/sdapi/v1/img2img")[0] == 422
    assert client.get("/sdapi/v1/txt2img").status_code == 405


def test_an_application_that_has_answered_before_is_checked_from_then_on():
    app = FastAPI()

    @app.post(PATH)
    def generate():
        return {}

    with TestClient(app) as client:
        assert post(client, with_args({"widht": 3}))[0] == 200
        api.add_validation(app)
        assert post(client, with_args({"widht": 3}))[0] == 422
        assert post(client, with_args())[0] == 200


def test_below_a_sub_path_the_application_answers_as_at_the_top():
    inner = FastAPI()

    @inner.post(PATH)
    def generate():
        return {}

    api.add_validation(inner)
    outer = FastAPI()
    outer.mount("/sub", inner)
    with TestClient(outer) as client:
        assert post(client, with_args({"widht": 3}), f"/sub{PATH}")[0] == 422
        assert post(client, with_args(), f"/sub{PATH}")[0] == 200
