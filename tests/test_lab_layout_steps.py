"""Layout steps at the base size, against float64 numpy written apart from the package."""

import numpy as np
import pytest
import torch

from resdit_ext.lab import layout_steps as steps
from resdit_ext.lab.layout_steps import BaseView, level_at_base, level_at_full, with_layout_steps
from resdit_ext.lab.model import BASE_TOKENS, to_latent, to_tokens
from resdit_ext.lab.sampling import noise_for
from resdit_ext.method.config import ResDiTConfig
from resdit_ext.method.layout import Grid, make_layout

CONFIG = ResDiTConfig(base_tokens=BASE_TOKENS)
GRIDS = [Grid(32, 32), Grid(48, 48), Grid(40, 40), Grid(23, 45), Grid(30, 90), Grid(16, 16)]
PAIRS = [(32, 16), (48, 16), (40, 16), (23, 11), (90, 27), (16, 16), (17, 16)]


def view(grid, **kinds):
    return BaseView(make_layout(grid, CONFIG), **kinds)


def numpy_area(signal, m):
    """Means of the staircase through a signal over m equal parts, by its integral."""
    n = len(signal)
    integral = np.concatenate(([0.0], np.cumsum(signal)))
    at = np.interp(np.linspace(0, n, m + 1), np.arange(n + 1), integral)
    return np.diff(at) * m / n


def numpy_cosine(signal, m):
    """The m values with the signal's first m coefficients of the cosines cos(pi k (i + 1/2) / n)."""
    n = len(signal)
    k = np.arange(m)
    mean = 2 / n * np.cos(np.pi * np.outer(k, np.arange(n) + 0.5) / n) @ signal
    mean[0] /= 2
    return np.cos(np.pi * np.outer(np.arange(m) + 0.5, k) / m) @ mean


def numpy_enlarge(signal, n, kind):
    """A signal at n places by the textbook kernels about the cells' middles, held at its ends."""
    m = len(signal)
    place = (np.arange(n) + 0.5) * m / n - 0.5
    if kind == "nearest":
        return signal[np.clip(np.floor(place + 0.5).astype(int), 0, m - 1)]
    if kind == "bilinear":
        return np.interp(place, np.arange(m), signal)

    def cubic(d, a=-0.75):
        d = abs(d)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    out = np.zeros(n)
    for i, p in enumerate(place):
        for j in range(int(np.floor(p)) - 1, int(np.floor(p)) + 3):
            out[i] += cubic(p - j) * signal[min(max(j, 0), m - 1)]
    return out


@pytest.mark.parametrize(("n", "m"), PAIRS)
def test_averages_are_numpys(n, m):
    signal = np.random.default_rng(0).normal(size=n)
    for matrix, reference in ((steps.area_matrix, numpy_area), (steps.cosine_matrix, numpy_cosine)):
        np.testing.assert_allclose(matrix(n, m).numpy() @ signal, reference(signal, m), atol=1e-12)


@pytest.mark.parametrize("kind", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("n", "m"), [(32, 16), (48, 16), (40, 16), (90, 27)])
def test_enlarging_is_numpys(n, m, kind):
    signal = np.random.default_rng(0).normal(size=m)
    mine = steps.enlarging_matrix(m, n, kind).numpy() @ signal
    np.testing.assert_allclose(mine, numpy_enlarge(signal, n, kind), atol=1e-6)


@pytest.mark.parametrize(("n", "m"), PAIRS)
def test_enlarging_by_cosines_is_undone_by_their_average(n, m):
    there, back = steps.enlarging_matrix(m, n, "cosine"), steps.cosine_matrix(n, m)
    torch.testing.assert_close(back @ there, torch.eye(m, dtype=torch.float64))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("average", ["area", "cosine"])
@pytest.mark.parametrize("enlarge", ["nearest", "bilinear", "bicubic", "cosine"])
def test_constant_pictures_stay_constant(grid, average, enlarge):
    seen, colour = view(grid, average=average, enlarge=enlarge), torch.linspace(-1, 1, 12).repeat_interleave(4)
    base = seen.layout.base
    flat = colour.expand(1, grid.tokens, 48)
    small = seen.average(flat)
    torch.testing.assert_close(small, colour.expand(1, base.tokens, 48), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.enlarge(small), flat, atol=1e-5, rtol=0)


@pytest.mark.parametrize("average", ["area", "cosine"])
def test_averages_are_of_latents_and_not_of_tokens(average):
    latent = torch.randn(2, 12, 96, 64, generator=torch.Generator().manual_seed(0))
    grid = Grid(48, 32)
    seen = view(grid, average=average)
    rows, cols = 2 * seen.layout.base.height, 2 * seen.layout.base.width
    reference = {"area": numpy_area, "cosine": numpy_cosine}[average]
    expected = np.apply_along_axis(reference, 2, latent.double().numpy(), rows)
    expected = np.apply_along_axis(reference, 3, expected, cols)
    mine = to_latent(seen.average(to_tokens(latent)), seen.layout.base.height)
    np.testing.assert_allclose(mine.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("average", ["area", "cosine"])
def test_the_noise_of_an_average_is_as_large_as_it_says(grid, average):
    seen = view(grid, average=average)
    noise = torch.cat([noise_for(grid, seed) for seed in range(12)])
    assert float(seen.average(noise).std()) == pytest.approx(seen.gain, rel=0.02)
    scale = (grid.tokens / seen.layout.base.tokens) ** 0.5
    whole = grid.height % seen.layout.base.height == grid.width % seen.layout.base.width == 0
    if whole or average == "cosine":
        assert seen.gain == pytest.approx(1 / scale)
    else:
        assert seen.gain < 1 / scale


@pytest.mark.parametrize("scale", [1, 1.5, 2, 3, 4])
@pytest.mark.parametrize("sigma", [0.0, 0.2, 0.714, 0.99, 1.0])
def test_the_level_at_the_base_grid(scale, sigma):
    level = level_at_base(sigma, 1 / scale)
    assert level == pytest.approx(sigma / (sigma + scale * (1 - sigma)))
    # Signal to noise is what a level means: averaging multiplies it by the scale.
    assert sigma * (1 - level) == pytest.approx(scale * (1 - sigma) * level)
    assert level_at_full(level, scale) == pytest.approx(sigma)


def scene_like(grid, generator):
    """Tokens that vary slowly, which an average and an enlargement keep."""
    layout = make_layout(grid, ResDiTConfig(base_tokens=16))
    small = torch.randn(1, layout.base.tokens, 48, generator=generator)
    return BaseView(layout, "cosine", "cosine").enlarge(small)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_model_is_shown_signal_and_noise_at_the_level_it_is_told(grid):
    seen, generator = view(grid, average="cosine", enlarge="cosine"), torch.Generator().manual_seed(3)
    clean, noise, sigma, shown = scene_like(grid, generator), noise_for(grid, 3), 0.8, {}

    def velocity(x, level, words, height):
        shown.update(x=x, level=float(level[0]), height=height)
        return torch.zeros_like(x)

    seen.estimate(velocity, (1 - sigma) * clean + sigma * noise, sigma, torch.zeros(1, 32, dtype=torch.long))
    level = shown["level"]
    assert shown["height"] == seen.layout.base.height
    rest = shown["x"] - (1 - level) * seen.average(clean)
    assert float(rest.std()) == pytest.approx(level, rel=0.05)


def knowing(clean):
    """The velocity of a model that knows the clean tokens at any grid."""
    return lambda x, sigma, words, height: (x - clean[height]) / sigma[0]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_layout_step_leads_to_the_enlarged_picture(grid):
    seen, generator = view(grid), torch.Generator().manual_seed(4)
    base = seen.layout.base
    clean = {base.height: torch.randn(1, base.tokens, 48, generator=generator)}
    x, sigma = noise_for(grid, 4), torch.tensor([0.9])
    v = with_layout_steps(knowing(clean), seen, until=0.1)(x, sigma, torch.zeros(1, 32, dtype=torch.long), grid.height)
    torch.testing.assert_close(x - 0.9 * v, seen.enlarge(clean[base.height]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["area", "cosine"])
def test_scale_one_is_the_identity(kind):
    grid, words = Grid(16, 16), torch.zeros(1, 32, dtype=torch.long)
    seen = view(grid, average=kind, enlarge={"area": "bicubic"}.get(kind, kind))
    assert seen.gain == pytest.approx(1)
    x, sigma, clean = noise_for(grid, 5), torch.tensor([0.6]), {16: noise_for(grid, 6)}
    plain = knowing(clean)(x, sigma, words, 16)
    for until, low_band in ((0.1, None), (0.9, None), (0.9, 0.1)):
        stepped = with_layout_steps(knowing(clean), seen, until, low_band)(x, sigma, words, 16)
        torch.testing.assert_close(stepped, plain, atol=1e-5, rtol=0)


def test_the_low_band_is_the_base_grids_and_the_rest_the_models():
    grid, words = Grid(48, 48), torch.zeros(1, 32, dtype=torch.long)
    seen = view(grid)
    clean = {48: noise_for(grid, 7), 16: noise_for(Grid(16, 16), 8)}
    x, sigma = noise_for(grid, 9), torch.tensor([0.5])
    stepped = with_layout_steps(knowing(clean), seen, until=0.9, low_band=0.1)
    found = (x - 0.5 * stepped(x, sigma, words, 48)).double().numpy().reshape(48, 48, 48)
    k, i = np.arange(48)[:, None], np.arange(48)
    cosines = np.cos(np.pi * k * (i + 0.5) / 48)

    def spectrum(tokens):
        return np.einsum("ki,lj,ijc->klc", cosines, cosines, tokens)

    low = np.zeros((48, 48), dtype=bool)
    low[:10, :10] = True  # k / (2 * 48) <= .1 cycles per token
    expected = np.where(
        low[..., None],
        spectrum(seen.enlarge(clean[16]).double().numpy().reshape(48, 48, 48)),
        spectrum(clean[48].double().numpy().reshape(48, 48, 48)),
    )
    np.testing.assert_allclose(spectrum(found), expected, atol=2e-3)
