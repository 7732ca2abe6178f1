"""A LoRA's files, as the training writes them, in the hosts: read by their own code, and the same as in diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.hosts import bfl, kit, models
from tests.hosts.bench import PHASES, Bench, Skipped, big, check, same, small
from tests.settings import range_in


def with_lora(bench: Bench, unet: object, name: str, repository: str, config: dict) -> object:
    """The unet with a LoRA's file, read and put on as the host's extension does it."""
    unet.model.config.huggingface_repo = repository
    unet.model.diffusion_model.config = config
    path = bench.handed.with_name(name)
    same(range_in(path), 64, "the range in the metadata")
    from backend.patcher.lora import load_lora, model_lora_keys_unet

    patches, unknown = load_lora(load_file(path), model_lora_keys_unet(unet.model, {}))
    assert not unknown, f"{bench.host} does not know {sorted(unknown)[:3]}"
    made = unet.clone()
    taken = made.add_patches(filename=str(path), patches=patches)
    same(len(taken), len(patches), "layers that the model has")
    return made


@contextmanager
def merged(patched: object) -> Iterator[None]:
    """The LoRA in the model's weights, as the host puts it there before it samples."""
    if hasattr(patched, "refresh_loras"):
        patched.refresh_loras()
        try:
            yield
        finally:
            patched.lora_patches.clear()
            patched.refresh_loras()
    else:  # Forge Neo
        for key in patched.patches:
            patched.patch_weight_to_device(key, torch.device("cpu"))
        try:
            yield
        finally:
            patched.unpatch_model()


@check
def a_lora_for_flux_is_the_same_as_in_diffusers(bench: Bench) -> str:
    """The lab's micro FLUX with a LoRA: the same velocity here and in diffusers."""
    if bench.host == "ersatz":
        raise Skipped("ersatzForge's FLUX code has 24 heads of 128 channels written in; the micro FLUX has 4 of 32")
    if bench.handed is None:
        raise Skipped("diffusers 0.35 or newer is not installed where pytest runs")
    data, prefix = load_file(bench.handed), "weights/"
    model = models.build_flux(bench.host, **models.MICRO)
    bfl.load_bfl(model, bfl.bfl_weights({k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}))
    unet = kit.build_unet(bench.host, model)
    cond = {name: data[name] for name in ("crossattn", "vector")}
    plain = kit.velocity(unet, data["latent"], PHASES["fused"], cond=cond)
    patched = with_lora(bench, unet, "lora_flux.safetensors", "black-forest-labs/FLUX.1-dev", models.MICRO)
    with merged(patched):
        got = kit.velocity(patched, data["latent"], PHASES["fused"], cond=cond)
    assert torch.equal(kit.velocity(unet, data["latent"], PHASES["fused"], cond=cond), plain), "the LoRA stayed"
    changed = big(kit.error(got, plain), 1e-2, "what the LoRA changes")
    return f"{small(kit.error(got, data['lora/flux']), 1e-4, 'error')}, {changed}"


def in_diffusers_names(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of a host's SD3 as diffusers' own converter names them."""
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    names = {name: weight.clone() for name, weight in model.state_dict().items()}
    return convert_sd3_transformer_checkpoint_to_diffusers(names)


@check
def a_lora_for_sd3_changes_what_it_changes_in_diffusers(bench: Bench) -> str:
    """Every layer gets the product W = B A of the file for diffusers, from the file for the WebUIs."""
    if bench.host == "neo":
        raise Skipped("Forge Neo has no SD3")
    if bench.handed is None:
        raise Skipped("diffusers 0.35 or newer is not installed where pytest runs")
    unet = kit.build_unet(bench.host, models.build_sd3(bench.host), predictor=kit.discrete_flow())
    model = unet.model.diffusion_model
    repository = "stabilityai/stable-diffusion-3-medium-diffusers"
    patched = with_lora(bench, unet, "lora_sd3-webui.safetensors", repository, dict(models.SD3))
    before = in_diffusers_names(model)
    with merged(patched):
        after = in_diffusers_names(model)
    weights = load_file(bench.handed.with_name("lora_sd3.safetensors"))
    layers = {name.removeprefix("transformer.").partition(".lora_")[0] for name in weights}
    worst = 0.0
    for name, weight in after.items():
        layer, change = name.removesuffix(".weight"), weight - before[name]
        if layer in layers and name.endswith(".weight"):
            b, a = (weights[f"transformer.{layer}.lora_{side}.weight"].float() for side in "BA")
            worst = max(worst, float((change - b @ a).abs().max() / (b @ a).abs().max()))
            layers.remove(layer)
        else:
            assert not change.any(), f"{name} was changed"
    assert not layers, f"not changed: {sorted(layers)}"
    return small(worst, 1e-3, "error")
