"""From failures to a suite: reproduce, minimise, deduplicate, admit.

Nothing is dropped in silence. A failure that does not come back on fresh seeds, or that a
known-good agent shows as well, becomes a quarantined or rejected test with the reason; a duplicate
is counted on the test that stands for it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from safety_lib.artifacts import read_artifact
from safety_lib.records import (
    MOST_TURNS,
    SEVERITIES,
    Failure,
    Minimisation,
    RegressionTest,
    StressFailures,
    Suite,
)
from safety_lib.regression.admission import (
    FreshEvidence,
    admit,
    came_back,
    propose,
    reproduce,
)
from safety_lib.regression.breach import record_breaches
from safety_lib.rollout.campaign import Run
from safety_lib.text import one_line
from safety_lib.world import World, provenance, world_of
from safety_lib.world.versions import Version


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
    run: Run = Run(),
    *,
    replays: int = 10,
    reference: Version | None = None,
    previous: Suite | None = None,
) -> Suite:
    """Make the suite from what stage 1 found.

    Parameters
    ----------
    found : StressFailures
        The artifact of stage 1.
    versions : mapping
        Version name to version; their hashes must be those that the failures were found on.
    run : Run, optional
        Seed, model and where the conversations are held.
    replays : int
        Fresh seeds for each question that is asked of a failure. A failure may cost 12 times as
        many replays while it is minimised.
    reference : Version, optional
        The known-good version that every active test must pass; by default that of the world.
    previous : Suite, optional
        Its tests that came from incidents stay: they are permanent, and no stress test owns them.
        A test that somebody retired or rejected stays so.

    Returns
    -------
    Suite
        Active tests, what was set aside with the reason, and the recorded calls that safeguards are
        asked about.

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
    world = world_of(*versions.values())
    good = reference or world.known_good
    if found.world_sha256 != world.sha256:
        raise ValueError(
            f"the world {world.name} has changed since its failures were found: run stage 1 again"
        )
    check_failures(found.failures, versions, world)
    first = reproduce(found.failures, versions, run, replays=replays)
    again = [pair for pair in zip(found.failures, first, strict=True) if came_back(pair[1])]
    candidates = admit(again, versions, good, run, replays=replays)
    gone = [
        propose(failure, FreshEvidence(reproduction), world, run.seed)
        for failure, reproduction in zip(found.failures, first, strict=True)
        if not came_back(reproduction)
    ]
    distinct = deduplicate(candidates)
    tests = _as_decided(deduplicate([*candidates, *gone]), previous)
    kept = () if previous is None else previous.only("incident").tests
    return Suite(
        artifact=Suite.SCHEMA,
        schema_version=Suite.VERSION,
        seed=run.seed,
        model=found.model,
        **provenance(*versions.values(), good),
        baseline=found.baseline,
        candidate=found.candidate,
        funnel={
            "found": len(found.failures),
            "reproduced": len(again),
            "minimised": sum(_is_shorter(test.minimised) for test in candidates),
            "distinct": len(distinct),
            "active": sum(test.lifecycle == "active" for test in tests),
            "quarantined": sum(test.lifecycle == "quarantined" for test in tests),
            "rejected": sum(test.lifecycle == "rejected" for test in tests),
        },
        tests=merge(tests, kept),
        breaches=record_breaches(world, [*versions.values(), good]),
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


def _is_shorter(how: Minimisation | None) -> bool:
    return how is not None and (how.turns_after, how.characters_after) < (
        how.turns_before,
        how.characters_before,
    )


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

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class IntakeError(ValueError):
    """A failure cannot be made into a test; the message is one line that names the record."""


def check_failures(failures: Sequence[Failure], versions: Collection[str], world: World) -> None:
    """Refuse failures that cannot be replayed.

    Parameters
    ----------
    failures : sequence of Failure
        As they were read.
    versions : collection of str
        The versions that are at hand.
    world : World
        Where they were found.

    Raises
    ------
    IntakeError
        At the first record that has no turns, a turn of more than 20,000 characters, more than 200
        turns, a control character, an id that another one has, or a rule, goal or version that
        nobody knows.

    Examples
    --------
    >>> from safety_lib.world import load_world
    >>> check_failures([], ["v1"], load_world("northwind"))
    """
    ids = Counter(failure.failure_id for failure in failures)
    for number, failure in enumerate(failures, start=1):
        problem = next(_problems(failure, versions, world), "")
        if not problem and ids[failure.failure_id] > 1:
            problem = f"{ids[failure.failure_id]} failures have this id"
        if problem:
            name = _shown(failure.failure_id)
            raise IntakeError(
                f"failure {number} ({name}): {problem}; correct the file, or run stage 1 again"
            )


def _problems(failure: Failure, versions: Collection[str], world: World) -> Iterator[str]:
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
    if failure.rule_id not in {rule.id for rule in world.policy.rules}:
        yield f"there is no rule {_shown(failure.rule_id)}"
    if failure.goal not in world.goals:
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
    return repr(one_line(text, 60)).replace("\\\\", "\\")
