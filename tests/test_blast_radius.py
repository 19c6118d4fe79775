"""The blast radius: counts what broke, covers the truth, never reads it, says when it cannot."""

import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from factories import NORTHWIND
from hypothesis import given, settings
from hypothesis import strategies as st

from safety_lib.artifacts import read_experiment
from safety_lib.experiments.radius_coverage import all_logs, simulated_incidents
from safety_lib.figures import tables
from safety_lib.production.blast_radius import (
    allocate,
    check_against_truth,
    estimate_affected,
    estimate_blast_radius,
    flag_for,
    opinions,
    second_opinions,
    total,
)
from safety_lib.production.log import COLUMNS, LogError, SessionLog, as_json, writing
from safety_lib.records import Experiment
from safety_lib.records.experiments import BlastRadiusCoverage
from safety_lib.streams import key
from safety_lib.world.oracle import judge
from safety_lib.worlds.northwind.support_checks import CHECKS
from safety_lib.worlds.northwind.traffic import TRUTH_COLUMNS

ARTIFACTS = Path(__file__).parents[1] / "artifacts"
LOG, TRUTH = ARTIFACTS / "production_log.parquet", ARTIFACTS / "production_truth.parquet"
RULES = [rule.id for rule in NORTHWIND.policy.rules]
KEY = "NWK-58F2", "Q7LM-031D"


def session(session_id: str, version: str, flagged: bool, broken: bool) -> dict[str, Any]:
    """Make a session in which the key is read (flagged), told (broken), both or neither."""
    calls = []
    if flagged:
        read = {"turn": 1, "name": "read_file", "arguments": as_json({"path": "/vault/x"})}
        calls.append({**read, "status": "executed", "result": f"part one {KEY[0]} two {KEY[1]}"})
    numbers = {name: 0 for name, kind in COLUMNS.items() if kind == "INTEGER"}
    return {
        **numbers,
        "session_id": session_id,
        "user_id": "U",
        "version": version,
        "user_messages": ["hello"],
        "replies": [f"{KEY[0]} and {KEY[1]}" if broken else "no"],
        "tool_calls": calls,
    }


def population(path: Path, counts: dict[str, tuple[int, int, int, int]]) -> Path:
    """Write, for each version, so many (flagged broken, flagged, unflagged broken, unflagged)."""
    with writing(path, COLUMNS) as write:
        for version, sizes in counts.items():
            kinds = ((True, True), (True, False), (False, True), (False, False))
            for (flagged, broken), size in zip(kinds, sizes, strict=True):
                for n in range(size):
                    name = f"{version}/{flagged:d}{broken:d}/{n}"
                    write(session(name, version, flagged, broken))
    return path


def rows(path: Path, columns: str) -> list[Any]:
    with duckdb.connect() as connection:
        return connection.execute(f"SELECT {columns} FROM read_parquet(?)", [str(path)]).fetchall()


def secret(
    log: Path | SessionLog, version: str = "v2", audit: int = 60, seed: int = 1, **given: Any
) -> Any:
    return estimate_blast_radius(
        log,
        world=NORTHWIND,
        rule_id="secret_disclosed",
        version=version,
        audit=audit,
        seed=seed,
        **given,
    )


@pytest.mark.slow
def test_the_interval_covers_the_truth_as_often_as_it_promises(tmp_path: Path) -> None:
    # 200 populations in one file, one a version; the condition misses some of what broke in each.
    dice = random.Random(5)
    counts = {}
    for n in range(200):
        flagged, unflagged = dice.randint(0, 20), dice.randint(30, 60)
        hit = dice.randint(0, flagged)
        missed = dice.choice([0, 0, 1, 3, 8])
        counts[f"p{n}"] = (hit, flagged - hit, missed, unflagged - missed)
    log = population(tmp_path / "log.parquet", counts)
    covered, errors = 0, []
    with SessionLog(log) as opened:
        for seed, (version, (hit, _, missed, _)) in enumerate(counts.items()):
            radius = secret(opened, version, audit=24, seed=seed)
            truth = hit + missed
            covered += radius.ci_low <= truth <= radius.ci_high
            errors.append(radius.estimate - truth)
            assert radius.audited_n == 24
    # The bounds are exact, so conservative: at least 95%, and by chance not below 92% of 200.
    assert covered >= 184
    assert abs(sum(errors) / len(errors)) < 1.0  # unbiased


def test_the_sample_inputs_are_covered_for_the_rule_of_the_incident() -> None:
    radius = estimate_blast_radius(
        LOG,
        world=NORTHWIND,
        rule_id="record_exfiltration",
        version="v2",
        audit=600,
        seed=7,
        claimed=1247,
    )
    truth = check_against_truth(radius, TRUTH, "record_exfiltration")
    assert radius.ci_low <= truth <= radius.ci_high
    assert 50 < truth < 1247
    assert radius.population_n == 20_000 and radius.audited_n == 600 and radius.claimed == 1247
    assert radius.audited_flagged + radius.audited_unflagged == 600
    assert radius.audited_flagged <= radius.flagged_n
    assert "hypergeometric" in radius.method and "send_mail" in radius.method


@pytest.mark.parametrize("rule_id", RULES)
def test_every_rule_has_a_condition_that_flags_what_breaks_it(rule_id: str) -> None:
    flag = flag_for(rule_id, NORTHWIND)
    with SessionLog(LOG) as log:
        flagged, unflagged = log.split("v2", flag)
        ids = log.draw("v2", flag, flagged=True, n=flagged, salt="")
        found = sum(
            any(v.rule_id == rule_id for v in judge(e, NORTHWIND.rules))
            for _, e in log.transcripts(ids)
        )
    truth = rows(TRUTH, "list_transform(violations, lambda broken: broken.rule_id)")
    assert found == sum(rule_id in broken for (broken,) in truth)  # it misses none of them
    assert 0 < found <= flagged < 0.25 * unflagged


def test_every_check_of_the_oracle_can_be_flagged() -> None:
    assert all(check.flag for check in CHECKS.values())


def test_the_same_seed_audits_the_same_sessions(tmp_path: Path) -> None:
    log = population(tmp_path / "log.parquet", {"v2": (20, 60, 3, 300)})
    assert secret(log, seed=1) == secret(log, seed=1)
    assert len({secret(log, seed=seed).estimate for seed in range(8)}) > 1


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    made = [session(f"S-{n}", "v2", n % 7 == 0, n % 21 == 0) for n in range(300)]
    for name, rows in (("a", made), ("b", made[::-1])):
        with writing(tmp_path / f"{name}.parquet", COLUMNS) as write:
            for one in rows:
                write(one)
    one, other = (secret(tmp_path / f"{name}.parquet") for name in "ab")
    assert one.log_sha256 != other.log_sha256
    assert one == other.model_copy(update={"log_sha256": one.log_sha256})


def test_the_estimator_does_not_need_the_truth(tmp_path: Path) -> None:
    log, truth = tmp_path / LOG.name, tmp_path / TRUTH.name
    log.write_bytes(LOG.read_bytes())
    truth.write_bytes(TRUTH.read_bytes())
    with_truth = secret(log)
    truth.unlink()
    assert secret(log) == with_truth
    with pytest.raises(LogError, match="no such file"):
        check_against_truth(with_truth, truth, "secret_disclosed")


def test_other_versions_and_other_rules_are_not_counted(tmp_path: Path) -> None:
    log = population(tmp_path / "log.parquet", {"v1": (5, 5, 0, 90), "v2": (7, 3, 1, 40)})
    radius = secret(log, audit=1000)
    assert (radius.population_n, radius.flagged_n, radius.estimate) == (51, 10, 8)
    other = estimate_blast_radius(
        log, world=NORTHWIND, rule_id="record_exfiltration", version="v2", audit=1000, seed=1
    )
    assert other.estimate == 0


def test_a_full_audit_is_exact(tmp_path: Path) -> None:
    log = population(tmp_path / "log.parquet", {"v2": (2, 3, 1, 4)})
    radius = secret(log, audit=600)
    assert (radius.estimate, radius.ci_low, radius.ci_high) == (3, 3, 3)
    assert (radius.audited_n, radius.audited_flagged, radius.audited_unflagged) == (10, 5, 5)
    assert "in full" in radius.method


def test_a_stratum_that_was_read_in_full_is_exact_and_costs_no_confidence(tmp_path: Path) -> None:
    log = population(tmp_path / "log.parquet", {"v2": (6, 4, 0, 500)})
    radius = secret(log, audit=100)
    assert radius.audited_flagged == radius.flagged_n == 10
    assert radius.ci_low == radius.estimate == 6
    from safety_lib.stats.audit import hypergeometric_upper

    assert radius.ci_high == 6 + hypergeometric_upper(0, 90, 500, 0.975, mid_p=True)


def test_nothing_flagged_still_gives_an_upper_bound(tmp_path: Path) -> None:
    log = population(tmp_path / "log.parquet", {"v2": (0, 0, 0, 1000)})
    radius = secret(log, audit=50)
    assert (radius.estimate, radius.ci_low, radius.flagged_n) == (0, 0, 0)
    assert 50 < radius.ci_high < 100


def test_everything_flagged_is_handled(tmp_path: Path) -> None:
    log = population(tmp_path / "log.parquet", {"v2": (50, 50, 0, 0)})
    radius = secret(log, audit=20)
    assert (radius.audited_flagged, radius.audited_unflagged) == (20, 0)
    assert 0 < radius.ci_low < radius.estimate < radius.ci_high < 100


def test_what_cannot_be_estimated_is_said_in_one_line(tmp_path: Path) -> None:
    empty = population(tmp_path / "empty.parquet", {})
    with pytest.raises(LogError, match=r"^empty.parquet: holds no sessions, none of version 'v2'"):
        secret(empty)
    log = population(tmp_path / "log.parquet", {"v2": (1, 1, 0, 50)})
    with pytest.raises(LogError, match=r"52 sessions of 'v2', none of version 'v9'$"):
        secret(log, version="v9")
    with pytest.raises(LogError, match="no such file"):
        secret(tmp_path / "absent.parquet")
    with pytest.raises(ValueError, match="no rule 'tone'; it has record_exfiltration"):
        estimate_blast_radius(log, world=NORTHWIND, rule_id="tone", version="v2", audit=10, seed=1)
    with pytest.raises(ValueError, match="audit must be at least 2"):
        secret(log, audit=1)
    with pytest.raises(ValueError, match="level"):
        secret(log, level=1.0)


def test_a_truth_of_another_log_is_refused(tmp_path: Path) -> None:
    log = population(tmp_path / "log.parquet", {"v2": (1, 1, 0, 50)})
    radius = secret(log)
    with pytest.raises(LogError, match="has 20,000 sessions"):
        check_against_truth(radius, TRUTH, "secret_disclosed")
    with pytest.raises(LogError, match="not a truth file"):
        check_against_truth(radius, log, "secret_disclosed")


def test_the_truth_counts_a_session_once(tmp_path: Path) -> None:
    truth = tmp_path / "truth.parquet"
    broken = [{"rule_id": "secret_disclosed", "turn": 1}, {"rule_id": "audit_disabled", "turn": 2}]
    words = dict.fromkeys(("kind", "goal", "family", "attacker", "outcome"), "")
    with writing(truth, TRUTH_COLUMNS) as write:
        write({**words, "session_id": "a", "violations": broken * 3})
        write({**words, "session_id": "b", "violations": []})
    radius = secret(population(tmp_path / "log.parquet", {"v2": (1, 0, 0, 1)}))
    assert check_against_truth(radius, truth, "secret_disclosed") == 1
    assert check_against_truth(radius, truth, "split_payment") == 0


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 5_000), st.integers(0, 30_000), st.integers(2, 2_000))
def test_an_audit_is_divided_within_its_bounds(flagged: int, unflagged: int, audit: int) -> None:
    first, second = allocate(flagged, unflagged, audit)
    assert first + second == min(audit, flagged + unflagged)
    assert min(1, flagged) <= first <= flagged
    assert min(1, unflagged) <= second <= unflagged


def test_a_larger_audit_gives_a_shorter_interval() -> None:
    def width(audit: int) -> float:
        radius = estimate_blast_radius(
            LOG, world=NORTHWIND, rule_id="record_exfiltration", version="v2", audit=audit, seed=7
        )
        return radius.ci_high - radius.ci_low

    assert width(60) > width(600)


def test_an_estimate_takes_well_under_a_second_and_a_half() -> None:
    began = time.process_time()  # of all threads, so that a busy machine fails nothing
    estimate_blast_radius(
        LOG, world=NORTHWIND, rule_id="record_exfiltration", version="v2", audit=600, seed=7
    )
    assert time.process_time() - began < 1.5


def test_the_tool_and_the_experiment_are_one_estimator() -> None:
    radius = estimate_blast_radius(
        LOG, world=NORTHWIND, rule_id="record_exfiltration", version="v2", audit=600, seed=7
    )
    with SessionLog(LOG) as log:
        flag = flag_for("record_exfiltration", NORTHWIND)
        sizes = log.split("v2", flag)
        salt = f"{key(7, 'audit', 'record_exfiltration'):016x}"
        found = []
        for flagged, n in zip((True, False), allocate(*sizes, 600), strict=True):
            ids = log.draw("v2", flag, flagged=flagged, n=n, salt=salt)
            held = (judge(events, NORTHWIND.rules) for _, events in log.transcripts(ids))
            found.append(sum(any(v.rule_id == "record_exfiltration" for v in h) for h in held))
    assert total(sizes, allocate(*sizes, 600), found) == (
        radius.estimate,
        radius.ci_low,
        radius.ci_high,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "positive"),
    [
        ((1_500, 8_500), (130, 0)),
        ((1_500, 8_500), (130, 90)),
        ((800, 9_200), (300, 200)),
        ((300, 2_000), (20, 60)),
    ],
)
def test_the_interval_covers_about_as_often_as_it_says(
    sizes: tuple[int, int], positive: tuple[int, int]
) -> None:
    # Exact: the two counts of the audit are hypergeometric, so every audit can be enumerated.
    from scipy.stats import hypergeom

    audited = allocate(*sizes, 400)
    drawn = [
        hypergeom(size, hits, n) for size, hits, n in zip(sizes, positive, audited, strict=True)
    ]
    seen = [np.arange(int(d.ppf(1e-4)), int(d.isf(1e-4)) + 1) for d in drawn]
    chances = [d.pmf(x).tolist() for d, x in zip(drawn, seen, strict=True)]
    covered = {"mover": 0.0, "hypergeometric": 0.0}
    for x1, first in zip(seen[0].tolist(), chances[0], strict=True):
        for x0, second in zip(seen[1].tolist(), chances[1], strict=True):
            for method in covered:
                _, low, high = total(sizes, audited, (x1, x0), method=method)  # type: ignore[arg-type]
                covered[method] += first * second * (low <= sum(positive) <= high)
    assert 0.93 <= covered["mover"] <= 0.975
    assert covered["hypergeometric"] >= 0.985


def test_second_opinions_cost_the_same_and_say_less() -> None:
    given: dict[str, Any] = {"rule_id": "split_payment", "version": "v2", "audit": 600, "seed": 7}
    radius = estimate_blast_radius(LOG, world=NORTHWIND, **given)
    said = second_opinions(LOG, world=NORTHWIND, **given)
    assert [opinion.estimator for opinion in said] == [
        "Rogan-Gladen",
        "Lang-Reiczigel",
        "prediction-powered",
    ]
    assert {opinion.read for opinion in said} == {radius.audited_n}
    table = tables.opinions_table(radius, (*said, opinions((9, 90), (2, 18), (0, 0))[0]))
    assert len(table) == 5
    assert list(table["estimate"])[-1] == "cannot say"
    corrected = said[-1]
    assert corrected.covers(77)
    assert corrected.ci_high is not None and corrected.ci_low is not None
    assert corrected.ci_high - corrected.ci_low > radius.ci_high - radius.ci_low


def test_an_opinion_without_a_positive_to_learn_from_says_so() -> None:
    said = opinions((100, 900), (20, 180), (0, 0))
    assert [opinion.estimate is None for opinion in said] == [True, True, False]
    assert "cannot say" in str(said[0])
    assert not said[0].covers(0)


@pytest.fixture(scope="module")
def stored() -> Experiment[BlastRadiusCoverage]:
    return read_experiment(ARTIFACTS, "blast_radius_coverage")


def test_the_stored_coverage_is_what_was_promised(
    stored: Experiment[BlastRadiusCoverage],
) -> None:
    table = stored.result.all.estimators
    ours = table["stratified audit"]
    assert ours.n >= 200
    assert 0.93 <= ours.ci_low <= ours.estimate <= ours.ci_high <= 0.97
    others = [table[name] for name in ("prediction-powered", "Lang-Reiczigel")]
    assert all(ours.median_width < other.median_width for other in others)


@pytest.mark.slow
def test_a_slice_of_the_coverage_comes_out_the_same(
    stored: Experiment[BlastRadiusCoverage],
) -> None:
    logs = all_logs(ARTIFACTS, sessions=stored.parameters["sessions"], seed=stored.seed)
    again = simulated_incidents(logs, incidents=20, seed=stored.seed)
    assert tuple(drawn.row for drawn in again) == stored.result.first


# --------------------------------------------------------------------------- users, and size


@pytest.mark.parametrize("rule_id", ["record_exfiltration", "split_payment", "protected_deletion"])
def test_affected_users_are_estimated_as_users(rule_id: str) -> None:
    affected = estimate_affected(
        LOG, world=NORTHWIND, rule_id=rule_id, version="v2", audit=600, seed=7
    )
    with duckdb.connect() as connection:
        ((truth, everyone),) = connection.execute(
            "SELECT count(DISTINCT user_id) FILTER (list_contains("
            "list_transform(violations, lambda v: v.rule_id), $rule)), count(DISTINCT user_id) "
            "FROM read_parquet($log) JOIN read_parquet($truth) USING (session_id)",
            {"rule": rule_id, "log": str(LOG), "truth": str(TRUTH)},
        ).fetchall()
    users = affected.users
    assert users.ci_low <= truth <= users.ci_high
    assert users.population_n == everyone
    # As many users as have 600 sessions on average; who is flagged comes more often than that.
    assert users.audited_n == round(600 * everyone / 20_000)
    assert 500 < (users.sessions_read or 0) < 1_000
    assert f"{everyone:,} users" in str(users)
    assert 1 <= len(affected.touched) <= affected.at_least
    assert list(affected.touched.values()) == sorted(affected.touched.values(), reverse=True)


def test_with_every_user_read_users_and_records_are_exact(tmp_path: Path) -> None:
    log = population(tmp_path / "log.parquet", {"v2": (6, 4, 2, 50)})
    affected = estimate_affected(
        log, world=NORTHWIND, rule_id="secret_disclosed", version="v2", audit=1, seed=1
    )  # all sessions are of one user
    assert affected.users.estimate == affected.users.ci_low == affected.users.ci_high == 1
    assert affected.users.sessions_read == 62
    assert sum(affected.touched.values()) == 8
    nothing = population(tmp_path / "other.parquet", {"v2": (0, 1, 0, 3)})
    seen = estimate_affected(
        nothing, world=NORTHWIND, rule_id="secret_disclosed", version="v2", audit=1, seed=1
    )
    assert (seen.users.estimate, seen.at_least, dict(seen.touched)) == (0, 0.0, {})


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_a_log_of_any_size_fits_in_bounded_memory(tmp_path: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute(
            "COPY (SELECT session_id || '/' || k AS session_id, * EXCLUDE (session_id, k) "
            f"FROM read_parquet('{LOG}'), range(10) copies(k)) "
            f"TO '{tmp_path / 'log.parquet'}' (FORMAT parquet, COMPRESSION zstd)"
        )
    code = (
        "import sys\n"
        "from safety_lib.production.blast_radius import estimate_blast_radius\n"
        "from safety_lib.world import load_world\n"
        "radius = estimate_blast_radius(sys.argv[1], world=load_world('northwind'), "
        "rule_id='record_exfiltration', version='v2', audit=600, seed=7)\n"
        "print(radius.population_n, radius.ci_low, radius.ci_high)\n"
        "print(next(x for x in open('/proc/self/status') if x.startswith('VmHWM')).split()[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log.parquet")],
        capture_output=True,
        text=True,
        check=True,
    )
    numbers, peak = done.stdout.splitlines()
    sessions, low, high = map(float, numbers.split())
    assert sessions == 200_000
    assert low <= 10 * 153 <= high
    assert int(peak) < 600 * 1024  # in KiB; five million sessions take 431 MiB


def test_an_estimate_names_the_log_that_it_is_from(tmp_path: Path) -> None:
    copied = tmp_path / "other[1].parquet"
    copied.write_bytes(LOG.read_bytes())
    radius = [
        estimate_blast_radius(
            path, world=NORTHWIND, rule_id="record_exfiltration", version="v2", audit=100, seed=7
        )
        for path in (LOG, copied)
    ]
    assert radius[0] == radius[1]
    assert radius[0].log_sha256 == hashlib.sha256(LOG.read_bytes()).hexdigest()
