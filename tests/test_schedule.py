import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext import PAPER, SCALED
from resdit_ext.method.layout import Grid, make_layout
from resdit_ext.method.phases import (
    Phase,
    boundary,
    fault_in,
    make_schedule,
    shifted_sigmas,
    steps_per_phase,
    usable_sigmas,
)
from resdit_ext.method.run import Run
from tests.settings import scaled

shares = st.floats(0, 1)
DOUBLE = make_layout(Grid(128, 128), PAPER)


def phases(config, sigmas):
    schedule = make_schedule(config, sigmas)
    return [schedule.phase(sigma) for sigma in sigmas[:-1]]


def test_the_papers_10_10_15():
    expected = [Phase.GLOBAL] * 10 + [Phase.FUSED] * 10 + [Phase.LOCAL] * 15
    assert phases(PAPER, shifted_sigmas(35)) == expected
    assert phases(PAPER, shifted_sigmas(35, mu=0)) == expected
    assert phases(SCALED, shifted_sigmas(35)) == [Phase.GLOBAL] * 10 + [Phase.FUSED] * 25
    assert steps_per_phase(PAPER, 35) == {
        Phase.LAYOUT: 0,
        Phase.MIDDLE: 0,
        Phase.GLOBAL: 10,
        Phase.FUSED: 10,
        Phase.LOCAL: 15,
    }


@given(st.integers(1, 120), shares, shares, st.floats(-1, 3))
def test_a_share_is_a_share_of_the_steps(steps, a, b, mu):
    config = scaled(global_until=min(a, b), fused_until=max(a, b))
    got = phases(config, shifted_sigmas(steps, mu))
    # Step i (from 0) belongs to a phase that ends at share s iff i < s * steps.
    expected = [
        Phase.GLOBAL
        if i < config.global_until * steps - 1e-9
        else Phase.FUSED
        if i < config.fused_until * steps - 1e-9
        else Phase.LOCAL
        for i in range(steps)
    ]
    assert got == expected


@given(st.integers(2, 60), st.floats(0, 2))
def test_bfloat16_timesteps_do_not_change_the_phase(steps, mu):
    sigmas = shifted_sigmas(steps, mu)
    gaps = [a - b for a, b in itertools.pairwise(sigmas)]
    schedule = make_schedule(PAPER, sigmas)
    for sigma, gap in zip(sigmas, gaps, strict=False):
        rounded = torch.tensor(sigma).bfloat16().item()
        if abs(rounded - sigma) < gap / 2 - 1e-6 and sigma < 1:
            previous = min((g for s, g in zip(sigmas[1:], gaps, strict=False) if s == sigma), default=gap)
            if abs(rounded - sigma) < previous / 2 - 1e-6:
                assert schedule.phase(rounded) == schedule.phase(sigma)


def test_phase_falls_with_sigma_whatever_the_order_of_calls():
    order = {Phase.GLOBAL: 0, Phase.FUSED: 1, Phase.LOCAL: 2}
    schedule = make_schedule(PAPER, shifted_sigmas(20))
    found = [order[schedule.phase(s)] for s in torch.linspace(1, 0, 200).tolist()]
    assert found == sorted(found) and set(found) == {0, 1, 2}


def test_empty_phases():
    sigmas = shifted_sigmas(8)
    assert boundary(sigmas, 0) == math.inf and boundary(sigmas, 1) == -math.inf
    assert set(phases(scaled(global_until=0, fused_until=0), sigmas)) == {Phase.LOCAL}
    assert set(phases(scaled(global_until=1), sigmas)) == {Phase.GLOBAL}
    assert set(phases(scaled(global_until=0), sigmas)) == {Phase.FUSED}


@pytest.mark.parametrize("sigma", [math.nan, math.inf, -math.inf, 9999.0, 1.5, -0.1])
def test_odd_sigma_is_clamped_and_said_once(sigma):
    said = []
    run = Run(PAPER, shifted_sigmas(35), say=said.append)
    expected = Phase.LOCAL if sigma < 0 else Phase.GLOBAL
    assert [run.begin_call(sigma, DOUBLE) for _ in range(3)] == [expected] * 3
    assert len(said) == 1 and f"{sigma:g}" in said[0]


def test_a_list_that_no_flow_model_has_still_gives_phases_and_a_message():
    said = []
    sigmas = [9999.0, 400.0, 20.0, 3.0, 1.0, 0.5, 0.0]
    run = Run(PAPER, sigmas, say=said.append)
    assert [run.begin_call(s, DOUBLE).value for s in sigmas[:-1]] == [
        "global",
        "global",
        "fused",
        "fused",
        "local",
        "local",
    ]
    assert len(said) == 1 and "9999" in said[0]


@pytest.mark.parametrize("sigmas", [[], [1.0], [0.0, 1.0], [1.0, math.nan, 0.0], [math.inf, 0.0]])
def test_unusable_lists_fall_back_to_flux(sigmas):
    said = []
    assert usable_sigmas(sigmas) is None
    run = Run(PAPER, sigmas, say=said.append)
    assert run.schedule(DOUBLE) == Run(PAPER).schedule(DOUBLE) and len(said) == 1


@pytest.mark.parametrize(
    ("sigmas", "fault"),
    [
        (shifted_sigmas(4), None),
        ([0.76, 0.4, 0.0], None),  # the hosts' "DDIM" schedule type in two steps
        ([1.0, 0.0], None),
        ([9999.0, 0.0], "start at 9999"),
        ([14.6, 3.0, 0.0], "start at 14.6"),
        ([0.26, 0.1, 0.0], "start at 0.26"),  # LCM on FLUX
        ([0.9997, 0.6, 0.0, 0.0], "are 0 before the last step"),  # Automatic on SD3
    ],
)
def test_lists_that_do_not_suit_a_flow_model_are_named(sigmas, fault):
    assert fault_in(sigmas) is None if fault is None else fault in fault_in(sigmas)
    said = []
    Run(PAPER, sigmas, say=said.append)
    assert (not said) if fault is None else (fault in said[0] and "try Euler with Simple" in said[0])


def test_of_a_part_of_the_steps_the_phases_are_those_of_the_whole_list():
    whole = shifted_sigmas(20)
    run, part = Run(PAPER, whole), Run(PAPER)
    part.set_sigmas(whole, 20, 12)
    assert part.schedule(DOUBLE) == run.schedule(DOUBLE) and part.sigmas == whole[12:]
    assert steps_per_phase(PAPER, 20, 12) == {
        Phase.LAYOUT: 0,
        Phase.MIDDLE: 0,
        Phase.GLOBAL: 0,
        Phase.FUSED: 0,
        Phase.LOCAL: 8,
    }
    part.set_sigmas(whole, 20, 100)
    assert part.sigmas == whole[-2:]


@pytest.mark.parametrize(("skipped", "expected"), [(0, 1), (12, 0), (None, 0)])
def test_a_first_call_in_another_phase_than_the_lists_is_reported(skipped, expected):
    said = []
    run = Run(PAPER, say=said.append)
    run.set_sigmas(shifted_sigmas(20), 20, skipped)
    for sigma in (0.01, 0.02):
        run.begin_call(sigma, DOUBLE)
    assert len(said) == expected


def test_tensor_lists_are_read():
    assert usable_sigmas(torch.tensor([1.0, 0.5, 0.0])) == (1.0, 0.5, 0.0)
