"""Our families' control nets in the ControlNet panel of Forge, Forge Neo and ersatzForge.

The panel offers a file's tensors to every registered class, sets the unit's weight, range, mode and mask on what one
makes of them, and asks it before every sampling to link itself into the unet. The nets are diffusers' own; the host
moves them to the device and off it.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from ...control import recognise
from ...control.added import token_mask
from ...control.checkpoint import PICKLED, SUFFIXES, why_unreadable
from ...control.format import Checkpoint, Weights
from ...control.hint import pixels, shown, toned
from ...control.nets import check_shapes
from ...errors import ResDiTError, Unsupported, in_words
from ...families import RecognisedModel, families
from ...method.layout import Grid, layouts_in_turn
from ...method.memory import OutOfMemory
from ...method.phases import levels_between, usable_sigmas
from ...method.shift import shifted_sigmas
from ...version import TITLE
from ..lifetime import release_with, teller
from ..protocol import ActiveMethod, ControlServices
from .control_fit import misfit
from .control_net import encode, hold
from .control_pass import ControlUnitPass
from .control_support import with_control_support
from .vae import latent_pixel

logger = logging.getLogger("ResDiT")


def read(weights: Weights, path: Path) -> Checkpoint | None:
    """The control net in a file; None where it is another class's; raises Unsupported where it cannot be used."""
    checkpoint = recognise(weights, path, [family.control for family in families() if family.control is not None])
    if checkpoint is None:
        return None
    if path.suffix.lower() not in SUFFIXES:
        raise Unsupported(PICKLED)
    check_shapes(checkpoint)
    return checkpoint


def stamp_of(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


class ResDiTControl:
    """A unit of the panel, which sets these attributes; they are those of the hosts' `ControlModelPatcher`.

    Args:
        path: of the file.
        checkpoint: the recognised file; None where it is refused.
        refusal: why.
    """

    services: ControlServices  # set by `register`

    def __init__(self, path: Path, checkpoint: Checkpoint | None, refusal: str | None = None) -> None:
        self.path, self.checkpoint, self.refusal, self.stamp = path, checkpoint, refusal, stamp_of(path)
        self.model_patcher = None
        self.links: weakref.WeakSet[ControlUnitPass] = (
            weakref.WeakSet()
        )  # of the passes so far, where the host still has them
        self.strength, self.start_percent, self.end_percent = 1.0, 0.0, 1.0
        self.positive_advanced_weighting = self.negative_advanced_weighting = None
        self.advanced_frame_weighting = self.advanced_sigma_weighting = self.advanced_mask_weighting = None

    @classmethod
    def try_build_from_state_dict(cls, state_dict: dict, ckpt_path: str, metadata: object = None) -> object | None:  # noqa: ARG003
        """The unit for a file's tensors; one that refuses with the reason for a bad file; None for another class's."""
        path = Path(ckpt_path)
        try:
            checkpoint = read(state_dict, path)
        except ResDiTError as reason:
            return cls(path, None, str(reason))
        except Exception as error:
            logger.debug("reading a control net failed", exc_info=True)
            return cls(path, None, f"it cannot be read ({in_words(error)})")
        if checkpoint is None:
            return None
        logger.info("%s: a control net for %s (%s)", path.name, checkpoint.family, checkpoint.kind)
        return cls(path, checkpoint)

    def process_after_running_preprocessors(self, *_: object, **__: object) -> None:
        """Read a refused file again where it was replaced: the hosts remember what they made of a name."""
        if self.refusal is None or stamp_of(self.path) == self.stamp:
            return
        self.stamp = stamp_of(self.path)
        if self.path.suffix.lower() in SUFFIXES and why_unreadable(self.path) is None:
            again = self.try_build_from_state_dict(load_file(self.path), str(self.path))
            if again is not None:
                self.checkpoint, self.refusal = again.checkpoint, again.refusal

    def process_after_every_sampling(self, *_: object, **__: object) -> None:
        """The pictures of a batch are made: free the hints, which the host's last unet would keep."""
        for link in tuple(self.links):
            link.release()

    def process_before_every_sampling(
        self, process: object, cond: object, mask: Tensor | None, *_: object, **kwargs: object
    ) -> None:
        """Link the net into this pass's unet; where that cannot be, say why and leave the unet as it is."""
        self.advanced_mask_weighting = None  # the panel's copy of `mask`, which its cache of files would keep
        say = teller(process, f"ControlNet {self.path.name} ", self.services.say)
        if self.refusal is not None:
            say(f"is ignored: {self.refusal}")
            return
        try:
            self.link(process, cond, mask, kwargs, say)
        except ResDiTError as reason:
            say(f"is ignored: {reason}")
        except OutOfMemory:
            say("is ignored: there is no memory for its hint")
        except Exception as error:
            logger.debug("internal error", exc_info=True)
            say(
                f"is ignored: internal error ({in_words(error)}); please report it with the console's messages "
                f"(Settings > {TITLE}: Detailed)"
            )

    def check(self, model: nn.Module, recognised: RecognisedModel, x: Tensor, mask: Tensor | None) -> None:
        """Raise Unsupported where the net is for another model, or the unit has numbers or a mask that are none."""
        if reason := misfit(self.checkpoint, recognised.family, model, x.shape[1]):
            raise Unsupported(reason)
        numbers = {"weight": self.strength, "first step": self.start_percent, "last step": self.end_percent}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise Unsupported(f"its {name} is {value}, and must be a finite number")
        if mask is not None and (mask.ndim != 4 or mask.shape[1] != 1):
            raise Unsupported(f"its mask is {tuple(mask.shape)}, and one has (B, 1, H, W)")

    def link(self, p: object, cond: object, mask: Tensor | None, given: dict, say: Callable[[str], None]) -> None:
        """Encode the hint, make the net if this is its first use, and link it into a clone of the unet."""
        unet = p.sd_model.forge_objects.unet
        model = unet.model.diffusion_model
        recognised = self.services.recognise(p)
        self.check(model, recognised, given["x"], mask)
        picture = recognised.adapter.grid(given["x"])
        method, shows = self.services.method(p, picture), self.shows(given, say)
        if self.model_patcher is None:
            self.model_patcher = hold(self.checkpoint, unet.model.computation_dtype)
            self.checkpoint = replace(self.checkpoint, weights={})  # they are the net's now
        hint, patch_hints = self.hints(p, cond, picture, method, shows)
        link = ControlUnitPass(
            form=self.checkpoint.format,
            recognised=recognised,
            patcher=self.model_patcher,
            hint=hint,
            patch_hints=patch_hints,
            picture=picture,
            method=method,
            strength=float(self.strength),
            sides=self.depth_weights(),
            mask=None if mask is None else token_mask(mask, picture),
            levels=self.levels(p),
            shows=shows,
            say=say,
        )
        self.links.add(link)
        release_with(p, link)
        clone = with_control_support(unet).clone()
        clone.add_patched_controlnet(link)
        p.sd_model.forge_objects.unet = clone

    def hints(
        self, p: object, cond: object, picture: Grid, method: ActiveMethod | None, shows: str | None
    ) -> tuple[Tensor, dict[tuple[int, int], Tensor]]:
        """The hint on the grid that the net runs at, and that of each patch, by its first token (row, column)."""
        grid = picture if method is None else method[0].base
        token = 2 * latent_pixel(p.sd_model.forge_objects.vae)
        as_is = self.checkpoint.format.sees_pixels(self.model_patcher.model.net)

        def hint_of(part: Tensor) -> Tensor:
            toned_part = toned(part, self.checkpoint.tones, shows)
            return toned_part if as_is else encode(p, self.checkpoint, toned_part)

        patch_hints, on_patches = {}, self.checkpoint.format.model_on_patches
        if method is not None and (on_patches or method[1].speed == "exact"):
            # Patch by patch, so that no encoding is larger than a picture of the base size.
            whole = pixels(cond, token * picture.height, token * picture.width)
            layout, config = method
            layouts = layouts_in_turn(picture, config) if on_patches else (layout,)
            for row, col in dict.fromkeys(start for each in layouts for start in each.patches):
                rows, cols = (slice(token * a, token * (a + n)) for a, n in ((row, grid.height), (col, grid.width)))
                patch_hints[row, col] = hint_of(whole[..., rows, cols])
        return hint_of(pixels(cond, token * grid.height, token * grid.width)), patch_hints

    def depth_weights(self) -> tuple[Sequence[float] | None, ...]:
        """The weights along the depth, for conditional and unconditional rows.

        The panel's are for a UNet's levels; those of its way down serve for a transformer's depth.
        """
        sides = self.positive_advanced_weighting, self.negative_advanced_weighting
        return tuple(None if side is None else [*side["input"], *side["middle"]] for side in sides)

    def levels(self, p: object) -> tuple[float, float]:
        """(highest, lowest) noise levels between which the unit acts in this pass."""
        sigmas = usable_sigmas(self.services.sigmas(p)) or shifted_sigmas(self.services.steps(p))
        return levels_between(sigmas, self.start_percent, self.end_percent)

    def shows(self, given: dict, say: Callable[[str], None]) -> str | None:
        """What the hint shows, where the net asks: by the file, the panel's control type, or its preprocessor."""
        if not self.checkpoint.asks or self.checkpoint.made_for:
            return self.checkpoint.made_for
        chosen = getattr(given.get("unit"), "type_filter", None)
        tags = getattr(getattr(given.get("params"), "preprocessor", None), "tags", ())
        if found := shown((chosen, *tags)):
            return found
        say(
            "serves several kinds of hints, and neither the control type nor a preprocessor tells which this one is: "
            f"it is taken for '{self.services.default_shows()}' (Settings > {TITLE})"
        )
        return self.services.default_shows()


def register(services: ControlServices) -> None:
    """Have the host's panel know our nets, once; without a host of Forge's kin nothing happens."""
    try:
        from modules_forge import shared
    except ImportError:
        return
    unregister()
    ResDiTControl.services = services
    shared.add_supported_control_model(ResDiTControl)


def unregister() -> None:
    """Take our class out of the host's list, whichever load of this module put it there."""
    try:
        from modules_forge.shared import supported_control_models as registered
    except ImportError:
        return
    registered[:] = [known for known in registered if known.__name__ != ResDiTControl.__name__]
