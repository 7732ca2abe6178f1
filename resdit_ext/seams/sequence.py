"""What a joint attention is given: the tokens of a picture, and others around them, which keep their places.

Others are text, pads and reference images. The method wants them first: `TokenSequence` brings them there and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor, nn

from ..errors import Unsupported
from ..method.frequencies import Law
from ..method.in_attention import Attend, plan_for, resdit_attention
from ..method.layout import Grid, Layout
from ..method.phases import Phase
from ..method.positions import grid_positions
from ..method.rotary import RotaryTable, rotary_table
from ..method.run import Run

REFERENCES = "reference images are not supported with this model"
ROUNDING = 2**-7  # of a position, by which the host's own ids may be off in bfloat16


def too_few(tokens: int, whole: int) -> str:
    """Why an attention with fewer tokens than there are cannot be replaced."""
    return f"attention has {tokens} tokens of the {whole} of text and picture; another extension takes some out"


def divided(tokens: int, whole: int) -> str:
    """Why an attention of diffusers' with another number of tokens than there are cannot be replaced."""
    return (
        f"attention is given {tokens} tokens of {whole}: an engine that divides the tokens among devices is at work, "
        "beside which ResDiT cannot run; switch one of the two off"
    )


@dataclass(frozen=True)
class Rotation:
    """How a model rotates queries and keys by ids, one for each axis.

    Attributes:
        axes_dim: channels of each axis.
        thetas: of each axis' frequencies.
        grid_axes: which axes are a picture's rows and columns.
        halves: True where channel j makes a pair with channel j + D/2, False where 2j does with 2j + 1.
    """

    axes_dim: tuple[int, ...]
    thetas: tuple[float, ...]
    grid_axes: tuple[int, int] = (1, 2)
    halves: bool = False

    @classmethod
    def of(cls, embedder: nn.Module, grid_axes: tuple[int, int] = (1, 2), halves: bool = False) -> Rotation:
        """An embedder's, which has `axes_dim` and `theta`."""
        axes = tuple(embedder.axes_dim)
        return cls(axes, (embedder.theta,) * len(axes), grid_axes, halves)

    def in_pairs(self, x: Tensor) -> Tensor:
        """x (..., D) with the channels of a pair side by side, which in q and k alike changes no dot product."""
        return rearrange(x, "... (two half) -> ... (half two)", two=2) if self.halves else x

    def table(self, ids: Tensor, laws: tuple[Law, Law] | None = None) -> RotaryTable:
        """The rotary table of ids (..., L, axes), for channels in pairs."""
        return rotary_table(ids, self.axes_dim, self.thetas, laws, self.grid_axes)


@dataclass(frozen=True)
class TokenSequence:
    """Where the tokens of one attention stand: others, a picture's in row-major order, and others again.

    An `Embed` of the method: it makes the rotary tables of the others and of image tokens.

    Attributes:
        rotation: the model's.
        before: how many others precede the picture.
        others: the ids of all others, in their order.
        origin: the ids of the picture's first token, from which rows and columns count.
        centre: where rows and columns count from the picture's middle and text begins behind it, the first of so many
            rows or columns. `others` and `origin` are then those of a picture without extent.
    """

    rotation: Rotation
    before: int
    others: tuple[tuple[float, ...], ...]
    origin: tuple[float, ...]
    centre: Callable[[int], int] | None = None

    @classmethod
    def text_first(cls, rotation: Rotation, text: int) -> TokenSequence:
        """Text at the origin, then a picture that begins there: FLUX's."""
        zero = (0.0,) * len(rotation.axes_dim)
        return cls(rotation, text, (zero,) * text, zero)

    def __call__(self, positions: Tensor, laws: tuple[Law, Law] | None, grid: Grid) -> RotaryTable:
        axes = list(self.rotation.grid_axes)
        ids = positions.new_tensor(self.origin).repeat(*positions.shape[:-1], 1)
        ids[..., axes] += positions
        others = positions.new_tensor(self.others).reshape(len(self.others), ids.shape[-1])
        if self.centre is not None:
            ids[..., axes] += positions.new_tensor((self.centre(grid.height), self.centre(grid.width)))
            others[: self.before] += behind(grid)
        return self.rotation.table(torch.cat((others.expand(*ids.shape[:-2], -1, -1), ids), -2), laws)

    @property
    def after(self) -> int:
        """How many others follow the picture."""
        return len(self.others) - self.before

    def without_those_before(self) -> TokenSequence:
        """What an attention to the rest alone is given: the picture and what follows it."""
        return replace(self, before=0, others=self.others[self.before :])

    def others_first(self, x: Tensor) -> Tensor:
        """x (B, heads, L, D) with the picture's tokens last."""
        if not self.after:
            return x
        end = x.shape[2] - self.after
        return torch.cat((x[:, :, : self.before], x[:, :, end:], x[:, :, self.before : end]), 2)

    def in_order(self, out: Tensor) -> Tensor:
        """(B, L, C) with the picture's tokens last, back in the model's order."""
        if not self.after:
            return out
        others = len(self.others)
        return torch.cat((out[:, : self.before], out[:, others:], out[:, self.before : others]), 1)


def attend_by_method(
    run: Run, layout: Layout, sequence: TokenSequence, phase: Phase, q: Tensor, k: Tensor, v: Tensor, attend: Attend
) -> Tensor:
    """The method in place of `attend(q, k, v)` of a sequence, q, k, v (B, heads, L, D) not rotated: (B, L, C)."""
    q, k = (sequence.rotation.in_pairs(x) for x in (q, k))
    q, k, v = (sequence.others_first(x) for x in (q, k, v))
    plan = plan_for(run, layout, len(sequence.others), sequence, q.device)
    return sequence.in_order(resdit_attention(q, k, v, plan, phase, attend))


@dataclass(frozen=True)
class Arrangement:
    """How a family arranges the tokens whose ids its embedder is given, and how it rotates by them.

    Attributes:
        text_first: True where text precedes the picture, False where it follows.
        references: True where reference images may follow the picture; how many tokens of text precede it is then told.
        centre: as `TokenSequence` has it.
        multiple: of which the picture's tokens are made one by pads behind them.
        refines: True where some blocks attend to text alone, or to the picture and its pads.
        grid_axes, halves: the rotation's.
    """

    text_first: bool = True
    references: bool = False
    centre: Callable[[int], int] | None = None
    multiple: int = 1
    refines: bool = False
    grid_axes: tuple[int, int] = (1, 2)
    halves: bool = False

    def rotation(self, embedder: nn.Module) -> Rotation:
        """The rotation of a model with this embedder."""
        return Rotation.of(embedder, self.grid_axes, self.halves)

    def find(self, rotation: Rotation, ids: Tensor, grid: Grid, text: int = 0) -> TokenSequence:
        """The sequence whose ids (B or 1, L, axes) an embedder is given, with a picture of this grid and so much text.

        Raises:
            Unsupported: there is no such picture at its place, or a second one, or the sequences of a batch differ.
        """
        sequences = ids.reshape(-1, *ids.shape[-2:]).float().cpu()
        if not bool((sequences == sequences[0]).all()):
            raise Unsupported("the pictures of a batch have tokens at different positions")
        ids, pads = sequences[0], -grid.tokens % self.multiple
        before = (text if self.references else len(ids) - grid.tokens - pads) if self.text_first else 0
        if before < 0 or len(ids) < before + grid.tokens:
            raise Unsupported(too_few(len(ids), grid.tokens))
        picture, others = ids[before : before + grid.tokens], torch.cat((ids[:before], ids[before + grid.tokens :]))
        rows, columns = others[:, list(rotation.grid_axes)].unbind(1)
        alike = self.references or torch.equal(rows, columns)
        if not self.is_picture(rotation, picture, grid) or not alike:
            raise Unsupported(
                f"{len(ids)} tokens are not {before} of text, a picture of {grid.height}x{grid.width} and others in "
                "their usual places"
                if self.references
                else f"{len(ids)} tokens are more than text and picture; {REFERENCES}"
            )
        if self.refines and before == len(ids) - before:
            raise Unsupported(f"text and picture have {before} tokens each, so that their blocks cannot be told apart")
        first = picture[0].clone()
        if self.centre is not None:
            others[:before] -= behind(grid)
            first[list(rotation.grid_axes)] -= first.new_tensor((self.centre(grid.height), self.centre(grid.width)))
        return TokenSequence(rotation, before, as_tuples(others), tuple(first.tolist()), self.centre)

    @staticmethod
    def is_picture(rotation: Rotation, ids: Tensor, grid: Grid) -> bool:
        """True for ids (H*W, axes) that differ along rows and columns alone, as the grid's positions do."""
        expected = torch.zeros_like(ids)
        expected[:, list(rotation.grid_axes)] = grid_positions(grid)
        return bool(((ids - ids[0] - expected).abs() <= ROUNDING * (1 + ids.abs() + ids[0].abs())).all())


def behind(grid: Grid) -> int:
    """Where text begins, on every axis, behind a picture whose rows and columns count from its middle."""
    return max(grid.height, grid.width) // 2


def as_tuples(ids: Iterable[Tensor]) -> tuple[tuple[float, ...], ...]:
    """Ids as hashable numbers."""
    return tuple(tuple(each.tolist()) for each in ids)
