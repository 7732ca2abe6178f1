"""Where the tokens stand that a call of diffusers' transformers is given: by their ids, or by the pictures' sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import Unsupported
from ..method.config import ResDiTConfig
from ..method.layout import Grid, Layout
from ..method.positions import whole_positions
from .sequence import Arrangement, Rotation, TokenSequence

Call = Mapping[str, object]  # the arguments of a transformer's call, by name


def grid_of(img_ids: Tensor, tokens: int) -> Grid:
    """The token grid of image ids (L, axes), read from where the first row ends; raises Unsupported if it is no grid.

    The ids' values are not trusted beyond that: in bfloat16 rows past 256 collide.
    """
    ids = img_ids[0] if img_ids.ndim == 3 else img_ids
    if ids[:, 0].any():
        raise Unsupported("reference images are not supported here")
    below_first = ids[:, 1].nonzero()
    width = int(below_first[0]) if len(below_first) else tokens
    if len(ids) != tokens or not tokens or tokens % width:
        raise Unsupported(f"{tokens} image tokens are not a grid of rows of {width}")
    return Grid(tokens // width, width)


class Places(Protocol):
    """What says where tokens stand, among the arguments of a call."""

    def grid(self, given: Call) -> Grid:
        """The token grid of a call's picture; raises Unsupported where it is none."""

    def sequence(self, given: Call, rotation: Rotation, grid: Grid, text: int) -> TokenSequence:
        """The sequence of a call's tokens; raises Unsupported where they are in other places than usual."""

    def at(self, given: Call, layout: Layout, config: ResDiTConfig) -> Call:
        """The arguments with the positions of a picture of this layout; raises Unsupported if they cannot be given."""


@dataclass(frozen=True)
class GivenIds:
    """The ids of every token; a picture's are 0 on the first axis, and those of its references, after it, are not.

    Attributes:
        name: the argument that has the picture's and its references', after the text's where these are not apart.
        text: the argument that has the text's, if they are apart.
    """

    name: str = "img_ids"
    text: str | None = "txt_ids"

    def all_ids(self, given: Call) -> Tensor:
        """(T + L, axes) the ids of all tokens."""
        parts = [given[name] for name in (self.text, self.name) if name is not None]
        return torch.cat([ids[0] if ids.ndim == 3 else ids for ids in parts])

    def grid(self, given: Call) -> Grid:
        """The token grid of a call's picture; raises Unsupported where it is none."""
        ids = self.all_ids(given)
        ids = ids[len(ids) - given["hidden_states"].shape[1] :]
        references = ids[:, 0].nonzero()
        tokens = int(references[0]) if len(references) else len(ids)
        if not tokens:
            raise Unsupported("reference images before the picture are not supported, only after it")
        return grid_of(ids[:tokens], tokens)

    def sequence(self, given: Call, rotation: Rotation, grid: Grid, text: int) -> TokenSequence:
        """The sequence of a call's tokens; raises Unsupported where they are in other places than usual."""
        return Arrangement(references=True).find(rotation, self.all_ids(given), grid, text)

    def at(self, given: Call, layout: Layout, config: ResDiTConfig) -> Call:
        """The arguments with the ids of a picture of this layout, in float32: bfloat16 is too coarse beyond 256."""
        own = given[self.name]
        ids = (own[0] if own.ndim == 3 else own).float()
        text, tokens = len(ids) - given["hidden_states"].shape[1], self.grid(given).tokens
        positions = whole_positions(layout, config).to(own.device)
        picture = ids[text].repeat(len(positions), 1)
        picture[:, 1:3] += positions
        ids = torch.cat((ids[:text], picture, ids[text + tokens :]))
        return {**given, self.name: ids[None] if own.ndim == 3 else ids}


@dataclass(frozen=True)
class GivenSides:
    """The frames, rows and columns of each picture; rows and columns count from its middle, and text is behind it.

    Attributes:
        name: the argument that has them.
        centre: the first of so many rows or columns.
    """

    name: str
    centre: Callable[[int], int]

    def grid(self, given: Call) -> Grid:
        """The token grid of a call's picture; raises Unsupported where it is none."""
        pictures = {tuple(map(tuple, each)) if isinstance(each, list) else (tuple(each),) for each in given[self.name]}
        if len(pictures) > 1:
            raise Unsupported("pictures of several sizes in one call are not supported")
        (picture, *references), tokens = pictures.pop(), given["hidden_states"].shape[1]
        if references:
            raise Unsupported("reference images (Edit) are not supported with this model in diffusers yet")
        frames, rows, columns = picture
        if frames != 1 or rows * columns != tokens:
            raise Unsupported(f"{tokens} image tokens are not a picture of {rows}x{columns} in {frames} frame")
        return Grid(rows, columns)

    def sequence(self, given: Call, rotation: Rotation, grid: Grid, text: int) -> TokenSequence:  # noqa: ARG002
        """The sequence of a call's tokens."""
        zero = (0.0,) * len(rotation.axes_dim)
        others = tuple((float(i),) * len(zero) for i in range(text))
        return TokenSequence(rotation, text, others, zero, self.centre)

    def at(self, given: Call, layout: Layout, config: ResDiTConfig) -> Call:
        """The arguments with the sides of a picture of this layout; raises Unsupported where others are asked for."""
        if config.positions == "rpe-2d":
            raise Unsupported("positions rpe-2d are not supported with this model in diffusers")
        own = given[self.name]
        return {**given, self.name: [[(1, layout.grid.height, layout.grid.width)] for _ in own]}
