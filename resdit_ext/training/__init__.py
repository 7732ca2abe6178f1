"""Training of a LoRA that gives a real model RPE-2D's positions: `accelerate launch -m resdit_ext.training.rpe2d`.

`options` (what can be chosen), `pictures` (buckets and crops), `parts` (what is loaded of a model), `cache` (latents
and text, computed once), `batches` (what a step sees), `lora` (the layers that learn, and their file), `state` (what is
needed to go on), `validation` (pictures on the way) and `loop`.
"""
