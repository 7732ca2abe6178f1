"""The method around whole model calls, and the position tables it reads, against float64 references."""

from contextlib import contextmanager
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext.method.around_calls import CallPlan, call_by_patches, from_grid, resdit_prediction, to_grid
from resdit_ext.method.layout import Grid, make_layout
from resdit_ext.method.layout_steps import ModelCall
from resdit_ext.method.phases import Phase
from resdit_ext.method.position_table import PositionTable
from resdit_ext.method.run import Run
from resdit_ext.monkeypatch import scaled_outputs
from tests import reference
from tests.settings import scaled

CHANNELS, SIDE = 16, 24


def stored(step=1 / 3, dtype=torch.float32, side=SIDE):
    index = range(side)
    return torch.from_numpy(reference.sincos_table(index, index, CHANNELS, step)).to(dtype)


@pytest.mark.parametrize("step", [1 / 3, 1.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 2e-6),
        (torch.float16, 1e-3),
        (torch.bfloat16, 5e-3),
        (torch.float8_e4m3fn, 0.03),
        (torch.float8_e5m2, 0.03),
    ],
)
def test_a_sine_table_is_read_between_and_beyond_its_entries(step, dtype, tolerance):
    table = PositionTable(stored(step, dtype))
    rows, cols = np.array([-2.5, 0, 7 / 3, 23.9]), np.array([1.0, 11.5, 30.0])
    expected = reference.sincos_table(rows, cols, CHANNELS, step)
    got = table.at(torch.from_numpy(rows), torch.from_numpy(cols))
    assert table.laws is not None and got.dtype == torch.float32
    assert np.abs(got.numpy() - expected).max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e4m3fn])
def test_any_other_table_is_interpolated_linearly(dtype):
    values = torch.randn(SIDE, SIDE, CHANNELS, generator=torch.Generator().manual_seed(0)).to(dtype)
    table = PositionTable(values)
    index = torch.arange(SIDE)
    assert table.laws is None
    assert torch.allclose(table.at(index, index), values.float(), atol=1e-6)
    between = table.at(torch.tensor([3.25]), torch.tensor([5.5]))[0, 0]
    corners = values.double()[3:5, 5:7]
    assert torch.allclose(between.double(), 0.75 * corners[0].mean(0) + 0.25 * corners[1].mean(0), atol=1e-6)
    assert torch.allclose(table.at(torch.tensor([-4.0]), torch.tensor([99.0]))[0, 0], values[0, -1].float())


def test_no_table_is_copied_as_a_whole_to_be_read(monkeypatch):
    table, seen = PositionTable(torch.randn(SIDE, SIDE, CHANNELS, dtype=torch.float16)), []
    for name in ("cpu", "double", "float", "to"):
        own = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda x, *a, own=own: seen.append(x.numel()) or own(x, *a))
    table.patch((3, 4), make_layout(Grid(12, 12), scaled(base_tokens=16)), 0.5)
    assert max(seen) == 16 * CHANNELS


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_the_crop_is_the_models_own_at_the_base_size_and_its_scaling_above(h, w, s):
    table, base = PositionTable(stored()), Grid(h, w)
    top, left = (SIDE - h) // 2, (SIDE - w) // 2
    own = stored()[top : top + h, left : left + w].reshape(1, h * w, CHANNELS)
    assert torch.allclose(table.crop(base, base), own, atol=2e-6)
    larger = table.crop(Grid(s * h, s * w), base, (s, s)).unflatten(1, (s * h, s * w))
    assert torch.allclose(larger[:, ::s, ::s].flatten(1, 2), own, atol=2e-6)


@given(st.integers(3, 12), st.integers(3, 12), st.floats(0, 1))
def test_a_patch_keeps_its_spacing_and_its_centre_its_place(H, W, anchor):
    config = scaled(base_tokens=9)
    layout = make_layout(Grid(H, W), config)
    table, (h, w) = PositionTable(stored()), (layout.base.height, layout.base.width)
    for start in layout.patches:
        index = []
        for first, b, s in zip(start, (h, w), layout.scales, strict=True):
            own = (SIDE - b) // 2 + np.arange(b)
            index.append(own + anchor * ((SIDE - b) // 2 + (first + (b - 1) / 2) / s - own.mean()))
        expected = reference.sincos_table(*index, CHANNELS, 1 / 3).reshape(1, h * w, CHANNELS)
        assert np.abs(table.patch(start, layout, anchor).numpy() - expected).max() < 3e-6
    assert torch.allclose(table.patch(layout.patches[-1], layout, 0), table.crop(layout.base, layout.base), atol=2e-6)


def test_without_pipe_a_patch_has_its_part_of_the_whole():
    config = scaled(base_tokens=16, pipe=False)
    layout = make_layout(Grid(8, 8), config)
    plan = CallPlan(layout, config, 3, PositionTable(stored()))
    whole = plan.global_positions().unflatten(1, (8, 8))
    for number, (row, col) in enumerate(layout.patches):
        part = whole[:, row : row + 4, col : col + 4].flatten(1, 2)
        assert torch.equal(plan.patch_positions(number), part)


def test_latents_and_tokens_are_each_other():
    latent = torch.randn(2, 3, 8, 6)
    assert torch.equal(from_grid(to_grid(latent)), latent)
    assert np.array_equal(to_grid(latent)[1].numpy(), reference.to_tokens(latent[1].numpy()))


def models():
    """Two networks that mix all places and channels, as functions of torch tensors."""
    generator = torch.Generator().manual_seed(1)
    gains = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)

    def network(gain):
        def predict(x, *_):
            mixed = torch.einsum("cd,bdhw->bchw", gain.to(x.dtype), x)
            return torch.sin(mixed) + mixed.mean((2, 3), keepdim=True)

        return predict

    return network(gains[0]), network(gains[1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 5e-6), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("phase", [Phase.GLOBAL, Phase.FUSED, Phase.LOCAL])
@pytest.mark.parametrize("size", [(9, 9), (8, 13), (17, 5)])
def test_the_prediction_is_the_reference(dtype, tolerance, phase, size):
    config = scaled(base_tokens=20, cutoff=0.6)
    layout = make_layout(Grid(*size), config)
    plan = CallPlan(layout, config, 3, PositionTable(stored()))
    latent = torch.randn(2, 3, 2 * size[0], 2 * size[1], dtype=dtype)
    whole, patch = models()
    got = resdit_prediction(latent, plan, phase, whole, patch)
    assert got.dtype == dtype and got.shape == latent.shape
    for i in range(2):

        def numpy_of(network):
            return lambda x, *_: network(torch.from_numpy(x)[None])[0].numpy()

        expected = reference.resdit_by_patches(
            latent[i].double().numpy(),
            size,
            (layout.base.height, layout.base.width),
            phase.value,
            numpy_of(whole),
            numpy_of(patch),
            cutoff=0.3,
            sigma=0.25,
        )
        assert np.abs(to_grid(got)[i].double().numpy() - expected).max() < tolerance * np.abs(expected).max()


@given(st.integers(2, 11), st.integers(2, 11), st.sampled_from([Phase.FUSED, Phase.LOCAL]), st.floats(0.1, 1))
def test_velocity_and_denoised_latent_give_the_same_step(H, W, phase, sigma):
    config = scaled(base_tokens=6)
    plan = CallPlan(make_layout(Grid(H, W), config), config, 3, PositionTable(stored()))
    latent = torch.randn(1, 3, 2 * H, 2 * W, dtype=torch.float64)
    whole, patch = models()
    velocity = resdit_prediction(latent, plan, phase, whole, patch)
    denoised = resdit_prediction(latent, plan, phase, lambda x: x - sigma * whole(x), lambda x, _: x - sigma * patch(x))
    assert torch.allclose(latent - sigma * velocity, denoised, atol=1e-5)


@given(st.integers(2, 11), st.integers(2, 11))
def test_one_field_everywhere_comes_out_as_it_is(H, W):
    """fuse(x, x) == x and weights that sum to one: a prediction that does not depend on the crop is kept."""
    config = scaled(base_tokens=6)
    plan = CallPlan(make_layout(Grid(H, W), config), config, 3, PositionTable(stored()))
    latent = torch.randn(1, 3, 2 * H, 2 * W)
    got = resdit_prediction(latent, plan, Phase.FUSED, lambda x: 3 * x, lambda x, _: 3 * x)
    assert torch.allclose(got, 3 * latent, atol=1e-5)


def test_what_is_adjusted_and_counted():
    asked = []

    @contextmanager
    def adjusted(positions, scale):
        asked.append((tuple(positions.shape), scale))
        yield
        asked.append("restored")

    def predict(latent, tokens=None):
        asked.append((tuple(latent.shape), None if tokens is None else tuple(tokens[[0, -1]].tolist())))
        return latent

    run = Run(scaled(base_tokens=16, fused_until=0.57), [1 - i / 7 for i in range(8)])

    def denoise(side, sigma, run=run):
        asked.clear()
        call, latent = ModelCall(predict, None), torch.zeros(1, 3, side, side)
        call_by_patches(run, call, latent, 3, sigma, lambda: PositionTable(stored()), adjusted)
        return list(asked)

    assert denoise(8, 0.9) == [((1, 3, 8, 8), None)] and run.calls == {"base": 1}
    scale = np.log(3 + 64) / np.log(3 + 16)
    whole = [((1, 64, CHANNELS), pytest.approx(scale)), ((1, 3, 16, 16), None), "restored"]
    assert denoise(16, 0.9) == whole
    patches = []
    for r, c in product((0, 2, 4), repeat=2):
        call = ((1, 3, 8, 8), (8 * r + c, 8 * (r + 3) + c + 3))
        patches += [((1, 16, CHANNELS), 1.0), call, "restored"]
    assert denoise(16, 0.6) == whole + patches
    assert denoise(16, 0.2) == patches
    assert run.calls == {"base": 1, "global": 1, "fused": 1, "local": 1, "model calls": 20}


def test_outputs_are_scaled_only_inside_and_restored_after_an_error():
    layer, x = torch.nn.Linear(3, 3), torch.randn(2, 3)
    plain = layer(x)

    def fail_inside():
        with scaled_outputs([layer], 1.5):
            assert torch.equal(layer(x), 1.5 * plain)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert torch.equal(layer(x), plain) and not layer._forward_hooks
