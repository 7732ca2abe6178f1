"""The accordion in Chromium as people use it: on its own page with the micro FLUX behind Generate, and in real WebUIs.

A WebUI takes part where its address is in FORGE_URL, NEO_URL or ERSATZ_URL, or where FORGE_DIR, ... is its folder and
FORGE_UI_PYTHON, ... a Python that can start its page; the extension is linked into it for the time of the tests.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from resdit_ext.lab.model import load_micro  # noqa: E402
from resdit_ext.lab.page import launch  # noqa: E402
from tests.hosts.kit import CPU_FLAG  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET_CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
PREFIX = "#txt2img_resdit"
REPOSITORY = Path(__file__).parents[2]
OWN, HOSTS = "own page", ("forge", "neo", "ersatz")
START = 300  # seconds for a WebUI to come up on a small machine
OFFLINE = ["--skip-prepare-environment", "--skip-install", "--skip-torch-cuda-test", "--skip-python-version-check"]
expect = playwright.expect


@contextlib.contextmanager
def linked(extensions):
    """This repository as an extension of a WebUI."""
    if any(path.resolve() == REPOSITORY for path in extensions.iterdir()):
        yield
        return
    link = extensions / "resdit_under_test"
    link.symlink_to(REPOSITORY)
    try:
        yield
    finally:
        link.unlink()


@contextlib.contextmanager
def started(host, folder, python):
    """The address of a WebUI started for the tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [python, "launch.py", "--port", str(port), "--api", *OFFLINE, CPU_FLAG[host]]
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with (
        linked(folder / "extensions"),
        subprocess.Popen(
            command, cwd=folder, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process,
    ):
        try:
            for _ in range(START):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{address}/resdit/v1/version", timeout=5)  # noqa: S310 (loopback)
                    break
                assert process.poll() is None, f"{host} did not start"
                time.sleep(1)
            yield address
        finally:
            process.terminate()


@pytest.fixture(scope="module", params=[OWN, *HOSTS])
def site(request, tmp_path_factory):
    """(name, address) of a page that has the accordion."""
    name, prefix = request.param, request.param.upper()
    if name == OWN:
        running = launch(load_micro("flux"), tmp_path_factory.mktemp("page") / "user_presets.json", None, block=False)
        yield name, running.local_url
        running.close()
        return
    if address := os.environ.get(f"{prefix}_URL"):
        yield name, address
        return
    folder, python = (os.environ.get(f"{prefix}_{what}") for what in ("DIR", "UI_PYTHON"))
    if not folder or not python:
        pytest.skip(f"{prefix}_URL is not set, nor {prefix}_DIR with {prefix}_UI_PYTHON")
    with started(name, Path(folder), python) as address:
        yield name, address


@pytest.fixture
def own(site):
    """For tests that need the micro FLUX behind Generate."""
    if site[0] != OWN:
        pytest.skip("only on the own page")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=CHROMIUM, args=QUIET_CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, site):
    """A fresh page with the accordion open, 1024x1024 in 20 steps; errors in its console fail the test."""
    page, errors = browser.new_page(viewport={"width": 1400, "height": 1400}), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(site[1], timeout=120000)
    title = page.locator(f"{PREFIX} .label-wrap").first
    title.wait_for(timeout=120000)
    page.wait_for_timeout(2000 if site[0] == OWN else 5000)  # scripts of the page still arrange things
    if not status(page).is_visible():
        title.click()
    expect(status(page)).to_contain_text("3072x3072", timeout=30000)
    for name, value in (("width", 1024), ("height", 1024), ("steps", 20)):
        fill(page, f"#txt2img_{name}", value)
    yield page
    page.close()
    assert not errors


def radio(page, name, text):
    page.locator(f"{PREFIX}_{name}").get_by_text(text, exact=True).click()


def select(page, name, text):
    page.locator(f"{PREFIX}_{name} input").click()
    page.get_by_role("option", name=text, exact=True).click()


def number(page, name):
    return page.locator(f"{name if name.startswith('#') else f'{PREFIX}_{name}'} input[type=number]")


def fill(page, name, value):
    number(page, name).fill(str(value))
    number(page, name).press("Enter")


def status(page):
    return page.locator(f"{PREFIX}_status")


def generate(page):
    """(message, parameters) once Generate is through."""
    page.locator("#parameters textarea").fill("")
    page.locator("#generate").click()
    expect(page.locator("#parameters textarea")).to_have_value(re.compile("Size"), timeout=60000)
    return page.locator("#message textarea").input_value(), page.locator("#parameters textarea").input_value()


def test_the_read_out_follows_size_ratio_and_steps(page):
    expect(status(page).locator("rect")).to_have_count(16)
    radio(page, "size", "4K")
    select(page, "ratio", "2:1")
    expect(status(page)).to_contain_text("4096x2048, 8.4 MP, 2.84x")
    expect(status(page).locator("rect")).to_have_count(9)
    page.locator(f"{PREFIX}_portrait input").check()
    expect(status(page)).to_contain_text("2048x4096")
    fill(page, "#txt2img_steps", 7)
    expect(status(page)).to_contain_text("2 global, 5 fused")
    radio(page, "size", "WebUI")
    expect(status(page)).to_contain_text("not active: 1024x1024 is not above the base size")
    expect(page.locator(f"{PREFIX}_ratio")).to_be_hidden()


def test_the_title_shows_the_size_while_switched_on(own, page):
    title = page.locator(f"{PREFIX} .label-wrap > span").first
    assert not title.get_attribute("data-resdit")
    page.locator(f"{PREFIX}-checkbox input").check()
    expect(title).to_have_attribute("data-resdit", "3072\u00d73072")
    radio(page, "size", "2K")
    expect(title).to_have_attribute("data-resdit", "2048\u00d72048")


def test_free_and_custom_sizes_show_their_own_controls(page):
    expect(page.locator(f"{PREFIX}_width")).to_be_hidden()
    select(page, "ratio", "Free")
    fill(page, "width", 2000)
    fill(page, "height", 1111)
    expect(status(page)).to_contain_text("2000x1104")
    page.locator(f"{PREFIX}_swap").click()
    expect(status(page)).to_contain_text("1104x2000")
    select(page, "ratio", "4:3")
    radio(page, "size", "Custom")
    expect(page.locator(f"{PREFIX}_long_side")).to_be_visible()
    fill(page, "long_side", 2560)
    expect(status(page)).to_contain_text("1920x2560")


def test_the_size_goes_to_the_webui_and_back(page):
    slider = page.locator("#txt2img_width input[type=range]")
    bound = slider.get_attribute("max")
    assert int(bound) < 8192
    radio(page, "size", "4K")
    expect(status(page)).to_contain_text("4096x4096")
    page.locator(f"{PREFIX}_send").click()
    expect(number(page, "#txt2img_width")).to_have_value("4096")
    expect(slider).to_have_attribute("max", "8192")
    expect(status(page)).to_contain_text("4096x4096")
    page.locator(f"{PREFIX}_back").click()
    expect(number(page, "#txt2img_width")).to_have_value("1024")
    expect(slider).to_have_attribute("max", bound)


def test_presets_of_both_kinds(page):
    page.locator(f"{PREFIX}_advanced").get_by_text("Advanced", exact=True).click()
    select(page, "preset", "Paper")
    expect(number(page, "fused_until")).to_have_value("0.57")
    fill(page, "cutoff", 0.3)
    page.locator(f"{PREFIX}_preset_name textarea, {PREFIX}_preset_name input").first.fill("mine")
    page.locator(f"{PREFIX}_preset_save").click()
    expect(page.locator(f"{PREFIX}_preset_message")).to_contain_text("saved 'mine'")
    select(page, "preset", "Balanced")
    expect(number(page, "cutoff")).to_have_value("0.2")
    select(page, "preset", "mine")
    expect(number(page, "cutoff")).to_have_value("0.3")
    page.locator(f"{PREFIX}_preset_delete").click()
    expect(page.locator(f"{PREFIX}_preset_message")).to_contain_text("deleted 'mine'")


def test_a_picture_is_made_and_its_parameters_paste_back(own, page):
    fill(page, "#txt2img_steps", 4)
    message, plain = generate(page)
    assert message == "not active: switched off" and "ResDiT" not in plain
    page.locator(f"{PREFIX}-checkbox input").check()
    radio(page, "size", "2K")
    select(page, "ratio", "3:2")
    radio(page, "speed", "fastest")
    message, written = generate(page)
    assert message.startswith("active: 2048x1360") and "ResDiT speed: fastest" in written
    image = page.locator("#picture img")
    assert image.evaluate("image => image.naturalWidth / image.naturalHeight") == pytest.approx(32 / 21)

    def paste(text):
        page.locator("#parameters textarea").fill(text)
        page.locator("#paste").click()

    paste(plain)
    expect(page.locator(f"{PREFIX}-checkbox input")).not_to_be_checked()
    radio(page, "speed", "exact")
    paste(written)
    expect(page.locator(f"{PREFIX}-checkbox input")).to_be_checked()
    expect(status(page)).to_contain_text("2048x1360")
    assert generate(page)[1] == written


def test_a_bad_value_is_said_and_the_picture_is_made(own, page):
    page.locator(f"{PREFIX}_advanced").get_by_text("Advanced", exact=True).click()
    fill(page, "#txt2img_steps", 2)
    page.locator(f"{PREFIX}-checkbox input").check()
    scale = page.locator(f"{PREFIX}_attention_scale input")
    scale.fill("cube")
    scale.press("Enter")
    expect(status(page)).to_contain_text("attention_scale is 'cube'")
    message, written = generate(page)
    assert message.startswith("not active: attention_scale is 'cube'") and "ResDiT" not in written
