"""Run every check inside a host: `HOST_PYTHON -m tests.hosts.checks HOST HOST_DIR OUT.json [DIFFUSERS_FILE]`.

OUT.json holds {check: {"ok": bool, "detail": str, "seconds": float, "skipped": bool}}. It is rewritten after each
check, so that a crash names the one that was running.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path

from tests.hosts import (  # noqa: F401 (importing registers the checks)
    checks_chroma,
    checks_control,
    checks_kinds,
    checks_layout,
    checks_lora,
    checks_method,
    checks_positions,
    checks_references,
    checks_sd3,
    checks_state,
    checks_stored,
    checks_vae,
    kit,
)
from tests.hosts.bench import CHECKS, Bench, Skipped


def run_checks(bench: Bench, out: Path) -> None:
    """Run them all and write what happened."""
    results = {}
    for name, function in CHECKS.items():
        results[name] = {"ok": False, "detail": "the host's process ended in this check", "skipped": False}
        out.write_text(json.dumps(results, indent=1))
        start = time.perf_counter()
        try:
            results[name] |= {"detail": function(bench), "ok": True}
        except Skipped as reason:
            results[name] |= {"detail": str(reason), "ok": True, "skipped": True}
        except Exception:
            results[name]["detail"] = traceback.format_exc()
        results[name]["seconds"] = round(time.perf_counter() - start, 2)
        out.write_text(json.dumps(results, indent=1))


def main(host: str, folder: str, out: str, handed: str | None = None) -> None:
    """Enter the host, which changes the directory, and check."""
    target, handed_path = Path(out).resolve(), handed and Path(handed).resolve()
    kit.enter(host, str(Path(folder).resolve()))
    run_checks(Bench(host, handed_path), target)


if __name__ == "__main__":
    main(*sys.argv[1:])
