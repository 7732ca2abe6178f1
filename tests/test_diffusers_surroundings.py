"""diffusers as people run it: offloaded, compiled, with adapters, under autocast, in threads, beside others."""

import threading
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from diffusers.hooks import apply_group_offloading
from diffusers.models.transformers import transformer_flux
from peft import LoraConfig
from torch._dynamo.testing import CompileCounter

from resdit_ext import Unsupported, apply_resdit, remove_resdit
from tests.pipelines import CONFIG, TEXT, flux, picture, pipeline
from tests.settings import scaled

FAMILIES = ("flux", "sd3")
EACH_PHASE = {"global": 2, "fused": 2, "local": 3}


def offload_models(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def offload_layers(pipe):
    """What enable_sequential_cpu_offload does; called itself it wants an accelerator, or fails on "cpu:0"."""
    cpu_offload(pipe.transformer, torch.device("cpu"), offload_buffers=False)
    assert next(pipe.transformer.parameters()).device.type == "meta"


def offload_groups(pipe):
    cpu = torch.device("cpu")
    apply_group_offloading(pipe.transformer, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


@pytest.mark.parametrize("first", ["offload", "apply"])
@pytest.mark.parametrize("offload", [offload_models, offload_layers, offload_groups])
@pytest.mark.parametrize("family", FAMILIES)
def test_offloading(family, offload, first):
    """diffusers takes its hooks off after every picture and puts them on again: the second picture is the first."""
    pipe = pipeline(family)
    plain = picture(pipe)
    apply_resdit(pipe, CONFIG)
    expected = picture(pipe)
    remove_resdit(pipe)
    if first == "offload":
        offload(pipe)
    run = apply_resdit(pipe, CONFIG)
    if first == "apply":
        offload(pipe)
    for _ in range(2):
        run.calls.clear()
        assert torch.allclose(picture(pipe), expected, atol=1e-5)
        assert {phase: run.calls[phase] for phase in EACH_PHASE} == EACH_PHASE
    remove_resdit(pipe)
    assert torch.allclose(picture(pipe), plain, atol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-2)


# Every way with FLUX; two of them with SD3, whose compiling takes twice as long.
COMPILED = [
    *(("flux", how, order) for how in ("blocks", "module", "wrapper") for order in ("compile first", "apply first")),
    ("sd3", "module", "apply first"),
    ("sd3", "wrapper", "compile first"),
]


@pytest.mark.parametrize(("family", "how", "order"), COMPILED)
def test_compiled(family, how, order):
    pipe = pipeline(family)
    plain = picture(pipe)
    apply_resdit(pipe, CONFIG)
    expected = picture(pipe)
    remove_resdit(pipe)
    torch.compiler.reset()
    counter, model = CompileCounter(), pipe.transformer

    def compile_it():
        if how == "blocks":
            for block in (*model.transformer_blocks, *getattr(model, "single_transformer_blocks", ())):
                block.compile(backend=counter)
        elif how == "module":
            model.compile(backend=counter)
        else:
            pipe.transformer = torch.compile(model, backend=counter)

    if order == "compile first":
        compile_it()
        assert torch.allclose(picture(pipe), plain, atol=1e-4)
    apply_resdit(pipe, CONFIG)
    if order == "apply first":
        compile_it()
    assert torch.allclose(picture(pipe), expected, atol=1e-4)
    frames = counter.frame_count
    assert torch.allclose(picture(pipe), expected, atol=1e-4)
    assert counter.frame_count == frames > 0
    remove_resdit(pipe)
    assert torch.allclose(picture(pipe), plain, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_as_one_graph_it_says_what_to_do(family):
    """And at the base size, where nothing is changed, it stays one graph."""
    pipe = pipeline(family)
    plain = picture(pipe, rows=4, columns=4, steps=1)
    for block in pipe.transformer.transformer_blocks:
        block.compile(backend="eager", fullgraph=True)
    apply_resdit(pipe, CONFIG)
    assert torch.allclose(picture(pipe, rows=4, columns=4, steps=1), plain, atol=1e-5)
    with pytest.raises(Unsupported, match="compile it without fullgraph"):
        picture(pipe, steps=1)
    torch.compiler.reset()


@pytest.mark.parametrize("speed", ["exact", "fast", "fastest"])
@pytest.mark.parametrize("family", FAMILIES)
def test_autocast(family, speed):
    """bfloat16 under autocast is as near to float32 as it is without ResDiT."""
    pipe = pipeline(family)
    config = scaled(base_tokens=16, fused_until=0.57, speed=speed)

    def error():
        exact = picture(pipe, 12, 12)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = picture(pipe, 12, 12)
        return float((rounded - exact).norm() / exact.norm())

    plain = error()
    apply_resdit(pipe, config)
    assert error() < 2 * plain + 0.01


def add_lora(model, scale=0.5):
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "proj_mlp"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=scale, generator=torch.Generator().manual_seed(len(name)))


@pytest.mark.parametrize("how", ["loaded", "fused"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_that_comes_after(family, how):
    pipe = pipeline(family)
    apply_resdit(pipe, CONFIG)
    without = picture(pipe)
    add_lora(pipe.transformer)
    if how == "fused":
        pipe.transformer.fuse_lora()
    after = picture(pipe)
    remove_resdit(pipe)
    apply_resdit(pipe, CONFIG)
    assert torch.allclose(picture(pipe), after, atol=1e-5)
    assert not torch.allclose(after, without, atol=1e-2)


def add_ip_adapter(pipe):
    """diffusers' own processors and projection, as load_ip_adapter puts them in, with random weights."""
    model, given = pipe.transformer, {}
    torch.manual_seed(4)
    for name, processor in model.attn_processors.items():
        if name.startswith("transformer_blocks"):
            made = transformer_flux.FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=12, scale=[2.0])
            given[name] = made.eval()
        else:
            given[name] = processor
    model.set_attn_processor(given)
    model.encoder_hid_proj = torch.nn.Module()
    model.encoder_hid_proj.forward = lambda images: images
    return {"ip_adapter_image_embeds": [torch.randn(1, 4, 12)]}


@pytest.mark.parametrize("first", ["adapter", "apply"])
def test_ip_adapter(first):
    model = flux()
    tokens = torch.randn(1, 81, 64)
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(9.0), torch.arange(9.0))
    given = dict(
        hidden_states=tokens,
        encoder_hidden_states=torch.randn(1, TEXT, 12),
        pooled_projections=torch.randn(1, 8),
        timestep=torch.tensor([0.8]),
        img_ids=grid,
        txt_ids=torch.zeros(TEXT, 3),
        return_dict=False,
    )
    pipe = SimpleNamespace(transformer=model)
    with torch.inference_mode():
        apply_resdit(model, CONFIG)
        without = model(**given)[0]
        if first == "adapter":
            remove_resdit(model)
        image = add_ip_adapter(pipe)
        run = apply_resdit(model, CONFIG) if first == "adapter" else None
        with_image = model(**given, joint_attention_kwargs=dict(image))[0]
        none = model(**given, joint_attention_kwargs={k: [0 * x for x in v] for k, v in image.items()})[0]
    assert run is None or run.calls["fused"] == 2
    assert not torch.allclose(with_image, without, atol=1e-3)
    biases = [p for n, p in model.named_parameters() if "to_v_ip" in n and "bias" in n]
    assert biases and not torch.allclose(none, with_image, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scheduler_that_is_set_after(family):
    """The phases follow the noise levels of the one that runs."""
    pipe = pipeline(family)
    run = apply_resdit(pipe, CONFIG)
    picture(pipe)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=9.0)
    run.calls.clear()
    picture(pipe)
    assert {phase: run.calls[phase] for phase in EACH_PHASE} == EACH_PHASE
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    run.calls.clear()
    if family == "sd3":  # FLUX's pipeline wants a scheduler that takes sigmas
        picture(pipe)
        assert sum(run.calls[phase] for phase in EACH_PHASE) == 13


def test_noise_levels_are_read_once_a_picture():
    pipe = pipeline("flux")
    run = apply_resdit(pipe, CONFIG)
    read, own = [], run.set_sigmas
    run.set_sigmas = lambda sigmas: read.append(1) or own(sigmas)
    picture(pipe)
    picture(pipe)
    assert len(read) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_two_pipelines_in_two_threads(family):
    pipes = [pipeline(family, seed) for seed in (1, 2)]
    for pipe in pipes:
        apply_resdit(pipe, CONFIG)
    expected = [picture(pipe) for pipe in pipes]
    made, errors = [[], []], []

    def work(i):
        try:
            made[i] += [picture(pipes[i]) for _ in range(3)]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(torch.equal(one, expected[i]) for i in (0, 1) for one in made[i])
    assert all(torch.equal(picture(pipe), one) for pipe, one in zip(pipes, expected, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_another_pipeline_is_never_touched(family):
    """Called from inside a block of the one with ResDiT, where every change of the process would show."""
    ours, other = pipeline(family, 1), pipeline(family, 2)
    plain = picture(other)
    apply_resdit(ours, CONFIG)
    seen = []
    hook = ours.transformer.transformer_blocks[-1].register_forward_pre_hook(
        lambda *_: seen.append(picture(other)) if not seen else None
    )
    picture(ours)
    hook.remove()
    assert torch.equal(seen[0], plain) and torch.equal(picture(other), plain)


def test_a_model_of_two_threads_is_called_one_after_another():
    """As two pipelines that share a transformer do."""
    pipe = pipeline("flux")
    apply_resdit(pipe, CONFIG)
    model, steps = pipe.transformer, {0.99: [], 0.1: []}
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(9.0), torch.arange(9.0))
    given = dict(
        hidden_states=torch.randn(1, 81, 64),
        encoder_hidden_states=torch.randn(1, TEXT, 12),
        pooled_projections=torch.randn(1, 8),
        img_ids=grid,
        txt_ids=torch.zeros(TEXT, 3),
        return_dict=False,
    )

    def call(sigma):
        with torch.inference_mode():
            return model(**given, timestep=torch.tensor([sigma]))[0]

    expected = {sigma: call(sigma) for sigma in steps}
    threads = [threading.Thread(target=lambda s=s: steps[s].extend(call(s) for _ in range(6))) for s in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(steps[s]) == 6 and all(torch.equal(x, expected[s]) for x in steps[s]) for s in steps)


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("family", FAMILIES)
def test_after_an_exception_the_next_picture_is_right(family, fault):
    pipe = pipeline(family)
    apply_resdit(pipe, CONFIG)
    expected = picture(pipe)

    def break_down(*_):
        raise fault

    hook = pipe.transformer.transformer_blocks[-1].register_forward_hook(break_down)
    with pytest.raises(fault):
        picture(pipe)
    hook.remove()
    assert "set_timesteps" not in vars(pipe.scheduler) and type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
    assert torch.equal(picture(pipe), expected)


class TestMasks:
    """A mask over the text means the same to every branch: it equals a shorter text."""

    def given(self, mask, batch=2):
        torch.manual_seed(3)
        grid = torch.cartesian_prod(torch.zeros(1), torch.arange(9.0), torch.arange(9.0))
        return dict(
            hidden_states=torch.randn(batch, 81, 64),
            encoder_hidden_states=torch.randn(batch, TEXT, 12),
            pooled_projections=torch.randn(batch, 8),
            img_ids=grid,
            txt_ids=torch.zeros(TEXT, 3),
            return_dict=False,
            joint_attention_kwargs={"attention_mask": mask},
        )

    @pytest.mark.parametrize("sigma", [0.99, 0.8, 0.1])
    @pytest.mark.parametrize("speed", ["exact", "fast", "fastest"])
    @pytest.mark.parametrize("form", ["two axes", "four axes", "additive"])
    def test_over_the_text(self, form, speed, sigma):
        model = flux()
        keep = torch.ones(2, TEXT + 81, dtype=torch.bool)
        keep[0, 3:TEXT] = False
        mask = keep if form == "two axes" else keep[:, None, None]
        if form == "additive":
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        data = self.given(mask)
        config = scaled(base_tokens=16, fused_until=0.57, speed=speed, attention_scale="off")
        apply_resdit(model, config)
        step = {"timestep": torch.full((2,), sigma)}
        short = {k: v[:1] if k != "img_ids" and torch.is_tensor(v) else v for k, v in data.items()}
        short |= dict(encoder_hidden_states=data["encoder_hidden_states"][:1, :3], txt_ids=torch.zeros(3, 3))
        with torch.inference_mode():
            got = model(**data, **step)[0]
            alone = model(**short | dict(joint_attention_kwargs=None), timestep=step["timestep"][:1])[0]
            whole = model(**data | dict(joint_attention_kwargs=None), **step)[0]
        assert torch.allclose(got[0], alone[0], atol=1e-5)
        assert torch.allclose(got[1], whole[1], atol=1e-5) and not torch.allclose(got[0], whole[0], atol=1e-3)

    @pytest.mark.parametrize("kind", ["queries", "image"])
    def test_any_other_is_made_as_if_off_with_the_reason(self, kind, caplog):
        model = flux()
        shape = (2, 1, TEXT + 81, TEXT + 81) if kind == "queries" else (2, TEXT + 81)
        mask = torch.ones(shape, dtype=torch.bool)
        mask[..., -1] = False
        if kind == "image":
            mask = mask[:, None, None]
        data = self.given(mask) | {"timestep": torch.full((2,), 0.8)}
        with torch.inference_mode():
            plain = model(**data)[0]
            apply_resdit(model, CONFIG)
            assert torch.equal(model(**data)[0], plain)
        assert "not active: an attention mask" in caplog.text and "only one over the text" in caplog.text


def test_attention_that_is_given_a_part_of_the_tokens_raises():
    """Silently, unrotated queries and keys would be attended with."""
    model = flux()
    apply_resdit(model, CONFIG)
    attention = model.transformer_blocks[0].attn
    attention.register_forward_pre_hook(
        lambda _, args, given: (args, given | {"hidden_states": given["hidden_states"][:, :40]}), with_kwargs=True
    )
    with pytest.raises(Unsupported, match="is given 45 tokens of 86"), torch.inference_mode():
        model(
            hidden_states=torch.randn(1, 81, 64),
            encoder_hidden_states=torch.randn(1, TEXT, 12),
            pooled_projections=torch.randn(1, 8),
            timestep=torch.tensor([0.8]),
            img_ids=torch.cartesian_prod(torch.zeros(1), torch.arange(9.0), torch.arange(9.0)),
            txt_ids=torch.zeros(TEXT, 3),
        )
