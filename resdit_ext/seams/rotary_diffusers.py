"""diffusers' transformers whose blocks attend to text and image together, text first, at rotary positions.

Their processors rotate q and k and then attend, by two functions of the processor's module; both are replaced, for one
call and in those processors alone.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from ..control.added import control_on
from ..control.token_nets import to_tokens
from ..errors import Unsupported
from ..method.around_calls import from_grid
from ..method.config import ResDiTConfig
from ..method.layout import Grid, Layout
from ..method.layout_steps import View, prediction_from
from ..method.phases import SMALLER, Phase
from ..method.run import Run, SmallerCall
from ..monkeypatch import intercepted
from .masks_diffusers import KeyMask, OuterMask
from .places_diffusers import Call, GivenIds, Places
from .processors import calling, check_names
from .ranks import check_call
from .sequence import Rotation, TokenSequence, attend_by_method, divided
from .ulysses_diffusers import Ranks, between_exchanges, check_exchange, ranks_of

DISPATCH = "dispatch_attention_fn"
NEEDED = ("apply_rotary_emb", DISPATCH)
CONTROL = ("controlnet_block_samples", "controlnet_single_block_samples")


def to_latent(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, H*W, 4C) tokens -> (B, C, 2H, 2W) latents."""
    return from_grid(tokens.unflatten(1, (grid.height, grid.width)))


def unrotated(x: Tensor, *_: object, **__: object) -> Tensor:
    """In place of diffusers' rotation."""
    return x


def under_fresh_noise(
    predict: Callable[[Call], Tensor], given: Call, layout: Layout, channels: int, run: Run, sigma: float
) -> Tensor:
    """A call's prediction (B, L, C), its picture, without what stands after or beside it, seen under fresh noise.

    Args:
        predict: (arguments) -> the prediction.
        given: the arguments.
        layout: of the picture, whose tokens come first.
        channels: of the picture among those of a token.
        run: the generation's parameters.
        sigma: the call's noise level.
    """
    hidden, tokens, others = given["hidden_states"], layout.grid.tokens, []

    def of_picture(picture: Tensor) -> Tensor:
        beside = torch.cat((picture, hidden[:, :tokens, channels:]), -1)
        whole = torch.cat((beside, hidden[:, tokens:]), 1)
        made, rest = predict({**given, "hidden_states": whole}).tensor_split((tokens,), 1)
        others.append(rest)
        return made

    picture = run.under_fresh_noise(of_picture, hidden[:, :tokens, :channels], layout, sigma, velocity=True)
    return torch.cat((picture, *others), 1)


@dataclass(frozen=True)
class RotaryProcessors:
    """How such a transformer attends, as diffusers has it.

    Attributes:
        blocks: the attributes that hold its blocks.
        embedder: the attribute that makes rotation matrices of ids; it has `axes_dim` and `theta`.
        places: where the arguments say that tokens stand.
        rotation: the function of the processors' module that rotates q and k.
        channels: of a predicted token.
        output: what the transformer returns, by its name in its module.
        refusal: why the method cannot be used in a call, or None.
        ranks_known: True where it is known how diffusers shares the tokens among ranks: each has a part of the text
            and a part of the picture, as `Ranks.order` has them.
        ranks_masks: False where a mask among the arguments cannot be brought into that order.
        mask: the attention mask among the arguments of a call, or None.
        masks: what such a mask means.
        with_mask: the arguments with another mask in its place.
        enlarges: whether the transformer makes a larger mask of it, which a call with the method is to be spared.
    """

    blocks: tuple[str, ...] = ("transformer_blocks", "single_transformer_blocks")
    embedder: str = "pos_embed"
    places: Places = field(default_factory=GivenIds)
    rotation: str = "apply_rotary_emb"
    channels: Callable[[nn.Module], int] = lambda transformer: transformer.out_channels
    output: str = "Transformer2DModelOutput"
    refusal: Callable[[Call], str | None] = lambda _: None
    ranks_known: bool = False
    ranks_masks: bool = True
    mask: Callable[[Call], Tensor | None] = lambda _: None
    masks: type[KeyMask] | type[OuterMask] = KeyMask
    with_mask: Callable[[Call, Tensor | None], Call] = lambda given, _: given
    enlarges: bool = False

    def processors(self, transformer: nn.Module) -> list[object]:
        """What attends in the blocks; raises Unsupported where one does it in a way that is not known."""
        processors = [block.attn.processor for name in self.blocks for block in getattr(transformer, name)]
        check_names(processors, (self.rotation, DISPATCH))
        return processors

    @contextmanager
    def attention_at(
        self,
        transformer: nn.Module,
        run: Run,
        layout: Layout,
        sequence: TokenSequence,
        phase: Phase,
        mask: KeyMask | OuterMask | None = None,
        ranks: Ranks | None = None,
    ) -> Iterator[None]:
        """Run the method in every block of the one call made inside this context."""
        text, whole = sequence.before, len(sequence.others) + layout.grid.tokens

        def order_on(device: torch.device) -> Tensor:
            key = "order", text, layout.grid.tokens, ranks.count, str(device)
            return run.cached(key, lambda: ranks.order(text, layout.grid.tokens, device))

        def method(dispatch: Callable, q: Tensor, k: Tensor, v: Tensor, *args: object, **given: object) -> Tensor:
            if q.shape[1] != k.shape[1]:  # IP-Adapter's own attention
                return dispatch(q, k, v, *args, **given)
            alone = {} if ranks is None else {"parallel_config": None}

            def dispatched(q: Tensor, k: Tensor, v: Tensor, **mask: Tensor) -> Tensor:
                return dispatch(q, k, v, *args, **given | alone | mask)

            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                q, k, v = (x.transpose(1, 2) for x in (q, k, v))
                out = dispatched(q, k, v) if mask is None else mask.attend(dispatched, q, k, v)
                return out.flatten(2, 3)

            def on_whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                if q.shape[1] != whole:
                    raise Unsupported(divided(q.shape[1], whole))
                heads, (q, k, v) = q.shape[2], (x.transpose(1, 2) for x in (q, k, v))
                return attend_by_method(run, layout, sequence, phase, q, k, v, attend).unflatten(2, (heads, -1))

            if ranks is None:
                return on_whole(q, k, v)
            return between_exchanges(on_whole, q, k, v, order_on(q.device), given["parallel_config"])

        # The processors rotate q and k before they attend; the method rotates them itself, per branch.
        replaced = {self.rotation: lambda _: unrotated, DISPATCH: lambda own: partial(method, own)}
        with intercepted(calling(processor, replaced) for processor in self.processors(transformer)):
            yield

    def sequence(self, transformer: nn.Module, run: Run, given: Call) -> tuple[TokenSequence, Layout]:
        """A call's tokens and the layout of its picture; raises Unsupported where the method cannot be used in it."""
        if reason := self.refusal(given):
            raise Unsupported(reason)
        layout, rotation = run.layout(self.places.grid(given)), Rotation.of(getattr(transformer, self.embedder))
        text = given["encoder_hidden_states"].shape[1]
        return self.places.sequence(given, rotation, layout.grid, text), layout

    def at_smaller(
        self, given: Call, grid: Grid, smaller: Layout, config: ResDiTConfig, latent: Tensor, level: float, view: View
    ) -> Call:
        """The arguments of a call on a smaller grid, for a latent (B, C, 2h, 2w) there and its noise level.

        What is given per token (conditions beside the latent, control, a mask) is brought to that size.
        """
        tokens = to_tokens(latent)
        hidden, references = given["hidden_states"].tensor_split((grid.tokens,), 1)
        if (given_too := hidden[..., tokens.shape[-1] :]).shape[-1]:
            tokens = torch.cat((tokens, to_tokens(view.shrink(to_latent(given_too, grid)))), -1)
        mine = self.places.at(given, smaller, config) | {
            "hidden_states": torch.cat((tokens, references), 1),
            "timestep": torch.full_like(given["timestep"], level),
        }
        for name in CONTROL:
            if given.get(name) is not None:
                mine[name] = control_on(given[name], grid, smaller.grid)
        mask = self.mask(given)
        if mask is None:
            return mine
        return self.with_mask(mine, mask[..., : mask.shape[-1] - grid.tokens + smaller.grid.tokens])

    def predict_from_smaller(
        self,
        call: Callable[..., Tensor],
        given: Call,
        grid: Grid,
        smaller: SmallerCall,
        channels: int,
        run: Run,
        sigma: float,
    ) -> Tensor:
        """What a call on a smaller grid makes of picture and references, as the velocity (B, L, C).

        Args:
            call: the transformer, with the method in it if it has a part there, (arguments) -> its tokens.
            given: the arguments at the full size.
            grid: the full size's.
            smaller: what is called.
            channels: of the picture among those of a token.
            run: the generation's parameters and plans.
            sigma: the noise level at the full size.
        """
        of_references: list[Tensor] = []
        latent, seen_on = to_latent(given["hidden_states"][:, : grid.tokens, :channels], grid), smaller.layout.grid
        view = run.view(grid, seen_on, latent)

        def predict(seen: Tensor, level: float) -> Tensor:
            mine = self.at_smaller(given, grid, smaller.layout, run.config, seen, level, view)
            picture, others = call(mine).tensor_split((seen_on.tokens,), 1)
            of_references.append(others)
            return to_latent(picture, seen_on)

        run.calls["model calls"] += 1
        picture = to_tokens(prediction_from(predict, view, latent, sigma, velocity=True))
        return torch.cat((picture, *of_references), 1)

    def on_ranks(self, given: Call, ranks: Ranks) -> Call:
        """The arguments of a call whose tokens the ranks share, with what diffusers' plan for it leaves as it is."""
        mine, mask = ranks.parts_of(given, CONTROL), self.mask(given)
        if mask is None or not self.ranks_masks:
            return mine
        text, tokens = (given[name].shape[1] for name in ("encoder_hidden_states", "hidden_states"))
        return self.with_mask(mine, self.masks.in_order(mask, ranks.order(text, tokens, mask.device)))

    def ranks(self, transformer: nn.Module) -> Ranks | None:
        """The ranks that share the transformer's tokens, if any do; raises Unsupported without exchanges."""
        ranks = ranks_of(transformer)
        if ranks is not None:
            if not self.ranks_known:
                raise Unsupported(f"several devices cannot make one picture with {type(transformer).__name__} yet")
            check_exchange(self.processors(transformer), transformer)
        return ranks

    def around_calls(self, transformer: nn.Module, run: Run) -> Callable:
        """`around(call, ...)` that calls the transformer with the method in its attention; raises Unsupported."""
        self.processors(transformer), self.ranks(transformer)
        names = list(inspect.signature(type(transformer).forward).parameters)[1:]

        def around(whole_call: Callable, *args: object, **kwargs: object) -> object:
            given, ranks = dict(zip(names, args, strict=False)) | kwargs, self.ranks(transformer)

            def call(**given: object) -> object:
                return whole_call(**(given if ranks is None else self.on_ranks(given, ranks)))

            tokens, text = given["hidden_states"].shape[1], given["encoder_hidden_states"].shape[1]
            mask, read = self.mask(given), None
            try:
                sequence, layout = self.sequence(transformer, run, given)
                if mask is not None and not layout.is_base:
                    read = self.masks.read(mask, text, tokens)
            except Unsupported as reason:
                run.say(f"not active: {reason}")
                return call(**given)
            if layout.is_base:
                if run.begin_base_call():
                    return call(**self.places.at(given, layout, run.config))
                return call(**given)
            sigma = float(given["timestep"].max())  # which waits for the device
            if ranks is not None:
                if sequence.after:
                    raise Unsupported("several devices cannot make one picture with reference images yet")
                if mask is not None and not self.ranks_masks:
                    raise Unsupported("several devices cannot make one picture with a mask over this model's text yet")
                check_call(run, given, sigma, ranks.group)
                ranks.check_lengths(transformer.config.num_attention_heads, text, layout)
            layout = run.layout(layout.grid, sigma)
            phase = run.begin_call(sigma, layout)
            channels = self.channels(transformer)

            def by_method(given: Call, layout: Layout = layout, phase: Phase = phase) -> Tensor:
                # On the base grid positions are all of the method that there can be, and the arguments have them.
                if layout.is_base:
                    return call(**given)[0]
                with self.attention_at(transformer, run, layout, sequence, phase, read, ranks):
                    return call(**(self.with_mask(given, None) if self.enlarges else given))[0]

            def predict(given: Call) -> Tensor:
                if phase not in SMALLER:
                    return by_method(given)
                smaller = run.smaller(layout, phase, sigma)
                theirs = partial(by_method, layout=smaller.layout, phase=smaller.phase)
                return self.predict_from_smaller(theirs, given, layout.grid, smaller, channels, run, sigma)

            mine = given | {"return_dict": False}
            sample = under_fresh_noise(predict, mine, layout, channels, run, sigma)
            if not given.get("return_dict", True):
                return (sample,)
            return getattr(sys.modules[type(transformer).__module__], self.output)(sample=sample)

        return around
