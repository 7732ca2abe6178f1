"""Installed from a URL by the host's own Extensions tab, at 0.1.0, and updated by it to the commit at hand.

The URL is a folder's, so that no network is needed. Which hosts take part: see tests/hosts/webui.py.
"""

import json
import subprocess
import sys

import pytest

from resdit_ext import __version__
from resdit_ext.method.config import SCALED
from resdit_ext.webui.options import PARAMETERS
from tests.hosts import webui
from tests.hosts.test_running import SITES
from tests.hosts.webui import BASE, HERE, REPOSITORY, THRICE

LAST_OF_0_1_0 = "e7ef49c^"
# What saving in its page does.
SAVE = """
from resdit_ext.webui.options import preset_values
from resdit_ext.webui.presets import PresetStore
PresetStore("user_presets.json").save("Mine", preset_values("Fast") | {"global_until": 0.4})
"""
LOAD = """
import json
from resdit_ext.webui.presets import PresetStore
print(json.dumps(PresetStore("user_presets.json").load()))
"""


def run(*command, folder):
    """What a command prints, which must succeed."""
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def presets_on_page(ui):
    """What the list of presets has to choose from."""
    components = ui.ask("/config")["components"]
    (found,) = (each["props"] for each in components if each["props"].get("elem_id") == "txt2img_resdit_preset")
    return [choice if isinstance(choice, str) else choice[0] for choice in found["choices"]]


@pytest.mark.parametrize("host", SITES)
def test_users_presets_outlast_an_update(host, tmp_path):
    data, published = tmp_path / "data", tmp_path / "resdit.git"
    installed = data / "extensions" / "resdit"
    data.mkdir()
    webui.place_of(host)  # skips
    webui.furnish(host, data)
    installed.unlink()
    (data / "extensions" / "extensions_tab").symlink_to(HERE / "extensions_tab")
    run("git", "init", "-q", "--bare", "-b", "main", published, folder=tmp_path)
    run("git", "push", "-q", published, f"{LAST_OF_0_1_0}:refs/heads/main", folder=REPOSITORY)

    with webui.started(host, SITES[host], data) as ui:
        assert "Installed into" in ui.ask(f"/resdit_test/install?url={published.as_uri()}")
        assert '"0.1.0"' in (installed / "resdit_ext" / "version.py").read_text()
        run(sys.executable, "-c", SAVE, folder=installed)
        run("git", "push", "-q", published, "HEAD:refs/heads/main", folder=REPOSITORY)
        assert ui.ask("/resdit_test/update?name=resdit") == ["new commits", "latest"]
        assert "Error running install.py" not in ui.log.read_text()
    assert not run("git", "status", "--porcelain", folder=installed)

    presets, problem = json.loads(run(sys.executable, "-c", LOAD, folder=installed))
    meant = {name: getattr(SCALED, name) for name in PARAMETERS} | dict(global_until=0.4, speed="fast")
    assert presets == {"Mine": meant} and problem is None
    with webui.started(host, SITES[host], data) as ui:
        assert ui.ask("/resdit/v1/version")["version"] == __version__
        assert presets_on_page(ui)[-1] == "Mine"
        made = ui.make(resdit=THRICE | meant)
        assert made.differs(ui.make(width=3 * BASE, height=3 * BASE)) and "ResDiT: " in made.parameters
