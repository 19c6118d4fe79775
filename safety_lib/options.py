"""What several commands take: options that stand in more than one, and the limits of numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

# More than anybody can wait for is a slip of the finger.
CONVERSATIONS = click.IntRange(1, 1_000_000)
TIMES = click.IntRange(1, 10_000)
TURNS = click.IntRange(1, 200)
PROCESSES = click.IntRange(1, 10_000)
MODEL_CALLS = click.IntRange(1, 10**12)
SEEDS = click.IntRange(-(2**63), 2**63 - 1)


def _stop_after(context: click.Context, _: click.Parameter, most: int | None) -> None:
    if most:
        from safety_lib.agent.backends.calls import counting_calls

        context.with_resource(counting_calls(most))


def _allow_live(context: click.Context, _: click.Parameter, host: str) -> None:
    if host:
        from safety_lib.rollout.permission import live_allowed

        context.with_resource(live_allowed(host))


def takes_common(command: F) -> F:
    """Let a command take what all stages do: artifacts, world, seed, model, and limits on calls."""
    options = [
        click.option(
            "--artifacts",
            default="",
            metavar="DIR",
            help="By default artifacts, and artifacts/NAME for another world than northwind.",
        ),
        click.option(
            "--world",
            default="",
            metavar="NAME",
            help="Of versions that are given by name: a packaged world or the path of a folder. "
            "By default what the files say, else northwind.",
        ),
        click.option(
            "--seed", default=7, show_default=True, type=SEEDS, help="Decides every draw."
        ),
        click.option(
            "--model",
            default="",
            metavar="NAME",
            help="simulated, local, openai:MODEL, cassette:FILE or record:FILE:NAME; "
            "by default what each version names.",
        ),
    ]
    return reduce(lambda wrapped, option: option(wrapped), reversed(options), takes_limits(command))


def takes_limits(command: F) -> F:
    """Let a command take what it may do at most: live agents, calls of a model."""
    options = [
        click.option(
            "--live",
            default="",
            metavar="HOST",
            expose_value=False,
            callback=_allow_live,
            help="Talk to an agent on this host although what it does may last.",
        ),
        click.option(
            "--max-calls",
            type=MODEL_CALLS,
            expose_value=False,
            callback=_stop_after,
            help="Stop at so many calls of a model; what was journaled is kept.",
        ),
    ]
    return reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def takes_versions(command: F) -> F:
    """Let a command take the two versions that are compared."""
    options = [
        click.option("--baseline", default="v1", show_default=True, metavar="VERSION"),
        click.option("--candidate", default="v2", show_default=True, metavar="VERSION"),
    ]
    return reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def takes_results(command: F) -> F:
    """Let a command take results that another tool wrote, and what they mean."""
    options = [
        click.option(
            "--results",
            nargs=2,
            metavar="BASELINE CANDIDATE",
            help="Judge results that another tool wrote: files, folders or patterns.",
        ),
        click.option("--family", default="", metavar="FIELD", help="Of results: family of tests."),
        click.option(
            "--stratum",
            default="",
            metavar="FIELD",
            help="Of results: regression, benign or held_out.",
        ),
        click.option(
            "--severity", default="", metavar="FIELD", help="Of results: low, ..., critical."
        ),
        click.option(
            "--pass", "passes", default="", metavar="EXPR", help="Of results: 'score >= 0.5'."
        ),
        click.option(
            "--max-bytes",
            default=1 << 30,
            show_default=True,
            type=click.IntRange(min=1),
            help="Of results: largest file that is read.",
        ),
    ]
    return reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


takes_workers = click.option(
    "--workers", type=PROCESSES, help="Processes, at most one a core; by default as many as pay."
)


def takes_redaction(command: F) -> F:
    """Let a command take personal data out of what it reads."""
    options = [
        click.option(
            "--redact",
            is_flag=True,
            help="Replace addresses, telephone, card and account numbers before anything is "
            "written.",
        ),
        click.option(
            "--redact-with",
            default="",
            metavar="FILE",
            help="The same, with patterns of your own (YAML: also, keep).",
        ),
    ]
    return reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def _values(bounds: click.IntRange | None) -> Callable[..., Any]:
    def convert(context: click.Context, option: click.Parameter, given: str | None) -> Any:
        from safety_lib.pipeline.grid import GridError, grid_values

        if given is None:
            return ()
        try:
            values = grid_values(given, whole=bounds is not None)
        except GridError as error:
            raise click.BadParameter(str(error), context, option) from error
        return tuple(bounds.convert(int(n), option, context) for n in values) if bounds else values

    return convert


_GRID: dict[str, tuple[click.IntRange | None, str]] = {
    "world": (None, ""),
    "baseline": (None, "v1"),
    "candidate": (None, "v2"),
    "fixed": (None, ""),
    "model": (None, ""),
    "attacker": (None, ""),
    "rollouts": (CONVERSATIONS, ""),
    "max_turns": (TURNS, ""),
    "replays": (TIMES, ""),
    "trials": (TIMES, ""),
    "max_tests": (click.IntRange(0, 10_000), ""),
    "audit": (CONVERSATIONS, ""),
    "incident": (None, ""),
    "log": (None, ""),
    "seed": (SEEDS, "7"),
}


def takes_grid(command: F) -> F:
    """Let a command take one value or several of each parameter of the four notebooks."""
    options = [
        click.option(
            f"--{name.replace('_', '-')}",
            callback=_values(bounds),
            default=default or None,
            show_default=bool(default),
            metavar="GRID",
            help=_OF_A_GRID.get(name, ""),
        )
        for name, (bounds, default) in _GRID.items()
    ]
    return reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


_OF_A_GRID = {
    "world": "Packaged worlds, or the paths of folders; by default as the versions say.",
    "fixed": "Versions that are meant to fix the incident.",
    "incident": "Files of incidents.",
    "log": "Parquet logs of production.",
    "seed": "Each decides every draw of its run.",
}
