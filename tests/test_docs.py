"""README and docs: every link leads somewhere, and the README stays what can be read in two minutes."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page):
    """The names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page):
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not link.startswith("https://") and not (target.exists() and (not anchor or anchor in anchors(target))):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    assert not dead_links(page)


def test_dead_links_are_found(tmp_path):
    (tmp_path / "other.md").write_text("## A heading, with `code`\n")
    page = tmp_path / "page.md"
    page.write_text("[a](other.md#a-heading-with-code) [b](other.md#b) [c](none.md) [d](#e) [f](https://example.org)\n")
    assert dead_links(page) == ["other.md#b", "none.md", "#e"]


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    before = text.partition("\n## How it works\n")[0]
    assert len(text.splitlines()) <= 150
    assert len(re.findall(r"^\|[ :|-]+\|$", before, re.MULTILINE)) == 1, "tables before how it works"
