"""Three GET routes that need no generation: the version, the options' JSON schema and the forecast for a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi import Request
from fastapi.responses import JSONResponse

from .. import __version__
from ..errors import ResDiTError, quoted
from ..families import families
from ..method.config import PRESETS
from ..version import TITLE
from .forecast import forecast
from .option import Option
from .options import BY_NAME, OPTIONS, parse_request
from .sizes import FREE_RATIO, WEBUI_SIZE, output_size
from .xyz import PRESET, parse_text

STEPS = Option("steps", "Steps", "number", families()[0].steps, low=1, high=1000)


def model_option() -> Option:
    """The choice of a family, by its key in the API."""
    keys = tuple(family.key for family in families())
    return Option("model", "Model", "choice", keys[0], choices=keys)


def schema_of(option: Option) -> dict[str, object]:
    """The JSON schema of one option's value.

    It has no step: that is for the page; the API takes any value between and rounds a picture's sides itself.
    """
    number = {"type": "integer" if option.whole else "number", "minimum": option.low, "maximum": option.high}
    kinds = {
        "bool": {"type": "boolean"},
        "choice": {"enum": list(option.choices)},
        "number": number,
        "scale": {"anyOf": [{"enum": list(option.choices)}, number]},
    }
    return {"title": option.label, "description": option.info, "default": option.default} | kinds[option.kind]


def schema() -> dict[str, object]:
    """The JSON schema of the object of named options that a request has in `args`."""
    properties = {option.name: schema_of(option) for option in OPTIONS}
    properties["enabled"] |= {"default": True, "description": "An object of options switches ResDiT on"}
    properties["size"] |= {
        "default": WEBUI_SIZE,
        "description": "Long side: 2048, 3072, 4096 or custom pixels; WebUI keeps the request's own size, which is the "
        "default unless ratio (3K), long_side, width or height (Custom) is given",
    }
    properties["preset"] = {
        "title": "Preset",
        "description": "Sets several options at once; options given beside it take precedence",
        "enum": list(PRESETS),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": TITLE,
        "description": f"alwayson_scripts['{TITLE}'].args[0]. Without size, ratio, width, height and long_side "
        "the request keeps its own width and height. A width or height alone makes a square. fused_until must not be "
        "below global_until",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def forecast_of_query(query: Mapping[str, str]) -> dict[str, object]:
    """The forecast for a request of `width` x `height` pixels in `steps` steps; raises ResDiTError naming the field.

    The options mean what they mean in `args`, so that `size`, `ratio` and `long_side` change the picture's size; with
    the ratio Free it is the request's.
    """
    model = model_option()
    known = BY_NAME | {option.name: option for option in (model, STEPS, PRESET)}
    if unknown := [name for name in query if name not in known]:
        raise ResDiTError(f"unknown field {quoted(unknown[0])}; the fields are {', '.join(known)}")
    if missing := [name for name in ("width", "height", "steps") if name not in query]:
        raise ResDiTError(f"{missing[0]} is missing; width, height and steps are needed")
    values = {name: parse_text(known[name], text) for name, text in query.items()}
    key, steps = values.pop("model", model.default), values.pop("steps")
    family = next(family for family in families() if family.key == key)
    sides = {name: values.pop(name) for name in ("width", "height")}
    request = parse_request((values | (sides if values.get("ratio") == FREE_RATIO else {}),))
    size = output_size(request.values, **sides) if request.enabled else tuple(sides.values())
    return forecast(request, *size, steps, family).as_dict()


def answering(compute: Callable[[Mapping[str, str]], dict[str, object]]) -> Callable[[Request], JSONResponse]:
    """An endpoint that computes its answer from the query; a bad query is answered with 422."""

    def endpoint(request: Request) -> JSONResponse:
        try:
            return JSONResponse(compute(request.query_params))
        except ResDiTError as error:
            return JSONResponse({"error": "ResDiTError", "detail": f"{TITLE}: {error}"}, status_code=422)

    endpoint.__doc__ = compute.__doc__  # what the host's /docs shows
    return endpoint


def demands_of_host(app: object) -> list[object]:
    """The log-in that the host wants for its API (`--api-auth`), or for its page if it has no API (`--gradio-auth`)."""
    demands = {route.path: route.dependencies for route in app.routes if hasattr(route, "dependencies")}
    return next((demands[path] for path in ("/sdapi/v1/options", "/config") if path in demands), [])


def add_routes(app: object) -> None:
    """Add the routes to a FastAPI application that does not have them yet; the host's own routes must be there."""
    present = {getattr(route, "path", None) for route in app.routes}
    routes = {"version": lambda _: {"version": __version__}, "schema": lambda _: schema(), "plan": forecast_of_query}
    common = {"methods": ["GET"], "response_model": None, "dependencies": demands_of_host(app)}
    for name, compute in routes.items():
        path = f"/resdit/v1/{name}"
        if path not in present:
            app.add_api_route(path, answering(compute), name=f"resdit_{name}", **common)
