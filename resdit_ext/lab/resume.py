"""Long measurements that can be stopped at any time, and go on where they were."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from tqdm import tqdm


def finished(results: Path) -> dict[str, dict]:
    """What is in `results`, one JSON object a line, by key; a last line that a kill cut short is taken off the file."""
    if not results.is_file():
        return {}
    text = results.read_text(encoding="utf8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        results.write_text(whole, encoding="utf8")
    return {row.pop("key"): row for row in map(json.loads, whole.splitlines())}


def measured(wanted: Mapping[str, Callable[[], dict]], results: Path, title: str = "evaluate") -> dict[str, dict]:
    """Measure what is not yet in `results` (one JSON object a line), and return all that is wanted by key."""
    done = finished(results)
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a", encoding="utf8") as out:
        for key in (bar := tqdm([key for key in wanted if key not in done], desc=title)):
            bar.set_postfix_str(key)
            done[key] = wanted[key]()
            out.write(json.dumps({"key": key} | done[key]) + "\n")
            out.flush()
    return {key: done[key] for key in wanted}
