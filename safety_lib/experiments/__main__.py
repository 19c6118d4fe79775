"""``python -m safety_lib.experiments [NAME ...]``; without names it runs all of them."""

from __future__ import annotations

import sys
import time

from safety_lib.experiments.registry import ExperimentError, run_experiments

if __name__ == "__main__":
    started = time.monotonic()
    try:
        for path in run_experiments(sys.argv[1:]):
            sys.stdout.write(f"{time.monotonic() - started:7.1f} s  {path}\n")
            sys.stdout.flush()
    except ExperimentError as stop:
        sys.stderr.write(f"error: {stop}\n")
        sys.exit(3)
