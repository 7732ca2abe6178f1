"""What happens in one generation, hook by hook. Nothing here is kept on the script or on the model."""

from __future__ import annotations

import logging
import weakref

from ..errors import Unsupported
from ..hosts import host_of, progress, recognised_model
from ..hosts.loras import loras_of_pass
from ..hosts.protocol import ActiveMethod
from ..method.layout import Grid, Layout, make_layout
from ..method.phases import Phase
from ..method.run import FRESH, UNSUITABLE, Run
from . import infotext, levels, settings, xyz
from .comparison import add_base_picture
from .forecast import listed
from .generation import ATTRIBUTE, Generation, guarded, refuse, shown_steps
from .messages import answer, forget, log_to_console, tell, teller
from .options import HIRES_PASS, parse_request
from .passes import final_size, forecast_of, in_hires, set_size, size_of, steps_of, wants_this_pass
from .positions import Positions, chosen_positions
from .sizes import grid_of

__all__ = ["log_to_console", "tell"]

logger = logging.getLogger("ResDiT")


def prepare_vae(p: object, generation: Generation) -> None:
    """Let the VAE use tiles where a picture of the final size needs them. An error here is no reason to refuse."""
    if not generation.owns_final:
        return
    try:
        host_of(p).prepare_decode(p, *final_size(p), settings.vae_tiling(), teller(p))
    except Exception:
        logger.exception("the VAE is left to the WebUI")


def clean_up(p: object) -> None:
    """Undo what would outlive the generation: the VAE's copy and the progress text."""
    try:
        progress.clear()
        host_of(p).release_decode(p)
    except Unsupported:
        pass
    except Exception:
        logger.exception("cleaning up failed")


@guarded
def before_process(p: object, *args: object) -> None:
    """Read the options and set the output size, early enough for noise, ControlNet's hint and infotext."""
    setattr(p, ATTRIBUTE, None)
    # What is left of the generation that `p` was copied from (X/Y/Z plot), or of the picture before (img2img's batch).
    forget(p)
    infotext.remove(p.extra_generation_params)
    request = parse_request(xyz.merged(p, args))
    if not request.enabled:
        return
    generation = Generation(request)
    setattr(p, ATTRIBUTE, generation)
    # After an error no hook is called, and the host's unet keeps our wrapper until the next generation.
    weakref.finalize(p, generation.release).atexit = False
    set_size(p, request, generation.replaced)


@guarded
def process(p: object, *_: object) -> None:
    """The model is loaded now: accept or refuse it, say what will happen, and write the parameters."""
    clean_up(p)  # of a generation that ended in an error
    generation = getattr(p, ATTRIBUTE, None)
    if generation is None:
        return
    model = recognised_model(p)
    host_of(p).check_samplers(p)
    generation.request = generation.request.for_model(model.family.base_tokens)
    forecast = forecast_of(p, generation.request, model.family)
    tell(p, forecast.line(), logging.INFO)
    if forecast.active:
        p.extra_generation_params.update(infotext.parameters(generation.request, final_size(p)))
    else:
        p.extra_generation_params[infotext.REFUSED_KEY] = forecast.idle
    generation.told = forecast
    generation.owns_final = forecast.active and (forecast.width, forecast.height) == final_size(p)
    if getattr(p, "init_images", None):
        prepare_vae(p, generation)  # img2img encodes its picture next; the host drops the VAE after that
    generation.begun = True


def method_of_pass(p: object, grid: Grid) -> ActiveMethod | None:
    """ResDiT's layout of a picture and parameters in the pass that is about to begin; None where it will not act."""
    generation = getattr(p, ATTRIBUTE, None)
    if generation is None or not wants_this_pass(p, generation.request.values["apply_to"]):
        return None
    config = generation.request.config
    layout = make_layout(grid, config)
    return None if layout.is_base else (layout, config)


def shift_of_pass(p: object) -> float:
    """How much mu of the noise levels grows in the pass that is about to begin."""
    generation = getattr(p, ATTRIBUTE, None)
    if generation is None or not wants_this_pass(p, generation.request.values["apply_to"]):
        return 0.0
    width, height = size_of(p, in_hires(p))
    layout = make_layout(grid_of(width, height), generation.request.config)
    return levels.shift_added(p, generation.request, layout, teller(p))


def sigmas_of_pass(p: object) -> object | None:
    """The full list of noise levels of the pass that is about to begin; None where its sampler has no such list."""
    return levels.sigmas_of(p, steps_of(p, in_hires(p)).listed, shift_of_pass(p))


def tell_what_is_new(p: object, generation: Generation, run: Run, chosen: Positions, layout: Layout) -> None:
    """Say what of this pass is other than was told: its positions, and with its noise levels the steps by phase."""
    told = generation.told
    if chosen.told != told.positions:
        run.say(f"positions: {chosen.told or 'scaled'}")
    for warning in chosen.warnings:
        if warning not in told.warnings:
            run.say(warning)
    found = {phase.value: n for phase, n in run.schedule(layout).steps(run.sigmas).items() if n}
    if in_hires(p) == (told.which == HIRES_PASS) and found != told.phases and not layout.is_base:
        run.say(f"with this sampler and schedule type: {listed(found)}")


@guarded
def before_sampling(p: object, *_: object, **kwargs: object) -> None:
    """Attach to this pass's unet; at or below the base size leave it untouched. May be called twice."""
    generation = getattr(p, ATTRIBUTE, None)
    if generation is None:
        return
    prepare_vae(p, generation)
    if not wants_this_pass(p, generation.request.values["apply_to"]):
        return
    model, x = recognised_model(p), kwargs.get("x")
    grid = grid_of(*size_of(p, in_hires(p))) if x is None else model.adapter.grid(x)
    layout = make_layout(grid, generation.request.config)
    loras = loras_of_pass(p, in_hires(p))
    chosen = chosen_positions(generation.request.config, model.family, layout, loras)
    if layout.is_base and not chosen.config.acts_at_base:
        return
    generation.release()  # the passes before, and after a change of model what was made for the other one
    run = generation.run_of(p.sampler)
    if run is None:
        run = Run(chosen.config, say=teller(p), on_step=shown_steps())
        steps, shift = steps_of(p, in_hires(p)), shift_of_pass(p)
        run.set_sigmas(levels.sigmas_of(p, steps.listed, shift), steps.listed, steps.skipped)
        if shift:
            levels.shift_levels(p.sampler, shift)
        if hasattr(p.sampler, "get_timesteps"):
            run.say(f"the sampler's timesteps are made for older models: they {UNSUITABLE}")
        tell_what_is_new(p, generation, run, chosen, layout)
        generation.runs.append(run)
        generation.sampler = weakref.ref(p.sampler)
    host_of(p).attach(p, model, run)


@guarded
def before_step(p: object) -> None:
    """Attach again where the host has changed the model in the middle of a pass (refiner), which drops what was set."""
    generation = getattr(p, ATTRIBUTE, None)
    run = None if generation is None else generation.run_of(p.sampler)
    if run is None or host_of(p).is_attached(p):
        return
    run.release()  # made for the other model
    host_of(p).attach(p, recognised_model(p), run)
    logger.info("the model was changed: it has ResDiT too")


@guarded
def after_batch(p: object, *_: object, **__: object) -> None:
    """Report pictures on which the method never ran, before their parameters are written."""
    generation = getattr(p, ATTRIBUTE, None)
    if generation is None or not generation.runs or generation.acted or progress.stopped():
        return
    calls = generation.calls
    if any(calls[phase.value] for phase in Phase):
        refuse(p, "no block's attention was changed: it has a mask, or other tokens than this model's text and picture")
    elif calls["base"]:
        refuse(p, "another extension called the model on tiles no larger than the base size")
    else:
        refuse(p, "another extension replaced the model function after ResDiT was attached")


def postprocess(p: object, processed: object) -> None:
    """Clean up, add the picture to compare with, and put the messages into the API's answer."""
    clean_up(p)
    generation = getattr(p, ATTRIBUTE, None)
    if generation is not None:
        generation.release()
        if generation.acted:
            calls = generation.calls
            counted = (*(phase.value for phase in Phase), FRESH)
            logger.info("done: %s", listed({name: calls[name] for name in counted}))
        add_base_picture(p, processed, generation)
    answer(p, processed)
