"""The estimates shown before a run, against counts of what the code does."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from resdit_ext import BALANCED, PAPER, SCALED
from resdit_ext.families import families
from resdit_ext.lab.benchmarks import flux
from resdit_ext.lab.benchmarks.counters import Peak, by_kind, flop_counter
from resdit_ext.method.cost import attention_cost
from resdit_ext.method.in_attention import AttentionPlan, resdit_attention
from resdit_ext.method.layout import Grid, layouts_in_turn, make_layout
from resdit_ext.method.phases import Phase, steps_per_phase
from resdit_ext.method.rotary import rotary_table
from resdit_ext.seams.rotary import image_ids
from tests.settings import scaled
from tests.test_attention import attend

TEXT, STEPS, AXES = 16, 20, (4, 6, 6)
SETTINGS = [PAPER, BALANCED, *(replace(SCALED, speed=speed) for speed in ("exact", "fast", "fastest"))]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("size", [(24, 24), (33, 20), (64, 48)])
def test_attention_cost_is_what_is_counted(setting, size):
    config = replace(setting, base_tokens=100)
    layout = make_layout(Grid(*size), config)

    def embed(positions, laws, _):
        return rotary_table(image_ids(TEXT, positions), AXES, 10000, laws)

    def counted(work):
        with flop_counter() as counter:
            work()
        return by_kind(counter)

    with FakeTensorMode(allow_non_fake_inputs=True):
        q = torch.empty(1, 2, TEXT + layout.grid.tokens, sum(AXES))
        plain, _ = counted(lambda: attend(q, q, q))
        ours = around = 0
        small = q[:, :, : TEXT + layout.base.tokens]
        for phase, n in steps_per_phase(config, STEPS, middle=layout.middle is not None).items():
            at_half = phase is Phase.MIDDLE
            grid = layout.middle if at_half and n else layout.grid
            plans = [AttentionPlan(each, config, TEXT, embed) for each in layouts_in_turn(grid, config, layout.base)]
            part, of = q[:, :, : TEXT + grid.tokens], Phase.FUSED if at_half else phase
            for plan in plans:
                work = partial(resdit_attention, part, part, part, plan, of, attend)
                attention, rest = counted(partial(attend, small, small, small) if phase is Phase.LAYOUT else work)
                ours, around = ours + n * attention / len(plans), around + n * rest / len(plans)
    assert attention_cost(layout, config, STEPS, TEXT) == pytest.approx(ours / (STEPS * plain), rel=1e-9)
    assert around < 0.5 * ours  # at these small sizes; 1 % at FLUX's


@pytest.mark.parametrize("setting", SETTINGS[1:])
def test_the_memory_shown_covers_the_peak(setting):
    """One double and one single block of full size in diffusers, at 2K."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        model, most = flux.model("cpu", blocks=(1, 1)), 0
        for _, _, call in flux.calls(model, setting, 2048, "cpu"):
            with Peak() as peak:
                call()
            most = max(most, peak.most)
    estimate = families()[0].activation_bytes(Grid(128, 128))
    assert 0.5 * estimate < most < estimate


def test_where_patches_are_whole_calls_the_whole_is_one_at_the_base_size():
    layout = make_layout(Grid(192, 192), BALANCED)
    phases, patch = steps_per_phase(BALANCED, 35), (TEXT + 4096) ** 2
    steps = phases[Phase.LAYOUT] + phases[Phase.FUSED] * (1 + (4 * 4 + 5 * 5) / 2)
    expected = steps * patch / (35 * (TEXT + layout.grid.tokens) ** 2)
    assert attention_cost(layout, BALANCED, 35, TEXT, around_calls=True) == pytest.approx(expected)


def test_the_cost_of_the_whole_picture_in_one_branch():
    layout = make_layout(Grid(128, 128), config := scaled(global_until=1.0))
    assert attention_cost(layout, config, 35, TEXT) == 1


def test_of_a_part_of_the_steps_only_those_are_counted():
    layout, config = make_layout(Grid(192, 192), scaled()), scaled(fused_until=0.57)
    whole, late = attention_cost(layout, config, 20, TEXT), attention_cost(layout, config, 20, TEXT, skipped=15)
    assert late == attention_cost(layout, scaled(global_until=0, fused_until=0), 5, TEXT) < whole
