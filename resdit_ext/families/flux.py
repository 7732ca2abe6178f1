"""FLUX.1 as the WebUIs define it: blocks that call a module-level `attention(q, k, v, pe)`.

Recognised by structure, not by name, so dev, schnell, Krea, Fill, Depth and Canny, with LoRA or quantised
weights, are all one family: only attention is touched.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from ..errors import Unsupported
from ..method.in_attention import plan_for, resdit_attention
from ..method.layout import Grid
from ..method.rotary import RotaryTable, rotary_table
from ..method.run import Run
from ..monkeypatch import redirected

NEEDED = ("attention", "attention_function")
PATCH = 2  # latent pixels per token and axis


def flux_rotary_table(text: int, positions: Tensor, axes_dim: tuple[int, ...], theta: float) -> RotaryTable:
    """RotaryTable (..., T + L, D) of FLUX's ids: zeros for text, then (0, row, column) from positions (..., L, 2)."""
    ids = positions.new_zeros(*positions.shape[:-2], text + positions.shape[-2], 3)
    ids[..., text:, 1:] = positions
    return rotary_table(ids, axes_dim, theta)


def refusal(model: object) -> str | None:
    """Why a FLUX-like model is not FLUX.1, or None."""
    if hasattr(model, "distilled_guidance_layer"):
        return "Chroma is not supported yet"
    axes = len(getattr(getattr(model, "pe_embedder", None), "axes_dim", ()))
    if axes != 3:
        return f"Flux.2 and its kin are not supported yet: {axes} position axes where FLUX.1 has 3"
    if getattr(model, "txt_ids_dims", None):
        return "a FLUX whose text has positions of its own is not supported yet"
    return None


def why_not(tokens: int, text: int, grid: Grid, mask: object) -> str | None:
    """Why the method cannot take an attention's place, or None.

    Args:
        tokens: that attention is given.
        text: tokens of the text.
        grid: of the picture.
        mask: that attention is given, or None.
    """
    whole = text + grid.tokens
    if tokens > whole:
        more = tokens - whole
        return f"attention has {more} more tokens than text and picture; reference images (Kontext) are not supported"
    if tokens < whole:
        return f"attention has {tokens} tokens of the {whole} of text and picture; another extension takes some out"
    return None if mask is None else "attention masks are not supported"


class Flux:
    """FLUX.1 in Forge, Forge Neo and ersatzForge."""

    name = "FLUX.1"
    pools = True
    # A little above what tests/hosts/memory.py counts at 2K to 4K: 18.4 in Forge (22.2 without the method) and at most
    # 24.1 in ersatzForge (27.2).
    peak_vectors = 25

    def __init__(self, model: object) -> None:
        if reason := refusal(model):
            raise Unsupported(reason)
        modules = {type(block).__module__ for block in (*model.double_blocks, *model.single_blocks)}
        if len(modules) != 1:
            raise Unsupported(f"its blocks come from {len(modules)} modules ({', '.join(sorted(modules))}), not one")
        (name,) = modules
        self.module = sys.modules[name]
        if missing := [name for name in NEEDED if not callable(getattr(self.module, name, None))]:
            raise Unsupported(f"{name} has no {' and no '.join(missing)} (Nunchaku and fused builds are not supported)")
        if list(inspect.signature(self.module.attention).parameters)[:4] != ["q", "k", "v", "pe"]:
            raise Unsupported(f"{name}.attention does not begin with (q, k, v, pe)")
        self.hidden_size = model.hidden_size
        self.axes_dim = tuple(model.pe_embedder.axes_dim)
        self.theta = model.pe_embedder.theta

    @staticmethod
    def claims(model: object) -> bool:
        """True for a transformer with FLUX's two kinds of blocks."""
        return all(len(getattr(model, name, ())) > 0 for name in ("double_blocks", "single_blocks"))

    @staticmethod
    def grid(latent: Tensor) -> Grid:
        """The token grid of a latent (B, C, H, W); an odd side is padded by the model."""
        return Grid(-(-latent.shape[-2] // PATCH), -(-latent.shape[-1] // PATCH))

    def denoise(self, run: Run, predict: Callable[..., Tensor], latent: Tensor, text: int, sigma: float) -> Tensor:
        """One model call with the method in every block."""
        with self.attention_at(run, latent, text, sigma):
            return predict(latent)

    @contextmanager
    def attention_at(self, run: Run, latent: Tensor, text: int, sigma: float) -> Iterator[None]:
        """Run the method in every block of the one model call made inside this context.

        Args:
            run: the generation's parameters and plans.
            latent: the model's input (B, C, H, W).
            text: number of text tokens.
            sigma: the call's noise level.
        """
        layout = run.layout(self.grid(latent))
        if layout.is_base:
            run.calls["base"] += 1
            yield
            return
        original, phase = self.module.attention, run.begin_call(sigma)

        def embed(positions: Tensor) -> RotaryTable:
            return flux_rotary_table(text, positions, self.axes_dim, self.theta)

        def method(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, **kwargs: object) -> Tensor:
            if reason := why_not(q.shape[2], text, layout.grid, kwargs.get("mask")):
                run.say(f"not active: {reason}")
                return original(q, k, v, pe, **kwargs)

            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return self.module.attention_function(q, k, v, q.shape[1], skip_reshape=True, **kwargs)

            run.calls["blocks"] += 1
            plan = plan_for(run, layout, text, embed, q.device)
            return resdit_attention(q, k, v, plan, phase, attend)

        with redirected(self.module, "attention", method):
            yield
