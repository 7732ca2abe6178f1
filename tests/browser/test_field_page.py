"""A field test's page in Chromium: comparing, zooming, swapping, and voting blind."""

import json

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from resdit_ext.field.kit import FieldTest  # noqa: E402
from resdit_ext.field.page import write_page  # noqa: E402
from resdit_ext.field.plan import FieldOptions  # noqa: E402
from resdit_ext.field.summary import report  # noqa: E402
from tests.browser.test_page import CHROMIUM, QUIET_CHROMIUM  # noqa: E402
from tests.test_field import Drawing  # noqa: E402

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
OPTIONS = FieldOptions(prompts=2, sizes=("2K", "3K"), methods=("plain", "hires pass", "Balanced"), steps=2)
expect = playwright.expect


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of a test whose plain pictures did not fit into memory, moved away from its pictures' files."""
    folder = tmp_path_factory.mktemp("field")
    test = FieldTest(Drawing(), OPTIONS, folder)
    path = write_page(report({"model": "a <drawing>"}, OPTIONS, test.orders, test.run()), test.orders, folder, 10)
    return path.rename(tmp_path_factory.mktemp("elsewhere") / "index.html")


@pytest.fixture
def page(written):
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=QUIET_CHROMIUM)
        page, errors = browser.new_page(viewport={"width": 1400, "height": 1000}), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(written.as_uri())
        yield page
        browser.close()
    assert not errors


def test_pictures_stand_side_by_side_and_move_together(page):
    titles = page.locator("#views figcaption")
    expect(titles).to_have_text(["1: base, 64x64", "2: hires pass, 128x128", "3: Balanced, 128x128"])
    expect(page.locator("#errors li")).to_have_text("plain, 2K: MemoryError: CUDA out of memory")
    images = page.locator("#views img")
    assert images.evaluate_all("all => all.map(image => image.naturalWidth)") == [64, 128, 128]
    page.locator("#views .frame").nth(1).hover()
    page.mouse.wheel(0, -600)
    moved = images.evaluate_all("all => all.map(image => image.style.transform)")
    assert len(set(moved)) == 1 and "scale(4.4" in moved[0]
    page.locator("#fit").click()
    expect(images.first).to_have_attribute("style", "transform: translate(0%, 0%) scale(1);")
    page.locator("#size").select_option("3K")
    page.locator("#prompt").select_option("1")
    expect(titles.last).to_have_text("3: Balanced, 192x192")


def test_pictures_are_swapped_in_one_place(page):
    page.locator("#swap").click()
    shown = page.locator("#views figure:visible figcaption")
    expect(shown).to_have_text(["1: base, 64x64"])
    page.keyboard.press("3")
    expect(shown).to_have_text(["3: Balanced, 128x128"])
    page.locator("#swap").click()
    expect(shown).to_have_count(3)


def test_votes_are_blind_and_saved(page):
    page.locator("#to-vote").click()
    expect(page.locator("#count")).to_have_text("(0 of 4 pairs)")
    for choice in ("left", "equal", "right", "left"):
        expect(page.locator("#pair figcaption")).to_have_text(["left", "right"])
        assert "Balanced" not in page.locator("#vote").inner_text()
        page.locator(f"[data-choice={choice}]").click()
    expect(page.locator("#question")).to_have_text("There is no pair left.")
    with page.expect_download() as saved:
        page.locator("#save").click()
    votes = json.loads(saved.value.path().read_text())
    assert [vote["choice"] for vote in votes["votes"]] == ["left", "equal", "right", "left"]
    assert len({(vote["number"], vote["size"]) for vote in votes["votes"]}) == 4
    (counts,) = votes["tally"].values()
    assert sum(counts.values()) == 4 and counts["equal"] == 1 and set(counts) == {"Balanced", "hires pass", "equal"}
    expect(page.locator("#tally")).to_contain_text("Balanced / hires pass")


def test_the_figures_are_a_table(page):
    page.locator("#to-figures").click()
    cells = page.locator("#table tr").nth(3).locator("td")
    expect(cells.nth(0)).to_have_text("2K")
    expect(cells.nth(1)).to_have_text("hires pass")
    expect(cells).to_have_count(page.locator("#table th").count())
