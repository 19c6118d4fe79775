"""Results that another tool wrote, judged at one look: what decides, and how often it errs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, fisher_exact

from safety_lib.__main__ import main
from safety_lib.artifacts import read_artifact
from safety_lib.gate.at_once import Arms, judge_at_once
from safety_lib.gate.looks import Looked, LookPlan
from safety_lib.gate.rules import load_rules
from safety_lib.gate.trials import Case
from safety_lib.pipeline import NOTEBOOKS
from safety_lib.records import GateReport, Outcome
from safety_lib.results.attempts import judge_results_once
from safety_lib.results.judge import judge_results, judge_sides, load_results_policy, names_of
from safety_lib.results.table import Meaning, ResultFile, Results, ResultsError, Sample
from safety_lib.streams import generator

ARTIFACTS = NOTEBOOKS.parent / "artifacts"
LOOKS = load_rules().looks


def plan(trials: int) -> LookPlan:
    return LookPlan(trials, "independent", LOOKS.model_copy(update={"looks": (trials,)}))


def arms(
    name: str,
    failed: tuple[int, int],
    trials: tuple[int, int] = (30, 30),
    *,
    family: str = "",
    severity: Any = "high",
    benign: bool = False,
) -> Arms:
    stratum: Any = "benign" if benign else "baseline_found"
    case = Case(name, name, stratum, family or name, "", "", severity, max(trials))
    bad_ones: tuple[Outcome, ...] = ("violation",)
    good_ones: tuple[Outcome, ...] = ("safe",)
    made = [
        bad_ones * bad + good_ones * (all_of - bad)
        for bad, all_of in zip(failed, trials, strict=True)
    ]
    return Arms(case, made[0], made[1])


EQUAL = [arms(f"t{i}", (2, 2), family=f"f{i // 2}") for i in range(16)]
SERVED = [arms(f"b{i}", (0, 0), benign=True) for i in range(12)]


def judged(tests: list[Arms], benign: list[Arms] = SERVED, trials: int = 30) -> Looked:
    return judge_at_once(tests, benign, plan(trials))


def kinds(looked: Looked) -> set[str]:
    return {one.kind for one in looked.missing}


def test_equals_are_ok_and_say_what_was_shown() -> None:
    seen = judged(EQUAL)
    assert seen.verdict == "OK"
    assert "8 of 8 families" in seen.reasons[-1]


def test_a_loss_over_all_tests_blocks() -> None:
    seen = judged([arms(f"t{i}", (2, 5), family=f"f{i // 2}") for i in range(16)])
    assert seen.verdict == "BLOCK"
    assert seen.suite.blocks and not any(family.confirmed for family in seen.families)


def test_a_family_that_is_lost_blocks_by_its_exact_test() -> None:
    lost = [arms("t0", (2, 20), family="f0"), *EQUAL[1:]]
    family = next(f for f in judged(lost).families if f.family == "f0")
    assert family.confirmed and family.state == "lost"
    alone = [arms(f"t{i}", (2, 2)) for i in range(15)]
    one = judged([arms("t", (2, 15)), *alone]).families[0]
    assert one.loss is not None
    table = [[15, 15], [2, 28]]
    assert one.loss.p_value == pytest.approx(fisher_exact(table, alternative="greater").pvalue)


def test_holm_asks_more_of_the_worst_of_many_families() -> None:
    def confirmed(others: int) -> bool:
        tests = [arms("t", (1, 12)), *(arms(f"o{i}", (1, 1)) for i in range(others))]
        return judged(tests).families[0].confirmed

    assert confirmed(3)
    assert not confirmed(300)


def test_a_small_loss_of_a_family_never_blocks() -> None:
    tests = [arms("t", (0, 90), (1000, 1000)), *EQUAL]
    assert not judged(tests, trials=1000).families[0].confirmed


def test_benign_requests_block_and_their_absence_is_a_warning() -> None:
    refused = [arms(f"b{i}", (0, 4), benign=True) for i in range(12)]
    seen = judged(EQUAL, refused)
    assert seen.verdict == "BLOCK" and seen.benign.blocks
    without = judged(EQUAL, [])
    assert without.verdict == "WARN" and kinds(without) == {"benign"}


def test_a_critical_test_is_suspected_on_one_half_and_judged_on_the_other() -> None:
    def critical(candidate: str) -> Arms:
        marks: dict[str, Outcome] = {".": "safe", "x": "violation"}
        worse = tuple(marks[mark] for mark in candidate)
        whole = arms("c", (0, 0), (len(worse), len(worse)), severity="critical")
        return replace(whole, candidate=worse)

    others = [arms(f"o{i}", (0, 0), (40, 40)) for i in range(40)]
    lost = judged([critical("x" * 40), *others], trials=40)
    assert lost.critical_blocks and lost.critical[0].pairs == 20
    early = judged([critical("x" * 20 + "." * 20), *others], trials=40)
    assert not early.critical_blocks and early.critical[0].e_value == 1.0
    late = judged([critical("." * 20 + "x" * 20), *others], trials=40)
    assert late.critical == () and not late.critical_blocks
    few = judged([critical("x...")] + [arms(f"o{i}", (0, 0), (4, 4)) for i in range(300)], trials=4)
    assert "critical" in kinds(few)


def test_what_the_candidate_left_out_is_counted_against_it() -> None:
    missing = [replace(EQUAL[0], candidate=()), *EQUAL[1:]]
    assert judged(missing).verdict == "WARN"
    cut: tuple[Outcome, ...] = ("undetermined",) * 4 + ("safe",) * 26
    assert judged([replace(each, candidate=cut) for each in EQUAL]).verdict != "OK"
    added = [*EQUAL, arms("new", (0, 0), (0, 30))]
    seen = judged(added)
    assert seen.verdict == "WARN" and "1 test without a valid trial" in seen.reasons[0]


def test_sides_need_not_be_tried_as_often() -> None:
    tests = [arms(f"t{i}", (4, 1), (60, 15), family=f"f{i // 2}") for i in range(16)]
    seen = judged(tests, trials=60).suite
    assert seen.loss is not None
    assert seen.loss.baseline == pytest.approx(56 / 60)
    assert seen.loss.candidate == pytest.approx(14 / 15)


# --------------------------------------------------------------------------- error rates

RATES = np.full(15, 0.06)


def verdicts(lost: float, trials: int, runs: int, where: str = "every") -> Counter[Any]:
    luck = generator(11, "at once", where, str(lost), trials)
    members = [i for i in range(15) if where == "every" or i % 9 == 0]
    worse = RATES.copy()
    worse[members] += lost * 15 / len(members)

    def held(rate: float) -> int:
        return int((luck.random(trials) < rate).sum())

    found: Counter[Any] = Counter()
    for _ in range(runs):
        tests = [
            arms(
                f"t{i}",
                (held(RATES[i]), held(worse[i])),
                (trials, trials),
                family=f"f{i % 9}",
            )
            for i in range(15)
        ]
        benign = [
            arms(f"b{i}", (held(0.02), held(0.02)), (trials, trials), benign=True)
            for i in range(16)
        ]
        found[judged(tests, benign, trials).verdict] += 1
    return found


def within(k: int, n: int, most: float) -> bool:
    """Whether a count is no evidence, at one in a thousand, that a rate is above ``most``."""
    return bool(binom.sf(k - 1, n, most) > 0.001)


@pytest.mark.parametrize("trials", [1, 3, 10, 30, 60])
def test_equals_are_seldom_blocked_and_a_loss_is_seldom_let_out(trials: int) -> None:
    runs = 80
    assert within(verdicts(0.0, trials, runs)["BLOCK"], runs, LOOKS.false_block)
    assert within(verdicts(0.05, trials, runs)["OK"], runs, LOOKS.wrong_ok)


@pytest.mark.slow
@pytest.mark.parametrize("trials", [3, 10, 30, 60])
def test_errors_stay_below_what_the_policy_allows(trials: int) -> None:
    runs = 2000
    equal = verdicts(0.0, trials, runs)
    assert within(equal["BLOCK"], runs, LOOKS.false_block)
    assert within(verdicts(0.05, trials, runs)["OK"], runs, LOOKS.wrong_ok)
    if trials == 60:
        assert equal["OK"] / runs > 0.95
        assert verdicts(0.1, trials, runs)["BLOCK"] / runs > 0.95
        assert verdicts(0.05, trials, runs, "one")["BLOCK"] / runs > 0.85


# --------------------------------------------------------------------------- two sides


def side(name: str, samples: list[Sample], **about: Any) -> Results:
    file = ResultFile(f"{name}.csv", "CSV", f"sha of {name}", tuple(samples), **about)
    return Results(name, (file,), Meaning().rows([file]))


def samples(fails: int = 2, trials: int = 30, **fields: Any) -> list[Sample]:
    made = []
    for test in range(16):
        for trial in range(1, trials + 1):
            outcome: Outcome = "violation" if trial <= fails else "safe"
            about = {"family": f"f{test // 2}", **fields}
            made.append(Sample(f"t{test}", trial, outcome, about))
    for test in range(12):
        made += [Sample(f"b{test}", n, "safe", {"stratum": "benign"}) for n in range(1, trials + 1)]
    return made


def test_two_sides_become_the_gates_own_report() -> None:
    report = judge_sides(side("old", samples()), side("new", samples(fails=9)))
    assert report.verdict == "BLOCK"
    assert (report.baseline, report.candidate, report.n_tests, report.n_families) == (
        "old",
        "new",
        16,
        8,
    )
    assert report.delta == pytest.approx(-7 / 30, abs=1e-6)
    assert [s.stratum for s in report.strata] == ["regression", "benign"]
    assert [e.conversations for e in report.executions] == [28 * 30, 28 * 30]
    assert "no test says how severe it is" in report.steps[0].reason
    assert "family of its own" not in report.steps[0].reason
    unmeasured = {step.step for step in report.steps if step.status == "unmeasured"}
    assert unmeasured == {5, 7, 9}
    assert GateReport.model_validate_json(report.model_dump_json()) == report
    assert judge_sides(side("old", samples()), side("new", samples(fails=2))).verdict == "OK"


@pytest.mark.parametrize(
    ("candidate", "told"),
    [
        (side("old", samples()), "byte for byte"),
        (side("new", samples(family="another")), "of family another here and f0 elsewhere"),
        (side("new", samples(severity="low")), "of severity low here and none elsewhere"),
    ],
)
def test_sides_that_do_not_fit_together_are_refused(candidate: Results, told: str) -> None:
    with pytest.raises(ResultsError, match=told) as refused:
        judge_sides(side("old", samples()), candidate)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("candidate", "told"),
    [
        (samples()[: 30 * 8], "8 tests of 16 are in old and not in new"),
        ([s._replace(test=f"other {s.test}") for s in samples()], "no regression test in common"),
        ([s._replace(outcome="error") for s in samples()], "840 of 840 trials of new"),
        ([s._replace(test="t0", trial=i) for i, s in enumerate(samples(), 1) if s.test < "t1"], ""),
    ],
)
def test_evidence_that_is_not_there_is_no_verdict(candidate: list[Sample], told: str) -> None:
    if not told:
        candidate, told = samples()[:30], "15 tests of 16 are in old"
    report = judge_sides(side("old", samples()), side("new", candidate))
    assert report.verdict is None and report.evidence_status == "invalid"
    assert told in report.reasons[0]


def test_requests_that_nobody_serves_are_no_verdict() -> None:
    refusing = [s._replace(outcome="violation") if s.test.startswith("b") else s for s in samples()]
    report = judge_sides(side("old", refusing), side("new", refusing + samples()[:0]))
    assert report.verdict is None and "cannot be told from a safe one" in report.reasons[0]


def test_without_benign_requests_an_ok_is_a_warning_unless_the_policy_says_otherwise() -> None:
    alone = [s for s in samples() if s.test.startswith("t")]
    both = side("old", alone), side("new", alone)
    assert judge_sides(*both).verdict == "WARN"
    lenient = load_results_policy().model_copy(update={"need_benign": False})
    report = judge_sides(*both, policy=lenient)
    assert report.verdict == "OK"
    assert report.gate_policy_sha256 != judge_sides(*both).gate_policy_sha256
    worse = [s for s in samples(fails=9) if s.test.startswith("t")]
    assert judge_sides(both[0], side("new", worse)).verdict == "BLOCK"


def test_a_grader_that_is_a_model_caps_an_ok_at_a_warning() -> None:
    graded = side("new", samples(), graded_by_model=True)
    report = judge_sides(side("old", samples()), graded)
    assert report.verdict == "WARN" and "its error was not measured" in report.reasons[0]
    worse = side("new", samples(fails=9), graded_by_model=True)
    assert judge_sides(side("old", samples()), worse).verdict == "BLOCK"


# --------------------------------------------------------------------------- what samples mean


def rows_of(*given: Sample, **meaning: str) -> list[str]:
    file = ResultFile("a.csv", "CSV", "1", given)
    return [row.outcome for row in Meaning(**meaning).rows([file])]


@pytest.mark.parametrize(
    ("passes", "score", "outcome"),
    [
        ("score >= 0.5", 0.5, "safe"),
        ("score >= 0.5", 0.49, "violation"),
        ("score < 0.5", "0.2", "safe"),
        ("score == true", "True", "safe"),
        ("score == true", False, "violation"),
        ("score != C", "I", "safe"),
        ("score == 'C'", "C", "safe"),
        ("metadata.other == 1", 1, "undetermined"),
    ],
)
def test_what_passes_is_a_comparison(passes: str, score: Any, outcome: Outcome) -> None:
    assert rows_of(Sample("t", 1, None, {"score": score}), passes=passes) == [outcome]
    lost = Sample("t", 1, "error", {"score": score})
    assert rows_of(lost, passes=passes) == ["error"]


@pytest.mark.parametrize(
    ("given", "meaning", "told"),
    [
        ([Sample("t", 1, None, {"score": 0.3})], {}, "score of t is 0.3, neither pass nor fail"),
        ([Sample("t", 1, "safe"), Sample("t", 1, "safe")], {}, "trial 1 of t is in a.csv already"),
        ([Sample("t", 1, "safe")], {"family": "kind"}, "no trial has a field 'kind' for --family"),
        ([Sample("t", 1, "safe", {"stratum": "easy"})], {}, "stratum of t is easy: use regression"),
        ([Sample("t", 1, "safe", {"severity": "dire"})], {}, "severity of t is dire: use low"),
        ([Sample("t", 1, "safe", {"family": ["a"]})], {}, "field family of t is no single value"),
        ([Sample("t", 1, None, {"score": "a"})], {"passes": "score > 1"}, "no number to compare"),
        ([Sample("t", 1, "safe")], {"passes": "score"}, "is no comparison"),
        ([Sample("t", 1, "safe")], {"passes": "score > high"}, "> needs a number"),
        ([Sample("t", 1, "safe")], {"passes": "__import__('os')"}, "is no comparison"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(
    given: list[Sample], meaning: dict[str, str], told: str
) -> None:
    with pytest.raises(ResultsError) as refused:
        rows_of(*given, **meaning)
    assert told in str(refused.value) and "\n" not in str(refused.value)


def test_sides_are_named_by_what_tells_their_paths_apart() -> None:
    assert names_of("runs/v1.json", "runs/v2.json") == ("v1", "v2")
    assert names_of("v1/log.eval", "v2/log.eval") == ("v1/log", "v2/log")
    assert names_of("a/x/l.json", "b/x/l.json") == ("a/x/l", "b/x/l")
    assert names_of("same.json", "same.json") == ("baseline", "candidate")


# --------------------------------------------------------------------------- attempts


def test_the_same_files_have_one_verdict_and_more_trials_are_another_candidate(
    tmp_path: Any,
) -> None:
    ledger = tmp_path / "history.json"
    old, new = side("old", samples()), side("new", samples())
    first = judge_results_once(ledger, old, new)
    assert (first.report.verdict, first.again) == ("OK", False)
    second = judge_results_once(ledger, old, new)
    assert second.again and second.report == first.report
    grown = side("new", samples(trials=40))
    grown = replace(grown, files=(replace(grown.files[0], sha256="grown"),))
    third = judge_results_once(ledger, old, grown)
    assert not third.again
    assert third.report.attempt is not None and first.report.attempt is not None
    assert third.report.attempt.candidate == 2
    assert third.report.attempt.ok_share < first.report.attempt.ok_share


# --------------------------------------------------------------------------- the command


def gate(*arguments: str) -> int:
    return main(["gate", "--results", *arguments])


def csv(path: Path, fails: int = 2) -> str:
    lines = [
        f"{s.test},{s.trial},{'fail' if s.outcome == 'violation' else 'pass'},"
        f"{s.fields.get('family', '')},{s.fields.get('stratum', '')}"
        for s in samples(fails)
    ]
    path.write_text("\n".join(["test,trial,outcome,family,stratum", *lines]) + "\n", "utf-8")
    return str(path)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.chdir(tmp_path)
    return csv(tmp_path / "old.csv"), csv(tmp_path / "new.csv", fails=9)


def test_the_command_judges_two_files_and_writes_the_report(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate(*two, "--markdown", "m.md", "--junit", "j.xml", "--candidate", "pull 7") == 2
    said = capsys.readouterr().out
    assert "old: 840 trials of CSV (old.csv)" in said and "Release verdict: BLOCK" in said
    report = read_artifact(tmp_path / "artifacts" / "results", GateReport)
    assert (report.baseline, report.candidate) == ("old", "pull 7")
    page = (tmp_path / "artifacts" / "results" / "gate_report.html").read_text("utf-8")
    assert "pull 7" in page and ">World<" not in page
    assert "world" not in (tmp_path / "m.md").read_text("utf-8")
    assert (tmp_path / "j.xml").exists()
    same = csv(tmp_path / "same.csv", fails=1)
    assert gate(two[0], same) == 0


def test_a_frame_is_judged_as_its_file_is(two: tuple[str, str]) -> None:
    import pandas as pd

    frames = [pd.read_csv(path, keep_default_na=False) for path in two]
    by_frame, by_file = judge_results(*frames), judge_results(*two)
    assert by_frame.verdict == by_file.verdict == "BLOCK"
    assert by_frame.test_results == by_file.test_results
    assert by_frame.families == by_file.families


def test_a_history_counts_attempts_on_results(
    two: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate(*two, "--history", "h.json") == 2
    assert gate(*two, "--history", "h.json") == 2
    assert "was judged before" in capsys.readouterr().out
    assert main(["history", "h.json"]) == 0


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda old, new: (old, old), "byte for byte"),
        (lambda old, new: (old, "nope.csv"), "there is no such file"),
        (lambda old, new: (old, new, "--family", "kind"), "no trial has a field 'kind'"),
        (lambda old, new: (old, new, "--pass", "score"), "is no comparison"),
        (lambda old, new: (old, new, "--max-bytes", "10"), "--max-bytes"),
        (lambda old, new: (old, new, "--junit", new), "would be overwritten"),
    ],
)
def test_what_cannot_be_judged_ends_in_one_line_and_writes_nothing(
    two: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: Any,
    told: str,
) -> None:
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert gate(*changed(*two)) == 3
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_projects_own_releases_as_logs_of_inspect_are_blocked_as_here(tmp_path: Path) -> None:
    suite = ("--artifacts", str(ARTIFACTS))
    for name in ("v1", "v2"):
        log = str(tmp_path / name)
        assert main(["export", "inspect-log", log, "--version", name, *suite]) == 0
    report = judge_results(tmp_path / "v1", tmp_path / "v2", Meaning(family="family"))
    assert report.verdict == "BLOCK"
    native = read_artifact(ARTIFACTS, GateReport)
    assert report.n_families >= native.n_families
    assert any(result.severity != "medium" for result in report.test_results)
    assert report.delta is not None and native.delta is not None
    assert report.delta == pytest.approx(native.delta, abs=0.2)
