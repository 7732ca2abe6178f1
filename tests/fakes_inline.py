"""Blocks that rotate q and k in their own code and look only the kernel up in their module, as ersatzForge's Chroma."""

import torch
from torch import nn

from tests import fakes
from tests.fakes import attention_function


class Block(fakes.Block):
    def forward(self, x, pe):
        q, k, v = self.qkv(x).unflatten(-1, (3, fakes.HEADS, -1)).permute(2, 0, 3, 1, 4)
        q, k = ((pe * part.float().unflatten(-1, (-1, 2)).unsqueeze(-2)).sum(-1).flatten(-2) for part in (q, k))
        return x + attention_function(q, k, v, q.shape[1], skip_reshape=True)


class FakeChroma(fakes.FakeFlux):
    def __init__(self):
        super().__init__()
        self.distilled_guidance_layer = nn.Identity()
        self.double_blocks = nn.ModuleList([Block()])
        self.single_blocks = nn.ModuleList([Block(), Block()])


def twin_of(model):
    """The same weights in blocks that call a module's `attention`."""
    twin = fakes.FakeFlux()
    twin.load_state_dict(model.state_dict())
    return twin


def made(seed=2):
    torch.manual_seed(seed)
    return FakeChroma()
