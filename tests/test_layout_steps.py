"""Steps on the base grid: the maths against float64 references, and the tiny models of diffusers."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext import BALANCED, PAPER, ResDiTConfig, apply_resdit
from resdit_ext.method.layout import Grid, make_layout
from resdit_ext.method.layout_steps import View, prediction_from, shrinking_matrix, view_of
from resdit_ext.method.phases import Phase, make_schedule, steps_per_phase
from resdit_ext.method.run import Run
from resdit_ext.method.shift import shifted_sigmas
from tests import reference, test_diffusers, test_diffusers_sd3

BASE = ResDiTConfig(base_tokens=16, borders="fixed", splice_sigma=0.25)
PAIRS = [(32, 16), (48, 16), (40, 16), (23, 11), (90, 27), (16, 16), (17, 16)]
GRIDS = [Grid(8, 8), Grid(12, 12), Grid(10, 10), Grid(6, 14), Grid(5, 23)]
model, sd3 = test_diffusers.model, test_diffusers_sd3.model


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def view(grid):
    latent = noise(2, 3, 2 * grid.height, 2 * grid.width)
    return view_of(grid, make_layout(grid, BASE).base, latent), latent


@pytest.mark.parametrize(("n", "m"), PAIRS)
def test_shrinking_and_enlarging_are_numpys(n, m):
    signal = np.random.default_rng(0).normal(size=n)
    matrix = shrinking_matrix(n, m).numpy()
    np.testing.assert_allclose(matrix @ signal, reference.by_cosines(signal, m, 0), atol=1e-12)
    np.testing.assert_allclose(n / m * matrix.T @ signal[:m], reference.by_cosines(signal[:m], n, 0), atol=1e-12)


@pytest.mark.parametrize(("n", "m"), PAIRS)
def test_white_noise_stays_white_at_any_ratio(n, m):
    matrix = shrinking_matrix(n, m)
    torch.testing.assert_close(matrix @ matrix.T, m / n * torch.eye(m, dtype=torch.float64))


@pytest.mark.parametrize("grid", GRIDS)
def test_the_noise_is_as_large_as_the_view_says(grid):
    seen, latent = view(grid)
    assert float(seen.shrink(noise(400, *latent.shape[1:])).std()) == pytest.approx(seen.gain, rel=0.01)


@pytest.mark.parametrize("grid", GRIDS)
def test_constant_pictures_stay_constant(grid):
    seen, latent = view(grid)
    flat = torch.linspace(-1, 1, 3)[:, None, None].expand_as(latent)
    torch.testing.assert_close(seen.enlarge(seen.shrink(flat)), flat, atol=1e-5, rtol=0)
    assert seen.shrink(flat).shape[-2:] == seen.after


@pytest.mark.parametrize("grid", GRIDS)
def test_enlarging_is_undone_by_shrinking(grid):
    seen, _ = view(grid)
    small = noise(2, 3, *seen.after)
    torch.testing.assert_close(seen.shrink(seen.enlarge(small)), small, atol=1e-5, rtol=0)


@given(st.floats(0, 1), st.integers(4, 40), st.integers(4, 40))
def test_the_level_is_that_of_signal_and_noise(sigma, height, width):
    seen = View(Grid(4, 4), (2 * height, 2 * width), (8, 8))
    level = seen.level(sigma)
    assert 0 <= level <= 1
    # Signal to noise is what a level means: shrinking divides the noise by the scale.
    scale = (height * width / 16) ** 0.5
    assert sigma * (1 - level) == pytest.approx(scale * (1 - sigma) * level, abs=1e-9)


@pytest.mark.parametrize("velocity", [True, False])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_step_leads_to_what_the_model_sees_on_the_base_grid(grid, velocity):
    """Of either kind of prediction, against the reference, for a model whose estimate is .4 x + .1."""
    seen, latent = view(grid)
    levels = []

    def clean(x, level):
        levels.append(level)
        return 0.4 * x + 0.1

    def at_base(x, level):
        return (x - clean(x, level)) / level if velocity else clean(x, level)

    got = prediction_from(at_base, seen, latent, 0.9, velocity)
    got = latent - 0.9 * got if velocity else got
    base = make_layout(grid, BASE).base
    expected = reference.layout_estimate(latent.double().numpy(), 0.9, (base.height, base.width), clean)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
    assert levels[0] == pytest.approx(levels[1])


@pytest.mark.parametrize("velocity", [True, False])
def test_scale_one_is_the_identity(velocity):
    latent = noise(1, 4, 8, 8)

    def at_base(x, level):
        return x**3 + level

    got = prediction_from(at_base, View(Grid(4, 4), (8, 8), (8, 8)), latent, 0.7, velocity)
    torch.testing.assert_close(got, latent**3 + 0.7, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    seen, latent = view(Grid(10, 14))
    expected = seen.shrink(latent.to(dtype).float()).to(dtype)
    assert seen.shrink(latent.to(dtype)).dtype == dtype and torch.equal(seen.shrink(latent.to(dtype)), expected)


# The schedule.


def test_layout_steps_end_at_their_noise_level():
    for mu in (0, 1.15, 2):
        sigmas = shifted_sigmas(35, mu)
        schedule = make_schedule(BALANCED, sigmas)
        for sigma in sigmas[:-1]:
            assert schedule.phase(sigma) is (Phase.LAYOUT if sigma > BALANCED.layout_until else Phase.FUSED)


@pytest.mark.parametrize(("until", "expected"), [(1.0, {Phase.FUSED}), (0.0, {Phase.LAYOUT})])
def test_all_or_none_of_the_steps(until, expected):
    sigmas = shifted_sigmas(9)
    schedule = make_schedule(ResDiTConfig(layout_until=until), sigmas)
    assert {schedule.phase(sigma) for sigma in sigmas[:-1]} == expected


def test_a_pass_that_begins_late_has_no_layout_steps():
    assert steps_per_phase(BALANCED, 20, skipped=15)[Phase.LAYOUT] == 0
    assert steps_per_phase(PAPER, 35)[Phase.LAYOUT] == 0
    assert steps_per_phase(BALANCED, 4)[Phase.LAYOUT] > 0 < steps_per_phase(BALANCED, 4)[Phase.FUSED]


# Borders that move.


@pytest.mark.parametrize("size", [(12, 12), (5, 23), (4, 10)])
def test_in_every_other_step_there_is_one_more_patch_along_each_axis(size):
    """By the reference's own rule for the starts; a second-order sampler's second call counts as its step's."""
    grid, config = Grid(*size), ResDiTConfig(base_tokens=16)
    run, sigmas = Run(config, shifted_sigmas(9)), shifted_sigmas(9)
    base = make_layout(grid, config).base
    for step, sigma in enumerate(sigmas[:-1]):
        layout = run.layout(grid, sigma)
        for starts, length, patch in ((layout.rows, size[0], base.height), (layout.cols, size[1], base.width)):
            usual = reference.starts(length, patch)
            more = step % 2 if len(usual) > 1 else 0
            assert len(starts) == min(len(usual) + more, length - patch + 1)
            assert starts[0] == 0 and starts[-1] == length - patch
            assert all(0 < b - a <= patch for a, b in itertools.pairwise(starts))
        between = (2 * sigma + sigmas[step + 1]) / 3
        assert run.layout(grid, between) == layout == run.layout(grid, sigma * (1 + 1e-3))
        assert Run(PAPER, sigmas).layout(grid, sigma) == Run(PAPER, sigmas).layout(grid, 1.0)


# diffusers' FLUX.


def latents(tokens, size):
    """(B, H*W, 4C) tokens -> (B, C, 2H, 2W), by numpy."""
    x = np.asarray(tokens, dtype=np.float64).reshape(len(tokens), *size, -1, 2, 2)
    return x.transpose(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, 2 * size[0], 2 * size[1])


def tokens_of(latent):
    """The reverse."""
    B, C, H, W = latent.shape
    x = np.asarray(latent).reshape(B, C, H // 2, 2, W // 2, 2).transpose(0, 2, 4, 1, 3, 5)
    return torch.from_numpy(x.reshape(B, H * W // 4, 4 * C)).float()


def by_hand(network, data, size, base, sigma, changed=lambda level: {}):
    """The velocity of a layout step: the reference around the plain model on the base grid."""
    x = latents(data["hidden_states"], size)

    @torch.inference_mode()
    def denoise(seen, level):
        given = dict(
            hidden_states=tokens_of(seen),
            timestep=torch.full_like(data["timestep"], level),
            img_ids=test_diffusers.ids(*base),
        )
        v = network(**data | given | changed(level))[0]
        return seen - level * latents(v, base)

    return tokens_of((x - reference.layout_estimate(x, sigma, base, denoise)) / sigma)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(12, 12), (6, 14), (5, 9)])
def test_flux_is_called_on_the_base_grid(model, size, batch):
    data, base = test_diffusers.inputs(*size, 0.95, batch), make_layout(Grid(*size), BASE).base
    expected = by_hand(model, data, size, (base.height, base.width), 0.95)
    made = apply_resdit(model, BASE)
    torch.testing.assert_close(test_diffusers.run(model, *size, 0.95, batch), expected, atol=2e-5, rtol=1e-4)
    assert made.calls == {"layout": 1, "model calls": 1}


def test_fluxs_output_has_the_form_that_is_asked_for(model):
    apply_resdit(model, BASE)
    data = test_diffusers.inputs(12, 12, 0.95)
    with torch.inference_mode():
        torch.testing.assert_close(model(**data | {"return_dict": True}).sample, model(**data)[0])


def test_control_and_a_text_mask_come_to_the_base_grid(model):
    """Residuals that do not vary over the picture are the same on any grid."""
    size, base = (12, 12), (4, 4)
    one, two = noise(1, 1, model.inner_dim, seed=1), noise(1, 1, model.inner_dim, seed=2)

    def control(tokens):
        return dict(
            controlnet_block_samples=[one.expand(1, tokens, -1)],
            controlnet_single_block_samples=[two.expand(1, tokens, -1)],
        )

    def mask(tokens):
        kept = torch.ones(1, test_diffusers.TEXT + tokens, dtype=torch.bool)
        kept[:, 3 : test_diffusers.TEXT] = False
        return dict(joint_attention_kwargs={"attention_mask": kept[:, None, None]})

    data = test_diffusers.inputs(*size, 0.95)
    for beside in (control, mask):
        expected = by_hand(model, data, size, base, 0.95, lambda _, beside=beside: beside(16))
        apply_resdit(model, BASE)
        with torch.inference_mode():
            got = model(**data | beside(144))[0]
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def test_conditions_beside_the_latent_are_shrunk_and_not_scaled():
    """As FLUX.1 Fill, Depth and Canny are given them: further channels of the tokens."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(1)
    network = FluxTransformer2DModel(
        **dict(small_flux(), in_channels=96, out_channels=64),
    ).eval()
    size, base, sigma = (12, 12), (4, 4), 0.95
    data = test_diffusers.inputs(*size, sigma)
    given = noise(1, 144, 32, seed=8)
    x = latents(data["hidden_states"], size)
    shrunk = reference.by_cosines(reference.by_cosines(latents(given, size), 8, -2), 8, -1)

    @torch.inference_mode()
    def denoise(seen, level):
        beside = torch.cat((tokens_of(seen), tokens_of(shrunk)), -1)
        mine = dict(hidden_states=beside, timestep=torch.tensor([level]).float(), img_ids=test_diffusers.ids(*base))
        return seen - level * latents(network(**data | mine)[0], base)

    expected = tokens_of((x - reference.layout_estimate(x, sigma, base, denoise)) / sigma)
    apply_resdit(network, BASE)
    with torch.inference_mode():
        got = network(**data | {"hidden_states": torch.cat((data["hidden_states"], given), -1)})[0]
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def small_flux():
    return dict(
        patch_size=1,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=sum(test_diffusers.AXES),
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        guidance_embeds=False,
        axes_dims_rope=test_diffusers.AXES,
    )


# diffusers' SD3, whose low band is the base grid's in fused calls too.


@pytest.mark.parametrize("size", [(8, 8), (6, 14), (20, 20)])
@pytest.mark.parametrize(("phase", "sigma"), [("layout", 0.95), ("fused", 0.6)])
def test_sd3s_whole_is_a_call_on_the_base_grid(sd3, size, phase, sigma):
    data = test_diffusers_sd3.inputs(*size, sigma)
    layout = make_layout(Grid(*size), BASE)
    base = layout.base.height, layout.base.width
    x = data["hidden_states"].double().numpy()

    @torch.inference_mode()
    def call(latent, level, positions=None):
        mine = dict(hidden_states=torch.from_numpy(np.ascontiguousarray(latent)).float())
        mine["timestep"] = torch.full_like(data["timestep"], 1000 * level)
        if positions is not None:
            sd3.pos_embed.cropped_pos_embed = lambda *_: positions
        try:
            return sd3(**data | mine)[0].double().numpy()
        finally:
            vars(sd3.pos_embed).pop("cropped_pos_embed", None)

    def whole(latent):
        clean = reference.layout_estimate(latent, sigma, base, lambda seen, level: seen - level * call(seen, level))
        return (latent - clean) / sigma

    side = test_diffusers_sd3.SIDE
    step = (sd3.config.sample_size // 2) / side

    def patch(part, *start):
        index = (reference.patch_index(side, *n) for n in zip(size, base, start, strict=True))
        table = reference.sincos_table(*index, test_diffusers_sd3.WIDTH, step)
        return call(part[None], sigma, torch.from_numpy(table).float().reshape(1, -1, test_diffusers_sd3.WIDTH))[0]

    cutoffs = [0.75 * 0.5 * n / N for n, N in zip(base, size, strict=True)]  # of the base grid's finest detail
    expected = reference.resdit_by_patches(
        x[0],
        size,
        base,
        "global" if phase == "layout" else phase,
        lambda _: whole(x)[0],
        patch,
        cutoff=cutoffs,
        sigma=0.25,
    )
    made = apply_resdit(sd3, BASE)
    got = test_diffusers_sd3.run(sd3, *size, sigma)[0]
    assert made.calls[phase] == 1
    assert np.abs(reference.to_tokens(got.double().numpy()) - expected).max() < 5e-5 * np.abs(expected).max()
