import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext.control import latent_nets, token_nets
from resdit_ext.control.added import LazyResiduals, UnitShare, along_depth, pick, resample, token_mask
from resdit_ext.control.hint import pixels, repeated, seeded, shown, toned
from resdit_ext.errors import Unsupported
from resdit_ext.method.layout import Grid
from resdit_ext.method.phases import levels_between
from resdit_ext.method.shift import shifted_sigmas
from tests import reference

COARSE = Grid(3, 4)
sides = st.integers(1, 9)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(H=sides, W=sides, h=sides, w=sides)
def test_pick_takes_the_nearest_tokens_whole(H, W, h, w):
    latent = noise(2, 3, 2 * H, 2 * W)
    h, w = min(h, H), min(w, W)
    got = torch.nn.functional.pixel_unshuffle(pick(latent, Grid(h, w)), 2)
    tokens = torch.nn.functional.pixel_unshuffle(latent, 2)
    for mine, its in zip(got.movedim(1, -1), tokens.movedim(1, -1), strict=True):
        np.testing.assert_array_equal(mine.numpy(), reference.nearest_tokens(its.numpy(), (h, w)))
    assert torch.equal(pick(latent, Grid(H, W)), latent)


@given(H=sides, W=sides, h=sides, w=sides)
def test_resampling_is_linear_between_the_tokens_centres(H, W, h, w):
    tokens = noise(2, h * w, 3)
    got = resample(tokens, Grid(h, w), Grid(H, W)).unflatten(1, (H, W))
    for mine, its in zip(got, tokens.unflatten(1, (h, w)), strict=True):
        np.testing.assert_allclose(mine.numpy(), reference.interpolated(its.numpy(), (H, W)), atol=1e-5)


@given(weights=st.lists(st.floats(0, 1), min_size=1, max_size=13), blocks=st.integers(1, 40), data=st.data())
def test_weights_are_read_along_the_depth(weights, blocks, data):
    block = data.draw(st.integers(0, blocks - 1))
    place = block / max(1, blocks - 1) * (len(weights) - 1)
    assert math.isclose(
        along_depth(weights, block, blocks), np.interp(place, range(len(weights)), weights), abs_tol=1e-9
    )


@given(blocks=st.integers(1, 60), count=st.integers(1, 60))
def test_residuals_are_spread_as_diffusers_does(blocks, count):
    for block in range(blocks):
        assert token_nets.TokenNets.index_of(block, blocks, count, cyclic=True) == block % count
        if count <= blocks:
            interval = int(np.ceil(blocks / count))
            assert token_nets.TokenNets.index_of(block, blocks, count, cyclic=False) == block // interval < count
            last = block == blocks - 1
            assert latent_nets.LatentNets.index_of(block, blocks, count, cyclic=False) == (
                None if last else int(block / (blocks / count))
            )


@given(steps=st.integers(1, 50), start=st.floats(0, 1), end=st.floats(0, 1))
def test_a_range_keeps_the_steps_that_diffusers_keeps(steps, start, end):
    sigmas = shifted_sigmas(steps)
    highest, lowest = levels_between(sigmas, start, end)
    for i in range(steps):
        near = min(abs(i - start * steps), abs(i + 1 - end * steps)) < 1e-6  # a float's rounding decides
        keep = not (i / steps < start or (i + 1) / steps > end)
        assert near or (lowest < sigmas[i] <= highest) == keep


def part(count=2, grid=COARSE, rows=2, **changes):
    residuals = [noise(rows, grid.tokens, 5, seed=i) for i in range(count)]
    return UnitShare(residuals, grid, **{"strength": 1.0, "index_of": token_nets.TokenNets.index_of} | changes)


def test_units_add_up_at_the_picture_with_their_weights_and_masks():
    grid, mask = Grid(6, 8), torch.zeros(1, 1, 96, 64)
    mask[..., :48, :] = 1
    one, two = part(strength=0.5), part(count=1, grid=grid, mask=token_mask(mask, grid).flatten(1, 2))
    added = LazyResiduals([one, two], 4, grid, torch.float32)
    assert len(added) == 4
    for block, got in enumerate(added):
        half = resample(one.residuals[block // 2], one.grid, grid) * 0.5
        masked = two.residuals[0].unflatten(1, (6, 8)).clone()
        masked[:, 3:] = 0
        torch.testing.assert_close(got, half + masked.flatten(1, 2))


def test_rows_have_weights_of_their_own_along_the_depth():
    one = part(count=1, strength=0.5, depth_weights=[[0.0, 1.0], None])
    added = LazyResiduals([one], 3, one.grid, torch.float32)
    for block, factor in enumerate((0, 0.5, 1)):
        torch.testing.assert_close(added[block][0], one.residuals[0][0] * factor * 0.5)
        assert torch.equal(added[block][1], one.residuals[0][1] * 0.5)


def test_masks_of_a_batch_come_in_turn():
    mask = torch.rand(2, COARSE.tokens, 1)
    one = part(count=1, rows=4, mask=mask)
    torch.testing.assert_close(one.after(0, 1, COARSE), one.residuals[0] * mask.repeat(2, 1, 1))


def test_what_adds_nothing_says_so():
    grid = Grid(3, 4)
    for quiet in (part(strength=0.0), part(count=0), part(index_of=lambda *_: None)):
        assert LazyResiduals([quiet], 2, grid, torch.float32)[1] is None
        assert LazyResiduals([quiet], 2, grid, torch.float32, nothing=0)[0] == 0
    with pytest.raises(IndexError):
        LazyResiduals([part()], 2, grid, torch.float32)[2]


def test_on_another_grid_a_patch_has_the_wholes():
    grid, half, tokens = Grid(6, 8), Grid(3, 4), torch.tensor([5, 0, 11])
    for whole in (LazyResiduals([part()], 2, grid, torch.float32, 0), LazyResiduals([], 2, grid, torch.float32, 0)):
        smaller = whole.on(half)
        patch = smaller.on_patch(torch.zeros(1, 1, 1, 1), tokens)
        for at_half, mine in zip(smaller, patch, strict=True):
            assert torch.equal(mine, at_half[:, tokens]) if whole.parts else (at_half, mine) == (0, 0)


def test_the_models_type_is_kept():
    assert LazyResiduals([part()], 2, Grid(3, 4), torch.bfloat16)[0].dtype == torch.bfloat16


def test_a_hint_is_resized_well():
    ramp = torch.linspace(0, 1, 60).expand(1, 1, 40, 60)
    small = pixels(ramp, 20, 30)
    assert small.shape == (1, 3, 20, 30) and float(small.min()) >= 0 and float(small.max()) <= 1
    torch.testing.assert_close(small[0, 2, 10], ramp[0, 0, 0].reshape(30, 2).mean(1), atol=0.02, rtol=0)
    stripes = torch.arange(60).remainder(2).float().expand(1, 3, 40, 60)
    assert (pixels(stripes, 20, 20)[..., 2:-2] - 0.5).abs().max() < 0.2  # not aliased to black or white
    assert pixels(torch.full((1, 3, 4, 4), -1.0), 4, 4).eq(0).all()  # a mark of the inpainting preprocessors
    assert torch.equal(pixels(stripes, 40, 60), stripes)


@pytest.mark.parametrize(
    "bad", [None, {"embeds": 1}, torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(0, 3, 8, 8)]
)
def test_what_is_no_picture_is_refused(bad):
    with pytest.raises(Unsupported, match="preprocessor gave"):
        pixels(bad, 16, 16)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["All", "Canny"], "canny"),
        (["Canny/Lineart/MLSD"], "canny"),
        (["Depth"], "depth"),
        (["OpenPose", "Tile"], "pose"),
        (["All"], None),
        ([None], None),
        ([], None),
    ],
)
def test_what_the_hint_shows(words, expected):
    assert shown(words) == expected
    assert expected is None or expected in token_nets.MODES


def test_tones():
    picture = torch.rand(1, 3, 4, 4)
    assert torch.equal(toned(picture, {}, "canny"), 2 * picture - 1)
    assert torch.equal(toned(picture, latent_nets.STABILITY_TONES, "blur"), 2 * picture - 1)
    torch.testing.assert_close(toned(picture, latent_nets.STABILITY_TONES, "canny"), picture * 127.5 + 0.5)
    torch.testing.assert_close(toned(picture, latent_nets.STABILITY_TONES, "depth"), 1 - 2 * picture)


def test_hints_of_a_batch_come_in_turn():
    hint = torch.arange(2)[:, None, None, None].expand(2, 3, 4, 4)
    assert repeated(hint, 4)[:, 0, 0, 0].tolist() == [0, 1, 0, 1] and repeated(hint[:1], 3).shape == (3, 3, 4, 4)


def test_encoding_leaves_the_hosts_random_numbers_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = seeded(lambda x: x + torch.rand(2), torch.zeros(2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(seeded(lambda x: x + torch.rand(2), torch.zeros(2)), first)  # wherever the host's are
