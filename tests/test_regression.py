"""From failures to a suite: what comes back, what is the same, what is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories import NORTHWIND

from safety_lib.artifacts import ArtifactError, read_artifact, write_artifact
from safety_lib.records import SEVERITIES, Failure, StressFailures, Suite
from safety_lib.regression.admission import FreshEvidence, propose, reproduce
from safety_lib.regression.generate import deduplicate, generate_suite, merge, previous_suite
from safety_lib.regression.signature import (
    family,
    naive_key,
    signature,
    wrongly_merged,
    wrongly_split,
)
from safety_lib.rollout.campaign import Run
from safety_lib.rollout.judging import count_broken
from safety_lib.stress.discovery import discover
from safety_lib.world import load_version

V1, V2 = load_version("northwind/v1"), load_version("northwind/v2")
BOTH = {"v1": V1, "v2": V2}


def test_every_failure_is_accounted_for(stressed: StressFailures, suite: Suite) -> None:
    assert suite.funnel["found"] == len(stressed.failures)
    steps = ["found", "reproduced", "distinct", "active"]
    assert [suite.funnel[step] for step in steps] == sorted(
        (suite.funnel[step] for step in steps), reverse=True
    )
    states = [suite.funnel[state] for state in ("active", "quarantined", "rejected")]
    assert sum(states) == len(suite.tests)
    assert sum(1 + test.duplicates for test in suite.tests) == len(stressed.failures)


def test_ids_are_unique(suite: Suite) -> None:
    ids = [test.test_id for test in suite.tests]
    assert len(set(ids)) == len(ids)


def test_what_rarely_comes_back_is_quarantined_with_its_reason(suite: Suite) -> None:
    assert {test.lifecycle for test in suite.tests} == {"active", "quarantined"}
    for test in suite.tests:
        rate = test.reproduction.k / test.reproduction.n
        assert rate >= 0.3 or test.lifecycle == "quarantined"
        assert bool(test.lifecycle_reason) == (test.lifecycle != "active")
        assert test.reproduction.ci_low <= rate <= test.reproduction.ci_high


def test_every_admitted_test_failed_the_bad_version_and_passed_the_good_one(suite: Suite) -> None:
    assert suite.active
    for test in suite.active:
        assert test.reference is not None and test.minimised is not None
        assert test.reproduction.version == test.source.version
        assert test.reproduction.n in (10, 20)  # 20 where it was replayed twice as it was
        assert (test.reference.version, test.reference.n) == ("reference", 10)
        assert test.reproduction.k / test.reproduction.n >= 0.3
        assert test.reference.k == 0


def test_replays_use_fresh_seeds_and_the_version_that_failed(stressed: StressFailures) -> None:
    failure = next(f for f in stressed.failures if f.version == "v2")
    (seen,) = reproduce([failure], BOTH, run=Run(seed=11), replays=4)
    assert (seen.version, seen.n) == ("v2", 4)
    assert reproduce([failure], BOTH, run=Run(seed=11), replays=4) == (seen,)


def test_an_error_is_neither_a_reproduction_nor_a_pass(stressed: StressFailures) -> None:
    failure = stressed.failures[0]
    held = list(discover(V2, V2, rollouts=4).trajectories["v2"])
    errors = [t.model_copy(update={"outcome": "error", "violations": ()}) for t in held]
    seen = count_broken("v2", errors, failure.rule_id)
    assert (seen.k, seen.n, seen.errors) == (0, 0, 4)
    assert "no valid replay" in propose(failure, FreshEvidence(seen), NORTHWIND, 7).lifecycle_reason


def test_duplicates_merge_and_the_most_severe_stands_for_them(stressed: StressFailures) -> None:
    failure = stressed.failures[0]
    (seen,) = reproduce([failure], BOTH, run=Run(seed=1), replays=3)
    mild = propose(failure, FreshEvidence(seen), NORTHWIND, 7).model_copy(
        update={"severity": "low"}
    )
    other = failure.model_copy(update={"trajectory": ("other", "words")})
    grave = propose(other, FreshEvidence(seen), NORTHWIND, 7).model_copy(
        update={"severity": "critical"}
    )
    (kept,) = deduplicate([mild, grave])
    assert kept.severity == "critical"
    assert "severity:critical" in kept.tags
    assert sum(tag.startswith("severity:") for tag in kept.tags) == 1
    assert kept.duplicates == 1
    assert deduplicate([kept]) == (kept,)


def test_deduplication_keeps_the_highest_severity_of_each_signature(
    stressed: StressFailures,
) -> None:
    seen = count_broken("v2", [], "audit_disabled")
    tests = [propose(failure, FreshEvidence(seen), NORTHWIND, 7) for failure in stressed.failures]
    worst: dict[tuple[str, str], int] = {}
    for test in tests:
        key = test.signature, test.source.version
        worst[key] = max(worst.get(key, 0), SEVERITIES.index(test.severity))
    for test in deduplicate(tests):
        assert SEVERITIES.index(test.severity) == worst[test.signature, test.source.version]


def test_wording_does_not_enter_the_signature(stressed: StressFailures) -> None:
    failure = stressed.failures[0]
    other = failure.model_copy(
        update={"trajectory": tuple(text.upper() for text in failure.trajectory), "seed": 99}
    )
    assert signature(other, NORTHWIND) == signature(failure, NORTHWIND)
    assert family(other) == family(failure)


def test_the_naive_key_merges_and_splits(stressed: StressFailures) -> None:
    merged = wrongly_merged(stressed.failures)
    for key, rules in merged.items():
        assert len(rules) > 1
        assert {f.rule_id for f in stressed.failures if naive_key(f) == key} == set(rules)
    for name, keys in wrongly_split(stressed.failures, NORTHWIND).items():
        assert {naive_key(f) for f in stressed.failures if signature(f, NORTHWIND) == name} == set(
            keys
        )
        assert len(keys) > 1


def test_merging_a_suite_with_itself_changes_nothing(suite: Suite) -> None:
    assert merge(suite.tests, suite.tests) == suite.tests


def test_tests_of_incidents_stay_when_the_suite_is_made_again(stressed: StressFailures) -> None:
    few = stressed.model_copy(update={"failures": stressed.failures[:6]})
    made = generate_suite(few, BOTH, replays=4)
    (seen,) = reproduce([stressed.failures[-1]], BOTH, run=Run(seed=1), replays=3)
    incident = propose(
        stressed.failures[-1], FreshEvidence(seen), NORTHWIND, 7, incident_id="INC-1"
    )
    incident = incident.model_copy(update={"test_id": "T-incident"})
    previous = made.model_copy(update={"tests": merge(made.tests, [incident])})
    again = generate_suite(few, BOTH, replays=4, previous=previous)
    assert again.only("stress").tests == made.tests != ()
    assert again.only("incident").tests == (incident,)


def test_a_version_that_changed_since_discovery_is_refused(stressed: StressFailures) -> None:
    changed = V2.having({"memory.window": 3}, name="v2")
    with pytest.raises(ValueError, match="has changed since"):
        generate_suite(stressed, {"v1": V1, "v2": changed}, replays=2)


def test_a_missing_version_is_named(stressed: StressFailures) -> None:
    with pytest.raises(ValueError, match="v2"):
        reproduce(
            [f for f in stressed.failures if f.version == "v2"],
            {"v1": V1},
            run=Run(seed=1),
            replays=1,
        )


def test_nothing_found_makes_an_empty_suite(stressed: StressFailures) -> None:
    empty = stressed.model_copy(update={"failures": ()})
    made = generate_suite(empty, BOTH, replays=2)
    assert made.tests == ()
    assert made.funnel["active"] == 0


def test_a_damaged_suite_is_never_overwritten_in_silence(tmp_path: Path, suite: Suite) -> None:
    path = write_artifact(tmp_path, suite)
    assert previous_suite(tmp_path, suite.model) is not None
    assert previous_suite(tmp_path, "another model") is None
    path.write_text(path.read_text(encoding="utf-8")[:200], encoding="utf-8")
    with pytest.raises(ArtifactError):
        previous_suite(tmp_path, suite.model)


def test_a_suite_survives_its_file(tmp_path: Path, suite: Suite) -> None:
    write_artifact(tmp_path, suite)
    assert read_artifact(tmp_path, Suite).tests == suite.tests


def test_tests_carry_public_tags(suite: Suite) -> None:
    for test in suite.tests:
        kinds = {tag.split(":")[0] for tag in test.tags}
        assert {"owasp_llm", "owasp_asi", "atlas", "failure_mode", "severity"} <= kinds


def test_failures_are_self_contained(stressed: StressFailures) -> None:
    for failure in stressed.failures:
        assert len(failure.trajectory) == failure.failure_turn
        again = Failure.model_validate_json(failure.model_dump_json())
        assert again == failure
