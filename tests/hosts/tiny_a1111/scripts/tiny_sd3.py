"""A WebUI extension for tests: every checkpoint of AUTOMATIC1111 is a tiny SD3 with random weights.

The host's own loader, SD3 classes and sampler run; only the text encoders and the VAE are replaced by small ones.
"""

import importlib
import sys
import zlib
from pathlib import Path

import torch
from modules import sd_models
from modules.models.sd3 import sd3_model

REPOSITORY = str(Path(__file__).resolve().parents[4])
sys.path.append(REPOSITORY)
try:
    a1111 = importlib.import_module("tests.hosts.a1111")
    kit = importlib.import_module("tests.hosts.kit")
finally:
    sys.path.remove(REPOSITORY)


class TinyText(torch.nn.Module):
    """A text's conditioning is noise seeded by the text."""

    def forward(self, prompts):
        rows = [a1111.conditioning(1, zlib.crc32(text.encode())) for text in prompts]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def before_load_weights(self, state_dict):
        pass

    def encode_embedding_init_text(self, _, count):
        return torch.zeros(count, a1111.WIDTH)

    def get_token_count(self, text):
        return len(text.split())

    def get_target_prompt_token_count(self, count):
        return max(count, a1111.TEXT)


class TinyVAE(kit.Enlarger):
    """Takes the place of the host's SDVAE, which is made on a device with a dtype."""

    def __init__(self, **_):
        super().__init__()


def tiny_weights(*_):
    """What the loader reads from a checkpoint."""
    weights = a1111.build_model().state_dict()
    return {f"model.{name}": value for name, value in weights.items()}


sd3_model.SD3Cond, sd3_model.SDVAE = TinyText, TinyVAE
sd_models.get_checkpoint_state_dict = tiny_weights
