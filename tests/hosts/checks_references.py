"""Checks of reference images: FLUX.1 Kontext's and those of models that some hosts alone have."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from resdit_ext import ResDiTConfig
from resdit_ext.method.run import Run
from tests.attaching import attach
from tests.attentions import recorded
from tests.hosts import kinds, kit
from tests.hosts.bench import CHECKS, CONFIG, PHASES, Bench, Skipped, attention_error, big, same, small
from tests.hosts.checks_kinds import BALANCED, NATIVE

SIZE, GRID, AT_BASE = (32, 40), (16, 20), (7, 9)  # of the latent, of its tokens, and of a patch
# By model, the hosts whose class takes references, and the ids of the first token of each.
MODELS = {
    "kontext": (("neo",), [(1, 0, 0), (1, 8, 0)]),
    "flux2": (("neo", "ersatz"), [(10, 0, 0, 0), (20, 0, 0, 0)]),
    "qwen": (("neo",), [(1, -4, -5), (2, -3, -2)]),
}
REFERENCES = ((16, 20), (12, 8))


def keep_their_places(bench: Bench, model: str) -> str:
    """Reference images stand where the model puts them, are seen by every branch, and by a layout step as they are."""
    hosts, firsts = MODELS[model]
    if bench.host not in hosts:
        raise Skipped(f"{bench.host} gives no references to such a model")
    kind = "" if model == "kontext" else model
    unet = bench.of_kind(kind) if kind else bench.unet
    texts = [kinds.text_of(bench.host, kind, 1, seed) if kind else None for seed in (1, 2)]
    x, large, found = *(kinds.latent_of(bench.host, kind, *size) for size in (SIZE, (56, 51))), []

    def velocity(unet: object, sigma: float, x: Tensor = x) -> Tensor:
        return (x - kit.predictions(unet, x, sigma, 1.0, *texts)[0]) / sigma

    def made(config: ResDiTConfig, sigma: float, x: Tensor = x) -> tuple[Tensor, Run]:
        run = Run(config)
        return velocity(attach(unet, run), sigma, x), run

    ids = kinds.ids_of_others(kind, kit.TEXT, 0, AT_BASE)
    for first, (height, width) in zip(firsts, REFERENCES, strict=True):
        places = [(i, j) for i in range(height // 2) for j in range(width // 2)]
        ids["others"] += [(first[0], first[1] + i, first[2] + j, *first[3:]) for i, j in places]
    without = velocity(unet, 0.8)
    with kinds.references(bench.host, [kinds.latent_of(bench.host, kind, *size, seed=9) for size in REFERENCES]):
        plain = velocity(unet, 0.8)
        big(kit.error(plain, without), 1e-3, "what the references change")
        found.append(small(kit.error(made(NATIVE, 0.8)[0], plain), 1e-5, "native positions: error"))
        for phase, sigma in PHASES.items():
            with recorded() as calls:
                made(CONFIG, sigma)
            worst = attention_error(unet.model.diffusion_model.pe_embedder, calls[0], GRID, AT_BASE, phase, **ids)
            found.append(small(worst, 1e-4, f"{phase}: error"))
        step, run = made(BALANCED, 0.99)
        big(kit.error(step, velocity(unet, 0.99)), 1e-3, "layout step: difference from plain")
        same(dict(run.calls), {"layout": 1, "blocks": run.calls["blocks"]}, "calls")
        _, run = made(BALANCED, 0.75, large)
        same(run.calls["middle"], 1, "calls at half the size")
        big(kit.error(made(BALANCED, 0.75, large)[0], velocity(unet, 0.75, large)), 1e-3, "middle step: difference")
    return ", ".join(found)


CHECKS.update({f"references_{model}_keep_their_places": partial(keep_their_places, model=model) for model in MODELS})
