"""One of the processes that share pictures, started once for all cases of tests/test_parallel.py.

Each writes, by the name of a case, what the test looks at: how far it is from one process's result, or what was said.
"""

import json
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from diffusers import (
    ChromaTransformer2DModel,
    ContextParallelConfig,
    Flux2Transformer2DModel,
    FluxControlNetModel,
    QwenImageTransformer2DModel,
    SD3ControlNetModel,
    TensorParallelConfig,
)
from diffusers.hooks import tensor_parallel

from resdit_ext import BALANCED, Unsupported, apply_resdit, enable_parallelism, remove_resdit
from resdit_ext.generate.options import GenerateOptions
from resdit_ext.generate.pictures import generate
from resdit_ext.hosts.diffusers.parallel import without_accelerator
from resdit_ext.lab.model import load_micro
from resdit_ext.lab.sampling import sample
from resdit_ext.method.layout import Grid
from resdit_ext.seams.joint_processor import PLAN
from resdit_ext.seams.rotary_diffusers import RotaryProcessors
from resdit_ext.seams.ulysses_diffusers import Ranks
from tests import pipelines
from tests.settings import scaled

RANKS, TEXT, WIDTH = 2, 6, 12
FUSED = 0.75  # a noise level of that phase in every setting here
SIGMAS = {"layout": 0.99, "global": 0.99, "fused": FUSED, "local": 0.1}
EXACT = scaled(base_tokens=16, fused_until=0.57)
LAYOUT = replace(BALANCED, base_tokens=16)
FAST, FASTEST = replace(EXACT, speed="fast"), replace(EXACT, speed="fastest")
ABLATIONS = {
    "no pes, global": (replace(EXACT, pes=False), "global"),
    "no pipe, local": (replace(EXACT, pipe=False), "local"),
    "mean fusion, fused": (replace(EXACT, fusion="mean"), "fused"),
    "one tile, fused": (replace(EXACT, overlap=False, splice="mean"), "fused"),
}


def noise(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(rows, columns, sigma=FUSED, batch=1, text=TEXT, **more):
    """A call of FLUX or Chroma."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(columns)
    return dict(
        hidden_states=noise(batch, rows * columns, 64),
        encoder_hidden_states=noise(batch, text, WIDTH),
        pooled_projections=noise(batch, 8),
        timestep=torch.full((batch,), sigma),
        img_ids=ids.reshape(-1, 3),
        txt_ids=torch.zeros(text, 3),
        return_dict=False,  # as the pipelines call it, and diffusers' plans want it
        **more,
    )


def latents(rows, columns, sigma=FUSED, batch=2, text=TEXT, **more):
    """A call of SD3, which has both halves of guidance."""
    return dict(
        hidden_states=noise(batch, 16, 2 * rows, 2 * columns),
        encoder_hidden_states=noise(batch, text, WIDTH),
        pooled_projections=noise(batch, 8),
        timestep=torch.full((batch,), 1000 * sigma),
        return_dict=False,
        **more,
    )


def chroma():
    torch.manual_seed(1)
    sizes = dict(num_layers=1, num_single_layers=2, num_attention_heads=2, attention_head_dim=16, in_channels=64)
    return ChromaTransformer2DModel(
        **sizes, joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6), approximator_layers=1
    ).eval()


def flux2():
    torch.manual_seed(1)
    sizes = dict(num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=16, in_channels=64)
    return Flux2Transformer2DModel(
        **sizes, joint_attention_dim=WIDTH, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False
    ).eval()


def tokens_of_flux2(*size, references=0):
    """A call of Flux.2."""
    given = tokens(*size)
    del given["pooled_projections"]
    ids = torch.nn.functional.pad(given["img_ids"], (0, 1))
    ids[len(ids) - references :, 0] = 10
    places = torch.zeros(1, TEXT, 4)
    places[..., 3] += torch.arange(TEXT)
    return given | dict(img_ids=ids[None], txt_ids=places)


def qwen():
    torch.manual_seed(1)
    sizes = dict(num_layers=1, num_attention_heads=2, attention_head_dim=16, in_channels=64)
    return QwenImageTransformer2DModel(**sizes, joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6)).eval()


def tokens_of_qwen(rows, columns, sigma=FUSED, **more):
    """A call of Qwen-Image."""
    given = tokens(rows, columns, sigma)
    names = ("hidden_states", "encoder_hidden_states", "timestep", "return_dict")
    return {name: given[name] for name in names} | dict(img_shapes=[[(1, rows, columns)]], **more)


def by_heads(**more):
    return ContextParallelConfig(ulysses_degree=RANKS, **more)


@torch.inference_mode()
def out(model, given):
    return model(**given)[0]


def distance(ours, theirs):
    """The largest difference, as a share of the largest value; not finite where one of the two is not."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


def shared(make, given, config, parallel, call=out, after=False):
    """A call whose work the ranks share, against one process's; the model is made parallel before ResDiT, or after."""
    one, many = make(), make()
    wanted_run = apply_resdit(one, config)
    wanted = call(one, given)
    if after:
        run = apply_resdit(many, config)
        enable_parallelism(many, parallel)
    else:
        enable_parallelism(many, parallel)
        run = apply_resdit(many, config)
    found = distance(call(many, given), wanted)
    assert run.calls == wanted_run.calls and not run.calls["base"], run.calls
    return found


def gather_uneven(parts, mine, group=None):
    """In place of all_gather, which over gloo wants parts of one size; over NCCL it does not."""
    if len({part.shape for part in parts}) == 1:
        return own_all_gather(parts, mine, group=group)
    for rank, part in enumerate(parts):
        part.copy_(mine) if rank == dist.get_rank() else None
        dist.broadcast(part, rank, group=group)
    return None


own_all_gather = dist.all_gather


def refusal(work):
    """What is said, on this rank."""
    try:
        work()
    except Unsupported as reason:
        return str(reason)
    return "nothing"


def flux_cases():
    flux = pipelines.flux
    wanted = {f"exact, {phase}": (EXACT, phase) for phase in ("global", "fused", "local")} | ABLATIONS
    wanted |= {
        "fast, fused": (FAST, "fused"),
        "fastest, global": (FASTEST, "global"),
        "fastest, fused": (FASTEST, "fused"),
    }
    wanted |= {"layout": (LAYOUT, "layout"), "balanced": (LAYOUT, "fused")}
    for name, (config, phase) in wanted.items():
        yield name, shared(flux, tokens(12, 12, SIGMAS[phase]), config, by_heads())
    fused = tokens(12, 12)
    yield "parallel after", shared(flux, fused, FAST, by_heads(), after=True)
    yield "batch of two", shared(flux, tokens(12, 12, batch=2), FAST, by_heads())
    uneven = by_heads(ulysses_anything=True)
    yield "not square", shared(flux, tokens(6, 14), FAST, uneven)
    three = lambda: flux(num_attention_heads=3)  # noqa: E731
    yield "uneven", shared(three, tokens(9, 11, text=5), LAYOUT, uneven)
    yield "uneven layout", shared(three, tokens(9, 11, 0.99, text=5), LAYOUT, uneven)
    half = {k: v.bfloat16() if torch.is_tensor(v) and k != "img_ids" else v for k, v in fused.items()}
    yield "bfloat16", shared(lambda: flux().bfloat16(), half, FAST, by_heads())
    for name, sigma in (("layout", 0.99), ("fused", FUSED)):
        residuals = dict(
            controlnet_block_samples=[noise(1, 144, 32)], controlnet_single_block_samples=[noise(1, 144, 32, seed=5)]
        )
        yield f"residuals, {name}", shared(flux, tokens(12, 12, sigma, **residuals), LAYOUT, by_heads())
        mask = torch.ones(1, TEXT + 144)
        mask[:, 2:TEXT] = 0
        given = tokens(12, 12, sigma, attention_mask=mask)
        del given["pooled_projections"]
        yield f"chroma, {name}", shared(chroma, given, LAYOUT, by_heads())
        additive = torch.zeros(1, 1, 1, TEXT + 144)
        additive[..., 2:TEXT] = -9.0
        given = tokens(12, 12, sigma, joint_attention_kwargs={"attention_mask": additive})
        yield f"mask, {name}", shared(flux, given, LAYOUT, by_heads())
        yield f"flux2, {name}", shared(flux2, tokens_of_flux2(12, 12, sigma), LAYOUT, by_heads())
        yield f"qwen, {name}", shared(qwen, tokens_of_qwen(12, 12, sigma), LAYOUT, by_heads())
    order = Ranks.order
    Ranks.order = lambda _, text, image, device: torch.arange(text + image, device=device)
    yield "without the reorder", shared(flux, fused, FAST, by_heads())
    Ranks.order = order
    yield "tensor, fast", shared(flux, fused, FAST, TensorParallelConfig(tp_degree=RANKS))
    yield "tensor, layout", shared(flux, tokens(12, 12, 0.99), LAYOUT, TensorParallelConfig(tp_degree=RANKS))
    yield (
        "control net",
        shared(flux, tokens(12, 12), LAYOUT, by_heads(), controlled_flux(FluxControlNetModel, LAYOUT)),
    )


def controlled_flux(kind, config):
    """A call of the model with what a control net adds, which runs whole on every rank."""
    torch.manual_seed(2)
    sizes = dict(num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=16, in_channels=64)
    net = kind(**sizes, joint_attention_dim=WIDTH, pooled_projection_dim=8, axes_dims_rope=(4, 6, 6)).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    apply_resdit(net, config)

    def call(model, given):
        with torch.inference_mode():
            double, single = net(**given, controlnet_cond=noise(1, 144, 64, seed=7))
        return out(model, given | dict(controlnet_block_samples=double, controlnet_single_block_samples=single))

    return call


def identical_cases():
    """At the base size, and after ResDiT is taken off: bit-identical to diffusers' own parallelism."""
    model = pipelines.flux()
    enable_parallelism(model, by_heads())
    base, large = tokens(4, 4), tokens(12, 12)
    plain = out(model, base), out(model, large)
    run = apply_resdit(model, FAST)
    yield "base size", torch.equal(out(model, base), plain[0]) and run.calls == {"base": 1}
    out(model, large)
    remove_resdit(model)
    yield "after removal", torch.equal(out(model, large), plain[1])


def sd3_cases():
    sd3 = pipelines.sd3
    uneven = by_heads(ulysses_anything=True)
    for name, config, sigma in (
        ("layout", LAYOUT, 0.99),
        ("global", EXACT, 0.99),
        ("fused", EXACT, FUSED),
        ("local", EXACT, 0.1),
    ):
        yield f"sd3, {name}", shared(sd3, latents(12, 12, sigma), config, by_heads())
        yield f"sd3 halves, {name}", halves(latents(12, 12, sigma), config)
    yield "sd3, uneven", shared(sd3, latents(9, 11, text=5), LAYOUT, uneven)
    residuals = {"block_controlnet_hidden_states": [noise(2, 144, 32)]}
    for name, sigma in (("layout", 0.99), ("fused", FUSED)):
        given = latents(12, 12, sigma, **residuals)
        yield f"sd3 residuals, {name}", shared(sd3, given, LAYOUT, by_heads())
        yield f"sd3 halves, residuals, {name}", halves(given, LAYOUT)
    yield "sd3 halves, control net", halves(latents(12, 12), LAYOUT, controlled=True)
    yield "sd3 halves, one picture", halves(latents(12, 12, batch=1), LAYOUT)
    model = sd3()
    plain = out(model, latents(4, 4))
    apply_resdit(model, EXACT, batch_group=dist.group.WORLD)
    yield "sd3 halves, base size", torch.equal(out(model, latents(4, 4)), plain)
    plain = out(sd3(), latents(4, 4))
    model = sd3()
    enable_parallelism(model, by_heads())
    yield "sd3, plain by ours", distance(out(model, latents(4, 4)), plain)


def halves(given, config, controlled=False):
    """A call with the halves of its batch on two ranks, against one process's."""
    found = []
    for group in (None, dist.group.WORLD):
        parts = SimpleNamespace(transformer=pipelines.sd3(), controlnet=None)
        if controlled:
            torch.manual_seed(2)
            parts.controlnet = SD3ControlNetModel.from_transformer(
                parts.transformer, num_layers=1, num_extra_conditioning_channels=0
            ).eval()
            torch.nn.init.normal_(parts.controlnet.controlnet_blocks[0].weight, std=0.3)
        apply_resdit(parts, config, batch_group=group)
        if controlled:
            with torch.inference_mode():
                hint = noise(2, 16, 24, 24, seed=7)
                added = parts.controlnet(**given, controlnet_cond=hint)[0]
            given = given | {"block_controlnet_hidden_states": added}
        found.append(out(parts.transformer, given))
        given = {name: value for name, value in given.items() if not controlled or "block" not in name}
    return distance(found[1], found[0])


def refused_cases(rank):
    def parallel_flux(parallel=None):
        model = pipelines.flux()
        enable_parallelism(model, parallel or by_heads())
        return model

    model = parallel_flux(ContextParallelConfig(ring_degree=RANKS))
    yield "ring", refusal(lambda: apply_resdit(model, FAST))
    later = pipelines.flux()
    apply_resdit(later, FAST)
    enable_parallelism(later, ContextParallelConfig(ring_degree=RANKS))
    yield "ring after", refusal(lambda: out(later, tokens(12, 12)))

    def with_other(**changed):
        model = parallel_flux()
        apply_resdit(model, FAST)
        return refusal(lambda: out(model, tokens(12, 12) | changed))

    yield "other noise", with_other(hidden_states=noise(1, 144, 64, seed=rank))
    bare = pipelines.pipeline("flux", stochastic_sampling=True)
    enable_parallelism(bare.transformer, by_heads(ulysses_anything=True))
    apply_resdit(bare, LAYOUT)
    torch.manual_seed(rank)
    yield "other fresh noise", refusal(lambda: pipelines.picture(bare))
    yield "other text", with_other(encoder_hidden_states=noise(1, TEXT, WIDTH, seed=rank))
    yield (
        "other noise of halves",
        refusal(lambda: halves(latents(12, 12) | {"hidden_states": noise(2, 16, 24, 24, seed=rank)}, EXACT)),
    )
    references = tokens_of_flux2(13, 12, references=12)
    masked = tokens_of_qwen(12, 12, encoder_hidden_states_mask=torch.tensor([[1, 1, 1, 1, 0, 0]]))
    yield "mask over text", refusal(lambda: shared(qwen, masked, FAST, by_heads()))
    yield "references", refusal(lambda: shared(flux2, references, FAST, by_heads()))
    yield "odd text", refusal(lambda: shared(pipelines.flux, tokens(12, 12, text=5), FAST, by_heads()))
    foreign = pipelines.flux()
    foreign._is_parallelized = True
    yield "another engine", refusal(lambda: apply_resdit(foreign, FAST))
    model = parallel_flux()
    unknown = SimpleNamespace(_parallel_config=model._parallel_config, transformer_blocks=[])
    yield "unknown order", refusal(lambda: RotaryProcessors(blocks=("transformer_blocks",)).ranks(unknown))
    apply_resdit(model, FAST)
    model.set_attn_processor(type(model.transformer_blocks[0].attn.processor)())
    by_hand = pipelines.sd3()
    with without_accelerator():
        by_hand.enable_parallelism(config=by_heads(), cp_plan=PLAN)
    yield "sd3 without ours", refusal(lambda: apply_resdit(by_hand, FAST))
    net = FluxControlNetModel(num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=16)
    net._parallel_config = model._parallel_config
    yield "control net's own", refusal(lambda: apply_resdit(net, FAST))
    yield "processors set afterwards", refusal(lambda: out(model, tokens(12, 12)))


def command(folder, family, how):
    """Options of a picture of a pipeline in the folder."""
    return GenerateOptions(
        model=folder / family,
        prompts=("a red disc",),
        seeds=(3,),
        size=(256, 256),
        out=folder / f"{family}_{how}.png",
        base_size=192,
        steps=2,
        share="heads" if family == "flux" else "halves",
    )


def picture_cases(folder):
    """Whole pictures: of the micro FLUX, and of pipelines by the command, which the test makes alone."""
    pictures = []
    for parallel in (None, by_heads()):
        model = load_micro("flux")
        if parallel is not None:
            enable_parallelism(model.transformer, parallel)
        words = "red disc on green ground"
        pictures.append(sample(model, [words], Grid(32, 32), [5], replace(BALANCED, base_tokens=256), steps=6))
    yield "micro FLUX's picture", float(abs(pictures[0] - pictures[1]).max())
    for family in ("flux", "sd3"):
        generate(command(folder, family, "shared"), folder / f"{family}.json")


def main(folder: str) -> None:
    torch.set_num_threads(1)
    tensor_parallel._SUPPORTED_TP_DEVICES = (*tensor_parallel._SUPPORTED_TP_DEVICES, "cpu")
    dist.all_gather = gather_uneven
    dist.init_process_group("cpu:gloo", timeout=timedelta(seconds=120))
    rank = dist.get_rank()
    found = {}
    for cases in (flux_cases(), identical_cases(), sd3_cases(), refused_cases(rank), picture_cases(Path(folder))):
        found |= dict(cases)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found), encoding="utf8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
