"""Sequences found by their ids: text, pads, blocks over a part of the tokens, and rotation by halves."""

import math

import pytest
import torch

from resdit_ext import Unsupported
from resdit_ext.families import identify
from resdit_ext.method.layout import Grid
from resdit_ext.method.positions import grid_positions
from resdit_ext.method.rotary import rotate
from resdit_ext.method.run import Run
from resdit_ext.seams.sequence import Arrangement, Rotation, TokenSequence
from tests import attentions, fakes, fakes_next
from tests.attaching import attach
from tests.fakes import AXES, CHANNELS
from tests.settings import scaled

CONFIG = scaled(base_tokens=16, fused_until=0.57)
NATIVE = scaled(base_tokens=16, pes=False, global_until=1, fused_until=1, attention_scale="off")
PHASES = {"global": 0.99, "fused": 0.8, "local": 0.1}
TEXT = 3
ROTATION = Rotation(AXES, (1e4,) * 3)


def latent(*size, batch=1):
    return torch.randn(batch, CHANNELS, *size, generator=torch.Generator().manual_seed(4))


def ids_of(before, grid, after=0, first=0.0, dtype=torch.float32):
    """(1, L, 3) ids: text that counts the first axis up, a picture, pads at zero."""
    picture = torch.nn.functional.pad(grid_positions(grid), (1, 0), value=first)
    text = torch.nn.functional.pad(torch.arange(before)[:, None] + 1.0, (0, 2))
    return torch.cat((text, picture, torch.zeros(after, 3)))[None].to(dtype)


class TestAModelOfThisKind:
    @pytest.mark.parametrize("multiple", [32, None])
    @pytest.mark.parametrize(("size", "batch"), [((24, 24), 1), ((15, 21), 2)])
    def test_native_positions_in_one_global_branch_are_the_plain_model(self, multiple, size, batch):
        unet, run, x = fakes.FakePatcher(fakes_next.made(multiple)), Run(NATIVE), latent(*size, batch=batch)
        plain = unet.sample(x, 0.8)
        assert torch.allclose(attach(unet, run).sample(x, 0.8), plain, atol=1e-5)
        assert run.calls == {"global": 1, "blocks": 3}  # all but the one over text alone
        assert torch.equal(unet.sample(x, 0.8), plain)

    @pytest.mark.parametrize(("phase", "sigma"), PHASES.items())
    @pytest.mark.parametrize("size", [(24, 24), (15, 21)])
    def test_each_attention_is_the_methods(self, phase, sigma, size):
        with attentions.recorded() as calls:
            attach(fakes.FakePatcher(fakes_next.made()), Run(CONFIG)).sample(latent(*size), sigma)
        grid = tuple(math.ceil(n / 2) for n in size)
        pads, text = [(0, 0, 0)] * (-math.prod(grid) % 32), [(i + 1, 0, 0) for i in range(TEXT)]
        for call, others in zip(calls, (pads, text + pads, text + pads), strict=True):
            places = dict(axes_dim=AXES, theta=10000, others=others, first=(TEXT + 1, 0, 0))
            attentions.check(call, len(others), grid, phase, **places)

    def test_a_mask_is_refused_and_the_picture_made_as_if_off(self):
        model, said = fakes_next.made(), []
        x, model.mask = latent(24, 24), torch.zeros(1, 1, 1, TEXT + 160)
        model.mask[..., 0] = -math.inf
        unet = fakes.FakePatcher(model)
        monkey = attach(unet, Run(CONFIG, say=said.append))
        model.noise_refiner = torch.nn.ModuleList()
        assert torch.allclose(monkey.sample(x, 0.8), unet.sample(x, 0.8), atol=1e-5)
        assert said == ["not active: attention masks are not supported"]

    def test_which_families_are_told_apart(self):
        names = [identify(fakes_next.made(multiple)).family.name for multiple in (32, None)]
        assert names == ["Z-Image", "Lumina 2"]
        with pytest.raises(Unsupported, match="a multiple of 64 by pads, not of 32"):
            identify(fakes_next.made(64))
        dynamic = fakes_next.made()
        dynamic.use_dynamicPE = 1024
        with pytest.raises(Unsupported, match="dynamicPE"):
            identify(dynamic)


class TestFinding:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_text_picture_and_pads(self, dtype):
        ids = ids_of(5, Grid(300, 3), after=28, first=6.0, dtype=dtype)
        found = Arrangement(multiple=32).find(ROTATION, ids, Grid(300, 3), 0)
        assert (found.before, found.after, found.origin) == (5, 28, (6.0, 0.0, 0.0))
        assert found.others[4:6] == ((5.0, 0.0, 0.0), (0.0, 0.0, 0.0))

    def test_a_picture_before_text(self):
        ids = ids_of(0, Grid(4, 5), after=7)
        found = Arrangement(text_first=False).find(ROTATION, ids, Grid(4, 5), 0)
        assert (found.before, found.after) == (0, 7)

    @pytest.mark.parametrize(
        ("ids", "reason"),
        [
            (torch.cat((ids_of(2, Grid(3, 4)), ids_of(0, Grid(3, 4), first=1.0)), 1), "reference images"),
            (ids_of(2, Grid(4, 3)), "reference images"),
            (ids_of(2, Grid(2, 4)), "takes some out"),
            (torch.cat((ids_of(2, Grid(3, 4)), ids_of(2, Grid(3, 4)) + 1)), "different positions"),
            (ids_of(12, Grid(3, 4)), "cannot be told apart"),
        ],
        ids=["a second picture", "another grid", "fewer tokens", "a batch", "as much text"],
    )
    def test_what_is_refused(self, ids, reason):
        with pytest.raises(Unsupported, match=reason):
            Arrangement(refines=True).find(ROTATION, ids, Grid(3, 4), 0)


class TestASequence:
    def test_others_go_first_and_come_back(self):
        sequence = TokenSequence(ROTATION, 2, ((0.0,) * 3,) * 5, (0.0,) * 3)
        x = torch.randn(2, 3, 11, 4)
        first = sequence.others_first(x)
        assert torch.equal(first[:, :, 5:], x[:, :, 2:8]) and torch.equal(first[:, :, 2:5], x[:, :, 8:])
        assert torch.equal(sequence.in_order(first.transpose(1, 2).flatten(2)), x.transpose(1, 2).flatten(2))

    def test_halves_are_pairs_in_another_order(self):
        """Rotated in pairs, dot products are those of x cos + (-x2, x1) sin, angle j for channels j and j + D/2."""
        halves, ids = Rotation(AXES, (100.0, 1000.0, 1e4), halves=True), torch.rand(7, 3) * 9
        q, k = torch.randn(2, 1, 2, 7, sum(AXES), dtype=torch.float64)
        angle = torch.cat(
            [ids[:, i, None].double() * t ** (-torch.arange(0, d, 2).double() / d) for i, (d, t) in
             enumerate(zip(AXES, halves.thetas, strict=True))], -1
        )  # fmt: skip
        cos, sin = (torch.cat((part, part), -1) for part in (angle.cos(), angle.sin()))

        def by_halves(x):
            left, right = x.chunk(2, -1)
            return x * cos + torch.cat((-right, left), -1) * sin

        got = [rotate(halves.in_pairs(x), halves.table(ids)) for x in (q, k)]
        expected = [by_halves(x) for x in (q, k)]
        products = [a @ b.transpose(-1, -2) for a, b in (got, expected)]
        assert torch.allclose(*products, atol=1e-5) and not torch.allclose(products[0], q @ k.transpose(-1, -2))
