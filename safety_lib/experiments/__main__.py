"""``python -m safety_lib.experiments [NAME ...]``; without names it runs all of them."""

from __future__ import annotations

import sys
import time

from safety_lib.start import what_is_missing

if __name__ == "__main__":
    started = time.monotonic()
    try:
        from safety_lib.experiments.registry import run_experiments

        for path in run_experiments(sys.argv[1:]):
            sys.stdout.write(f"{time.monotonic() - started:7.1f} s  {path}\n")
            sys.stdout.flush()
    except (ValueError, ImportError) as stop:
        sys.stderr.write(f"error: {what_is_missing(stop) or stop}\n")
        sys.exit(3)
