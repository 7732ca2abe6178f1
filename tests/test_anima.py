"""Anima in the WebUIs, on a fake of their classes' shape (the real ones are in tests/hosts)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resdit_ext import Unsupported
from resdit_ext.families import identify
from resdit_ext.method.run import Run
from tests import fakes
from tests.attaching import attach
from tests.settings import scaled

CONFIG = scaled(base_tokens=16, fused_until=0.57)
NATIVE = scaled(base_tokens=16, pes=False, global_until=1, fused_until=1, attention_scale="off")
HEADS, SIDE = 2, 16  # heads, and channels of each: 4 of time, 6 of rows, 6 of columns
WIDTH = HEADS * SIDE


def attention_function(q, k, v, heads, mask=None, skip_reshape=False):
    assert skip_reshape and heads == q.shape[1] and mask is None
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Embedder(nn.Module):
    def __init__(self):
        super().__init__()
        self.temporal_freqs, self.hw_spatial_freqs = (1e4 ** (-torch.arange(0, d, 2) / d) for d in (4, 6))

    def forward(self, tokens, device):
        sides = (torch.arange(n, dtype=torch.float32, device=device) for n in tokens.shape[1:4])
        places = torch.cartesian_prod(*sides)
        frequencies = (self.temporal_freqs, self.hw_spatial_freqs, self.hw_spatial_freqs)
        angle = torch.cat([places[:, [axis]] * each for axis, each in enumerate(frequencies)], 1)
        return torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), -1).unflatten(-1, (2, 2))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x, context=None, matrices=None):
        def in_heads(x):
            return x.unflatten(2, (HEADS, -1)).transpose(1, 2)

        other = x if context is None else context
        q, k, v = (in_heads(part) for part in (3 * self.q(x), 3 * self.k(other), self.v(other)))
        if context is None:
            halves = (part.unflatten(-1, (2, -1)).movedim(-2, -1).unsqueeze(-2) for part in (q, k))
            q, k = ((matrices * part).sum(-1).movedim(-1, -2).flatten(-2) for part in halves)
        return x + attention_function(q, k, v, HEADS, skip_reshape=True)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.cross_attn = Attention(), Attention()

    def forward(self, x, context, matrices):
        return self.cross_attn(self.self_attn(x, matrices=matrices), context)


class FakeAnima(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embedder, self.t_embedding_norm = Embedder(), nn.Identity()
        self.x_embedder = nn.Module()
        self.x_embedder.proj = nn.Sequential(nn.Identity(), nn.Linear(16, WIDTH))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.references = 0

    def forward(self, x, context):
        x = torch.cat([x] * (1 + self.references), 2)
        frames, rows, columns = x.shape[2], x.shape[3] // 2, x.shape[4] // 2
        tokens = self.x_embedder.proj(F.pixel_unshuffle(x.movedim(1, 2), 2).movedim(2, -1))
        matrices, tokens = self.pos_embedder(tokens, device=x.device), tokens.flatten(1, 3)
        for block in self.blocks:
            tokens = block(tokens, F.pad(context, (0, WIDTH - context.shape[-1])), matrices)
        out = tokens[..., :16].unflatten(1, (frames, rows, columns)).movedim(-1, 2)
        return F.pixel_shuffle(out, 2).movedim(2, 1)[:, :, :1]


@pytest.fixture
def unet():
    torch.manual_seed(2)
    return fakes.FakePatcher(FakeAnima())


def latent(height, width, batch=1, frames=1):
    return torch.randn(batch, 4, frames, height, width, generator=torch.Generator().manual_seed(4))


def attached(unet, config=CONFIG):
    said = []
    run = Run(config, say=said.append)
    return attach(unet, run), run, said


def test_at_the_base_size_it_is_bit_identical(unet):
    patched, run, _ = attached(unet)
    assert torch.equal(patched.sample(latent(8, 8), 0.8), unet.sample(latent(8, 8), 0.8)) and run.calls == {"base": 1}


def test_native_positions_in_one_global_branch_are_the_plain_model(unet):
    patched, run, said = attached(unet, NATIVE)
    assert torch.allclose(patched.sample(latent(14, 22, 2), 0.8), unet.sample(latent(14, 22, 2), 0.8), atol=1e-5)
    assert run.calls == {"global": 1, "blocks": 2} and not said


@pytest.mark.parametrize(("phase", "sigma"), [("global", 0.99), ("fused", 0.8), ("local", 0.1)])
def test_the_pictures_attention_alone_is_the_methods(unet, phase, sigma):
    patched, run, said = attached(unet)
    assert not torch.allclose(patched.sample(latent(16, 24), sigma), unet.sample(latent(16, 24), sigma), atol=1e-3)
    assert run.calls == {phase: 1, "blocks": 2} and not said  # of two attentions in each block


def test_what_it_cannot_take_is_made_as_if_off_with_the_reason(unet):
    patched, run, said = attached(unet)
    for x, text, sigma in ((latent(16, 24), 96, 0.8), (latent(16, 24), 3, 40.0), (latent(16, 24, frames=2), 3, 0.8)):
        assert torch.equal(patched.sample(x, sigma, text=text), unet.sample(x, sigma, text=text))
    unet.model.diffusion_model.references = 1
    assert torch.equal(patched.sample(latent(16, 24), 0.8), unet.sample(latent(16, 24), 0.8))
    reasons = ("96 tokens each", "the noise level is 40", "a latent of 2 frames", "2 frames of tokens are more than")
    assert len(said) == 4 and all(reason in message for reason, message in zip(reasons, said, strict=True))
    assert not run.calls["blocks"]


def test_it_is_recognised_and_cosmos_with_added_positions_is_refused(unet):
    model = unet.model.diffusion_model
    found = identify(model)
    assert found.family.name == "Anima" and found.family.hidden_size == WIDTH
    model.extra_per_block_abs_pos_emb = True
    with pytest.raises(Unsupported, match="positions that are added in every block"):
        identify(model)
