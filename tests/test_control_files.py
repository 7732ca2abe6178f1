import contextlib
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from resdit_ext.control import recognise
from resdit_ext.control.checkpoint import check_finite, why_unreadable
from resdit_ext.control.nets import build, check_shapes
from resdit_ext.errors import Unsupported
from tests.control_nets import FORMATS, KINDS, as_stability, as_xlabs, net_of

PATH = Path("net.safetensors")
NAMED = {
    "flux": ("FLUX.1", "diffusers", False),
    "flux without single blocks": ("FLUX.1", "diffusers", False),
    "flux union": ("FLUX.1", "union", True),
    "flux xlabs": ("FLUX.1", "XLabs", False),
    "sd3": ("SD3", "diffusers", False),
    "sd3.5": ("SD3", "diffusers", False),
    "sd3.5 8b": ("SD3", "Stability 8B", True),
}


def same_weights(net, state):
    mine = net.state_dict()
    assert mine.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(mine[name], value), name


@pytest.mark.parametrize("prefix", ["", "controlnet.", "module.net."])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_recognised_from_names_and_shapes(kind, prefix):
    state = net_of(kind).state_dict()
    found = recognise({prefix + name: value for name, value in state.items()}, PATH, FORMATS)
    assert (found.family, found.kind, found.asks) == NAMED[kind]
    same_weights(build(found), state)


def test_the_net_has_the_configuration_it_was_saved_with():
    for kind in KINDS:
        config, made = net_of(kind).config, build(recognise(net_of(kind).state_dict(), PATH, FORMATS)).config
        for name, value in config.items():
            if name in ("_use_default_values", "sample_size", "out_channels", "_class_name", "_diffusers_version"):
                continue  # no part of what is computed with a table that is loaded
            assert made[name] == value or tuple(made[name]) == tuple(value), (kind, name)


def test_xlabs_own_names():
    state = net_of("flux xlabs").state_dict()
    found = recognise(as_xlabs(state), PATH, FORMATS)
    assert (found.family, found.kind) == ("FLUX.1", "XLabs")
    same_weights(build(found), state)


@pytest.mark.parametrize(("number", "made_for"), [(0.0, "blur"), (1.0, "canny"), (2.0, "depth"), (7.0, None)])
def test_stabilitys_own_names(number, made_for):
    state = net_of("sd3.5 8b").state_dict()
    found = recognise(as_stability(state, number), PATH, FORMATS)
    assert (found.kind, found.made_for) == ("Stability 8B", made_for)
    same_weights(build(found), state)


def test_parts_are_put_together(tmp_path):
    state = net_of("flux").state_dict()
    names, paths = list(state), [tmp_path / f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    for i, path in enumerate(paths):
        save_file({name: state[name] for name in names[i::3]}, path)
    for i, path in enumerate(paths):  # whichever was chosen
        same_weights(build(recognise({name: state[name] for name in names[i::3]}, path, FORMATS)), state)
    part = {name: state[name] for name in names[1::3]}
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    with pytest.raises(Unsupported, match=r"of its part model-00003-of-00003\.safetensors: it is truncated"):
        recognise(part, paths[1], FORMATS)
    paths[2].unlink()
    with pytest.raises(Unsupported, match=r"one of 3 parts, and model-00003-of-00003\.safetensors is not beside it"):
        recognise(part, paths[1], FORMATS)


def test_others_files_are_left_to_others():
    for weights in (
        {},
        {"zero_convs.0.0.weight": torch.zeros(1)},
        {"lora_unet_x.lora_up.weight": torch.zeros(1)},
        {"controlnet_cond_embedding.conv_in.weight": torch.zeros(1), "controlnet_mid_block.weight": torch.zeros(1)},
    ):
        assert recognise(weights, PATH, FORMATS) is None


def damaged(change):
    state = dict(net_of("flux").state_dict())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("x_embedder.weight"), "it lacks x_embedder.weight"),
        (lambda s: s.pop("context_embedder.bias"), "it lacks context_embedder.bias"),
        (lambda s: s.pop("transformer_blocks.0.attn.norm_q.weight"), "norm_q.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "it has extra, which such a net does not have"),
        (lambda s: s["x_embedder.weight"].fill_(torch.nan), "x_embedder.weight has values that are not numbers"),
        (lambda s: s["x_embedder.bias"].fill_(torch.inf), "x_embedder.bias has values that are not numbers"),
        (
            lambda s: s.update({"context_embedder.bias": torch.zeros(7)}),
            r"context_embedder.bias is \(7,\) where such a net has \(64,\)",
        ),
        (
            lambda s: s.update({"controlnet_x_embedder.weight": torch.zeros(64, 20)}),
            "its hint has 20 channels where the picture has 16: inpainting nets",
        ),
        (
            lambda s: [s.pop(name) for name in list(s) if "transformer_blocks" in name],
            "it looks like a control net for FLUX.1 but has no blocks",
        ),
        (
            lambda s: [s.pop(name) for name in list(s) if name.startswith("transformer_blocks.0.")],
            "of transformer_blocks it has only the numbers 1",
        ),
        (lambda s: s.pop("controlnet_x_embedder.weight"), "no control net of a supported family"),
    ],
)
def test_damage_is_named(change, message):
    with pytest.raises(Unsupported, match=message):
        check_shapes(recognise(damaged(change), PATH, FORMATS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_any_float_type_is_read(dtype):
    state = {name: value.to(dtype) for name, value in net_of("flux").state_dict().items()}
    net = build(recognise(state, PATH, FORMATS))
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    for name, value in state.items():
        assert torch.equal(net.state_dict()[name], value.float()), name


@pytest.mark.parametrize("head", [24, 20, 0])
def test_heads_that_flux_cannot_have_are_refused(head):
    """Its positions share a head in sixteenths; 20 does not divide the channels either."""
    state = dict(net_of("flux").state_dict())
    state["transformer_blocks.0.attn.norm_q.weight"] = torch.ones(head)
    state["x_embedder.weight"] = torch.zeros(48, 16)
    with pytest.raises(Unsupported, match=f"48 channels in heads of {head}|no shape for it"):
        recognise(state, PATH, FORMATS)


@contextlib.contextmanager
def layers_of_a_host(stored):
    """As the hosts': linear layers that keep their weights in a given type and cast them while computing."""

    class Linear(nn.Linear):
        parameters_manual_cast = True

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.to(stored)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn, "Linear", Linear)
        yield


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
def test_a_hosts_layers_keep_eight_bits_and_nothing_else_does(stored):
    weights = {
        name: value.to(stored) if value.ndim > 1 else value for name, value in net_of("flux").state_dict().items()
    }
    net = build(recognise(weights, PATH, FORMATS), torch.bfloat16, layers_of_a_host)
    eight = stored.itemsize == 1
    for name, parameter in net.named_parameters():
        assert parameter.dtype == (stored if eight and parameter.ndim > 1 else torch.bfloat16), name
    assert not net.training and not any(parameter.requires_grad for parameter in net.parameters())


def test_eight_bit_nan_is_found():
    with pytest.raises(Unsupported, match="w has values"):
        check_finite({"w": torch.tensor([1.0, torch.nan]).to(torch.float8_e4m3fn)})


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_is_refused_with_words_or_harmless(data):
    """Drop, cut, rename or reshape some tensors: an answer, or a message, never another error."""
    state = dict(net_of(data.draw(st.sampled_from(list(KINDS)))).state_dict())
    for _ in range(data.draw(st.integers(1, 4))):
        name = data.draw(st.sampled_from(sorted(state)))
        what = data.draw(st.sampled_from(["drop", "rename", "flatten", "scalar", "cut", "integers", "empty"]))
        value = state.pop(name)
        if what == "rename":
            state[name.replace("0", "1") + data.draw(st.sampled_from(["", "x", ".weight"]))] = value
        elif what != "drop":
            state[name] = {
                "flatten": value.flatten(),
                "scalar": value.sum(),
                "cut": value.flatten()[: value.numel() // 2],
                "integers": value.to(torch.int8),
                "empty": value.flatten()[:0],
            }[what]
        if not state:
            return
    with contextlib.suppress(Unsupported):
        found = recognise(state, PATH, FORMATS)
        if found is not None:
            build(found)


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=400), cut=st.integers(0, 5000))
def test_bytes_that_are_no_file_are_named(tmp_path_factory, data, cut):
    folder = tmp_path_factory.mktemp("files")
    path = folder / "bad.safetensors"
    path.write_bytes(data)
    assert why_unreadable(path) is not None
    save_file(net_of("flux xlabs").state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    assert re.match("it is truncated, or no safetensors file", why_unreadable(path))


def test_a_good_file_opens_and_others_are_the_hosts(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(net_of("flux").state_dict(), path)
    assert why_unreadable(path) is None
    save_file({}, path)
    assert why_unreadable(path) == "it holds no tensors"
    assert "truncated" in why_unreadable(tmp_path / "missing.safetensors")
    assert why_unreadable(tmp_path / "older.pth") is None
