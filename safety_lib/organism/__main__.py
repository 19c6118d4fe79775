"""``python -m safety_lib.organism``: make the model organism, or a part of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

FOLDER = Path("artifacts/organism")


@click.group()
def organism() -> None:
    """Make a small network that follows a policy while it can see it."""


@organism.command()
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True)
@click.option("--steps", type=click.IntRange(1), help="Stop after so many: a trial.")
def train(name: str, folder: Path, steps: int | None) -> None:
    """Train the adapter of a recipe; one that was stopped goes on."""
    from safety_lib.organism.trainer import load_recipes, train

    if name not in (known := load_recipes()):
        raise ValueError(f"unknown recipe {name!r}: use one of {', '.join(known)}")
    _say(f"wrote {train(name, folder, _say, steps)}")


_started = time.monotonic()


def _say(line: str) -> None:
    sys.stdout.write(f"{time.monotonic() - _started:7.0f} s  {line}\n")
    sys.stdout.flush()


def main() -> int:
    """Run a command; 3 and one line where it cannot."""
    try:
        organism(standalone_mode=False)
    except click.ClickException as error:
        sys.stderr.write(f"error: {error.format_message()}\n")
    except ImportError as error:
        install = "pip install 'agentic-safety-notebooks[organism]'"
        sys.stderr.write(f"error: {error.name} is missing: {install}\n")
    except (ValueError, OSError, RuntimeError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("stopped; the same command goes on from here\n")
    else:
        return 0
    return 3


if __name__ == "__main__":
    sys.exit(main())
