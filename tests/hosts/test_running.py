"""What must hold in a running WebUI, whatever its model: access to the routes, memory, and pictures of A1111's.

Which hosts take part: see tests/hosts/webui.py.
"""

import numpy as np
import pytest

from tests.hosts import webui
from tests.hosts.kinds import KINDS
from tests.hosts.webui import BASE, RANGE, THRICE

SITES = {"forge": "flux", "neo": "flux", "ersatz": "sd3", "a1111": "sd3"}  # the quicker of its models
PAGES = [(host, "chroma") for host in ("forge", "neo", "ersatz")]
PAGES += [(host, kind) for kind, (classes, _) in KINDS.items() for host in classes]


@pytest.fixture(scope="module", params=SITES)
def ui(request, tmp_path_factory):
    with webui.started(request.param, SITES[request.param], tmp_path_factory.mktemp(request.param)) as site:
        yield site


def test_on_and_off_in_turn(ui):
    plain, small = ui.make(width=3 * BASE, height=3 * BASE), ui.make()
    made = ui.make(resdit=THRICE)
    assert made.picture.shape == (3 * BASE, 3 * BASE, 3) and made.differs(plain)
    assert "ResDiT" in made.parameters and "done: " in made.said
    again = ui.make(width=3 * BASE, height=3 * BASE)
    assert again.equals(plain) and again.parameters == plain.parameters
    assert ui.make(resdit=THRICE).equals(made) and ui.make().equals(small)


def test_four_times_the_base_size_has_steps_at_half_of_it(ui):
    """And none after they are switched off."""
    four, small = THRICE | dict(width=4 * BASE, height=4 * BASE), ui.make()
    made, off = (ui.make(resdit=given, steps=20) for given in (four, four | dict(middle_until=1)))
    assert made.picture.shape == (4 * BASE, 4 * BASE, 3) and made.differs(off)
    assert " middle, " in made.said and " middle, " not in off.said
    assert "ResDiT middle until: 1" in off.parameters and "middle until" not in made.parameters
    assert ui.make(resdit=four, steps=20).equals(made) and ui.make().equals(small)


def test_noise_is_fresh_where_the_sampler_adds_none(ui):
    usual, kept = ui.make(resdit=THRICE), ui.make(resdit=THRICE | dict(fresh_noise=0))
    assert kept.differs(usual) and "ResDiT fresh noise: 0" in kept.parameters
    assert "fresh noise" not in usual.parameters and ui.make(resdit=THRICE).equals(usual)
    assert "3 under fresh noise" in usual.said and "under fresh noise" not in kept.said  # all but the first of four
    ancestral = [ui.make(resdit=THRICE | dict(fresh_noise=share), sampler_name="Euler a") for share in (1, 0)]
    assert ancestral[0].equals(ancestral[1]) and "under fresh noise" not in ancestral[0].said


def test_compare_adds_the_same_seeds_picture_at_the_base_size(ui):
    usual, small = ui.make(resdit=THRICE), ui.make()
    large, own = ui.make(resdit=THRICE | dict(compare=True)).pictures
    assert np.array_equal(large, usual.picture) and np.array_equal(own, small.picture)
    assert ui.make(resdit=THRICE).equals(usual) and ui.make().equals(small)


def test_a_lora_in_the_prompt_decides_on_positions(ui):
    """As the host itself has parsed the prompt and read the file; the LoRA changes no weight."""
    usual, by_hand = ui.make(resdit=THRICE), ui.make(resdit=THRICE | dict(positions="rpe-2d", maximal_range=RANGE))
    assert by_hand.differs(usual) and "ResDiT positions: rpe-2d" in by_hand.parameters
    found = ui.make(resdit=THRICE, prompt="a lighthouse<lora:rpe:1>")
    assert f"positions rpe-2d, range {RANGE}, as LoRA rpe says" in found.said and found.equals(by_hand)
    for prompt in ("a lighthouse<lora:rpe:0>", "a lighthouse<lora:other:1>", "a lighthouse<lora:narrow:1>"):
        made = ui.make(resdit=THRICE, prompt=prompt)
        assert made.equals(usual) and ("LoRA narrow has a range of 8" in made.said) is ("narrow" in prompt)
    plain, at_base = ui.make(), ui.make(resdit=dict(base_size=BASE), prompt="a lighthouse<lora:rpe:1>")
    assert at_base.differs(plain) and "another picture than the plain one" in at_base.said
    assert ui.make(resdit=dict(base_size=BASE)).equals(plain)


def test_a_timestep_shift_is_of_one_picture(ui):
    usual, plain = ui.make(resdit=THRICE), ui.make(width=3 * BASE, height=3 * BASE)
    made = [ui.make(resdit=THRICE | dict(shift=shift)) for shift in ("automatic", 2.5)]
    assert made[0].differs(usual, made[1]) and made[1].differs(usual)
    for each, mu in zip(made, ("2.25", "2.50"), strict=True):
        assert f"timestep shift {mu}" in each.said and "has no effect" not in each.said
    assert ui.make(resdit=THRICE).equals(usual) and ui.make(width=3 * BASE, height=3 * BASE).equals(plain)
    small = ui.make()
    assert ui.make(resdit=dict(base_size=BASE, shift=3.0)).equals(small)


def test_nothing_of_a_generation_stays_in_memory(ui):
    """Nor more tensors than a generation of that size without ResDiT leaves behind; its latent has 147 kB."""
    ui.make(resdit=THRICE)  # what is made once, by us or by the host
    ui.make(width=3 * BASE, height=3 * BASE)
    without = ui.ask("/resdit_test/alive")
    ui.make(resdit=THRICE)
    left = ui.ask("/resdit_test/alive")
    assert without["generations"] == without["latents"] == 0, "the host itself keeps them"
    assert left["generations"] == left["latents"] == 0
    assert left["tensor_bytes"] < without["tensor_bytes"] + 10_000  # in Neo 20 are left


def test_memory_stays_flat(ui):
    """Over fifty generations. Means of ten waver by 4 MB; one picture of .4 MB kept in each of them would add 13 MB."""
    sizes = []
    for _ in range(50):
        ui.make(resdit=THRICE, steps=2)
        sizes.append(ui.ask("/resdit_test/resident"))
    early, late = (sum(sizes[part]) / 10 for part in (slice(10, 20), slice(40, 50)))
    assert late - early < 10, f"from {early:.1f} MB to {late:.1f} MB"


@pytest.mark.parametrize(("host", "model"), PAGES)
def test_each_model_in_its_page(host, model, tmp_path):
    with webui.started(host, model, tmp_path) as ui:
        plain, small = ui.make(width=3 * BASE, height=3 * BASE), ui.make()
        made = ui.make(resdit=THRICE)
        assert made.differs(plain) and "ResDiT: " in made.parameters and "done: " in made.said
        oblong = ui.make(resdit=THRICE | dict(height=2 * BASE), cfg_scale=4, batch_size=2)
        assert [picture.shape for picture in oblong.pictures[-2:]] == [(2 * BASE, 3 * BASE, 3)] * 2
        assert ui.make(resdit=dict(base_size=BASE)).equals(small)
        assert ui.make(width=3 * BASE, height=3 * BASE).equals(plain) and ui.make(resdit=THRICE).equals(made)


@pytest.mark.parametrize("flag", ["--api-auth", "--gradio-auth"])
@pytest.mark.parametrize("host", SITES)
def test_our_routes_let_in_whom_the_host_lets_in(host, flag, tmp_path):
    queries = ("version", "schema", "plan?width=1024&height=1024&steps=20")
    with webui.started(host, SITES[host], tmp_path, flag, "ann:secret") as ui:
        for user in (None, "ann:wrong", "ann:secret"):
            expected = ui.answer("/sdapi/v1/options", user=user)[0]
            assert flag != "--api-auth" or expected == (200 if user == "ann:secret" else 401)
            assert [ui.answer(f"/resdit/v1/{query}", user=user)[0] for query in queries] == [expected] * 3
