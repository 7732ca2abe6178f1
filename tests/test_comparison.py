"""*Compare*: the same seed's picture at the base size is put behind the others, and costs nothing but itself."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from resdit_ext.webui import lifecycle
from tests.fakes import FakeFlux, FakeProcessing
from tests.test_lifecycle import generate
from tests.webui_host import FakeHost

ASKED = {"width": 768, "height": 512, "base_size": 256, "compare": True}


class FakeRunner:
    """The host's scripts: ours has its arguments from the second on."""

    def __init__(self):
        self.alwayson_scripts = [
            SimpleNamespace(title=lambda: "ControlNet", args_from=0),
            SimpleNamespace(title=lambda: "ResDiT High-Res", args_from=1),
        ]


@pytest.fixture
def orders(monkeypatch):
    """What the host is asked to make meanwhile; it may be told to fail."""
    torch.manual_seed(6)
    FakeHost(monkeypatch, None)
    orders, processing = [], ModuleType("modules.processing")

    def process_images(p):
        orders.append(p)
        lifecycle.before_process(p, *p.script_args[1:])
        lifecycle.process(p, *p.script_args[1:])
        lifecycle.postprocess(p, SimpleNamespace())
        p.extra_generation_params["of"] = "the other"
        picture = f"{p.width}x{p.height}"
        return SimpleNamespace(images=["grid", picture], infotexts=["", f"of {picture}"], index_of_first_image=1)

    processing.process_images = process_images
    monkeypatch.setitem(sys.modules, "modules.processing", processing)
    return orders


def finished(asked=None, **attributes):
    """A generation of two pictures that is through but for its last hook, and what that is handed."""
    asked = ASKED | (asked or {})
    lists = dict(all_prompts=["a", "b"], all_negative_prompts=["c", "d"], all_seeds=[5, 6], all_subseeds=[7, 8])
    lists |= dict(script_args=("unit", asked), scripts=FakeRunner(), styles=["x"], batch_size=2, n_iter=3)
    p = FakeProcessing(FakeFlux(), **lists, **attributes)
    generate(p, asked | {"compare": False})
    p._resdit.request.values["compare"] = asked["compare"]
    return p, SimpleNamespace(images=["large"], infotexts=["of large"])


def test_the_base_size_is_made_once_with_the_first_seed(orders):
    p, made = finished()
    lifecycle.postprocess(p, made)
    assert made.images == ["large", "320x208"] and made.infotexts == ["of large", "of 320x208"]
    (again,) = orders
    assert (again.prompt, again.negative_prompt, again.seed, again.subseed) == ("a", "c", 5, 7)
    assert (again.batch_size, again.n_iter, again.styles, again.do_not_save_samples) == (1, 1, [], True)
    assert again.script_args == ["unit", False], "other scripts take part"
    assert again._resdit is None and "ResDiT" not in again.extra_generation_params


def test_the_generation_itself_is_left_as_it_was(orders):
    p, made = finished()
    size, parameters = (p.width, p.height), dict(p.extra_generation_params)
    lifecycle.postprocess(p, made)
    assert (p.width, p.height) == size and p.extra_generation_params == parameters
    assert p.script_args[1]["compare"] and p._resdit.request.enabled and p.styles == ["x"]


@pytest.mark.parametrize(
    "why",
    [
        dict(asked={"compare": False}),
        dict(asked={"base_size": 2048}),  # ResDiT took no part: the picture is the model's own
        dict(interrupted=True),
    ],
)
def test_it_is_not_made_where_there_is_nothing_to_compare(orders, monkeypatch, why):
    interrupted = why.pop("interrupted", False)
    p, made = finished(**why)
    sys.modules["modules"].shared.state.interrupted = interrupted
    lifecycle.postprocess(p, made)
    assert made.images == ["large"] and not orders


def test_img2img_says_that_it_has_none(orders):
    p, made = finished()
    p.init_images = ["picture"]
    lifecycle.postprocess(p, made)
    assert not orders and "Compare is for txt2img" in made.extra_generation_params["ResDiT notes"][-1]


def test_an_error_costs_that_picture_alone(orders, monkeypatch):
    def fails(p):
        raise MemoryError("none left")

    p, made = finished()
    monkeypatch.setattr(sys.modules["modules.processing"], "process_images", fails)
    lifecycle.postprocess(p, made)
    assert made.images == ["large"]
    assert made.extra_generation_params["ResDiT notes"][-1] == (
        "no picture at the base size could be made (MemoryError: none left)"
    )
