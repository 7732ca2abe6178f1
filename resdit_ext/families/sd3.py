"""SD3-medium, SD3.5-large and SD3.5-medium, whose blocks may have a second, image-only attention."""

from __future__ import annotations

from dataclasses import replace

from ..control.latent_nets import LatentNets
from ..seams.nets_diffusers import around_latent_net
from ..seams.table import TableBlocks
from ..seams.table_diffusers import around_calls
from . import Family, Support

NAME = "SD3"
NEEDS = ("cropped_pos_embed", "ln_q")
FORGE = Support("SD3-medium, SD3.5-large, SD3.5-medium", {"backend/nn/mmditx.py": NEEDS})
A1111 = Support(
    "SD3-medium",
    {"modules/models/sd3/mmdit.py": NEEDS, "modules/models/sd3/sd3_model.py": ("SD3Inferencer.create_denoiser",)},
)
FAMILY = Family(
    name=NAME,
    key="sd3",
    rank=1,
    webui=TableBlocks(),
    diffusers={"SD3Transformer2DModel": around_calls, "SD3ControlNetModel": around_latent_net},
    control=LatentNets(
        NAME,
        "SD3ControlNetModel",
        texts=(
            ("joint_attention_dim", "text tokens", "context_embedder"),
            ("pooled_projection_dim", "text vectors", "y_embedder.mlp.0"),
        ),
    ),
    support={
        "Forge": FORGE,
        "ersatzForge": FORGE,
        "AUTOMATIC1111": A1111,
        "diffusers": replace(FORGE, needs={"models/transformers/transformer_sd3.py": ("SD3Transformer2DModel",)}),
    },
    hidden_size=1536,  # SD3-medium's and SD3.5-medium's
    longest_text=333,  # 77 of CLIP and 256 of T5
    live_vectors=32,  # tests/hosts/memory.py counts 30.9 in Forge at 4K, 22.9 in ersatzForge
)
