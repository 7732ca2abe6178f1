"""The accordion in Chromium as people use it: on its own page with the micro FLUX behind Generate, and in real WebUIs.

A WebUI takes part where its address is in FORGE_URL, NEO_URL, ERSATZ_URL or A1111_URL, or where it can be started (see
tests/hosts/webui.py).
"""

import os
import re
import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from resdit_ext.lab.model import load_micro  # noqa: E402
from resdit_ext.lab.page import launch  # noqa: E402
from resdit_ext.webui.ui import OWN_NUMBERS  # noqa: E402
from tests.hosts import webui  # noqa: E402

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
OWN = "own page"
MODELS = {"forge": "flux", "neo": "flux", "ersatz": "sd3", "a1111": "sd3"}  # of the WebUIs started here
# A1111's page says so without the extension too, after its width, height or steps change.
ERRORS_OF_HOST = {"a1111": "Cannot read properties of undefined (reading 'props')"}
expect = playwright.expect


@pytest.fixture(scope="module", params=[OWN, *MODELS])
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
    with webui.started(name, MODELS[name], tmp_path_factory.mktemp(name)) as running:
        running.ask("/sdapi/v1/options", {"show_progress_type": "Approx cheap"})  # for the default SD3 fetches a file
        yield name, running.address


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
    assert not [error for error in errors if error != ERRORS_OF_HOST.get(site[0])]


def radio(page, name, text):
    page.locator(f"{PREFIX}_{name}").get_by_text(text, exact=True).click()


def select(page, name, text):
    page.locator(f"{PREFIX}_{name} input").click()
    page.locator(f'[data-testid=dropdown-option][aria-label="{text}"]').click()  # no role that all gradios give it


def number(page, name):
    return page.locator(f"{name if name.startswith('#') else f'{PREFIX}_{name}'} input[type=number]")


def fill(page, name, value):
    number(page, name).fill(str(value))
    number(page, name).press("Enter")


def write(page, name, text):
    """Into a list that takes what is not in it."""
    box = page.locator(f"{PREFIX}_{name} input")
    box.fill(text)
    box.press("Enter")


def html(page, name):
    return page.locator(f"{PREFIX}_{name}").first  # gradio 3.41 gives the id to two elements, one in the other


def status(page):
    return html(page, "status")


def open_advanced(page):
    page.locator(f"{PREFIX}_advanced").get_by_text("Advanced", exact=True).click()


def open_numbers(page):
    open_advanced(page)
    page.locator(f"{PREFIX}_method").get_by_text(OWN_NUMBERS, exact=True).click()


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
    expect(status(page)).to_contain_text("4 layout, 3 fused")
    radio(page, "size", "WebUI")
    expect(status(page)).to_contain_text("not active: 1024x1024 is not above the base size")
    expect(page.locator(f"{PREFIX}_ratio")).to_be_hidden()


def test_the_read_out_shows_at_once_that_it_is_asked(page):
    asked = page.locator(f"{PREFIX}_size label", has_text="4K").evaluate(
        "(box, id) => (box.click(), document.querySelector(id).classList.contains('resdit-asked'))", f"{PREFIX}_status"
    )
    assert asked
    expect(status(page)).to_contain_text("4096x4096")
    expect(status(page)).not_to_have_class(re.compile("resdit-asked"))


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
    open_numbers(page)
    select(page, "preset", "Paper")
    expect(number(page, "fused_until")).to_have_value("0.57")
    fill(page, "cutoff", 0.3)
    page.locator(f"{PREFIX}_preset_name textarea, {PREFIX}_preset_name input").first.fill("mine")
    page.locator(f"{PREFIX}_preset_save").click()
    expect(html(page, "preset_message")).to_contain_text("saved 'mine'")
    select(page, "preset", "Balanced")
    expect(number(page, "cutoff")).to_have_value("0.75")
    select(page, "preset", "mine")
    expect(number(page, "cutoff")).to_have_value("0.3")
    page.locator(f"{PREFIX}_preset_delete").click()
    expect(html(page, "preset_message")).to_contain_text("deleted 'mine'")


def test_a_picture_is_made_in_a_webui(page, site):
    """Twice the base size, with the tiny model that a WebUI started for the tests has."""
    if site[0] == OWN or os.environ.get(f"{site[0].upper()}_URL"):
        pytest.skip("only in a WebUI started for the tests")
    for name, value in (("width", 256), ("height", 256), ("steps", 4)):
        fill(page, f"#txt2img_{name}", value)
    radio(page, "size", "WebUI")
    open_advanced(page)
    write(page, "base_size", "128")
    expect(status(page)).to_contain_text("256x256, 0.1 MP, 2.00x")
    page.locator("#txt2img_generate").click()
    image = page.locator("#txt2img_gallery img").first
    expect(image).to_be_visible(timeout=120000)
    expect(page.locator("#html_info_txt2img").first).to_contain_text("ResDiT: ", timeout=120000)
    assert image.evaluate("image => image.naturalWidth") == 256


def test_a_picture_is_made_and_its_parameters_paste_back(own, page):
    fill(page, "#txt2img_steps", 4)
    message, plain = generate(page)
    assert message == "not active: switched off" and "ResDiT" not in plain
    page.locator(f"{PREFIX}-checkbox input").check()
    radio(page, "size", "2K")
    select(page, "ratio", "3:2")
    open_advanced(page)
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
    open_numbers(page)
    fill(page, "#txt2img_steps", 2)
    page.locator(f"{PREFIX}-checkbox input").check()
    write(page, "attention_scale", "cube")
    expect(status(page)).to_contain_text("attention_scale is 'cube'")
    message, written = generate(page)
    assert message.startswith("not active: attention_scale is 'cube'") and "ResDiT" not in written
