"""Run by the WebUI at every start: checks what the extension needs and installs only what is missing.

Every host ships these packages already; torch, numpy and gradio are never touched.
"""

import importlib.util

import launch

for package in ("einops", "safetensors"):
    if importlib.util.find_spec(package) is None:
        if launch.args.skip_install:
            print(f"ResDiT High-Res needs {package}, and --skip-install is set: install it by hand")
        else:
            launch.run_pip(f"install {package}", f"{package} for ResDiT High-Res")
