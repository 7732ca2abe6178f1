"""A FLUX and a patcher of the hosts' shapes, small enough to read: what the adapters rely on, and nothing else.

The real hosts are in tests/hosts; these let every hook be tested without one.
"""

import copy
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

AXES = (4, 6, 6)
HEADS, WIDTH, CHANNELS = 2, 2 * sum(AXES), 4


def attention(q, k, v, pe, mask=None, transformer_options=None):
    def rotate(x):
        return (pe.to(x.dtype) * x.unflatten(-1, (-1, 2)).unsqueeze(-2)).sum(-1).flatten(-2)

    out = F.scaled_dot_product_attention(rotate(q), rotate(k), v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


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

    def forward(self, x, context):
        h, w = x.shape[-2:]
        x = F.pad(x, (0, w % 2, 0, h % 2))
        H, W = x.shape[-2] // 2, x.shape[-1] // 2
        image = F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
        rows, cols = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
        ids = torch.stack((torch.zeros(H, W), rows, cols), -1).reshape(-1, 3)
        pe = self.pe_embedder(torch.cat((torch.zeros(context.shape[1], 3), ids)))[None, None]
        tokens = torch.cat((context, self.inlet(image)), 1)
        for block in (*self.double_blocks, *self.single_blocks):
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


class FakeProcessing:
    """The host's `p`: what the hooks read and write."""

    def __init__(self, model=None, **attributes):
        self.width, self.height, self.steps = 1024, 1024, 7
        self.comments, self.extra_generation_params = {}, {}
        self.sd_model = SimpleNamespace(forge_objects=SimpleNamespace(unet=FakePatcher(model or FakeFlux())))
        self.sampler = SimpleNamespace(get_sigmas=lambda p, n: torch.linspace(1, 0, n + 1))
        for name, value in attributes.items():
            setattr(self, name, value)

    def comment(self, text):
        self.comments[text] = 1
