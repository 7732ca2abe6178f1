"""Checks of SD3 inside the host's own MMDiT-X, tiny and with random weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from resdit_ext import Unsupported
from resdit_ext.families import identify
from resdit_ext.method.layout import Grid, base_grid
from resdit_ext.method.run import Run
from resdit_ext.monkeypatch import swapped
from tests import reference
from tests.attaching import attach
from tests.hosts import kit, models
from tests.hosts.bench import BASE, CONFIG, PHASES, TRIPLE, Bench, Skipped, big, check, same, small

BEYOND = (64, 64)  # 32 tokens, where the table has 24


def sd3_of(bench: Bench) -> object:
    """The host's patcher around a tiny SD3.5-medium: 2 blocks, the first with a second attention."""
    if bench.host == "neo":
        raise Skipped("Forge Neo has no SD3")
    return bench.sd3


def attached(unet: object, **kwargs: object) -> tuple[object, Run]:
    run = Run(CONFIG, **kwargs)
    return attach(unet, run), run


def at_positions(unet: object, x: Tensor, sigma: float, cfg: float, index: list[np.ndarray]) -> Tensor:
    """The host's own call with the reference's table at these indices of rows and columns."""
    model = unet.model.diffusion_model
    table = reference.sincos_table(*index, model.pos_embed.shape[-1], models.TABLE_STEP)
    positions = torch.from_numpy(table).float().flatten(0, 1)[None]
    with swapped(model, cropped_pos_embed=lambda hw: positions):
        return kit.velocity(unet, x, sigma, cfg)


def whole_by_hand(unet: object, x: Tensor, sigma: float, cfg: float) -> Tensor:
    """The host's own call with a table from the reference and every query scaled by hand."""
    model = unet.model.diffusion_model
    grid = [n // 2 for n in x.shape[-2:]]
    base = base_grid(Grid(*grid), CONFIG.base_tokens)
    sides = base.height, base.width
    index = [reference.whole_index(models.TABLE, n, b) for n, b in zip(grid, sides, strict=True)]
    factor = np.log(kit.TEXT + grid[0] * grid[1]) / np.log(kit.TEXT + base.tokens)
    norms = [m for name, m in model.named_modules() if name.endswith("ln_q")]
    before = [norm.weight.data for norm in norms]
    try:
        for norm in norms:
            norm.weight.data = norm.weight.data * factor
        return at_positions(unet, x, sigma, cfg, index)
    finally:
        for norm, weight in zip(norms, before, strict=True):
            norm.weight.data = weight


@check
def sd3_at_the_base_size_is_bit_identical(bench: Bench) -> str:
    unet = sd3_of(bench)
    for size in (BASE, (12, 16)):
        for cfg in (1.0, 4.0):
            patched, run = attached(unet)
            x = kit.latent(*size)
            assert torch.equal(kit.velocity(patched, x, 0.8, cfg), kit.velocity(unet, x, 0.8, cfg)), f"{size}, {cfg}"
            same(dict(run.calls), {"base": 1}, "calls")
    return "2 sizes, CFG 1 and 4"


@check
def sd3_is_the_method(bench: Bench) -> str:
    """Against the reference around the host's own calls: 3x, non-square, batch 2, CFG 4 and beyond the table."""
    unet, found = sd3_of(bench), []
    runs = [(TRIPLE, 1, 1.0, phase) for phase in PHASES]
    runs += [((32, 48), 2, 4.0, "fused"), (BEYOND, 1, 1.0, "fused"), (BEYOND, 1, 1.0, "global")]
    for size, batch, cfg, phase in runs:
        sigma, x = PHASES[phase], kit.latent(*size, batch)
        patched, run = attached(unet)
        got = kit.velocity(patched, x, sigma, cfg)
        same(run.calls[phase], 1, "calls")
        grid = Grid(size[0] // 2, size[1] // 2)
        base = base_grid(grid, CONFIG.base_tokens)
        whole = whole_by_hand(unet, x, sigma, cfg)
        for i in range(batch):

            def patch(part: np.ndarray, *start, i=i, sigma=sigma, cfg=cfg, batch=batch, grid=grid, base=base):
                alone = torch.from_numpy(part)[None].float().repeat(batch, 1, 1, 1)  # the text of sample i
                axes = (grid.height, base.height, start[0]), (grid.width, base.width, start[1])
                index = [reference.patch_index(models.TABLE, *axis) for axis in axes]
                return at_positions(unet, alone, sigma, cfg, index)[i].double().numpy()

            expected = reference.resdit_by_patches(
                x[i].double().numpy(),
                (grid.height, grid.width),
                (base.height, base.width),
                phase,
                lambda _, i=i, whole=whole: whole[i].double().numpy(),
                patch,
                cutoff=CONFIG.cutoff / 2,
                sigma=CONFIG.splice_sigma,
            )
            mine = reference.to_tokens(got[i].double().numpy())
            worst = np.abs(mine - expected).max() / np.abs(expected).max()
            found.append(small(float(worst), 1e-4, f"{size}, {phase}: error"))
        if size != BEYOND:
            big(kit.error(got, kit.velocity(unet, x, sigma, cfg)), 1e-2, "difference from plain")
    try:
        kit.velocity(unet, kit.latent(*BEYOND), 0.8)
    except AssertionError:
        return ", ".join(found)
    raise AssertionError("the plain model was to fail beyond its table")


@check
def sd3_odd_latents_are_refused_by_the_host(bench: Bench) -> str:
    unet = sd3_of(bench)

    def refusal(patched: object) -> str:
        try:
            kit.velocity(patched, kit.latent(47, 45), PHASES["local"])
        except RuntimeError as error:
            return str(error)
        raise AssertionError("the odd latent was accepted")

    expected = refusal(unet)
    same(refusal(attached(unet)[0]), expected, "the message with ResDiT")
    return expected


@check
def sd3_takes_control_and_skipped_layers(bench: Bench) -> str:
    """Residuals are cut to each patch; a constant one and a skipped block act as in the plain model."""
    unet, x = sd3_of(bench), kit.latent(*TRIPLE)
    width = unet.model.diffusion_model.pos_embed.shape[-1]
    constant = torch.randn(1, 1, width, generator=torch.Generator().manual_seed(8)).repeat(1, 24 * 24, 1)
    side = [constant.clone()]
    side[0][:, : 24 * 12] = 0
    seen = []

    def call(patched: object, control: list | None, skip: list) -> Tensor:
        def outer(apply_model: object, args: dict) -> Tensor:
            c = args["c"] | {"control": control}
            c["transformer_options"] = c["transformer_options"] | {"skip_layers": skip}
            return apply_model(args["input"], args["timestep"], **c)

        clone = patched.clone()
        clone.set_model_unet_function_wrapper(outer)
        run = Run(CONFIG)
        out = kit.velocity(attach(clone, run), x, PHASES["fused"])
        seen.append(dict(run.calls))
        return out

    nothing, with_constant, with_side, skipped = (
        call(unet, *what) for what in ((None, []), ([constant], []), (side, []), (None, [0]))
    )
    assert len({tuple(calls.items()) for calls in seen}) == 1
    big(kit.error(with_constant, nothing), 1e-3, "effect of control")
    big(kit.error(skipped, nothing), 1e-3, "effect of a skipped block")
    upper, lower = (kit.error(with_side[..., rows, :], nothing[..., rows, :]) for rows in (slice(0, 8), slice(40, 48)))
    assert lower > 3 * upper, f"a residual below the middle moved {upper:.2g} above and {lower:.2g} below"
    return f"control moves {upper:.2g} where it is zero, {lower:.2g} where it is not"


@check
def sd3_leaves_nothing_behind(bench: Bench) -> str:
    unet, x = sd3_of(bench), kit.latent(*TRIPLE)
    model = unet.model.diffusion_model
    plain, before = kit.denoise(unet, x, 0.8, 4.0), dict(vars(model))
    for error in (None, RuntimeError, KeyboardInterrupt):
        patched, _ = attached(unet)
        with kit.failing_inside(model, error):
            kit.denoise(patched, x, PHASES["global"])
        assert torch.equal(kit.denoise(unet, x, 0.8, 4.0), plain), f"the plain result changed after {error}"
        assert not any(m._forward_hooks for m in model.modules()) and vars(model) == before, f"left after {error}"
    return "after a normal call, RuntimeError and KeyboardInterrupt"


@check
def sd3_stays_close_in_bfloat16(bench: Bench) -> str:
    sd3_of(bench)
    rounded = models.build_sd3(bench.host).to(torch.bfloat16)
    low = kit.build_unet(bench.host, rounded, torch.bfloat16, kit.discrete_flow())
    exact = models.build_sd3(bench.host)
    exact.load_state_dict({name: value.float() for name, value in rounded.state_dict().items()})
    high, x, found = kit.build_unet(bench.host, exact, predictor=kit.discrete_flow()), kit.latent(*TRIPLE), []
    for phase, sigma in PHASES.items():
        got, expected = (kit.velocity(attach(unet, Run(CONFIG)), x, sigma) for unet in (low, high))
        alone = kit.error(*(kit.velocity(unet, x, sigma) for unet in (low, high)))
        found.append(small(kit.error(got, expected), 2 * alone, f"{phase}: error, the host's own being {alone:.2g},"))
    return ", ".join(found)


@check
def what_looks_like_sd3_is_refused_by_what_it_lacks(bench: Bench) -> str:
    model = sd3_of(bench).model.diffusion_model
    assert identify(model).family.name == "SD3"
    attention = model.joint_blocks[0].x_block.attn
    norm = attention.ln_q
    try:
        del attention.ln_q
        identify(model)
    except Unsupported as reason:
        return str(reason)
    finally:
        attention.ln_q = norm
    raise AssertionError("it was accepted")
