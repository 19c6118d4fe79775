"""The command line: one subcommand for each stage, and ``demo`` for the whole loop.

The exit code of ``gate`` is its verdict: 0 OK, 1 WARN, 2 BLOCK. Everything that is not a verdict is
3, whatever went wrong, so that a crash can never be mistaken for a WARN.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from safety_lib.start import run

    sys.exit(run())

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from safety_lib.batching import batch
from safety_lib.options import (
    CONVERSATIONS,
    TIMES,
    TURNS,
    takes_common,
    takes_redaction,
    takes_results,
    takes_versions,
    takes_workers,
)
from safety_lib.places import STAGE_FILES, folder_for, names_a_file, reserve, suite_at, world_for
from safety_lib.start import what_is_missing
from safety_lib.terminal import confirmed, say_lines

if TYPE_CHECKING:
    from safety_lib.incident.intake.redaction import Redaction
    from safety_lib.records import GateHistory, GateReport, RegressionTest
    from safety_lib.rollout.campaign import Run

NOT_A_VERDICT = 3
VERDICT_CODES = {"OK": 0, "WARN": 1, "BLOCK": 2}


class _Verdict(SystemExit):
    """The end of ``gate``: the one that an exit code is taken from."""

    code: int


def _redaction(redact: bool, rules: str) -> Redaction | None:
    from safety_lib.incident.intake.redaction import Redaction, load_redaction

    if rules:
        return load_redaction(rules)
    return Redaction() if redact else None


class _Loop(click.Group):
    """Lists its commands as the loop runs them, not by the alphabet."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Loop, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="agentic-safety-notebooks", prog_name="safety_lib")
def cli() -> None:
    """Run the closed loop of agent safety: stress, regress, gate, replay."""


@cli.command()
@click.option("--rollouts", type=CONVERSATIONS, help="Attacked conversations a version.")
@click.option("--yes", is_flag=True, help="Do not ask before many calls of a paid model.")
@takes_versions
@takes_common
def demo(
    rollouts: int | None,
    yes: bool,
    baseline: str,
    candidate: str,
    artifacts: str,
    world: str,
    seed: int,
    model: str,
) -> None:
    """Run the four notebooks in order.

    Example: python -m safety_lib demo --rollouts 200 --baseline v1 --candidate v2
    """
    from safety_lib.pipeline import run_demo
    from safety_lib.world import load_version

    started = time.monotonic()
    found = world_for(world, baseline, candidate)
    # A notebook runs in a folder of its own, where a path from here would lead elsewhere.
    baseline, candidate = (
        str(Path(name).resolve()) if names_a_file(name) else name for name in (baseline, candidate)
    )
    for name in (baseline, candidate):
        load_version(name, found.address)
    reserve(folder_for(artifacts, found), own=STAGE_FILES, inputs=(baseline, candidate))
    run_demo(
        overrides={
            "rollouts": rollouts,
            "baseline": baseline,
            "candidate": candidate,
            "world": found.address,
            "seed": seed,
        },
        artifacts=folder_for(artifacts, found),
        model=model,
        say=lambda said: say_lines(said.splitlines() or [""]),
        agrees=lambda question: yes or confirmed(question),
    )
    click.echo("=== Demo Complete ===")
    click.echo(f"Total time: {time.monotonic() - started:.0f} seconds")


cli.add_command(batch)


@cli.command()
@click.option("--rollouts", default=200, show_default=True, type=CONVERSATIONS)
@click.option(
    "--attacker",
    default="adaptive",
    show_default=True,
    metavar="NAME",
    help="adaptive, static or direct, with mutators as in adaptive+urgency+padding; or search.",
)
@click.option("--max-turns", default=8, show_default=True, type=TURNS)
@takes_workers
@click.option("--dask", default="", metavar="ADDRESS", help="Run on this Dask cluster instead.")
@takes_versions
@takes_common
def stress(
    rollouts: int,
    attacker: str,
    max_turns: int,
    workers: int | None,
    dask: str,
    baseline: str,
    candidate: str,
    artifacts: str,
    world: str,
    seed: int,
    model: str,
) -> None:
    """Stage 1: attack both versions. Writes stress_failures.json.

    A run that was stopped goes on where it was when it is started again. The number of workers
    changes no result.

    Example: python -m safety_lib stress --rollouts 200 --attacker adaptive
    """
    from safety_lib.artifacts import write_artifact
    from safety_lib.files import locked
    from safety_lib.pipeline.kept_versions import keep_versions
    from safety_lib.pipeline.workers import processes_for
    from safety_lib.report.summary import stress_lines
    from safety_lib.stress.discovery import discover
    from safety_lib.world import load_version

    home = world_for(world, baseline, candidate)
    folder = folder_for(artifacts, home)
    versions = load_version(baseline, home.address), load_version(candidate, home.address)
    reserve(folder, own=("stress_failures.json",), inputs=(baseline, candidate))
    # A search plans one conversation at a time, and a model that attacks is asked over a network.
    alone = attacker.startswith(("search", "model:"))
    processes = workers or (1 if alone else processes_for(rollouts, versions[0], model))
    with _run("stress", folder, seed, model, processes, dask) as run:
        found = discover(
            *versions,
            run,
            rollouts=rollouts,
            attacker=attacker,
            max_turns=max_turns,
            journal=folder / "runs",
        )
        artifact = found.artifact()
        try:
            found.expect_answers()
        except ValueError:
            say_lines(stress_lines(artifact))  # why, version by version
            raise
        with locked(folder / "runs"):
            keep_versions(folder, versions)
            write_artifact(folder, artifact)
    say_lines(stress_lines(artifact, str(folder)))


@cli.command()
@click.option("--input", "source", default="", metavar="FILE", help="stress_failures.json")
@click.option("--replays", default=10, show_default=True, type=TIMES)
@click.option("--baseline", default="", metavar="VERSION", help="By default as in the input.")
@click.option("--candidate", default="", metavar="VERSION", help="By default as in the input.")
@click.option(
    "--reference",
    default="reference",
    show_default=True,
    metavar="VERSION",
    help="Known-good: what it fails is no test.",
)
@takes_workers
@takes_common
def regress(
    source: str,
    replays: int,
    baseline: str,
    candidate: str,
    reference: str,
    workers: int | None,
    artifacts: str,
    world: str,
    seed: int,
    model: str,
) -> None:
    """Stage 2: turn failures into tests. Writes regression_tests.json.

    Example: python -m safety_lib regress --input artifacts/stress_failures.json
    """
    from safety_lib.artifacts import read_artifact, write_artifact
    from safety_lib.files import locked
    from safety_lib.pipeline.kept_versions import version_found_on
    from safety_lib.pipeline.workers import processes_for
    from safety_lib.records import StressFailures
    from safety_lib.regression.generate import generate_suite, previous_suite
    from safety_lib.report.summary import suite_lines
    from safety_lib.world import load_version

    home = world_for(world, baseline, candidate)
    folder = folder_for(artifacts, home)
    reserve(folder, own=("regression_tests.json",), inputs=(source, baseline, candidate))
    found = read_artifact(source or folder, StressFailures)
    versions = [
        load_version(given, home.address) if given else version_found_on(folder, found, name, home)
        for given, name in ((baseline, found.baseline), (candidate, found.candidate))
    ]
    processes = workers or processes_for(replays * len(found.failures), versions[0], model)
    with _run("regress", folder, seed, model, processes) as run:
        suite = generate_suite(
            found,
            {version.version: version for version in versions},
            run,
            replays=replays,
            reference=load_version(reference, home.address),
            previous=previous_suite(folder, found.model),
        )
        with locked(folder / "runs"):
            write_artifact(folder, suite)
    say_lines(suite_lines(suite, str(folder)))


@cli.command()
@click.option("--suite", "suite_file", default="", metavar="FILE", help="regression_tests.json")
@click.option("--trials", default=60, show_default=True, type=TIMES, help="At most, of each test.")
@click.option(
    "--history", default="", metavar="FILE", help="Enter the attempt here; judge no pair twice."
)
@click.option("--exceptions", default="", metavar="FILE", help="Failures that are answered for.")
@click.option("--as-of", type=click.DateTime(["%Y-%m-%d"]), help="Day on which exceptions count.")
@click.option("--markdown", default="", metavar="FILE", help="Write a comment or summary too.")
@click.option("--junit", default="", metavar="FILE", help="Write JUnit XML too.")
@takes_results
@takes_workers
@takes_versions
@takes_common
def gate(
    suite_file: str,
    trials: int,
    history: str,
    exceptions: str,
    as_of: datetime | None,
    markdown: str,
    junit: str,
    workers: int | None,
    baseline: str,
    candidate: str,
    artifacts: str,
    world: str,
    seed: int,
    model: str,
    results: tuple[str, str] | None,
    **meaning: Any,
) -> None:
    """Stage 3: judge the candidate. Exits 0 OK, 1 WARN, 2 BLOCK, 3 no verdict.

    Example: python -m safety_lib gate --baseline v1 --candidate v2

    Example: python -m safety_lib gate --results v1.eval v2.eval
    """
    from safety_lib.gate.release_gate import judge_once, run_gate
    from safety_lib.gate.releases import Standing, load_exceptions
    from safety_lib.gate.rules import load_rules
    from safety_lib.pipeline.workers import processes_for
    from safety_lib.world import load_version

    if history and not history.endswith(".json"):
        raise click.UsageError(f"--history must end in .json, not {history!r}")
    if exceptions and as_of is None:
        raise click.UsageError("--exceptions needs --as-of YYYY-MM-DD: exceptions expire")
    if results:
        _judge_results(results, artifacts, history, markdown, junit, **meaning)
    home = world_for(world, baseline, candidate)
    folder = folder_for(artifacts, home)
    reserve(
        folder,
        own=("gate_report.json", "gate_report.html"),
        named=(markdown, junit, history),
        inputs=(suite_file, exceptions, baseline, candidate),
    )
    suite = suite_at(suite_file or folder, home)
    short = load_rules().too_small(len(suite.active), len({test.family for test in suite.active}))
    if short:  # before the trials are paid for
        click.echo(f"There will be no verdict: {short}.", err=True)
    standing = Standing(
        exceptions=load_exceptions(exceptions) if exceptions else (),
        as_of=as_of.date() if as_of else None,
    )
    versions = load_version(baseline, home.address), load_version(candidate, home.address)
    processes = workers or processes_for(2 * trials * len(suite.active), versions[0], model)
    with _run("gate", folder, seed, model, processes) as run:
        if history:
            asked = judge_once(history, suite, *versions, run, trials=trials, standing=standing)
            report, ledger, again = asked
        else:
            report = run_gate(suite, *versions, run, trials=trials, standing=standing)
            ledger, again = None, False
        code = _publish(report, ledger, again, folder, markdown, junit, suite.tests)
    raise _Verdict(code)


def _judge_results(
    results: tuple[str, str],
    artifacts: str,
    history: str,
    markdown: str,
    junit: str,
    max_bytes: int,
    **meaning: str,
) -> NoReturn:
    from safety_lib.files import expect_writable
    from safety_lib.results.attempts import judge_results_once
    from safety_lib.results.judge import judge_sides, names_of, read_results
    from safety_lib.results.table import Meaning

    folder = Path(artifacts or "artifacts/results")
    own = [folder / "gate_report.json", folder / "gate_report.html"]
    expect_writable([*own, *filter(None, (markdown, junit, history))], results)
    context = click.get_current_context()
    given = [
        context.params[role]
        if context.get_parameter_source(role) is ParameterSource.COMMANDLINE
        else name
        for role, name in zip(("baseline", "candidate"), names_of(*results), strict=True)
    ]
    sides = [
        read_results(source, name, Meaning(**meaning), max_bytes=max_bytes)
        for source, name in zip(results, given, strict=True)
    ]
    for side in sides:
        click.echo(str(side))
    report, ledger, again = (
        judge_results_once(history, *sides) if history else (judge_sides(*sides), None, False)
    )
    raise _Verdict(_publish(report, ledger, again, folder, markdown, junit))


def _publish(
    report: GateReport,
    ledger: GateHistory | None,
    again: bool,
    folder: Path,
    markdown: str,
    junit: str,
    tests: Sequence[RegressionTest] = (),
) -> int:
    from safety_lib.gate.ledger import head_of
    from safety_lib.report.summary import gate_lines
    from safety_lib.report.writing import write_gate_report

    if again:
        click.echo("This pair was judged before: that verdict stands, and it is shown as it was.")
    head, releases = head_of(ledger), ledger.releases if ledger else ()
    write_gate_report(folder, report, releases, head, markdown=markdown, junit=junit, tests=tests)
    say_lines(gate_lines(report, str(folder)))
    if ledger:
        click.echo(f"History: {len(ledger.releases)} verdicts, head {head}")
    return VERDICT_CODES.get(report.verdict or "", NOT_A_VERDICT)


@cli.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--head", default="", metavar="HASH", help="A head that was noted before.")
def history(file: str, head: str) -> None:
    """Show a history of the gate and check it. Exits 3 if it does not hold the head.

    Example: python -m safety_lib history gate_history.json --head 5f1c09ab3e7d2846
    """
    from safety_lib.gate.ledger import head_of, lines_since, read_ledger

    ledger = read_ledger(file)
    for number, line in enumerate(ledger.lines, start=1):
        click.echo(f"{number:>4}  {line}")
    click.echo(f"head  {head_of(ledger)}")
    if not head:
        return
    added = lines_since(ledger, head)
    if added is None:
        raise click.UsageError(
            f"{file} does not hold the head {head}: it was forged, cut off or chained anew since"
        )
    click.echo(f"It holds that head, and {added} lines were added since.")


@cli.command()
@click.option("--incident", default="", metavar="FILE", help="incident_example.json")
@click.option("--conversation", default="", metavar="ID", help="Which one, if the file has many.")
@click.option("--log", "log_file", default="", metavar="FILE", help="Parquet log of production.")
@click.option("--no-log", is_flag=True, help="There is none: how many it touched is not measured.")
@click.option("--version", "version_name", default="", help="By default the one it names.")
@click.option("--baseline", default="v1", show_default=True, metavar="VERSION")
@click.option("--fixed", default="v3", show_default=True, metavar="VERSION")
@click.option("--replays", default=40, show_default=True, type=TIMES)
@click.option("--audit", default=600, show_default=True, type=CONVERSATIONS)
@takes_redaction
@takes_workers
@takes_common
def replay(
    incident: str,
    conversation: str,
    log_file: str,
    no_log: bool,
    version_name: str,
    baseline: str,
    fixed: str,
    replays: int,
    audit: int,
    redact: bool,
    redact_with: str,
    workers: int | None,
    artifacts: str,
    world: str,
    seed: int,
    model: str,
) -> None:
    """Stage 4: replay an incident, find its cause, grow the suite.

    Example: python -m safety_lib replay --incident artifacts/incident_example.json

    FILE is an incident, or a conversation as another tool recorded it: chat messages, spans, traces
    of Langfuse, LangSmith or the OpenAI Agents SDK, logs of Inspect, AgentDojo, tau-bench or a
    coding agent. A refusal lists what is read.
    """
    from safety_lib.artifacts import ArtifactError, read_artifact, write_artifact
    from safety_lib.files import locked
    from safety_lib.incident.intake import find_incident, take_in
    from safety_lib.incident.investigation import Effort, investigate
    from safety_lib.production.log import find_log
    from safety_lib.records import Suite
    from safety_lib.report.documents import write_documents
    from safety_lib.report.summary import incident_lines
    from safety_lib.world import load_version

    if no_log and log_file:
        raise click.UsageError("give --log or --no-log, not both")
    home = world_for(world, version_name, baseline, fixed)
    folder = folder_for(artifacts, home)
    reserve(
        folder,
        own=("regression_tests.json", "incident_replay.json", "docs/postmortem.md"),
        inputs=(incident, log_file, redact_with, version_name, baseline, fixed),
    )
    redaction = _redaction(redact, redact_with)
    taken = take_in(find_incident(incident, folder), home, conversation, redaction)
    reported = taken.incident
    log = None if no_log else find_log(log_file, folder)
    suite = suite_at(folder, home)
    version = load_version(version_name or reported.agent_version or suite.candidate, home.address)
    with _run("replay", folder, seed, model, workers or 1) as run:
        closed = investigate(
            taken,
            suite,
            log,
            run,
            version=version,
            baseline=load_version(baseline, home.address),
            fixed=load_version(fixed, home.address) if fixed else None,
            effort=Effort(replays=replays, audit=audit),
        )
        with locked(folder / "runs"):
            if read_artifact(folder, Suite).content_sha256 != suite.content_sha256:
                raise ArtifactError(
                    "regression_tests.json: another run wrote it meanwhile, and its tests would be "
                    "lost; run this one again"
                )
            write_artifact(folder, closed.report)
            write_artifact(folder, closed.suite)  # last: a run that was killed reads the old one
    say_lines(incident_lines(closed.report))
    if redaction:
        click.echo(f"  {redaction}")
    for path in write_documents(folder, ["postmortem"]):
        click.echo(f"Postmortem saved to {path}")


@cli.group(cls=_Loop, invoke_without_command=True)
@click.pass_context
def log(context: click.Context) -> None:
    """Make a log of production from what an agent recorded.

    Example: python -m safety_lib log import spans.jsonl log.parquet --world airline
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@log.command("import")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.argument("out", metavar="OUT.parquet")
@click.option("--world", required=True, metavar="NAME", help="A packaged world, or its folder.")
@click.option("--version", default="", metavar="NAME", help="Of conversations that tell none.")
@takes_redaction
def import_(
    files: tuple[str, ...], out: str, world: str, version: str, redact: bool, redact_with: str
) -> None:
    """Read spans or chats into the Parquet log of stage 4.

    FILE holds OpenTelemetry GenAI spans or OpenAI chat messages, as JSON or JSON Lines.

    Example: python -m safety_lib log import spans.jsonl log.parquet --world airline --redact
    """
    from safety_lib.incident.intake.sessions import import_log
    from safety_lib.world import load_world

    if not out.endswith(".parquet"):
        raise click.UsageError(f"OUT must end in .parquet, not {out!r}")
    redaction = _redaction(redact, redact_with)
    done = import_log(files, out, load_world(world), version=version, redaction=redaction)
    click.echo(str(done))


@log.command()
def schema() -> None:
    """Show the columns of a log, what they mean, and a row.

    Example: python -m safety_lib log schema
    """
    from safety_lib.production.log import schema_lines

    say_lines(schema_lines())


@cli.command()
@click.argument("format_", metavar="FORMAT")
@click.argument("out", metavar="OUT")
@click.option("--suite", "suite_file", default="", metavar="FILE", help="regression_tests.json")
@click.option("--all", "everything", is_flag=True, help="What was set aside too.")
@click.option("--version", "name", default="v2", show_default=True, help="For inspect-log: run it.")
@click.option("--trials", default=5, show_default=True, type=TIMES, help="For inspect-log.")
@takes_common
def export(
    format_: str,
    out: str,
    suite_file: str,
    everything: bool,
    name: str,
    trials: int,
    artifacts: str,
    world: str,
    seed: int,
    model: str,
) -> None:
    """Write the suite for other tools.

    FORMAT is json, openai, inspect, inspect-log or promptfoo. A log of Inspect goes into the folder
    of OUT, under the name by which Inspect finds it.

    Example: python -m safety_lib export promptfoo safety_tests.yaml
    """
    from safety_lib.artifacts import write_artifact
    from safety_lib.files import write_text
    from safety_lib.regression import exports
    from safety_lib.regression.admission import run_tests
    from safety_lib.world import load_version

    if format_ not in exports.FORMATS:
        raise click.UsageError(f"unknown format {format_!r}: use {', '.join(exports.FORMATS)}")
    if format_ == "json" and not out.endswith(".json"):
        raise click.UsageError(f"OUT must end in .json, not {out!r}")
    if format_ == "inspect-log":
        out = str(exports.inspect_path(out))  # another name Inspect does not find
    home = world_for(world, name)
    folder = folder_for(artifacts, home)
    reserve(folder, named=(out,), inputs=(suite_file, name))
    suite = suite_at(suite_file or folder, home)
    tests = suite.tests if everything else suite.active
    if format_ == "json":
        write_artifact(Path(out), suite.model_copy(update={"tests": tests}))
    elif format_ == "inspect-log":
        version = load_version(name, home.address)
        with _run("export", folder, seed, model, 1) as run:
            runs = run_tests(tests, version, run, trials=trials)
            write_text(out, exports.to_inspect_log(runs, version, seed=seed))
    else:
        write_text(out, exports.WRITERS[format_](tests, home))
    note = exports.plants_note(tests) if format_ in exports.WRITERS else ""
    say_lines([f"Wrote {len(tests)} tests to {out}", *([note] if note else [])])


@contextmanager
def _run(
    stage: str, folder: Path, seed: int, model: str, processes: int, dask: str = ""
) -> Iterator[Run]:
    """Open what a stage runs on. Its results are written inside: until then answers are kept."""
    from safety_lib.agent.backends.answers import keeping_answers
    from safety_lib.pipeline.workers import workers_for
    from safety_lib.rollout.campaign import Run

    with ExitStack() as stack:
        if not dask:  # whose workers do not see this folder
            told = keeping_answers(folder / "runs", stage, lambda line: say_lines([line], err=True))
            stack.enter_context(told)
        executor, workers = stack.enter_context(workers_for(processes, dask))
        tick = stack.enter_context(_progress("conversations"))
        yield Run(seed, model, executor, workers, tick)


_SECONDS_BETWEEN_LINES = 30.0  # where no terminal shows a bar


@contextmanager
def _progress(unit: str) -> Iterator[Callable[[Any], None]]:
    from tqdm import tqdm

    failures = done = 0
    told = started = time.monotonic()
    plain = not sys.stderr.isatty()
    with tqdm(unit=f" {unit}", disable=plain, leave=False) as bar:

        def tick(trajectory: Any) -> None:
            nonlocal failures, done, told
            failures += trajectory.outcome == "violation"
            done += 1
            bar.set_postfix_str(f"{failures} failures", refresh=False)
            bar.update()
            now = time.monotonic()
            if plain and now - told >= _SECONDS_BETWEEN_LINES:
                told = now
                say_lines([f"{now - started:.0f} s: {done} {unit}, {failures} failures"], err=True)

        yield tick


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; 3 for everything that is not a verdict.

    Parameters
    ----------
    arguments : list of str, optional
        By default those of the process.
    """
    try:
        given = sys.argv[1:] if arguments is None else arguments
        # Without a word, click would call it a usage error.
        cli.main(given or ["--help"], prog_name="python -m safety_lib", standalone_mode=False)
    except _Verdict as verdict:
        return int(verdict.code)
    except SystemExit as stop:  # an agent that ends the program must not look like a verdict
        return _refused(f"something ended the program: SystemExit: {stop.code}")
    except click.ClickException as error:
        return _refused(f"{error.format_message()} (see --help)")
    except (click.Abort, KeyboardInterrupt):
        return _refused("interrupted; nothing was half written, run it again")
    except Exception as error:
        if missing := what_is_missing(error):
            return _refused(missing)
        if isinstance(error, ValueError | RuntimeError | OSError):
            return _refused(str(error))
        import traceback

        with suppress(OSError):
            traceback.print_exc()
        return _refused(f"this is a bug: {type(error).__name__}: {error}")
    return 0


def _refused(why: str) -> int:
    from safety_lib.text import one_line

    with suppress(OSError):  # a terminal that is gone, a disk that is full: it is 3 all the same
        click.echo(f"error: {one_line(why, 1_000)}", err=True)
    return NOT_A_VERDICT
