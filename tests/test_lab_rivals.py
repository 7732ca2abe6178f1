"""The rivals: their formulas against numpy; each draws, repeats itself, and is the plain model at the base size."""

import math

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from resdit_ext.lab import rival_positions as positions
from resdit_ext.lab.methods import METHODS
from resdit_ext.lab.model import FLUX_CONFIG, TEXT_TOKENS, MicroFlux, position_ids, tokenize
from resdit_ext.lab.neighbourhoods import axis_tiles, in_neighbourhoods, tiles_of
from resdit_ext.lab.open_attention import AXES, THETA, opened, rotary_of, softmax_attention
from resdit_ext.lab.rivals import RIVALS, butterworth, haar_low, lower
from resdit_ext.lab.sampling import noise_for, sample, sigmas_of
from resdit_ext.method.layout import Grid
from resdit_ext.method.positions import grid_positions
from resdit_ext.method.rotary import rotate
from tests import reference

PROMPT = "red disc on green ground"
BASE, DOUBLE = Grid(16, 16), Grid(32, 32)
LAWS = [positions.ntk, positions.clipped_ntk, positions.yarn, positions.dype]
D = AXES[1]


@pytest.fixture(scope="module")
def model():
    """A micro FLUX of two blocks, untrained: what is tested here holds for any weights."""
    torch.manual_seed(0)
    small = MicroFlux()
    small.transformer = FluxTransformer2DModel(**FLUX_CONFIG | dict(num_layers=1, num_single_layers=1))
    return small.eval().requires_grad_(False)


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_draws_and_repeats_itself(model, name):
    first, again = (RIVALS[name](model, [PROMPT], DOUBLE, [3], 2) for _ in range(2))
    assert first.shape == (1, 128, 128, 3) and np.isfinite(first).all() and first.std() > 0.01
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_is_plain_at_the_base_size(model, name):
    np.testing.assert_array_equal(
        RIVALS[name](model, [PROMPT], BASE, [5], 3), sample(model, [PROMPT], BASE, [5], steps=3)
    )


@pytest.mark.parametrize("grid", [Grid(24, 40), Grid(21, 33)])
def test_frames_that_are_no_squares_nor_multiples(model, grid):
    for name in ("hires pass 0.5", "MultiDiffusion", "DyPE", "SEGA", "HiFlow", "I-Max", "ScaleDiff"):
        drawn = RIVALS[name](model, [PROMPT], grid, [6], 2)
        assert drawn.shape == (1, 4 * grid.height, 4 * grid.width, 3) and np.isfinite(drawn).all()


def test_opened_attention_is_the_models_own(model):
    x, words, sigma = noise_for(BASE, 0), tokenize([PROMPT]), torch.tensor([0.7])
    table = rotary_of(grid_positions(BASE))
    with opened(model.transformer, lambda q, k, v, _: softmax_attention(rotate(q, table), rotate(k, table), v)):
        mine = model(x, sigma, words, 16)
    torch.testing.assert_close(mine, model(x, sigma, words, 16), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigma", [1.0, 0.5, 0.0])
def test_frequencies_are_native_at_scale_one(law, sigma):
    torch.testing.assert_close(law(D, 1.0, 16, sigma), positions.native(D))


def test_i_max_has_no_frequency_below_a_scaled_one():
    own = positions.native(D).numpy()
    expected = np.maximum((10 * THETA) ** (-np.arange(0, D, 2) / D), own / 3)
    np.testing.assert_allclose(positions.clipped_ntk(D, 3.0).numpy(), expected)


@pytest.mark.parametrize("base", [16, 64])
@pytest.mark.parametrize("s", [2.0, 3.0, 4.0])
def test_yarn_and_dype_are_numpys(base, s):
    np.testing.assert_allclose(positions.yarn(D, s, base).numpy(), reference.yarn(D, THETA, s, base))
    for sigma in (1.0, 0.6, 0.1):
        np.testing.assert_allclose(
            positions.dype(D, s, base, sigma).numpy(), reference.yarn(D, THETA, s, base, 2 * sigma**2)
        )
    torch.testing.assert_close(positions.dype(D, s, base, 0.0), positions.native(D))


def test_turns_are_the_angles_and_the_temperature_multiplies_rows_and_columns():
    table = positions.rotary(positions.ntk, DOUBLE, 1.0, "yarn")
    ids = torch.cat((torch.zeros(TEXT_TOKENS, 3), position_ids(32, 32))).double()
    frequencies = [THETA ** (-np.arange(0, AXES[0], 2) / AXES[0])] + [positions.ntk(D, 2.0).numpy()] * 2
    angle = np.concatenate([ids[:, i : i + 1].numpy() * f for i, f in enumerate(frequencies)], 1)
    scale = np.repeat([1.0, *[0.1 * math.log(2) + 1] * 2], [AXES[0] // 2, D // 2, D // 2])
    np.testing.assert_allclose(table.cos[:, ::2].numpy(), np.cos(angle) * scale, atol=1e-6)
    np.testing.assert_allclose(table.sin[:, 1::2].numpy(), np.sin(angle) * scale, atol=1e-6)


def test_the_spectral_temperature_follows_the_energy():
    frequencies = positions.native(D)
    place = torch.arange(32, dtype=torch.float32)
    wave = torch.cos(float(frequencies[1]) * place)[None, :, None, None].expand(1, 32, 32, 1)
    found = positions.spectral_temperature(wave, 1, 2.0, frequencies)
    assert found.argmax() == 1 and (found >= 1).all() and float(found.max()) < 1 + 0.2 * math.log(2)
    torch.testing.assert_close(positions.spectral_temperature(wave, 1, 1.0, frequencies), torch.ones(D // 2).double())


def test_haar_and_butterworth_are_numpys():
    tokens = torch.randn(1, 6 * 8, 2, generator=torch.Generator().manual_seed(0))
    grid = tokens[0].view(6, 8, 2).double().numpy()
    means = grid.reshape(3, 2, 4, 2, 2).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    np.testing.assert_allclose(haar_low(tokens, 6)[0].view(6, 8, 2).numpy(), means, atol=1e-6)
    radius = np.hypot(np.fft.fftfreq(6)[:, None] / 0.5, np.fft.fftfreq(8) / 0.5)
    spectrum = np.fft.fft2(grid, axes=(0, 1)) / (1 + (radius[..., None] / 0.2) ** 8)
    expected = np.fft.ifft2(spectrum, axes=(0, 1)).real
    np.testing.assert_allclose(butterworth(tokens, 6)[0].view(6, 8, 2).numpy(), expected, atol=1e-5)
    flat = torch.full((1, 5 * 7, 3), 0.7)
    torch.testing.assert_close(haar_low(flat, 5), flat)
    torch.testing.assert_close(butterworth(flat, 5), flat)


def test_a_strength_takes_the_last_steps():
    levels = sigmas_of(10)
    assert lower(levels, 0.3) == levels[7:] and lower(levels, 1.0) == levels


@pytest.mark.parametrize(("grid", "base"), [(DOUBLE, BASE), (Grid(48, 48), BASE), (Grid(23, 45), Grid(11, 22))])
@pytest.mark.parametrize("moved", [False, True])
def test_tiles_cover_the_picture_and_lie_in_their_windows(grid, base, moved):
    tiles = tiles_of(grid, base, moved)
    assert set(tiles.queries.flatten().tolist()) == set(range(grid.tokens))
    assert (tiles.keys[:, :TEXT_TOKENS] == torch.arange(TEXT_TOKENS)).all()
    # A query's place in its window's sequence is itself.
    torch.testing.assert_close(tiles.keys.gather(1, tiles.places) - TEXT_TOKENS, tiles.queries)


def test_a_tile_lies_in_the_middle_of_its_window():
    assert axis_tiles(48, 16, 0) == [(0, 0), (8, 4), (16, 12), (24, 20), (32, 28), (40, 32)]


def test_neighbourhoods_reach_no_further_than_their_window(model):
    x, words, sigma = noise_for(Grid(48, 48), 0), tokenize([PROMPT]), torch.tensor([0.7])
    changed = x.clone()
    changed[:, -1] += 5  # the last corner; six blocks of at most 12 tokens' reach, but for the text
    velocity = in_neighbourhoods(model)
    difference = (velocity(changed, sigma, words, 48) - velocity(x, sigma, words, 48)).abs().amax(2).view(48, 48)
    assert difference[-1, -1] > 10 * difference[:8, :8].max()


def test_the_rows_can_be_named_in_the_evaluation():
    """`--methods` takes them with commas between; none is also a setting's name."""
    assert not any("," in name for name in RIVALS) and not RIVALS.keys() & METHODS.keys()
