"""One unit in one pass: what the model gets of it, where it fails, and what is left of it afterwards."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from resdit_ext.control.token_nets import to_tokens
from resdit_ext.hosts.forge import control_pass
from resdit_ext.hosts.forge.control_support import ADDS, with_control_support
from resdit_ext.method.memory import OutOfMemory
from resdit_ext.monkeypatch import is_ours
from tests.control_host import CONDITIONING, PICTURE, WRAPPER, Network, generation, unet_of
from tests.control_nets import net_of
from tests.settings import scaled


def adds(control):
    """What a call of the model gets, as one tensor."""
    return torch.cat([part[i] for part in (control["input"], control["output"]) for i in range(2)])


def count_calls(link):
    """The calls of a link's net from now on."""
    calls = []
    link.patcher.model.net.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("config", [None, scaled(base_tokens=4)], ids=["base", "resdit"])
@pytest.mark.parametrize("bad_last", [False, True])
def test_a_net_that_fails_while_sampling_is_left_out_and_the_others_go_on(bad_last, config, monkeypatch):
    """The model's layers do not say what goes into them, so that only the call shows that the net does not fit."""

    def made(*nets):
        p, x = generation(monkeypatch, Network(2, 2, texts=False), config=config)
        for name, changes in nets:
            p.add(net_of("flux", **changes).state_dict(), PICTURE, x, name=f"{name}.safetensors")
        return p, x

    good, bad = ("good", {}), ("bad", {"joint_attention_dim": 48})
    alone, x = made(good)
    both, _ = made(*((good, bad) if bad_last else (bad, good)))
    links = [both.unet.linked, both.unet.linked.previous_controlnet]
    calls = count_calls(links[not bad_last])
    with torch.inference_mode():
        for sigma in (0.8, 0.7):
            expected, got = (adds(p.control(x, sigma, **CONDITIONING)) for p in (alone, both))
            assert torch.equal(got, expected)
    (said,) = both.said
    assert said.startswith("ControlNet bad.safetensors is ignored: its calculation failed (RuntimeError: mat1 and mat2")
    assert len(said.splitlines()) == 1 and calls == [1] and alone.said == []
    only, _ = made(bad)
    assert only.control(x, 0.8, **CONDITIONING) is None


def test_a_net_whose_results_do_not_fit_the_model_is_left_out(monkeypatch):
    p, x = generation(monkeypatch)
    p.add(net_of("flux").state_dict(), PICTURE, x)
    for block in p.unet.linked.patcher.model.net.controlnet_blocks:
        block.register_forward_hook(lambda _, __, out: out[..., :7])
    with torch.inference_mode():
        assert p.control(x, 0.8, **CONDITIONING) is None
    assert p.said == ["ControlNet net.safetensors is ignored: it returned (1, 16, 7) where the model has (1, 16, 64)"]


def test_memory_and_interrupts_are_the_hosts_affair(monkeypatch):
    for error in (OutOfMemory, KeyboardInterrupt):
        p, x = generation(monkeypatch)
        p.add(net_of("flux").state_dict(), PICTURE, x)

        def fail(*_, error=error):
            raise error

        p.unet.linked.patcher.model.net.register_forward_pre_hook(fail)
        with pytest.raises(error):
            p.control(x, 0.8, **CONDITIONING)
        assert p.said == []


def is_gone(reference):
    gc.collect()
    return reference() is None


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_generation_outlives_it(fails, monkeypatch):
    """The host keeps the last pass's unet until the next generation, and after an error it does not clean up."""
    p, x = generation(monkeypatch, Network(2, 2, texts=False), config=scaled(base_tokens=4))
    mask = torch.ones(1, 1, 64, 64)
    changes = {"joint_attention_dim": 48} if fails else {}
    unit = p.add(
        net_of("flux", **changes).state_dict(), PICTURE, x, mask=mask, advanced_mask_weighting=mask, strength=0.5
    )
    unet, link = p.unet, p.unet.linked
    hints = [link.hint, *link.patch_hints.values(), link.mask, mask, x]
    with torch.inference_mode():
        p.control(x, 0.8, **CONDITIONING)
    link.pre_run(unet.model, None)  # of a sampling that raises
    link.cond_hint = torch.zeros(1)
    watched = [weakref.ref(each) for each in (p, *hints, link.cond_hint)]
    said = p.said
    assert len(hints) > 5 and len(said) == fails
    del p, hints, mask, x
    assert [each() for each in watched if not is_gone(each)] == []
    assert unet.linked is link and unit.model_patcher is link.patcher  # which the host and the panel keep
    link.say("to nobody")
    assert len(said) == fails and link.inference_memory_requirements(torch.float32) == 0
    assert link.get_control(torch.randn(1, 4, 8, 8), torch.tensor([0.5]), CONDITIONING, 1) is None


def test_the_panels_word_that_a_picture_is_made_frees_its_hints(monkeypatch):
    """The hosts' samplers and the generation hold each other, until Python's next search for such rings."""
    p, x = generation(monkeypatch)
    state = net_of("flux").state_dict()
    unit = p.add(state, PICTURE, x)
    unit.process_before_every_sampling(p, PICTURE, None, x=x)  # a second unit of the panel with the same file
    links = [p.unet.linked, p.unet.linked.previous_controlnet]
    hints = [weakref.ref(link.hint) for link in links]
    unit.process_after_every_sampling(p, None, None)
    assert [hint() for hint in hints] == [None, None]
    unit.process_before_every_sampling(p, PICTURE, None, x=x)  # the next picture
    assert p.unet.linked.hint is not None and p.said == []


def test_an_earlier_passs_hints_go_with_its_unet(monkeypatch):
    p, x = generation(monkeypatch)
    plain, state = p.unet, net_of("flux").state_dict()
    p.add(state, PICTURE, x)
    first = weakref.ref(p.unet.linked.hint)
    p.sd_model.forge_objects.unet = plain  # as the hosts do before the next pass and the next picture
    assert is_gone(first)


def test_a_pass_may_be_sampled_more_than_once(monkeypatch):
    p, x = generation(monkeypatch)
    p.add(net_of("flux").state_dict(), PICTURE, x)
    with torch.inference_mode():
        first, second = (adds(p.control(x, 0.8, **CONDITIONING)) for _ in range(2))  # with the host's cleanup between
    assert torch.equal(first, second)


def test_on_tiles_control_is_left_out_aloud(monkeypatch):
    p, x = generation(monkeypatch)
    p.add(net_of("flux").state_dict(), PICTURE, x)
    cond = dict(c_crossattn=torch.randn(1, 5, 32), y=torch.randn(1, 16))
    link = p.unet.linked
    assert link.cond_hint is None and link.cond_hint_original.ndim == 4 and link.device == torch.device("cpu")
    assert p.control(x[..., :4], 0.5, **cond) is None
    assert p.said == ["ControlNet net.safetensors is ignored: another extension calls the model on tiles"]


def test_sd3_without_resdit_says_where_its_positions_end(monkeypatch):
    p, _ = generation(monkeypatch, Network(2), "SD3", 128)
    x = torch.randn(1, 4, 32, 32)  # 16 tokens a side, where the net has 12
    p.add(net_of("sd3").state_dict(), torch.rand(1, 3, 256, 256), x)
    assert p.control(x, 0.5, c_crossattn=torch.randn(1, 5, 32), y=torch.randn(1, 16)) is None
    assert "it has no positions beyond 192 pixels a side; with ResDiT it needs none" in p.said[0]
    largest = torch.randn(1, 4, 24, 24)
    p, _ = generation(monkeypatch, Network(2), "SD3", 128)
    p.add(net_of("sd3").state_dict(), torch.rand(1, 3, 192, 192), largest)
    assert p.control(largest, 0.5, c_crossattn=torch.randn(1, 5, 32), y=torch.randn(1, 16)) is not None
    assert p.said == []


@pytest.mark.parametrize(("kind", "number"), [("OpenPose", 4), ("Blur", 3)])
def test_a_union_net_that_has_not_the_mode_says_so(kind, number, monkeypatch):
    p, x = generation(monkeypatch)
    unit = SimpleNamespace(type_filter=kind)
    p.add(net_of("flux union", num_mode=4).state_dict(), PICTURE, x, given={"unit": unit})
    with torch.inference_mode():
        acts = p.control(x, 0.5, **CONDITIONING) is not None
    assert acts == (number < 4) != bool(p.said)
    assert acts or p.said == ["ControlNet net.safetensors is ignored: it has 4 modes, and 'pose' would be number 4"]


def test_the_device_is_asked_for_the_nets_and_their_memory(monkeypatch):
    p, x = generation(monkeypatch)
    for seed in (0, 1):
        p.add(net_of("flux", seed=seed).state_dict(), PICTURE, x)
    link = p.unet.linked
    assert [patcher.model.compute for patcher in link.get_models()] == [torch.float32] * 2
    one = link.previous_controlnet.inference_memory_requirements(torch.float32)
    assert link.inference_memory_requirements(torch.float32) == 2 * one > 0


class TwoStreams(nn.Module):
    """A FLUX whose forward drops `control`, as Forge's and ersatzForge's."""

    class Double(nn.Module):
        def forward(self, image, text):
            return image + 0, text + 0

    class Single(nn.Module):
        def forward(self, tokens):
            return tokens + 0

    def __init__(self):
        super().__init__()
        self.double_blocks = nn.ModuleList([self.Double(), self.Double()])
        self.single_blocks = nn.ModuleList([self.Single()])

    def forward(self, x, context, **_):
        image, text = x, context
        for block in self.double_blocks:
            image, text = block(image, text)
        tokens = torch.cat((text, image), 1)
        for block in self.single_blocks:
            tokens = block(tokens)
        return tokens[:, text.shape[1] :]


def test_a_flux_that_drops_control_gets_it_for_the_one_call():
    model = TwoStreams()
    unet = unet_of(model)
    seen = []

    def theirs(apply_model, args):  # another extension's, set before
        seen.append("theirs")
        return apply_model(args["input"], args["timestep"], **args["c"])

    unet.set_model_unet_function_wrapper(theirs)
    patched = with_control_support(with_control_support(unet))
    assert unet.model_options[WRAPPER] is theirs and is_ours(patched.model_options[WRAPPER], ADDS)
    control = {"input": [torch.ones(1, 4, 2), None], "output": [10 * torch.ones(1, 4, 2)]}
    x, text = torch.zeros(1, 4, 2), torch.zeros(1, 3, 2)

    def apply_model(latent, t, c_crossattn, control=None):
        return model(latent, c_crossattn, control=control)

    def call(control):
        c = {"c_crossattn": text, "control": control}
        return patched.model_options[WRAPPER](apply_model, {"input": x, "timestep": None, "c": c})

    assert torch.equal(call(control), 11 * torch.ones(1, 4, 2)) and seen == ["theirs"]
    assert torch.equal(call(control | {"output": [None]}), torch.ones(1, 4, 2))
    assert torch.equal(call(None), x)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(IndexError):
        call({"input": [], "output": []})
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_takes_control_is_left_alone():
    unet = unet_of(Network(2, 2))
    assert with_control_support(unet) is unet


def seen_by(link):
    """What a link's net is called with from now on."""
    calls = []
    link.patcher.model.net.register_forward_pre_hook(lambda _, __, given: calls.append(given), with_kwargs=True)
    return calls


@torch.inference_mode()
def test_control_modes_weigh_conditional_and_unconditional_rows_along_the_depth(monkeypatch):
    """The panel's weights: twelve of a UNet's way down and one of its middle; mark 1 is of an unconditional row."""

    def added(**attributes):
        p, x = generation(monkeypatch, batch=2)
        p.add(net_of("flux").state_dict(), PICTURE, x, **attributes)
        return p.control(torch.ones_like(x), 0.8, marks=[0, 1], **CONDITIONING)["input"]

    plain = added()
    modes = {
        "positive_advanced_weighting": {"input": [0.1] + [0.0] * 11, "middle": [0.2], "output": [9.0] * 12},
        "negative_advanced_weighting": {"input": [0.3] + [0.0] * 11, "middle": [0.4], "output": [9.0] * 12},
    }
    got = added(**modes)
    for block, factors in enumerate(((0.1, 0.3), (0.2, 0.4))):
        for row, factor in enumerate(factors):
            torch.testing.assert_close(got[block][row], factor * plain[block][row])
    one_sided = added(positive_advanced_weighting=modes["positive_advanced_weighting"])
    torch.testing.assert_close(one_sided[0][0], 0.1 * plain[0][0])
    assert torch.equal(one_sided[0][1], plain[0][1])


@torch.inference_mode()
def test_the_net_sees_what_the_model_is_given(monkeypatch):
    """The latent as the model's predictor scales it, padded as the model pads it; text, vectors and guidance."""
    p, x = generation(monkeypatch, height=7, width=9)
    p.unet.model.predictor.calculate_input = lambda sigma, x: x / (1 + sigma.view(-1, 1, 1, 1))
    p.add(net_of("flux").state_dict(), PICTURE, x)
    calls = seen_by(p.unet.linked)
    assert p.control(x, 0.25, **CONDITIONING | {"guidance": torch.tensor([1.5])})["input"][0].shape == (1, 20, 64)
    p.control(x, 0.25, **{name: value for name, value in CONDITIONING.items() if name != "guidance"})
    padded = torch.cat((x, x[..., :1]), -1)
    padded = torch.cat((padded, padded[..., :1, :]), -2)
    for given, guidance in zip(calls, (1.5, 3.5), strict=True):
        torch.testing.assert_close(given["hidden_states"], to_tokens(padded / 1.25))
        assert torch.equal(given["encoder_hidden_states"], CONDITIONING["c_crossattn"])
        assert torch.equal(given["pooled_projections"], CONDITIONING["y"])
        assert given["timestep"].tolist() == [0.25] and given["guidance"].tolist() == [guidance]
    assert p.said == []


@torch.inference_mode()
def test_each_picture_of_a_batch_has_its_hint(monkeypatch):
    p, x = generation(monkeypatch, batch=2)
    p.add(net_of("flux").state_dict(), torch.rand(2, 3, 64, 64), x)
    link = p.unet.linked
    calls = seen_by(link)
    cond = {name: value.repeat(4, *[1] * (value.ndim - 1)) for name, value in CONDITIONING.items()}
    p.control(x.repeat(2, 1, 1, 1), 0.5, **cond)
    assert torch.equal(calls[0]["controlnet_cond"], to_tokens(link.hint.repeat(2, 1, 1, 1))) and len(link.hint) == 2


@torch.inference_mode()
def test_two_units_add_up_on_the_patches_of_sd3(monkeypatch):
    def added(*seeds):
        p, x = generation(monkeypatch, Network(2), "SD3", 128, scaled(base_tokens=4))
        for seed in seeds:
            p.add(net_of("sd3", seed=seed).state_dict(), PICTURE, x)
        link = p.unet.linked
        for each in (link, link.previous_controlnet):
            if each is not None:
                each.pre_run(p.unet.model, None)
        whole = link.get_control(torch.ones_like(x), torch.tensor([0.5]), CONDITIONING, 1)
        return whole.on_patch(torch.full((1, 4, 4, 4), 0.3), torch.tensor([4 * 1 + 1]))[0]

    torch.testing.assert_close(added(1, 2), added(1) + added(2))


@torch.inference_mode()
def test_the_joining_of_patches_is_prepared_once(monkeypatch):
    made, make = [], control_pass.PatchBlender
    monkeypatch.setattr(control_pass, "PatchBlender", lambda *given: made.append(1) or make(*given))
    p, x = generation(monkeypatch, config=scaled(base_tokens=4))
    p.add(net_of("flux").state_dict(), PICTURE, x)
    for sigma in (0.9, 0.8, 0.7):
        p.control(x, sigma, **CONDITIONING)
    assert made == [1]


def test_the_hosts_cleanup_reaches_every_unit(monkeypatch):
    p, x = generation(monkeypatch)
    for seed in (0, 1):
        p.add(net_of("flux", seed=seed).state_dict(), PICTURE, x)
    last, first = p.unet.linked, p.unet.linked.previous_controlnet
    last.pre_run(p.unet.model, None)
    assert last.model is first.model is p.unet.model
    last.cleanup()
    assert last.model is first.model is None


@pytest.mark.parametrize(
    ("speed", "returned_at"), [(None, (16, 2 * 16)), ("exact", (4, 4 * 16)), ("fast", (4, 2 * 16))]
)
def test_the_memory_asked_for_counts_what_the_net_returns(speed, returned_at, monkeypatch):
    """25 vectors a token of its grid and its four residuals on that; on the picture's 16 all of them or two."""
    config = None if speed is None else scaled(base_tokens=4, speed=speed)
    p, x = generation(monkeypatch, config=config)
    p.add(net_of("flux").state_dict(), PICTURE.repeat(3, 1, 1, 1), x)
    tokens, on_the_picture = returned_at
    vectors = (25 + 4) * tokens + on_the_picture
    assert p.unet.linked.inference_memory_requirements(torch.float32) == 3 * vectors * 64 * 4
