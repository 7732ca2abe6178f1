"""SD3 in a real checkout of A1111: set A1111_DIR, and A1111_PYTHON to a Python with k-diffusion and transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts.a1111 import CHECKS

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    folder = os.environ.get("A1111_DIR")
    if not folder:
        pytest.skip("A1111_DIR is not set: point it at a checkout of AUTOMATIC1111")
    out = tmp_path_factory.mktemp("a1111") / "report.json"
    command = [os.environ.get("A1111_PYTHON", sys.executable), "-m", "tests.hosts.a1111", Path(folder).resolve(), out]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, timeout=600, capture_output=True, text=True)
    if not out.is_file():
        pytest.fail(f"A1111 did not start:\n{done.stderr[-3000:]}")
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", CHECKS)
def test_a1111(report, name):
    assert report[name] is None, report[name]
