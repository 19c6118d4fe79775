"""From failures to a suite: reproduce, minimise, deduplicate, admit.

Nothing is dropped in silence. A failure that does not come back on fresh seeds, or that a
known-good agent shows as well, becomes a quarantined or rejected test with the reason; a duplicate
is counted on the test that stands for it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Literal, NamedTuple

from safety_lib.agent.versions import Version, config_hashes, load_version
from safety_lib.artifacts import read_artifact
from safety_lib.attack.scenarios import benign_twin, load_goals
from safety_lib.policy import load_policy
from safety_lib.records import (
    SEVERITIES,
    Failure,
    Minimisation,
    RegressionTest,
    Reproduction,
    StressFailures,
    Suite,
    TestSource,
    Trajectory,
    UnitCase,
)
from safety_lib.regression.admission import (
    ADMIT_RATE,
    TWIN_REPLAYS,
    came_back,
    count,
    decide,
    hold_all,
    pooled,
    reproduce,
    twins_served,
)
from safety_lib.regression.minimise import (
    BUDGET_PER_REPLAY,
    PROBES,
    Turns,
    breaks,
    minimise_failures,
)
from safety_lib.regression.signature import family, severity, signature, test_id
from safety_lib.regression.unit import unit_case
from safety_lib.streams import key

__all__ = [
    "count",
    "deduplicate",
    "generate_suite",
    "merge",
    "previous_suite",
    "propose",
    "reproduce",
    "split_of",
]

REFERENCE = "reference"
HELD_OUT_OF = 3  # one family of three is held out


class _Trial(NamedTuple):
    """One failure on its way: what is left of it, and what it did on fresh seeds."""

    failure: Failure
    reproduction: Reproduction
    reference: Reproduction
    minimised: Minimisation
    unit: UnitCase | None


def propose(
    failure: Failure,
    reproduction: Reproduction,
    seed: int,
    incident_id: str = "",
    *,
    reference: Reproduction | None = None,
    twin: Reproduction | None = None,
    minimised: Minimisation | None = None,
    unit: UnitCase | None = None,
) -> RegressionTest:
    """Turn one failure into a test: active if it may be admitted, else set aside with the reason.

    Parameters
    ----------
    failure : Failure
        What is to be said again, minimised or as it was found.
    reproduction : Reproduction
        How often it came back on the version that it was found on.
    seed : int
        The run's seed.
    incident_id : str, optional
        The incident that it comes from, if it does.
    reference, twin : Reproduction, optional
        What the known-good reference did, as in :func:`safety_lib.regression.admission.decide`.
    minimised : Minimisation, optional
        How it was shortened.
    unit : UnitCase, optional
        The same failure at one hook.
    """
    rule = load_policy().rule(failure.rule_id)
    lifecycle, reason = decide(reproduction, reference, twin)
    kin, grave = family(failure), severity(failure)
    return RegressionTest(
        test_id=test_id(failure.rule_id, failure.trajectory, failure.plants),
        source_failure_id=failure.failure_id,
        name=f"{rule.title}: {failure.attack_type.replace('_', ' ')}",
        category=failure.attack_type,
        family=kin,
        signature=signature(failure),
        rule_id=failure.rule_id,
        severity=grave,
        description=(
            f"{failure.version} broke {failure.rule_id} at turn {failure.failure_turn} "
            f"({failure.violations[0].evidence})"
        ),
        attack_turns=failure.trajectory,
        plants=failure.plants,
        expected_behavior=f"Refuses or holds at every turn. {rule.text}",
        tags=tuple(
            sorted(
                {
                    failure.attack_type,
                    f"severity:{grave}",
                    "delayed" if failure.delayed else "immediate",
                    *(f"{kind}:{tag}" for kind, tag in rule.tags.items()),
                }
            )
        ),
        lifecycle=lifecycle,
        lifecycle_reason=reason,
        reproduction=reproduction,
        reference=reference,
        minimised=minimised,
        unit=unit,
        split=split_of(kin),
        benign_twin=benign_twin(failure.goal),
        source=TestSource(
            stage="incident" if incident_id else "stress",
            version=failure.version,
            seed=seed,
            incident_id=incident_id,
        ),
    )


def split_of(family: str) -> Literal["public", "held_out"]:
    """Say on which side of the split a family is: for ever, and all of it.

    The family's name alone decides, so a family that was held out in one run is never public in
    another, and no test can leak into the other side through a relative.
    """
    return "held_out" if key(0, "split", family) % HELD_OUT_OF == 0 else "public"


def deduplicate(tests: Iterable[RegressionTest]) -> tuple[RegressionTest, ...]:
    """Keep one test for each signature and version that it was found on.

    An active test stands for its duplicates before one that was set aside, then the one that comes
    back most often, then the shortest; it takes over the highest severity among them. The two
    versions are kept apart so that the suite stays as symmetric as the discovery was. The very same
    turns found on both are one test.

    Returns
    -------
    tuple of RegressionTest
        Sorted by family, signature and id; ``duplicates`` says how many others each stands for.
    """
    groups: defaultdict[tuple[str, str], list[RegressionTest]] = defaultdict(list)
    for test in tests:
        groups[test.signature, test.source.version].append(test)
    kept: dict[str, RegressionTest] = {}
    for group in groups.values():
        worst = max((test.severity for test in group), key=SEVERITIES.index)
        best = max(group, key=_rank)
        stands = sum(1 + test.duplicates for test in group) - 1
        others = (tag for tag in best.tags if not tag.startswith("severity:"))
        tags = tuple(sorted([*others, f"severity:{worst}"]))
        best = best.model_copy(update={"severity": worst, "tags": tags, "duplicates": stands})
        kept[best.test_id] = max(best, kept.get(best.test_id, best), key=_rank)
    return tuple(sorted(kept.values(), key=lambda t: (t.family, t.signature, t.test_id)))


def generate_suite(
    found: StressFailures,
    versions: Mapping[str, Version],
    *,
    replays: int = 10,
    seed: int = 7,
    model: str = "",
    reference: Version | None = None,
    previous: Suite | None = None,
    executor: Executor | None = None,
    workers: int = 1,
    on_result: Callable[[Trajectory], None] | None = None,
) -> Suite:
    """Make the suite from what stage 1 found.

    Parameters
    ----------
    found : StressFailures
        The artifact of stage 1.
    versions : mapping
        Version name to version; their hashes must be those that the failures were found on.
    replays : int
        Fresh seeds for each question that is asked of a failure. A failure may cost 12 times as
        many replays while it is minimised.
    seed, model
        As in :func:`safety_lib.regression.admission.reproduce`.
    reference : Version, optional
        The known-good version that every active test must pass; by default the packaged one, which
        is neither side of the comparison. The baseline would not do: what was found on it could
        then never be admitted, and the suite would favour it.
    previous : Suite, optional
        Its tests that came from incidents stay: they are permanent, and no stress test owns them.
        A test that somebody retired or rejected stays so.
    executor, workers, on_result
        As in :func:`safety_lib.rollout.campaign.run_campaign`; the result depends on none.

    Raises
    ------
    IntakeError
        If a failure cannot be made into a test; the message names the record.
    ValueError
        If a version has changed since discovery.
    """
    for name, version in versions.items():
        if found.config_sha256.get(name, version.sha256) != version.sha256:
            raise ValueError(
                f"version {name!r} has changed since its failures were found: run stage 1 again"
            )
    check_failures(found.failures, versions)
    good = reference or load_version(REFERENCE)
    first = reproduce(
        found.failures,
        versions,
        replays=replays,
        seed=seed,
        model=model,
        executor=executor,
        workers=workers,
        on_result=on_result,
    )
    again = [
        (failure, seen)
        for failure, seen in zip(found.failures, first, strict=True)
        if came_back(seen)
    ]
    shortened = minimise_failures(
        [failure for failure, _ in again],
        versions,
        good,
        rates=[seen.k / seen.n for _, seen in again],
        seed=seed,
        least=ADMIT_RATE,
        probes=min(PROBES, replays),
        budget=BUDGET_PER_REPLAY * replays,
        model=model,
        executor=executor,
        workers=workers,
        on_result=on_result,
    )

    def tried(cases: Sequence[tuple[Failure, Turns, Minimisation]]) -> list[_Trial]:
        return list(
            _tried(
                cases,
                versions,
                good,
                replays=replays,
                seed=seed,
                model=model,
                executor=executor,
                workers=workers,
                on_result=on_result,
            )
        )

    trials = tried([(f, turns, how) for (f, _), (turns, how) in zip(again, shortened, strict=True)])
    # A reduction that does not hold on the fresh seeds of admission was luck: take the whole again.
    lucky = [
        i
        for i, trial in enumerate(trials)
        if trial.failure.trajectory != again[i][0].trajectory and not _holds(trial)
    ]
    for i, trial in zip(
        lucky,
        tried([(again[i][0], again[i][0].trajectory, _undone(trials[i])) for i in lucky]),
        strict=True,
    ):
        trials[i] = trial
    # What was not shortened has been replayed twice on fresh seeds: all of it counts.
    trials = [
        trial._replace(reproduction=pooled(seen, trial.reproduction))
        if trial.failure.trajectory == failure.trajectory
        else trial
        for trial, (failure, seen) in zip(trials, again, strict=True)
    ]
    twins = twins_served(
        (trial.failure.goal for trial in trials),
        good,
        replays=min(replays, TWIN_REPLAYS),
        seed=seed,
        model=model,
    )
    candidates = [
        propose(
            trial.failure,
            trial.reproduction,
            seed,
            reference=trial.reference,
            twin=twins[trial.failure.goal],
            minimised=trial.minimised,
            unit=trial.unit,
        )
        for trial in trials
    ]
    gone = [
        propose(failure, seen, seed)
        for failure, seen in zip(found.failures, first, strict=True)
        if not came_back(seen)
    ]
    distinct = deduplicate(candidates)
    tests = _as_decided(deduplicate([*candidates, *gone]), previous)
    kept = () if previous is None else previous.only("incident").tests
    return Suite(
        artifact=Suite.SCHEMA,
        schema_version=Suite.VERSION,
        seed=seed,
        model=found.model,
        config_sha256=config_hashes([*versions.values(), good]),
        policy_sha256=load_policy().sha256,
        baseline=found.baseline,
        candidate=found.candidate,
        funnel={
            "found": len(found.failures),
            "reproduced": len(again),
            "minimised": sum(_is_shorter(trial.minimised) for trial in trials),
            "distinct": len(distinct),
            "active": sum(test.lifecycle == "active" for test in tests),
            "quarantined": sum(test.lifecycle == "quarantined" for test in tests),
            "rejected": sum(test.lifecycle == "rejected" for test in tests),
        },
        tests=merge(tests, kept),
    )


def previous_suite(folder: str | Path, model: str) -> Suite | None:
    """Read the suite that is already in a folder; None if there is none or another model's.

    Raises
    ------
    ArtifactError
        If there is one that is damaged: it may hold tests that exist nowhere else.
    """
    if not (Path(folder) / f"{Suite.SCHEMA}.json").exists():
        return None
    suite = read_artifact(folder, Suite)
    return suite if suite.model == model else None


def merge(
    tests: Sequence[RegressionTest], more: Sequence[RegressionTest]
) -> tuple[RegressionTest, ...]:
    """Add tests to a suite's tests; one that is there already, by its id, is not added again."""
    known = {test.test_id for test in tests}
    return (*tests, *(test for test in more if test.test_id not in known))


def _tried(
    cases: Sequence[tuple[Failure, Turns, Minimisation]],
    versions: Mapping[str, Version],
    good: Version,
    *,
    replays: int,
    seed: int,
    model: str,
    executor: Executor | None,
    workers: int,
    on_result: Callable[[Trajectory], None] | None,
) -> Iterator[_Trial]:
    """Hold what is left of each failure on its version and on the reference, on the same seeds."""
    plan = [
        (failure, version, turns)
        for failure, turns, _ in cases
        for version in (versions[failure.version], good)
    ]
    held = iter(
        hold_all(
            plan,
            replays=replays,
            seed=seed,
            stream="admit",
            model=model,
            executor=executor,
            workers=workers,
            on_result=on_result,
        )
    )
    for (failure, turns, how), bad in zip(cases, held, strict=False):
        reference = next(held)
        version = versions[failure.version]
        shown = next((t for t in bad if breaks(t, failure.rule_id)), None)
        yield _Trial(
            failure=failure if shown is None else _as_held(failure, turns, shown),
            reproduction=count(failure.version, bad, failure.rule_id),
            reference=count(good.version, reference, failure.rule_id),
            minimised=how,
            unit=None if shown is None else unit_case(shown, version, failure.rule_id),
        )


def _as_held(failure: Failure, turns: Turns, shown: Trajectory) -> Failure:
    broken = [v for v in shown.violations if v.rule_id == failure.rule_id]
    return failure.model_copy(
        update={
            "trajectory": turns,
            "failure_turn": broken[0].turn,
            "violations": (*broken, *(v for v in shown.violations if v not in broken)),
            "model_responses": shown.replies,
            "tool_calls": tuple(e for e in shown.events if e.kind == "tool_call"),
        }
    )


def _holds(trial: _Trial) -> bool:
    return decide(trial.reproduction, trial.reference)[0] == "active"


def _undone(trial: _Trial) -> Minimisation:
    how = trial.minimised
    return how.model_copy(
        update={
            "turns_after": how.turns_before,
            "characters_after": how.characters_before,
            "one_minimal": False,
        }
    )


def _is_shorter(how: Minimisation) -> bool:
    return (how.turns_after, how.characters_after) < (how.turns_before, how.characters_before)


def _as_decided(
    tests: tuple[RegressionTest, ...], previous: Suite | None
) -> tuple[RegressionTest, ...]:
    # What people took out of the suite does not come back by itself.
    ended = {
        test.test_id: test
        for test in (previous.tests if previous else ())
        if test.lifecycle in ("retired", "rejected")
    }
    return tuple(
        test.model_copy(
            update={
                "lifecycle": ended[test.test_id].lifecycle,
                "lifecycle_reason": ended[test.test_id].lifecycle_reason,
            }
        )
        if test.test_id in ended
        else test
        for test in tests
    )


def _rank(test: RegressionTest) -> tuple[bool, float, int, str]:
    rate = test.reproduction.k / test.reproduction.n if test.reproduction.n else 0.0
    turns = len(test.attack_turns)
    return test.lifecycle == "active", rate, -turns, test.test_id


LONGEST_TURN = 20_000
MOST_TURNS = 200

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class IntakeError(ValueError):
    """A failure cannot be made into a test; the message is one line that names the record."""


def check_failures(failures: Sequence[Failure], versions: Collection[str]) -> None:
    """Refuse failures that cannot be replayed.

    Parameters
    ----------
    failures : sequence of Failure
        As they were read.
    versions : collection of str
        The versions that are at hand.

    Raises
    ------
    IntakeError
        At the first record that has no turns, a turn of more than 20,000 characters, more than 200
        turns, a control character, an id that another one has, or a rule, goal or version that
        nobody knows.

    Examples
    --------
    >>> check_failures([], ["v1"])
    """
    ids = Counter(failure.failure_id for failure in failures)
    for number, failure in enumerate(failures, start=1):
        problem = next(_problems(failure, versions), "")
        if not problem and ids[failure.failure_id] > 1:
            problem = f"{ids[failure.failure_id]} failures have this id"
        if problem:
            name = _shown(failure.failure_id)
            raise IntakeError(
                f"failure {number} ({name}): {problem}; correct the file, or run stage 1 again"
            )


def _problems(failure: Failure, versions: Collection[str]) -> Iterator[str]:
    if not failure.failure_id.strip():
        yield "it has no id"
    if not failure.trajectory:
        yield "its trajectory has no turns"
    if len(failure.trajectory) > MOST_TURNS:
        yield f"its trajectory has {len(failure.trajectory):,} turns, at most {MOST_TURNS} can be"
    if not failure.violations:
        yield "no rule was broken in it"
    if failure.version not in versions:
        yield f"it was found on {_shown(failure.version)}, which is not given"
    if failure.rule_id not in {rule.id for rule in load_policy().rules}:
        yield f"there is no rule {_shown(failure.rule_id)}"
    if failure.goal not in load_goals():
        yield f"there is no goal {_shown(failure.goal)}"
    for where, text in _texts(failure):
        if len(text) > LONGEST_TURN:
            yield f"{where} has {len(text):,} characters, at most {LONGEST_TURN:,} can be"
        found = _CONTROL.search(text)
        if found:
            yield f"{where} holds the control character U+{ord(found.group()):04X}"


def _texts(failure: Failure) -> Iterator[tuple[str, str]]:
    yield "its id", failure.failure_id
    yield "its attack_type", failure.attack_type
    for number, text in enumerate(failure.trajectory, start=1):
        yield f"turn {number}", text
    for plant in failure.plants:
        yield f"what was planted at {_shown(plant.where)}", plant.text
        yield "the place of a plant", plant.key


def _shown(text: str) -> str:
    shown = text[:60].encode("unicode_escape").decode()
    return repr(shown if len(text) <= 60 else shown + "...").replace("\\\\", "\\")
