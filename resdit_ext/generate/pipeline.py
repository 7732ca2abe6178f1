"""The pipeline: loaded from disk alone, put on its devices, made parallel where there are several."""

from __future__ import annotations

from dataclasses import dataclass

import diffusers
import torch
import transformers

from ..errors import ResDiTError
from ..families import Family
from ..hosts.diffusers import apply_resdit, enable_parallelism
from ..hosts.diffusers.loading import load_pipeline
from ..method.layout import make_layout
from ..method.run import Run
from .options import GenerateOptions
from .processes import Processes


@dataclass(frozen=True)
class Loaded:
    """A pipeline that is ready.

    Attributes:
        pipe: diffusers'.
        family: of its transformer.
        run: of the method in it.
    """

    pipe: diffusers.DiffusionPipeline
    family: Family
    run: Run


def share_heads(pipe: diffusers.DiffusionPipeline, family: Family, options: GenerateOptions, count: int) -> None:
    """Have the processes share every attention by its heads."""
    layout = make_layout(options.grid, options.config_for(family))
    heads = pipe.transformer.config.num_attention_heads
    lengths = heads, family.longest_text, layout.grid.tokens, layout.base.tokens
    # Equal parts need no talk about their sizes, and older versions of diffusers know no others.
    uneven = {"ulysses_anything": True} if any(length % count for length in lengths) else {}
    enable_parallelism(pipe.transformer, diffusers.ContextParallelConfig(ulysses_degree=count, **uneven))


def load(options: GenerateOptions, processes: Processes) -> Loaded:
    """The pipeline with the method, on this process's device.

    Raises:
        ResDiTError: there is no such model, or the options do not suit it or the device.
    """
    on_gpu = processes.device.type != "cpu"
    if options.offload != "none" and not on_gpu:
        raise ResDiTError(f"offload is {options.offload!r}, from a GPU to the CPU, and there is no GPU; use 'none'")
    if not processes.speaks:
        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()
            library.utils.logging.set_verbosity_error()
    if options.share == "halves" and processes.count not in (1, 2):
        raise ResDiTError(f"share is 'halves' with {processes.count} processes; start two, or share 'heads'")
    dtype = getattr(torch, options.dtype or ("bfloat16" if on_gpu else "float32"))
    pipe, family = load_pipeline(options.model, options.components, dtype)
    pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, stochastic_sampling=options.sampler == "LCM")
    group = None
    if processes.count > 1:
        if options.share == "heads":
            share_heads(pipe, family, options, processes.count)
        else:
            group = torch.distributed.group.WORLD
    run = apply_resdit(pipe, options.config_for(family), batch_group=group)
    if options.offload == "model":
        pipe.enable_model_cpu_offload(gpu_id=processes.device.index)
    elif options.offload == "sequential":
        pipe.enable_sequential_cpu_offload(gpu_id=processes.device.index)
    else:
        pipe.to(processes.device)
    if options.tiles:
        pipe.vae.enable_tiling()
    pipe.set_progress_bar_config(disable=not processes.speaks)
    return Loaded(pipe, family, run)
