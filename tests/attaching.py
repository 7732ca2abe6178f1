"""The method in a unet of Forge's kin, as the hooks attach it."""

from resdit_ext.families import identify
from resdit_ext.hosts.forge import model


def attach(unet, run):
    return model.attach(unet, identify(unet.model.diffusion_model), run)


def is_attached(unet):
    return model.ATTACHED in unet.model_options
