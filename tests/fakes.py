"""A FLUX and a patcher of the hosts' shapes, small enough to read: what the adapters rely on, and nothing else.

The real hosts are in tests/hosts; these let every hook be tested without one.
"""

import copy
from types import ModuleType, SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from resdit_ext.method.shift import shifted, shifted_sigmas

AXES = (4, 6, 6)
HEADS, WIDTH, CHANNELS = 2, 2 * sum(AXES), 4


def attention(q, k, v, pe, mask=None, transformer_options=None):
    def rotate(x):
        return (pe.to(x.dtype) * x.unflatten(-1, (-1, 2)).unsqueeze(-2)).sum(-1).flatten(-2)

    return attention_function(rotate(q), rotate(k), v, q.shape[1], mask, skip_reshape=True)


def attention_function(q, k, v, heads, mask=None, skip_reshape=False, transformer_options=None):
    assert skip_reshape and heads == q.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x, pe):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return x + attention(q, k, v, pe=pe)


class Embedder(nn.Module):
    def __init__(self, axes_dim=AXES):
        super().__init__()
        self.axes_dim, self.theta = list(axes_dim), 10000

    def forward(self, ids):
        angles = [
            ids[..., i, None].double() * self.theta ** (-torch.arange(0, d, 2).double() / d)
            for i, d in enumerate(self.axes_dim)
        ]
        angle = torch.cat(angles, -1)
        return torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), -1).unflatten(-1, (2, 2)).float()


class FakeFlux(nn.Module):
    """2x2 latent patches are tokens, text goes first, blocks look `attention` up in this module."""

    def __init__(self, axes_dim=AXES):
        super().__init__()
        self.hidden_size = WIDTH
        self.pe_embedder = Embedder(axes_dim)
        self.double_blocks = nn.ModuleList([Block()])
        self.single_blocks = nn.ModuleList([Block(), Block()])
        self.inlet, self.outlet = nn.Linear(4 * CHANNELS, WIDTH), nn.Linear(WIDTH, 4 * CHANNELS)

    def parts(self):
        return self.pe_embedder, (*self.double_blocks, *self.single_blocks)

    def forward(self, x, context):
        h, w = x.shape[-2:]
        x = F.pad(x, (0, w % 2, 0, h % 2))
        H, W = x.shape[-2] // 2, x.shape[-1] // 2
        image = F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
        rows, cols = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
        ids = torch.stack((torch.zeros(H, W), rows, cols), -1).reshape(-1, 3)
        embedder, blocks = self.parts()
        pe = embedder(torch.cat((torch.zeros(context.shape[1], 3), ids)).expand(len(x), -1, -1))[:, None]
        tokens = torch.cat((context, self.inlet(image)), 1)
        for block in blocks:
            tokens = block(tokens, pe)
        out = self.outlet(tokens[:, context.shape[1] :]).transpose(1, 2).unflatten(2, (H, W))
        return F.pixel_shuffle(out, 2)[..., :h, :w]


class FakePatcher:
    """Forge's UnetPatcher: clone() deep-copies the options, the model is shared."""

    def __init__(self, model):
        self.model = SimpleNamespace(diffusion_model=model, computation_dtype=torch.float32)
        self.model_options = {}

    def clone(self):
        other = FakePatcher(self.model.diffusion_model)
        other.model_options = copy.deepcopy(self.model_options)
        return other

    def set_model_unet_function_wrapper(self, wrapper):
        self.model_options["model_function_wrapper"] = wrapper

    def set_memory_peak_estimation_modifier(self, modifier):
        self.model_options["memory_peak_estimation_modifier"] = modifier

    def sample(self, x, sigma, text=3, **c):
        """One model call as the host makes it."""

        def apply_model(x, t, c_crossattn, **_):
            return self.model.diffusion_model(x, c_crossattn)

        generator = torch.Generator().manual_seed(5)
        c = {"c_crossattn": torch.randn(len(x), text, WIDTH, generator=generator), "transformer_options": {}} | c
        t = torch.full((len(x),), float(sigma))
        wrapper = self.model_options.get("model_function_wrapper")
        with torch.inference_mode():
            if wrapper is None:
                return apply_model(x, t, **c)
            return wrapper(apply_model, {"input": x, "timestep": t, "c": c, "cond_or_uncond": [0]})


class FakeVAE:
    """Forge's VAE: tiles where its module's switch is on, or memory runs out; it notes how it worked."""

    def __init__(self, memory):
        self.memory, self.worked = memory, []
        self.device, self.vae_dtype, self.patcher = "card", torch.bfloat16, "patcher"
        self.memory_used_decode = lambda shape, dtype: 139392 * shape[2] * shape[3] * dtype.itemsize
        self.memory_used_encode = lambda shape, dtype: 1767 * shape[2] * shape[3] * dtype.itemsize

    def work(self, name):
        self.worked.append(f"{name} in tiles" if self.memory.VAE_ALWAYS_TILED else f"{name} at once")
        if self.memory.fail_in_tiles is not None and self.memory.VAE_ALWAYS_TILED:
            raise self.memory.fail_in_tiles

    def decode(self, samples):
        self.work("decode")
        return torch.zeros(len(samples), 8 * samples.shape[2], 8 * samples.shape[3], 3, device=samples.device)

    def encode(self, pixels):
        self.work("encode")
        return torch.zeros(len(pixels), 16, pixels.shape[1] // 8, pixels.shape[2] // 8, device=pixels.device)


class FakeMemory(ModuleType):
    """Forge's `backend.memory_management`: a card of 24 GB of which `taken` are another model's, until it is moved."""

    def __init__(self):
        super().__init__("backend.memory_management")
        self.VAE_ALWAYS_TILED, self.fail_in_tiles = False, None
        self.total, self.taken, self.required = 24e9, 20e9, []

    def load_models_gpu(self, models, memory_required=0):
        assert models == ["patcher"]
        self.required.append(memory_required)
        self.taken = 0

    def soft_empty_cache(self):
        pass

    def get_total_memory(self, _):
        return self.total

    def get_free_memory(self, _):
        return self.total - self.taken


class FakeSampler:
    """The host's sampler, made for every pass: it lists the noise levels, of which the model has a table."""

    def __init__(self, mu=1.15, **attributes):
        self.get_sigmas = lambda p, n: torch.tensor(shifted_sigmas(n, mu))  # with the schedule type Simple
        self.model_wrap = SimpleNamespace(sigmas=shifted(torch.arange(1, 1001) / 1000, mu))
        for name, value in attributes.items():
            setattr(self, name, value)


class FakeProcessing:
    """The host's `p`: what the hooks read and write."""

    def __init__(self, model=None, **attributes):
        self.width, self.height, self.steps, self.sampler_name = 1024, 1024, 7, "Euler"
        self.comments, self.extra_generation_params = {}, {}
        self.sd_model = SimpleNamespace(forge_objects=SimpleNamespace(unet=FakePatcher(model or FakeFlux())))
        self.sampler = FakeSampler()
        for name, value in attributes.items():
            setattr(self, name, value)

    def comment(self, text):
        self.comments[text] = 1


class FakeDenoiser(nn.Module):
    """A1111's SD3Denoiser: made by every sampler, it calls the model with `cond`."""

    def __init__(self, model):
        super().__init__()
        self.inner = [model]  # not a submodule: the denoiser goes, the model stays

    def forward(self, x, sigma, cond):
        return x - sigma[:, None, None, None] * self.inner[0](x, cond["crossattn"])


class TinySD3(nn.Module):
    """SD3 of the hosts' shapes: a table added once, joint blocks whose queries pass `ln_q` last."""

    def __init__(self, side=24):
        super().__init__()
        self.pos_embed_max_size = side
        self.inlet, self.outlet = nn.Linear(4 * CHANNELS, WIDTH), nn.Linear(WIDTH, 4 * CHANNELS)
        angle = torch.arange(side)[:, None] / 3 * 10000.0 ** (-torch.arange(WIDTH // 4) / (WIDTH // 4))
        axis = torch.cat((angle.sin(), angle.cos()), -1)
        table = torch.cat((axis[None].expand(side, side, -1), axis[:, None].expand(side, side, -1)), -1)
        self.register_buffer("pos_embed", table.reshape(1, side * side, WIDTH))
        self.joint_blocks = nn.ModuleList([JointBlock(), JointBlock()])

    def cropped_pos_embed(self, hw):
        h, w = (n // 2 for n in hw)
        top, left = ((self.pos_embed_max_size - n) // 2 for n in (h, w))
        assert top >= 0 and left >= 0
        table = self.pos_embed.unflatten(1, (self.pos_embed_max_size, -1))
        return table[:, top : top + h, left : left + w].flatten(1, 2)

    def forward(self, x, context):
        h, w = x.shape[-2:]
        tokens = self.inlet(F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)) + self.cropped_pos_embed((h, w))
        for block in self.joint_blocks:
            context, tokens = block(context, tokens)
        return F.pixel_shuffle(self.outlet(tokens).transpose(1, 2).unflatten(2, (h // 2, w // 2)), 2)


class JointAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.ln_q = nn.Linear(WIDTH, 3 * WIDTH), nn.Identity()

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.ln_q(q), k, v


class Side(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = JointAttention()


class JointBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.context_block, self.x_block = Side(), Side()

    def forward(self, context, x):
        text = context.shape[1]
        both = zip(self.context_block.attn(context), self.x_block.attn(x), strict=True)
        q, k, v = (torch.cat(pair, 2) for pair in both)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return context + out[:, :text], x + out[:, text:]
