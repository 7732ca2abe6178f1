"""Pictures by diffusers on one device or several: `python -m resdit_ext generate`, also under torchrun."""
