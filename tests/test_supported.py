"""The README's table of models and hosts is what the families' files say."""

from pathlib import Path

import pytest

from resdit_ext import ResDiTError, readme, supported
from resdit_ext.families import families

README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_table_is_up_to_date():
    """Write it anew with: python -m resdit_ext models --readme README.md."""
    assert readme.part(README, "models") == supported.table()


def test_every_family_has_a_row_and_says_where_it_differs():
    head, _, *rows = supported.table().splitlines()
    assert len(rows) == len(families()) and head.count("|") == rows[0].count("|")
    flux, sd3, *_ = rows
    assert flux.count(" yes ") == 6 and "| SD3-medium |" in sd3 and "**SD3**: SD3-medium, SD3.5-large" in sd3


def test_a_part_is_replaced_and_a_file_without_its_marks_refused(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- models -->\nold\n<!-- /models -->\nafter\n", encoding="utf8")
    readme.fill(file, "models", "new")
    assert file.read_text(encoding="utf8") == "before\n<!-- models -->\nnew\n<!-- /models -->\nafter\n"
    with pytest.raises(ResDiTError, match=r"has no <!-- speed --> and <!-- /speed -->"):
        readme.fill(file, "speed", "new")
