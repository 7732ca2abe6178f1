"""How a LoRA is trained in diffusers' transformers: which layers learn, and a call of the model at any positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..control.token_nets import to_tokens
from ..method.layout import Grid
from ..method.position_table import PositionTable
from ..method.positions import token_positions
from ..monkeypatch import intercepted
from .rotary import image_ids
from .rotary_diffusers import to_latent
from .table_diffusers import TIMESTEPS

Text = Mapping[str, Tensor]  # what a caption is to the transformer, by the names of its arguments
Weights = Mapping[str, Tensor]
# The linear layers of every attention in diffusers' blocks, of the picture's tokens and of the text's.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class Places(NamedTuple):
    """Where the tokens of a picture stand.

    Attributes:
        rows, cols: (H,) and (W,) positions.
        maximal: the range that they are from; the picture's own grid where they are the model's own.
    """

    rows: Tensor
    cols: Tensor
    maximal: Grid


class Predictor(Protocol):
    """The velocity of a model's latents (B, C, 2H, 2W) at noise levels `sigma` (B,), with its tokens at given places.

    `network` is the transformer or what accelerate has made of it; `guidance` is for models that are told one.
    """

    def __call__(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, text: Text, places: Places, guidance: float
    ) -> Tensor: ...


@dataclass(frozen=True)
class Training:
    """How a family's LoRA is trained.

    Attributes:
        encode: a caption as the transformer is given it, each (1, ...), by a pipeline with its text encoders.
        predictor: the Predictor of a transformer.
        layers: names of the linear layers that get a LoRA.
        webui_names: a LoRA's weights under the names that the WebUIs know; None where they know diffusers'.
    """

    encode: Callable[[object, str], dict[str, Tensor]]
    predictor: Callable[[nn.Module], Predictor]
    layers: tuple[str, ...] = ATTENTION
    webui_names: Callable[[Weights], dict[str, Tensor]] | None = None


def rotary_predictor(transformer: nn.Module) -> Predictor:
    """The Predictor of a transformer with rotary positions, whose tokens come with their ids."""
    told = transformer.config.guidance_embeds

    def predict(
        network: nn.Module, latent: Tensor, sigma: Tensor, text: Text, places: Places, guidance: float
    ) -> Tensor:
        ids = image_ids(0, token_positions(places.rows, places.cols)).to(latent.device)
        given = {"guidance": torch.full_like(sigma, guidance)} if told else {}
        out = network(
            hidden_states=to_tokens(latent),
            timestep=sigma,
            img_ids=ids,
            txt_ids=ids.new_zeros(text["encoder_hidden_states"].shape[1], ids.shape[1]),
            return_dict=False,
            **text,
            **given,
        )
        return to_latent(out[0], Grid(len(places.rows), len(places.cols)))

    return predict


def table_predictor(transformer: nn.Module) -> Predictor:
    """The Predictor of a transformer whose positions are added from a table; it is told no guidance."""
    embedder = transformer.pos_embed
    side = embedder.pos_embed_max_size
    table = PositionTable(embedder.pos_embed[0].unflatten(0, (side, side)))

    def predict(network: nn.Module, latent: Tensor, sigma: Tensor, text: Text, places: Places, _: float) -> Tensor:
        positions = table.in_range(*places, latent.device)
        with intercepted([(embedder, "cropped_pos_embed", lambda *_: positions)]):
            return network(hidden_states=latent, timestep=TIMESTEPS * sigma, return_dict=False, **text)[0]

    return predict
