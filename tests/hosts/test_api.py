"""Strange requests to real WebUIs: each is answered with a picture or with 422, and the next picture is as before.

Which hosts take part: see tests/hosts/webui.py.
"""

from collections import Counter

import pytest
from hypothesis import HealthCheck, example, given, settings

from resdit_ext.webui.api import entries_of, problem_in
from resdit_ext.webui.options import parse_request
from resdit_ext.webui.sizes import output_size
from tests.api_requests import bodies, body, escaped, nested
from tests.hosts import webui
from tests.hosts.webui import ORDER

HOSTS = ("forge", "neo", "ersatz")
REQUESTS, PICTURES = 2000, 200  # a request that is accepted takes as long as its picture
SIDE, LARGEST = 64, 512  # pixels: of the requests, and of what is made in this test
SMALL = ORDER | dict(steps=1, width=SIDE, height=SIDE, send_images=False)
TITLE = "ResDiT High-Res"


@pytest.fixture(scope="module", params=HOSTS)
def ui(request, tmp_path_factory):
    with webui.started(request.param, "flux", tmp_path_factory.mktemp(request.param)) as site:
        yield site


def answer_to(ui, content):
    """(status, text) of the answer to a request for a picture."""
    status, text = ui.answer("/sdapi/v1/txt2img", content)
    return status, text.decode()


def longest_side(content):
    """Of the picture that an accepted request makes with ResDiT; 0 where that is off."""
    made = [parse_request(tuple(entry.get("args", []))) for entry in entries_of(content).values()]
    return max((max(output_size(one.values, SIDE, SIDE)) for one in made if one.enabled), default=0)


def test_any_request_is_answered_and_the_next_picture_is_as_before(ui):
    before, found, wrong = ui.make(), Counter(), set()

    @settings(max_examples=REQUESTS, database=None, suppress_health_check=list(HealthCheck))
    @example(body(TITLE, {"args": [{"preset": []}]}, **SMALL))
    @example(body(TITLE, {"args": None}, **SMALL))
    @example(body(TITLE, None, escaped, **SMALL))
    @example(body(TITLE, {"args": [{"enabled": False, "cutoff": float("nan")}]}, **SMALL))
    @example(body(TITLE, {"args": [False, "\ud800"]}, **SMALL))
    @example(body(TITLE, {"args": [False, nested(300)]}, **SMALL))
    @example(body(TITLE, {"args": [False, nested(6)]}, **SMALL))
    @example(body(TITLE, {"args": [{"enabled": True}]}, **SMALL))
    @example(body(TITLE, {"args": [{"width": 256, "base_size": 128, "speed": "fast"}]}, **SMALL))
    @given(bodies(**SMALL))
    def send(content):
        problem = problem_in(content)
        if problem is None and (found[200] >= PICTURES or longest_side(content) > LARGEST) and content not in wrong:
            return
        status, text = answer_to(ui, content)
        found[status] += 1
        if status != (200 if problem is None else 422):
            wrong.add(content)  # to be asked again when Hypothesis wants to see it fail twice
            pytest.fail(f"{status} for {content[:1000]}: {text[:1000]}")

    send()
    assert found[422] > REQUESTS / 2 and found[200] >= PICTURES, found
    assert ui.make().equals(before)


def test_a_request_that_names_no_size_keeps_its_own(ui):
    assert ui.make(resdit={"enabled": True}).picture.shape == ui.make().picture.shape


def test_a_large_body_is_accepted(ui):
    status, text = answer_to(ui, body(TITLE, {"args": [{"cutoff": 7}]}, **SMALL, init_images=["A" * 80_000_000]))
    assert status == 422 and "cutoff is 7" in text
