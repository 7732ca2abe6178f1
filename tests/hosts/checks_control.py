"""Checks of control nets inside a host: its layers, its diffusers, its patcher, and its models' blocks."""

from __future__ import annotations

import gc
import inspect
import weakref
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch import Tensor

from resdit_ext import ResDiTConfig
from resdit_ext.control import recognise
from resdit_ext.control.call import Call
from resdit_ext.control.nets import build
from resdit_ext.families import families, identify
from resdit_ext.hosts.forge import control_net, control_unit
from resdit_ext.hosts.protocol import ControlServices
from resdit_ext.method.layout import Grid, make_layout
from resdit_ext.method.run import Run
from tests.attaching import attach
from tests.hosts import kit, models
from tests.hosts.bench import BASE, CONFIG, TRIPLE, Bench, Skipped, big, check, same, small
from tests.hosts.checks_layout import BALANCED, MIDDLE

FORMATS = [family.control for family in families() if family.control is not None]

CONTROL = "control"
SIGMA = 0.8
LARGE = (56, 56)  # more than three times the base size


def handed_nets(bench: Bench) -> dict[str, dict[str, Tensor]]:
    """By kind of net, its weights ("weights/..."), a call's arguments ("in/...") and what it returned ("out/...")."""
    if bench.handed is None:
        raise Skipped("needs diffusers in the Python that runs the tests")
    kinds = {}
    for name, value in load_file(bench.handed).items():
        top, _, rest = name.partition("/")
        if top == CONTROL:
            kind, _, rest = rest.partition("/")
            kinds.setdefault(kind, {})[rest] = value
    return kinds


def below(tensors: dict[str, Tensor], folder: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{folder}/"): value for name, value in tensors.items() if name.startswith(f"{folder}/")}


@check
def control_nets_equal_diffusers(bench: Bench) -> str:
    """Every kind, made by the host's diffusers with the host's layers, returns what a new diffusers does."""
    worst = 0.0
    for kind, tensors in handed_nets(bench).items():
        checkpoint = recognise(below(tensors, "weights"), Path("net.safetensors"), FORMATS)
        net = build(checkpoint, torch.float32, control_net.host_operations(torch.float32))
        given, side = below(tensors, "in"), tensors["in/latent"].shape[-1] // 2
        call = {name: value for name, value in given.items() if name != "embedded"}
        with torch.inference_mode():
            got = checkpoint.format.residuals(
                net, Call(**call, grid=Grid(side, side), shows="depth", embed=lambda given=given: given["embedded"])
            )
        expected = below(tensors, "out")
        returned = {f"double.{i}": value for i, value in enumerate(got.double)}
        returned |= {f"single.{i}": value for i, value in enumerate(got.single)}
        same(sorted(returned), sorted(expected), f"{kind}: residuals")
        worst = max(worst, *(kit.error(returned[name], expected[name]) for name in expected))
    return small(worst, 1e-4, f"{len(handed_nets(bench))} kinds, error")


@check
def control_nets_in_eight_bits(bench: Bench) -> str:
    """Weights of eight bits stay so, and the net computes as one with the same numbers in float32 does."""
    found = []
    for kind in ("flux", "sd3"):
        tensors = handed_nets(bench)[kind]
        weights = below(tensors, "weights")
        eight = {n: v.to(torch.float8_e4m3fn) if v.ndim > 1 and "pos_embed" not in n else v for n, v in weights.items()}
        path, given = Path("net.safetensors"), below(tensors, "in")
        checkpoint = recognise(eight, path, FORMATS)
        net = build(checkpoint, torch.float32, control_net.host_operations(torch.float32))
        stored = {p.dtype for name, p in net.named_parameters() if p.ndim > 1 and "pos_embed" not in name}
        same(stored, {torch.float8_e4m3fn}, f"{kind}: types")
        plain = build(recognise({name: value.float() for name, value in eight.items()}, path, FORMATS))
        side = given["latent"].shape[-1] // 2
        call = Call(**{n: v for n, v in given.items() if n != "embedded"}, grid=Grid(side, side), shows="depth")
        module = checkpoint.format
        with torch.inference_mode():
            outs = [module.residuals(each, call).double for each in (net, plain)]
        found.append(max(kit.error(a, b) for a, b in zip(*outs, strict=True)))
    return small(max(found), 1e-5, "error")


class Generation:
    """The host's `p` for one pass: real unet and patchers, a VAE in one line."""

    def __init__(self, unet: object, config: object = None, channels: int = 16) -> None:
        self.said = []
        vae = SimpleNamespace(
            downscale_ratio=8, first_stage_model=SimpleNamespace(shift_factor=0.1, scaling_factor=1.5)
        )
        objects = SimpleNamespace(unet=unet, vae=vae)

        def encode(picture: Tensor) -> Tensor:
            return torch.nn.functional.avg_pool2d(picture, 8).repeat(1, 6, 1, 1)[:, :channels]

        self.sd_model = SimpleNamespace(forge_objects=objects, encode_first_stage=encode)
        control_unit.ResDiTControl.services = ControlServices(
            recognise=lambda p: identify(p.sd_model.forge_objects.unet.model.diffusion_model),
            method=lambda p, grid: config and (make_layout(grid, config), config),
            sigmas=lambda p: None,
            steps=lambda p: 35,
            default_shows=lambda: "canny",
            say=lambda p, message: p.said.append(message),
        )

    def add(
        self,
        state: dict[str, Tensor],
        x: Tensor,
        mask: Tensor | None = None,
        seed: int = 3,
        said: int = 0,
        **attributes: object,
    ) -> None:
        """One unit of the panel, of which so many things are said."""
        height, width = (8 * side for side in x.shape[-2:])
        hint = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
        unit = control_unit.ResDiTControl.try_build_from_state_dict(dict(state), "net.safetensors")
        for name, value in attributes.items():
            setattr(unit, name, value)
        unit.process_before_every_sampling(self, hint, mask, x=x)
        same(len(self.said), said, f"messages {self.said}")

    @property
    def unet(self) -> object:
        return self.sd_model.forge_objects.unet


def base_and_nets(bench: Bench, family: str) -> tuple[object, list[dict[str, Tensor]]]:
    """A tiny model in the host's patcher, and two nets' weights for it."""
    if family == "sd3" and bench.host == "neo":
        raise Skipped("Forge Neo has no SD3")
    if family == "flux" and bench.host == "ersatz":
        raise Skipped("its FLUX is 3072 wide; the panel's tests have a net for it")
    kind = {"flux": "flux fitting", "sd3": "sd3 fitting"}[family]
    weights = below(handed_nets(bench)[kind], "weights")
    other = {name: value * 0.7 if name.startswith("controlnet_") else value for name, value in weights.items()}
    return bench.unet if family == "flux" else bench.sd3, [weights, other]


def added_by_hand(unet: object, x: Tensor, sigma: float, cfg: float, change: object) -> Tensor:
    """The host's velocity with `change(kind, block, tokens)` added after its blocks by hooks of the test's own."""
    model, handles = unet.model.diffusion_model, []

    def hook(kind: str, i: int) -> object:
        def run(_: object, __: tuple, out: object) -> object:
            if kind == "single":
                out = out.clone()
                out[:, kit.TEXT :] += change(kind, i, len(out))
                return out
            if kind == "joint":
                return out[0], out[1] + change(kind, i, len(out[1]))
            return out[0] + change(kind, i, len(out[0])), out[1]

        return run

    for kind in ("double", "single", "joint"):
        blocks = getattr(model, f"{kind}_blocks", ())
        last = len(blocks) - 1 if kind == "joint" else None
        handles += [block.register_forward_hook(hook(kind, i)) for i, block in enumerate(blocks) if i != last]
    try:
        return kit.velocity(unet, x, sigma, cfg)
    finally:
        for handle in handles:
            handle.remove()


def check_residuals(bench: Bench, family: str) -> str:
    """Two units through the host's own sampling function add what the nets themselves return."""
    unet, nets = base_and_nets(bench, family)
    x, plain = kit.latent(*BASE), None
    p = Generation(unet)
    p.add(nets[0], x, strength=0.8)
    p.add(nets[1], x, seed=4, strength=0.5)
    found = []
    for cfg in (1.0, 4.0):
        taken = []
        link = p.unet.controlnet_linked_list
        original = type(link).get_control

        def spying(self, *args, original=original, taken=taken):
            taken.append(original(self, *args))
            return taken[-1]

        type(link).get_control = spying
        try:
            got = kit.velocity(p.unet, x, SIGMA, cfg)
        finally:
            type(link).get_control = original
        (control,) = taken

        def change(kind: str, i: int, rows: int, control=control) -> Tensor:
            added = control[i] if kind == "joint" else control[{"double": "input", "single": "output"}[kind]][i]
            same(len(added), rows, "rows")
            return added

        found.append(kit.error(got, added_by_hand(unet, x, SIGMA, cfg, change)))
        plain = kit.velocity(unet, x, SIGMA, cfg)
        big(kit.error(got, plain), 1e-3, "effect")
    assert torch.equal(kit.velocity(unet, x, SIGMA, 4.0), plain), "the unet was changed"
    same(type(unet.model.diffusion_model).forward, inspect.unwrap(type(unet.model.diffusion_model).forward), "forward")
    return small(max(found), 1e-6, "error")


@check
def control_reaches_flux(bench: Bench) -> str:
    return check_residuals(bench, "flux")


@check
def control_reaches_sd3(bench: Bench) -> str:
    return check_residuals(bench, "sd3")


def check_with_the_method(bench: Bench, family: str) -> str:
    """Above the base size, also in a step at half the size, control acts, and nothing stays behind."""
    effects = (effect_of(bench, family, *given) for given in ((TRIPLE, CONFIG, SIGMA), (LARGE, BALANCED, MIDDLE)))
    return "effect {:.2g}, at half the size {:.2g}".format(*effects)


def effect_of(bench: Bench, family: str, size: tuple[int, int], config: ResDiTConfig, sigma: float) -> float:
    """How much control changes a call with ResDiT, in which masks and ranges hold."""
    unet, nets = base_and_nets(bench, family)
    x, run = kit.latent(*size), Run(config)

    def velocity(**attributes: object) -> Tensor:
        p = Generation(unet, config)
        p.add(nets[0], x, **attributes)
        return kit.velocity(attach(p.unet, Run(config)), x, sigma)

    plain = kit.velocity(attach(unet, run), x, sigma)
    same(bool(run.calls["middle"]), size is LARGE, "a call at half the size")
    effect = kit.error(velocity(), plain)
    big(effect, 1e-3, "effect")
    for name, attributes in {
        "weight 0": {"strength": 0.0},
        "another range": {"start_percent": 0.9},
        "a black mask": {"mask": torch.zeros(1, 1, 64, 64)},
    }.items():
        assert torch.equal(velocity(**attributes), plain), name
    weighting = {"input": [0.5] * 12, "middle": [0.5], "output": [0.5] * 12}
    half = velocity(positive_advanced_weighting=weighting, negative_advanced_weighting=weighting)
    small(kit.error(half, velocity(strength=0.5)), 1e-5, "half along the depth")
    assert torch.equal(kit.velocity(attach(unet, Run(config)), x, sigma), plain), "something was left behind"
    return effect


@check
def control_with_the_method_in_flux(bench: Bench) -> str:
    return check_with_the_method(bench, "flux")


@check
def control_with_the_method_in_sd3(bench: Bench) -> str:
    return check_with_the_method(bench, "sd3")


def check_a_generations_end(bench: Bench, family: str) -> str:
    """The host keeps the last pass's unet; of the generation nothing is left in it, after an error neither."""
    unet, nets = base_and_nets(bench, family)
    x, model = kit.latent(*TRIPLE), unet.model.diffusion_model
    blocks = model.double_blocks if family == "flux" else model.joint_blocks
    for fails in (False, True):
        p = Generation(unet, CONFIG)
        p.add(nets[0], x, mask=torch.ones(1, 1, 64, 64))
        kept = attach(p.unet, Run(CONFIG))
        link = kept.controlnet_linked_list
        watched = [weakref.ref(each) for each in (p, link.hint, link.mask, *link.patch_hints.values())]
        handle = blocks[0].register_forward_pre_hook(lambda *_: 1 / 0) if fails else None
        try:
            kit.velocity(kept, x, SIGMA)
        except ZeroDivisionError:
            assert fails, "it failed"
        finally:
            if handle is not None:
                handle.remove()
        del p
        gc.collect()
        same([each() is None for each in watched], [True] * len(watched), f"gone, {fails=}")
        same(kept.controlnet_linked_list, link, "link")
    return f"{len(watched)} objects are gone"


@check
def control_ends_with_its_generation_in_flux(bench: Bench) -> str:
    return check_a_generations_end(bench, "flux")


@check
def control_ends_with_its_generation_in_sd3(bench: Bench) -> str:
    return check_a_generations_end(bench, "sd3")


@check
def control_nets_of_another_size_are_refused_before_sampling(bench: Bench) -> str:
    """The host's own layers tell what goes into them."""
    found = []
    for family in ("flux", "sd3"):
        try:
            unet, nets = base_and_nets(bench, family)
        except Skipped:
            continue
        x, text = kit.latent(*BASE), "context_embedder.weight"
        pooled = "time_text_embed.text_embedder.linear_1.weight"
        for name, expected in ((text, "its text tokens have"), (pooled, "its text vectors have")):
            p = Generation(unet)
            p.add(nets[0] | {name: torch.cat([nets[0][name]] * 2, 1)}, x, said=1)
            assert expected in p.said[0] and p.unet is unet, f"{family}: {p.said[0]}"
            found.append(name)
    return f"{len(found)} nets"


@check
def control_in_bfloat16(bench: Bench) -> str:
    """A model that computes in bfloat16 has its nets do so, whatever their file's type, as diffusers' own layers do."""
    found = []
    for family, kind in (("flux", "flux fitting"), ("sd3", "sd3 fitting")):
        tensors = handed_nets(bench)[kind]
        checkpoint = recognise(below(tensors, "weights"), Path("net.safetensors"), FORMATS)
        given, side = below(tensors, "in"), tensors["in/latent"].shape[-1] // 2
        half = {name: value.bfloat16() for name, value in given.items() if name not in ("sigma", "embedded")}
        call = Call(**half, sigma=given["sigma"], grid=Grid(side, side), shows="depth")
        host = build(checkpoint, torch.bfloat16, control_net.host_operations(torch.bfloat16))
        module = checkpoint.format
        with torch.inference_mode():
            mine, theirs = (module.residuals(net, call).both for net in (host, build(checkpoint, torch.bfloat16)))
        found += [kit.error(a, b) for a, b in zip(mine, theirs, strict=True)]
        try:
            _, nets = base_and_nets(bench, family)
        except Skipped:
            continue
        model = models.build_flux(bench.host) if family == "flux" else models.build_sd3(bench.host)
        predictor = None if family == "flux" else kit.discrete_flow()
        unet, x = kit.build_unet(bench.host, model, torch.bfloat16, predictor), kit.latent(*TRIPLE)
        p = Generation(unet, CONFIG)
        p.add(nets[0], x)
        same(p.unet.controlnet_linked_list.patcher.model.compute, torch.bfloat16, f"{family}: type")
        with_control, without = (kit.velocity(attach(each, Run(CONFIG)), x, SIGMA) for each in (p.unet, unet))
        assert bool(with_control.isfinite().all()), f"{family}: not finite"
        big(kit.error(with_control, without), 1e-2, f"{family}: effect")
    return small(max(found), 1e-2, "error")
