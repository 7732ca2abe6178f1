"""The routes, asked as a client asks them; the schema says yes and no where the option table does."""

import json

import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from fastapi.testclient import TestClient
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resdit_ext import ResDiTError, __version__
from resdit_ext.webui import routes
from resdit_ext.webui.forecast import forecast
from resdit_ext.webui.options import BY_NAME, DEFAULTS, OPTIONS, parse_request
from tests.api_requests import CHOICES, valid


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    routes.add_routes(app)
    routes.add_routes(app)  # Reload UI with the same application
    return TestClient(app)


def get(client, name, **query):
    answer = client.get(f"/resdit/v1/{name}", params=query)
    return answer.status_code, answer.json()


def plan(client, **query):
    return get(client, "plan", **({"width": 3072, "height": 2048, "steps": 35} | query))


def test_each_route_is_there_once(client):
    paths = [getattr(route, "path", "") for route in client.app.routes]
    assert sorted(path for path in paths if path.startswith("/resdit/")) == [
        "/resdit/v1/plan",
        "/resdit/v1/schema",
        "/resdit/v1/version",
    ]
    assert client.post("/resdit/v1/plan").status_code == 405
    assert "/resdit/v1/plan" in client.get("/openapi.json").json()["paths"]


def test_version(client):
    assert get(client, "version") == (200, {"version": __version__})


PAGE, API = "/config", "/sdapi/v1/options"


@pytest.mark.parametrize(
    ("present", "guarded", "stranger"),
    [
        ((PAGE, API), API, 401),
        ((PAGE, API), PAGE, 200),
        ((PAGE,), PAGE, 401),
        ((PAGE, API), None, 200),
        ((), None, 200),
    ],
)
def test_strangers_are_let_in_where_the_host_lets_them_in(present, guarded, stranger):
    def check(given: HTTPBasicCredentials = Depends(HTTPBasic())):  # noqa: B008 (as the hosts do)
        if (given.username, given.password) != ("ann", "secret"):
            raise HTTPException(401)

    def theirs():
        return {}

    app = FastAPI()
    for path in present:
        app.get(path, dependencies=[Depends(check)] if path == guarded else [])(theirs)
    routes.add_routes(app)
    client = TestClient(app)
    for name, query in (("version", {}), ("schema", {}), ("plan", {"width": 1024, "height": 1024, "steps": 20})):
        path = f"/resdit/v1/{name}"
        assert client.get(path, params=query).status_code == stranger
        assert client.get(path, params=query, auth=("ann", "wrong")).status_code == stranger
        assert client.get(path, params=query, auth=("ann", "secret")).status_code == 200


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ({}, {}),
        ({"speed": "fast"}, {"speed": "fast"}),
        ({"preset": "Paper", "cutoff": "0.3"}, {"preset": "Paper", "cutoff": 0.3}),
        ({"attention_scale": "1.5", "base_size": "512"}, {"attention_scale": 1.5, "base_size": 512}),
        ({"base_shape": "square", "enabled": "true"}, {"base_shape": "square"}),
        ({"enabled": "False"}, {"enabled": False}),
    ],
)
def test_the_plan_is_the_forecast(client, query, options):
    request = parse_request(({"size": "WebUI", **options},))
    expected = forecast(request, 3072, 2048, 35).as_dict()
    assert plan(client, **query) == (200, json.loads(json.dumps(expected)))


@pytest.mark.parametrize(
    ("query", "size"),
    [
        ({}, (3072, 2048)),
        ({"width": "1000", "height": "1400"}, (1000, 1400)),
        ({"size": "4K"}, (4096, 4096)),
        ({"ratio": "2:1"}, (3072, 1536)),
        ({"portrait": "true"}, (3072, 2048)),
        ({"long_side": "2048"}, (2048, 2048)),
        ({"size": "4K", "ratio": "2:1", "portrait": "true"}, (2048, 4096)),
        ({"size": "4K", "ratio": "WebUI"}, (4096, 2736)),
        ({"size": "2K", "ratio": "Free"}, (3072, 2048)),
        ({"size": "Custom", "long_side": "5008"}, (5008, 5008)),
    ],
)
def test_the_pictures_size(client, query, size):
    status, answer = plan(client, **query)
    assert status == 200 and (answer["width"], answer["height"]) == size


def test_the_plan_knows_the_model(client):
    _, flux = plan(client, speed="fastest")
    _, sd3 = plan(client, speed="fastest", model="sd3")
    assert flux["attention"] != sd3["attention"] and flux["activation_bytes"] != sd3["activation_bytes"]
    assert sd3["warnings"] == ["speed has no effect on SD3"]
    assert plan(client, model="flux", speed="fastest") == (200, flux)


@pytest.mark.parametrize("side", ["256", "8192"])
def test_the_extremes_have_a_plan(client, side):
    for options in ({}, {"base_size": "128"}, {"base_size": "2048", "base_shape": "square"}, {"preset": "Paper"}):
        for steps in ("1", "1000"):
            assert plan(client, width=side, height="8192", steps=steps, **options)[0] == 200


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"wdth": "7"}, "unknown field 'wdth'; the fields are enabled, size"),
        ({"width": "wide"}, "width is 'wide'; it must be a whole number from 256 to 8192"),
        ({"width": ""}, "width is ''"),
        ({"height": "1e9"}, "height is '1e9'"),
        ({"height": "nan"}, "height is 'nan'"),
        ({"steps": "0"}, "steps is '0'; it must be a whole number from 1 to 1000"),
        ({"steps": "20.5"}, "steps is '20.5'"),
        ({"model": "sdxl"}, "model is 'sdxl'; choose one of 'flux', 'sd3'"),
        ({"speed": "warp"}, "speed is 'warp'; choose one of 'exact'"),
        ({"preset": "Best"}, "preset is 'Best'; choose one of 'Balanced'"),
        ({"enabled": "perhaps"}, "enabled is 'perhaps'; it must be true or false"),
        (
            {"layout": "scaled", "global_until": "0.9", "fused_until": "0.3"},
            "fused_until is 0.3, below global_until 0.9",
        ),
    ],
)
def test_bad_queries_are_answered_with_422_and_the_field(client, query, message):
    status, answer = plan(client, **query)
    assert status == 422 and answer["error"] == "ResDiTError"
    assert answer["detail"].startswith(f"ResDiT High-Res: {message}")


@pytest.mark.parametrize("name", ["width", "height", "steps"])
def test_what_is_missing_is_named(client, name):
    query = {key: value for key, value in {"width": 1024, "height": 1024, "steps": 20}.items() if key != name}
    status, answer = get(client, "plan", **query)
    assert status == 422 and f"{name} is missing" in answer["detail"]


FIELDS = [*BY_NAME, "preset", "model", "steps"]
texts = st.text(max_size=12) | st.sampled_from([*CHOICES, "true", "FALSE", "nan", "-inf", "1e999", "1_000", "\u0663"])
good = st.fixed_dictionaries(
    {name: st.integers(256, 8192).map(str) for name in ("width", "height")} | {"steps": st.integers(1, 1000).map(str)},
    optional={o.name: valid(o).map(str) for o in OPTIONS if o.name not in ("width", "height")},
)
queries = st.builds(
    lambda good, bad: good | bad,
    good,
    st.just({}) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=9), texts, max_size=3),
)


@settings(max_examples=400)
@example({"width": "1" * 5000, "height": "256", "steps": "1"})
@example({"x" * 5000: "1"})
@given(queries)
def test_any_query_has_a_plan_or_is_answered_with_the_fields_name(client, query):
    status, answer = get(client, "plan", **query)
    if status == 200:
        assert answer["active"] in (True, False) and answer["line"]
    else:
        named = answer["detail"].removeprefix("ResDiT High-Res: ")
        assert status == 422 and (named.startswith("unknown field ") or named.split(" ")[0] in FIELDS)
        assert len(answer["detail"]) < 1000


@given(good)
def test_a_good_query_has_a_plan(client, query):
    query |= {"fused_until": "1", "maximal_range": "512"}
    assert get(client, "plan", **query)[0] == 200


KINDS = {"boolean": bool, "integer": (int, float), "number": (int, float), "object": dict}


def fits(schema, value):
    """Whether a value fits a schema, by JSON Schema's rules for the keywords that ours has."""
    if "type" in schema:
        number = schema["type"] in ("integer", "number")
        if not isinstance(value, KINDS[schema["type"]]) or (number and isinstance(value, bool)):
            return False
        if number and not schema["minimum"] <= value <= schema["maximum"]:
            return False
        if schema["type"] == "integer" and value != int(value):
            return False
        if schema["type"] == "object":
            known = schema["properties"]
            return all(name in known and fits(known[name], item) for name, item in value.items())
    if "anyOf" in schema:
        return any(fits(part, value) for part in schema["anyOf"])
    return "enum" not in schema or any(value == item and type(value) is type(item) for item in schema["enum"])


def accepted(option, value):
    try:
        option.parse(value)
    except ResDiTError:
        return False
    return True


@pytest.fixture(scope="module")
def schema(client):
    return get(client, "schema")[1]


def test_the_schema_is_an_object_of_every_option_and_the_preset(schema):
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["type"] == "object" and schema["additionalProperties"] is False
    assert list(schema["properties"]) == [*BY_NAME, "preset"]
    for option in OPTIONS:
        part = schema["properties"][option.name]
        assert fits(part, part["default"]) and part["title"] == option.label
        assert option.name in ("enabled", "size") or part["description"] == option.info
    defaults = {name: part["default"] for name, part in schema["properties"].items() if "default" in part}
    assert defaults == DEFAULTS | {"enabled": True, "size": "WebUI"}
    assert parse_request((defaults,)) == parse_request(({},))


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_the_schema_and_the_table_agree(schema, option):
    """On values of JSON's own types; that the table takes a number in a string too is not promised."""
    values = [
        True,
        False,
        None,
        [],
        {},
        "",
        "log",
        "sqrt-log",
        *option.choices,
        *(c.swapcase() for c in option.choices),
    ]
    values += [0, 1, 0.5, 0.7, -1, 3000, 3072.0, 3072.5, 1e9, option.low, option.high]
    values += [option.low - 1, option.high + 1, option.low + 0.001, option.high + 0.001]
    part = schema["properties"][option.name]
    assert [fits(part, value) for value in values] == [accepted(option, value) for value in values]


def test_the_schema_says_when_the_requests_own_size_stays(schema):
    assert "keeps the request's own size" in schema["properties"]["size"]["description"]
    assert "the request keeps its own width and height" in schema["description"]


def test_the_schema_and_the_requests_agree(schema):
    for args in ({}, {"width": 3000}, {"preset": "Paper"}, {"preset": "Best"}, {"wdth": 1}, {"cutoff": 2}, []):
        try:
            parse_request((args,))
            taken = isinstance(args, dict)
        except ResDiTError:
            taken = False
        assert fits(schema, args) is taken
