import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext import BALANCED, ResDiTError
from resdit_ext.method import in_attention as attention
from resdit_ext.method.frequencies import laws_of
from resdit_ext.method.in_attention import AttentionPlan, resdit_attention
from resdit_ext.method.layout import Grid, make_layout
from resdit_ext.method.memory import OutOfMemory, working_bytes
from resdit_ext.method.phases import Phase
from resdit_ext.method.positions import whole_positions
from resdit_ext.method.rotary import rotary_table, rotate
from resdit_ext.seams.rotary import image_ids
from tests import reference
from tests.settings import scaled

PHASES = [Phase.GLOBAL, Phase.FUSED, Phase.LOCAL]  # those in which attention is the method's

AXES, THETA, TEXT, HEADS = (4, 6, 6), 10000, 3, 2


def attend(q, k, v):
    """PyTorch's attention as hosts call it: of rotated q and k, heads merged."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def embed(positions, laws, _):
    return rotary_table(image_ids(TEXT, positions), AXES, THETA, laws)


def make_plan(H, W, config, text=TEXT):
    return AttentionPlan(make_layout(Grid(H, W), config), config, text, embed)


def qkv(H, W, batch=1, dtype=torch.float64):
    return torch.randn(3, batch, HEADS, TEXT + H * W, sum(AXES), dtype=dtype)


def expected_of(q, k, v, plan, phase, sigma=0.25, **given):
    """The reference for the first of a batch, with the default attention scale and a cut-off of .3 cycles a token."""
    grid, base = plan.layout.grid, plan.layout.base
    return reference.resdit(
        *(x[0].double().numpy() for x in (q, k, v)),
        TEXT,
        (grid.height, grid.width),
        (base.height, base.width),
        phase.value,
        axes_dim=AXES,
        theta=THETA,
        scale=np.log(TEXT + grid.tokens) / np.log(TEXT + base.tokens),
        cutoff=0.3,
        sigma=sigma,
        **given,
    )


def relative_error(got, expected):
    return np.abs(got.double().numpy() - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-6), (torch.float32, 5e-6), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("size", [(9, 9), (8, 13), (17, 5)])
@pytest.mark.parametrize("change", [{}, {"pes": False}, {"pipe": False}, {"splice": "mean"}])
def test_method_matches_the_reference(dtype, tolerance, phase, size, change):
    config = scaled(base_tokens=20, cutoff=0.6, **change)
    plan = make_plan(*size, config)
    q, k, v = qkv(*size, dtype=dtype)
    got = resdit_attention(q, k, v, plan, phase, attend)
    assert got.dtype == dtype
    sigma = None if change.get("splice") == "mean" else 0.25
    parts = {name: change.get(name, True) for name in ("pes", "pipe")}
    expected = expected_of(q, k, v, plan, phase, sigma=sigma, **parts)
    assert relative_error(got[0], expected) < tolerance


@pytest.mark.parametrize("positions", ["ntk", "yarn", "rpe-2d"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("pipe", "size"), [(True, (9, 9)), (True, (8, 13)), (False, (9, 9))])
def test_other_positions_match_the_reference(positions, phase, pipe, size):
    plan = make_plan(*size, scaled(base_tokens=20, cutoff=0.6, positions=positions, maximal_range=17, pipe=pipe))
    q, k, v = qkv(*size)
    base = plan.layout.base
    sides = list(zip(size, (base.height, base.width), strict=True))
    scales = [n / m for n, m in sides]
    laws = {
        "ntk": [reference.ntk(d, THETA, s) for d, s in zip(AXES[1:], scales, strict=True)],
        "yarn": [reference.yarn(d, THETA, s, m) for d, s, (_, m) in zip(AXES[1:], scales, sides, strict=True)],
        "rpe-2d": [reference.frequencies(d, THETA) for d in AXES[1:]],
    }

    def at(*sides):
        rows, cols = (reference.equidistant(n, 17) if positions == "rpe-2d" else np.arange(n) for n in sides)
        return np.array([(row, col) for row in rows for col in cols])

    expected = expected_of(
        *(q, k, v, plan, phase),
        pipe=pipe,
        whole=at(*size),
        patch=at(base.height, base.width),
        laws=[reference.frequencies(AXES[0], THETA), *laws[positions]],
    )
    assert relative_error(resdit_attention(q, k, v, plan, phase, attend)[0], expected) < 3e-6


def test_rpe_2d_needs_as_many_positions_as_tokens():
    with pytest.raises(ResDiTError, match="the maximal range is 8 tokens and the picture's width is 9 tokens"):
        make_plan(8, 9, scaled(base_tokens=20, positions="rpe-2d", maximal_range=8))


@pytest.mark.parametrize("positions", ["ntk", "yarn", "rpe-2d"])
def test_the_fast_mode_has_the_same_positions(positions):
    """With q, k and v that agree within a block, means of tokens are the tokens, and their positions the means."""
    config = scaled(base_tokens=16, positions=positions, maximal_range=40)
    exact, fast = (make_plan(8, 8, dataclasses.replace(config, speed=speed)) for speed in ("exact", "fastest"))
    branch = fast.branches[Phase.GLOBAL]
    assert torch.equal(branch.queries.cos, exact.branches[Phase.GLOBAL].queries.cos)
    centres = fast.branches[Phase.FUSED].pooling.positions(whole_positions(fast.layout, config))
    expected = reference.block_means(whole_positions(fast.layout, config).view(8, 8, 2).numpy(), 2).reshape(-1, 2)
    np.testing.assert_allclose(centres.numpy(), expected, atol=1e-5)
    assert torch.equal(branch.keys.cos, embed(centres, laws_of(fast.layout, config), fast.layout.grid).cos)


@given(st.integers(1, 11), st.integers(1, 11), st.integers(4, 60), st.sampled_from(PHASES))
def test_method_matches_the_reference_at_any_size(H, W, tokens, phase):
    plan = make_plan(H, W, scaled(base_tokens=tokens, attention_scale=1.3))
    q, k, v = qkv(H, W)
    base = plan.layout.base
    expected = reference.resdit(
        *(x[0].numpy() for x in (q, k, v)),
        TEXT,
        (H, W),
        (base.height, base.width),
        phase.value,
        axes_dim=AXES,
        theta=THETA,
        scale=1.3,
        cutoff=0.1,
        sigma=0.25,
    )
    assert relative_error(resdit_attention(q, k, v, plan, phase, attend)[0], expected) < 3e-6


@pytest.mark.parametrize("phase", PHASES)
def test_scale_one_is_plain_attention(phase):
    """With the base grid as large as the output there is one patch, and each branch is plain attention."""
    config = scaled(base_tokens=64)
    q, k, v = qkv(8, 8)
    plan = make_plan(8, 8, config)
    assert plan.layout.is_base and plan.branches[phase].logit_scale == 1
    rotary = plan.branches[phase].keys
    plain = attend(rotate(q, rotary), rotate(k, rotary), v)
    assert torch.allclose(resdit_attention(q, k, v, plan, phase, attend), plain, atol=1e-6)


@pytest.mark.parametrize("phase", PHASES)
def test_chunks_do_not_change_the_result(phase):
    config = scaled(base_tokens=16, chunk_mb=1)
    q, k, v = qkv(12, 12, batch=2, dtype=torch.float32)
    results = []
    for at_once in (1, 3, 100):
        plan = make_plan(12, 12, config)
        plan._chunk = at_once
        results.append(resdit_attention(q, k, v, plan, phase, attend))
    assert torch.allclose(results[0], results[1], atol=1e-6)
    assert torch.allclose(results[0], results[2], atol=1e-6)


def test_chunk_size_follows_the_budget_and_what_is_free(monkeypatch):
    q = torch.empty(1, 24, 512 + 192 * 192, 128, dtype=torch.bfloat16, device="meta")

    def patches(megabytes, device="meta"):
        config = dataclasses.replace(BALANCED, chunk_mb=megabytes)
        plan = AttentionPlan(
            make_layout(Grid(192, 192), config), config, 512, lambda p, laws, _: rotary_table(p, (4, 4), 1e4, laws)
        )
        monkeypatch.setattr(attention, "working_bytes", lambda _, at_most: working_bytes(torch.device(device), at_most))
        return plan.patches_at_once(q)

    assert patches(1) == 1 < patches(512) < patches(4096)
    assert patches(4096, "cpu") == patches(64)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * 2**28)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**28)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**29, 2**36))
    assert patches(4096, "cuda") == patches(512) > 1


@pytest.mark.parametrize("phase", PHASES)
def test_batch_and_cfg_order_do_not_matter(phase):
    plan = make_plan(9, 9, scaled(base_tokens=16))
    q, k, v = qkv(9, 9, batch=3)
    together = resdit_attention(q, k, v, plan, phase, attend)
    flipped = resdit_attention(q.flip(0), k.flip(0), v.flip(0), plan, phase, attend).flip(0)
    alone = torch.cat(
        [resdit_attention(q[i : i + 1], k[i : i + 1], v[i : i + 1], plan, phase, attend) for i in range(3)]
    )
    assert torch.allclose(together, flipped, atol=1e-9) and torch.allclose(together, alone, atol=1e-9)


def test_mean_fusion_is_the_mean_of_the_branches():
    """Away from overlaps splice(mean(x_g, x_l)) is the mean; with one value everywhere it is that value."""
    config = scaled(base_tokens=16, fusion="mean", attention_scale="off")
    plan = make_plan(8, 8, config)
    q, k, v = qkv(8, 8)
    fused, local, global_ = (
        resdit_attention(q, k, v, plan, p, attend) for p in (Phase.FUSED, Phase.LOCAL, Phase.GLOBAL)
    )
    assert torch.allclose(fused[:, TEXT:], (local + global_)[:, TEXT:] / 2, atol=1e-6)


def test_no_mask_is_ever_passed_and_inputs_are_untouched():
    plan = make_plan(9, 9, scaled(base_tokens=16))
    q, k, v = qkv(9, 9)
    before = [x.clone() for x in (q, k, v)]
    calls = []

    def spy(*args):
        calls.append(args)
        return attend(*args)

    for phase in PHASES:
        resdit_attention(q, k, v, plan, phase, spy)
    assert {len(args) for args in calls} == {3}
    assert all(torch.equal(a, b) for a, b in zip(before, (q, k, v), strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 3e-6), (torch.float32, 2e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("phase", [Phase.GLOBAL, Phase.FUSED])
@pytest.mark.parametrize("size", [(9, 9), (12, 12), (8, 13)])
def test_the_fast_mode_matches_the_reference(dtype, tolerance, phase, size):
    """Sides that are and are not a whole number of blocks."""
    plan = make_plan(*size, scaled(base_tokens=16, cutoff=0.3, speed="fastest"))
    q, k, v = qkv(*size, dtype=dtype)
    base, coarse = plan.layout.base, -(-size[0] // 2) * -(-size[1] // 2)
    expected = reference.resdit_fast(
        *(x[0].double().numpy() for x in (q, k, v)),
        TEXT,
        size,
        (base.height, base.width),
        phase.value,
        axes_dim=AXES,
        theta=THETA,
        scale=np.log(TEXT + coarse) / np.log(TEXT + base.tokens),
        cutoff=0.15,
        sigma=0.25,
    )
    got = resdit_attention(q, k, v, plan, phase, attend)
    assert got.dtype == dtype and relative_error(got[0], expected) < tolerance


def test_the_fast_mode_is_exact_in_local_calls_and_below_2x():
    config = scaled(base_tokens=20)
    for speed, size, phases in (
        ("fastest", (12, 12), [Phase.LOCAL]),
        ("fast", (12, 12), [Phase.LOCAL, Phase.GLOBAL]),
        ("fastest", (7, 8), PHASES),
    ):
        fast, (q, k, v) = dataclasses.replace(config, speed=speed), qkv(*size)
        for phase in phases:
            one, other = (resdit_attention(q, k, v, make_plan(*size, c), phase, attend) for c in (config, fast))
            assert torch.equal(one, other)


class ShortOfMemory:
    """Attention on a device that has room for so many sequences at once."""

    def __init__(self, room):
        self.room, self.sizes = room, []

    def __call__(self, q, k, v):
        if len(q) > self.room:
            raise OutOfMemory("no room")
        self.sizes.append(len(q))
        return attend(q, k, v)


@pytest.mark.parametrize("phase", [Phase.LOCAL, Phase.FUSED])
@pytest.mark.parametrize("speed", ["exact", "fast"])
def test_out_of_memory_halves_the_chunk_once_per_size(phase, speed):
    config, said = scaled(base_tokens=16, speed=speed), []
    plan = AttentionPlan(make_layout(Grid(12, 12), config), config, TEXT, embed, say=said.append)
    q, k, v = qkv(12, 12, dtype=torch.float32)
    expected = resdit_attention(q, k, v, make_plan(12, 12, config), phase, attend)
    tight = ShortOfMemory(5)
    for _ in range(2):
        got = resdit_attention(q, k, v, plan, phase, tight)
        assert torch.allclose(got, expected, atol=1e-6)
    assert said == [f"out of memory at 12x12 tokens: going on with {n} patches at once" for n in (8, 4)]
    assert max(tight.sizes) == 4


def test_out_of_memory_with_a_single_patch_is_the_hosts_to_handle():
    plan = make_plan(12, 12, scaled(base_tokens=16))
    with pytest.raises(OutOfMemory):
        resdit_attention(*qkv(12, 12), plan, Phase.LOCAL, ShortOfMemory(0))
