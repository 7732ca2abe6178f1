"""How well a picture fits its prompt by CLIP, where transformers finds one on this computer; never from a network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import ResDiTError, in_words

NAMES = ("openai/clip-vit-large-patch14", "openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16")
# Of the pictures that CLIP was trained with.
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
Score = Callable[[np.ndarray, str], float]


def seen(picture: np.ndarray, side: int) -> torch.Tensor:
    """A picture (H, W, 3) uint8 as CLIP sees it: its middle square, (1, 3, side, side)."""
    height, width = picture.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = torch.from_numpy(picture[top : top + short, left : left + short].copy()).permute(2, 0, 1)[None] / 255
    small = F.interpolate(square, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return (small - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)


def loaded(name: str | Path) -> Score:
    """The score by a CLIP on disk: 100 times the cosine of picture and prompt."""
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(name, local_files_only=True, use_safetensors=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)

    @torch.inference_mode()
    def score(picture: np.ndarray, prompt: str) -> float:
        text = tokenizer([prompt], return_tensors="pt", truncation=True, padding=True)
        pixels = seen(picture, model.config.vision_config.image_size)
        out = model(input_ids=text.input_ids, attention_mask=text.attention_mask, pixel_values=pixels)
        return float(100 * F.cosine_similarity(out.image_embeds, out.text_embeds).item())

    return score


def find_clip(folder: Path | None) -> tuple[str, Score | None]:
    """(its name, or why there is none; its score) of a CLIP in `folder`, or of the first known that is in the cache.

    Raises:
        ResDiTError: a folder is named, and has none.
    """
    if folder is not None:
        try:
            return folder.name, loaded(folder)
        except Exception as error:  # whatever transformers raises for a folder that is none
            raise ResDiTError(
                f"clip is {str(folder)!r}, which cannot be loaded ({in_words(error)}); name a folder of a CLIPModel"
            ) from error
    for name in NAMES:
        with suppress(OSError, ImportError, ValueError):  # it is not in the cache, or transformers is not installed
            return name, loaded(name)
    return "none found on this computer", None
