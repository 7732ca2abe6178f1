"""The shift of diffusers' pipelines, which would leave noise in a large picture, is pinned while ResDiT is applied."""

import math

import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from resdit_ext import ResDiTError, apply_resdit, remove_resdit
from resdit_ext.families import family_of_class
from resdit_ext.hosts.diffusers.shift import tokens_for
from resdit_ext.method.shift import shifted_sigmas
from tests.pipelines import FLUX_SCHEDULER, picture, pipeline
from tests.settings import scaled

STEPS = 7
# As FLUX.1-dev, whose base is 64x64 tokens, at 3072 pixels and at 4096: 9 and 16 times its base's tokens.
SCHEDULER = FLUX_SCHEDULER | dict(base_image_seq_len=1, max_image_seq_len=16)
BASE = scaled(base_tokens=16, fused_until=0.57)


def levels_of(pipe, rows, columns):
    picture(pipe, rows, columns, STEPS)
    return pipe.scheduler.sigmas.tolist()


@pytest.mark.parametrize("side", [8, 12, 16])
def test_the_last_noise_level_and_the_phases(side, caplog):
    """At 4, 9 and 16 times the base's tokens, where the pipeline's own shift would leave the last step at .9 and up."""
    pipe = pipeline("flux", **SCHEDULER)
    alone = levels_of(pipe, side, side)
    assert alone[-2] > 0.6
    run = apply_resdit(pipe, BASE)
    levels = levels_of(pipe, side, side)
    assert levels == pytest.approx([*shifted_sigmas(STEPS)], abs=2e-3)
    assert levels[-2] == pytest.approx(math.exp(1.15) / (math.exp(1.15) + STEPS - 1), abs=2e-3)
    assert [run.calls[phase] for phase in ("global", "fused", "local")] == [2, 2, 3]
    levels_of(pipe, side, side)
    assert caplog.text.count("would leave noise in the picture: 1.15 is used") == 1
    remove_resdit(pipe)
    assert levels_of(pipe, side, side) == alone


def test_sd3_where_its_scheduler_is_given_a_shift():
    pipe = pipeline("sd3", **SCHEDULER)
    alone = levels_of(pipe, 8, 8)
    run = apply_resdit(pipe, BASE)
    levels = levels_of(pipe, 8, 8)
    pipe.scheduler.set_timesteps(STEPS, mu=1.15)
    assert levels == pipe.scheduler.sigmas.tolist() and alone[3] - levels[3] > 0.1
    assert [run.calls[phase] for phase in ("global", "fused", "local")] == [2, 2, 3]
    remove_resdit(pipe)
    assert levels_of(pipe, 8, 8) == alone


def test_the_number_of_tokens_is_read_off_the_shift():
    """FLUX.1-dev's own numbers, at 1024, 3072 and 4096 pixels."""
    scheduler = pipeline("flux", **FLUX_SCHEDULER).scheduler
    for side, asked in ((64, 1.15), (192, 6.70), (256, 11.55)):
        slope = (1.15 - 0.5) / (4096 - 256)
        assert (side**2 - 256) * slope + 0.5 == pytest.approx(asked, abs=0.01)
        assert round(tokens_for((side**2 - 256) * slope + 0.5, scheduler.config)) == side**2


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (2, 8), (3, 3)])
@pytest.mark.parametrize("shift", [0.5, 1.15, 3.0])
def test_at_or_below_the_base_size_it_is_the_pipelines_own(rows, columns, shift):
    pipe = pipeline("flux", **SCHEDULER)
    plain, levels = picture(pipe, rows, columns, STEPS), pipe.scheduler.sigmas
    apply_resdit(pipe, BASE, shift=shift)
    assert torch.equal(picture(pipe, rows, columns, STEPS), plain)
    assert torch.equal(pipe.scheduler.sigmas, levels)


def test_another_shift_or_none():
    pipe = pipeline("flux", **SCHEDULER)
    own = levels_of(pipe, 12, 12)
    apply_resdit(pipe, BASE, shift=2.0)
    assert levels_of(pipe, 12, 12) == pytest.approx([*shifted_sigmas(STEPS, 2.0)], abs=2e-3)
    apply_resdit(pipe, BASE, shift=None)
    assert levels_of(pipe, 12, 12) == own


@pytest.mark.parametrize("side", [8, 12])
def test_automatic_grows_with_the_side(side):
    pipe = pipeline("flux", **SCHEDULER)
    apply_resdit(pipe, BASE, shift="automatic")
    mu = 1.15 + math.log(side / 4)
    assert levels_of(pipe, side, side) == pytest.approx([*shifted_sigmas(STEPS, mu)], abs=2e-3)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_scheduler_has_its_own_shift_again_after_an_error(error):
    pipe = pipeline("flux", **SCHEDULER)
    own = levels_of(pipe, 12, 12)
    run = apply_resdit(pipe, BASE, shift="automatic")

    def stop(*_):
        raise error

    with pytest.raises(error):
        picture(pipe, 12, 12, STEPS, callback_on_step_end=stop)
    assert run.sigmas[1] > shifted_sigmas(STEPS)[1] + 0.01
    pipe.scheduler.set_timesteps(sigmas=[1 - i / STEPS for i in range(STEPS)], mu=tokens_mu(144))
    assert pipe.scheduler.sigmas.tolist() == own


def tokens_mu(tokens):
    """The pipeline's own shift for so many tokens, with SCHEDULER."""
    return 0.5 + (tokens - 1) * (1.15 - 0.5) / 15


@pytest.mark.parametrize(
    ("tokens", "steps", "pinned"), [(4096, 1, False), (4096, 50, False), (16384, 4, True), (36864, 50, True)]
)
def test_a_shift_by_another_law_is_pinned_above_that_of_few_steps(tokens, steps, pinned):
    family = family_of_class("Flux2Transformer2DModel")
    found = family.tokens_of_shift(compute_empirical_mu(tokens, steps))
    assert found == pytest.approx(tokens if pinned else 0, abs=1)


def test_a_scheduler_that_is_given_no_shift_keeps_its_own_and_it_is_said(caplog):
    pipe = pipeline("sd3")
    own = levels_of(pipe, 12, 12)
    apply_resdit(pipe, BASE, shift="automatic")
    assert levels_of(pipe, 12, 12) == own and levels_of(pipe, 12, 12) == own
    assert caplog.text.count("shift automatic is not used: this pipeline's scheduler has one of its own") == 1


def test_a_shift_that_does_not_depend_on_the_size_stays():
    """SD3's, and that of a scheduler without a slope."""
    for family, scheduler in (("sd3", {}), ("flux", SCHEDULER | dict(base_shift=1.15))):
        pipe = pipeline(family, **scheduler)
        own = levels_of(pipe, 12, 12)
        apply_resdit(pipe, BASE)
        assert levels_of(pipe, 12, 12) == own


@pytest.mark.parametrize("shift", [-0.1, 5.1, "1.15", True, float("nan"), []])
def test_a_bad_shift_is_named(shift):
    with pytest.raises(ResDiTError, match=r"shift is .*; it must be a number from 0.0 to 5.0"):
        apply_resdit(pipeline("flux"), shift=shift)


def test_noise_levels_given_by_hand_stay():
    pipe = pipeline("flux", **SCHEDULER)
    run = apply_resdit(pipe, BASE, sigmas=[1.0, 0.5, 0.0])
    picture(pipe, 12, 12, STEPS)
    assert run.sigmas == (1.0, 0.5, 0.0)
