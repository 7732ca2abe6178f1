"""Blocks as Z-Image's: text, picture and pads in one sequence, and before that blocks over text and picture alone."""

import torch
from torch import nn

from tests import fakes
from tests.fakes import CHANNELS, WIDTH, attention_function

PADDED_TO = 32


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 2 * WIDTH)  # a head of keys and one of values for two of queries

    def forward(self, x, freqs, mask=None):
        q, k, v = self.qkv(x).unflatten(-1, (2 * fakes.HEADS, -1)).split((fakes.HEADS, 1, 1), 2)
        q, k = ((freqs * part.unflatten(-1, (-1, 2)).unsqueeze(-2)).sum(-1).flatten(-2) for part in (q, k))
        k, v = (part.repeat_interleave(fakes.HEADS, 2) for part in (k, v))
        return x + attention_function(*(part.movedim(1, 2) for part in (q, k, v)), fakes.HEADS, mask, skip_reshape=True)


class FakeNext(nn.Module):
    def __init__(self, multiple=PADDED_TO):
        super().__init__()
        self.dim, self.pad_tokens_multiple, self.mask = WIDTH, multiple, None
        self.rope_embedder = fakes.Embedder()
        self.context_refiner, self.noise_refiner = nn.ModuleList([Block()]), nn.ModuleList([Block()])
        self.layers = nn.ModuleList([Block(), Block()])
        self.inlet, self.outlet = nn.Linear(4 * CHANNELS, WIDTH), nn.Linear(WIDTH, 4 * CHANNELS)
        self.pad = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x, context):
        h, w = x.shape[-2:]
        x = nn.functional.pad(x, (0, w % 2, 0, h % 2))
        H, W, T = x.shape[-2] // 2, x.shape[-1] // 2, context.shape[1]
        image = self.inlet(nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2))
        pads = -H * W % (self.pad_tokens_multiple or 1)
        image = torch.cat((image, self.pad.expand(len(x), pads, -1)), 1)
        ids = torch.zeros(T + H * W + pads, 3)
        ids[:T, 0] = torch.arange(T) + 1
        ids[T : T + H * W] = torch.cartesian_prod(torch.tensor([T + 1]), torch.arange(H), torch.arange(W)).float()
        freqs = self.rope_embedder(ids.expand(len(x), -1, -1))[:, :, None].to(x.dtype)
        for block in self.context_refiner:
            context = block(context, freqs[:, :T])
        for block in self.noise_refiner:
            image = block(image, freqs[:, T:])
        tokens = torch.cat((context, image), 1)
        for block in self.layers:
            tokens = block(tokens, freqs, self.mask)
        out = self.outlet(tokens[:, T : T + H * W]).transpose(1, 2).unflatten(2, (H, W))
        return -nn.functional.pixel_shuffle(out, 2)[..., :h, :w]


def made(multiple=PADDED_TO, seed=2):
    torch.manual_seed(seed)
    return FakeNext(multiple)
