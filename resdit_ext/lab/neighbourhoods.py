"""Neighbourhood attention by query tiles: each tile's queries attend to the base-size window about it and to the text.

Nothing overlaps, so nothing is spliced; the tiles move by half from block to block (ScaleDiff's neighbourhood patches,
simplified: its own tiles lie still).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from ..method.layout import Grid, base_grid
from ..method.positions import grid_positions
from ..method.rotary import RotaryTable, rotate
from .model import BASE_TOKENS, TEXT_TOKENS, MicroModel
from .open_attention import opened, rotary_of, softmax_attention
from .sampling import Velocity


def axis_tiles(length: int, window: int, shift: int) -> list[tuple[int, int]]:
    """(first query, first key) of the tiles of half a window along an axis, moved by `shift`; they cover it all."""
    tile = max(1, window // 2)
    firsts = sorted({min(max(first, 0), length - tile) for first in range(-shift, length, tile)})
    return [(first, min(max(first - (window - tile) // 2, 0), length - window)) for first in firsts]


@dataclass(frozen=True)
class Tiles:
    """The tiles of one grid.

    Attributes:
        queries: (N, tile tokens) indices of the queries in the image.
        keys: (N, T + window tokens) indices of the keys in the sequence, the text's first.
        places: (N, tile tokens) indices of the queries in the window's sequence.
    """

    queries: Tensor
    keys: Tensor
    places: Tensor


@lru_cache(maxsize=8)
def tiles_of(grid: Grid, base: Grid, moved: bool) -> Tiles:
    """The tiles of a grid for windows of the base size, moved by half a tile or not."""
    sides = (grid.height, base.height), (grid.width, base.width)
    axes = [axis_tiles(n, m, m // 4 if moved else 0) for n, m in sides]
    rows, cols = (torch.arange(max(1, m // 2)) for _, m in sides)
    queries, keys, places = [], [], []
    for (qr, kr), (qc, kc) in product(*axes):
        queries.append(((qr + rows)[:, None] * grid.width + qc + cols).flatten())
        places.append(((qr - kr + rows)[:, None] * base.width + qc - kc + cols).flatten())
        window = (kr + torch.arange(base.height))[:, None] * grid.width + kc + torch.arange(base.width)
        keys.append(torch.cat((torch.arange(TEXT_TOKENS), TEXT_TOKENS + window.flatten())))
    return Tiles(torch.stack(queries), torch.stack(keys), torch.stack(places) + TEXT_TOKENS)


def tile_attention(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, table: RotaryTable) -> Tensor:
    """Image rows (B, H*W, C) of q, k, v (B, heads, T + H*W, D), at positions restarted in every window."""
    B, count = len(q), len(tiles.keys)

    def gathered(x: Tensor, index: Tensor) -> Tensor:
        return x[:, :, index].movedim(2, 0).flatten(0, 1)

    cos, sin = (x[tiles.places].repeat_interleave(B, 0)[:, None] for x in table)
    queries = rotate(gathered(q, tiles.queries + TEXT_TOKENS), RotaryTable(cos, sin))
    out = softmax_attention(queries, rotate(gathered(k, tiles.keys), table), gathered(v, tiles.keys))
    image = out.new_empty(B, q.shape[2] - TEXT_TOKENS, out.shape[-1])
    for tile, rows in zip(tiles.queries, out.unflatten(0, (count, B)), strict=True):
        image[:, tile] = rows
    return image


def text_attention(q: Tensor, k: Tensor, v: Tensor, table: RotaryTable) -> Tensor:
    """Text rows (B, T, C): the text attends to everything, the image at scaled positions."""
    return softmax_attention(rotate(q[:, :, :TEXT_TOKENS], first_rows(table)), rotate(k, table), v)


def first_rows(table: RotaryTable) -> RotaryTable:
    """The table of the text."""
    return RotaryTable(table.cos[:TEXT_TOKENS], table.sin[:TEXT_TOKENS])


def in_neighbourhoods(model: MicroModel) -> Velocity:
    """The velocity of a micro FLUX whose image tokens attend by tiles, above the base size."""

    def velocity(tokens: Tensor, sigma: Tensor, words: Tensor, height: int) -> Tensor:
        grid = Grid(height, tokens.shape[1] // height)
        base = base_grid(grid, BASE_TOKENS)
        if grid == base:
            return model(tokens, sigma, words, height)
        own = rotary_of(grid_positions(base))
        scaled = rotary_of(grid_positions(grid, (grid.height / base.height, grid.width / base.width)))

        def attention(q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
            tiles = tiles_of(grid, base, block % 2 == 1)
            return torch.cat((text_attention(q, k, v, scaled), tile_attention(q, k, v, tiles, own)), 1)

        with opened(model.transformer, attention):
            return model(tokens, sigma, words, height)

    return velocity
