"""One more picture with the prompt and seed of a generation, by the host's own function: the same in every WebUI."""

from __future__ import annotations

import copy


def another_picture(p: object, width: int, height: int, args: list) -> tuple[object, str]:
    """(picture, its parameters) of the first picture's prompt and seed at another size; it is not saved.

    Args:
        p: a generation of txt2img that is through.
        width, height: in pixels.
        args: of all scripts.
    """
    from modules.processing import process_images

    again = copy.copy(p)  # shallow: what the host writes into lists and dicts gets new ones
    again.prompt, again.negative_prompt, again.styles = p.all_prompts[0], p.all_negative_prompts[0], []
    again.seed, again.subseed = p.all_seeds[0], p.all_subseeds[0]
    again.width, again.height, again.enable_hr = width, height, False
    again.batch_size = again.n_iter = 1
    again.do_not_save_samples = again.do_not_save_grid = True
    again.script_args, again.override_settings = args, {}
    again.extra_generation_params, again.comments = {}, {}
    again.extra_result_images, again.latents_after_sampling, again.pixels_after_sampling = [], [], []
    again.sampler = None
    made = process_images(again)
    return made.images[made.index_of_first_image], made.infotexts[made.index_of_first_image]


def without_script(p: object, title: str) -> list:
    """The arguments of all scripts, with the one of this title switched off by its first."""
    args = list(p.script_args)
    for script in p.scripts.alwayson_scripts:
        if script.title() == title:
            args[script.args_from] = False
    return args
