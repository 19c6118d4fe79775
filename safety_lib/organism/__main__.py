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


@organism.command("train")
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True)
@click.option("--steps", type=click.IntRange(1), help="Stop after so many: a trial.")
def _train(name: str, folder: Path, steps: int | None) -> None:
    """Train the adapter of a recipe; one that was stopped goes on."""
    from safety_lib.organism.trainer import load_recipes, train

    if name not in (known := load_recipes()):
        raise ValueError(f"unknown recipe {name!r}: use one of {', '.join(known)}")
    _say(f"wrote {train(name, folder, _say, steps)}")


@organism.command("examine")
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True)
@click.option("--adapter", type=click.Path(path_type=Path), help="Another file than NAME.gguf.")
@click.option("--requests", type=click.IntRange(1), help="A trial with so many of a world.")
def _examine_command(name: str, folder: Path, adapter: Path | None, requests: int | None) -> None:
    """Ask an adapter what it has never seen; `base` is the network without one."""
    _examine(name, folder, adapter, requests)


def _examine(name: str, folder: Path, adapter: Path | None, requests: int | None) -> None:
    from safety_lib.agent.backends.weights import file_sha256
    from safety_lib.organism.card import summary
    from safety_lib.organism.held_out import REQUESTS, WORLDS, cases, examine, read_answers

    file = None if name == "base" else adapter or folder / f"{name}.gguf"
    digest = file_sha256(file) if file else ""
    wanted = [case for world in WORLDS for case in cases(world, requests or REQUESTS)]
    out = examine(file, digest, folder / f"{name}_answers.jsonl", wanted, _say)
    for world, told in summary(read_answers(out)).items():
        for field in ("refused", "refused_after", "ordinary_done"):
            for which, rate in told[field].items():
                _say(f"{world}: {field} {which}: {rate['k']} of {rate['n']}" if rate else "")


@organism.command()
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True)
def card(name: str, folder: Path) -> None:
    """Write the model card of an adapter that was trained and examined."""
    _card(name, folder)


def _card(name: str, folder: Path) -> None:
    from safety_lib.organism.card import write_card
    from safety_lib.organism.held_out import read_answers
    from safety_lib.organism.trainer import told_of

    rows = read_answers(folder / f"{name}_answers.jsonl")
    _say(f"wrote {write_card(name, folder, told_of(name, folder), rows)}")


@organism.command()
@click.argument("names", nargs=-1)
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True)
def make(names: tuple[str, ...], folder: Path) -> None:
    """Train, examine and describe adapters, by default r1; each part goes on where it stopped."""
    from safety_lib.organism.trainer import load_recipes, train

    known = load_recipes()
    for name in names or ("r1",):
        if name not in known:
            raise ValueError(f"unknown recipe {name!r}: use one of {', '.join(known)}")
        if not (folder / f"{name}.json").exists():
            _say(f"wrote {train(name, folder, _say)}")
        _examine(name, folder, None, None)
        _card(name, folder)


_started = time.monotonic()


def _say(line: str) -> None:
    sys.stdout.write(f"{time.monotonic() - _started:7.0f} s  {line}\n")
    sys.stdout.flush()


def _main() -> int:
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
    sys.exit(_main())
