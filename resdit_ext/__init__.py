"""ResDiT High-Res: 3K-4K pictures directly from diffusion transformers, training-free (arXiv 2512.01426)."""

from .errors import ResDiTError, Unsupported
from .hosts.diffusers import apply_resdit, enable_parallelism, remove_resdit
from .method.config import BALANCED, PAPER, PRESETS, SCALED, ResDiTConfig
from .version import __version__

__all__ = [
    "BALANCED",
    "PAPER",
    "PRESETS",
    "SCALED",
    "ResDiTConfig",
    "ResDiTError",
    "Unsupported",
    "__version__",
    "apply_resdit",
    "enable_parallelism",
    "remove_resdit",
]
