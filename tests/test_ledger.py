"""The ledger: nothing is judged twice, nothing is spent twice, nothing is rewritten unseen."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import a_report, entry, trials
from scipy.stats import binom

from safety_lib.__main__ import main
from safety_lib.agent.backends.calls import counting_calls
from safety_lib.artifacts import (
    ArtifactError,
    read_artifact,
    write_artifact,
)
from safety_lib.experiments.simulated_gates import Truth, drawn_gate, everywhere
from safety_lib.files import sha256_of
from safety_lib.gate.decide import Shift, judge_drift
from safety_lib.gate.ledger import begin, end, hash_of, head_of, kept_report, lines_since
from safety_lib.gate.ledger import read_ledger as read
from safety_lib.gate.look_rules import load_look_rules
from safety_lib.gate.looks import Looked, LookPlan, judge_looks
from safety_lib.gate.releases import Standing
from safety_lib.gate.rules import load_rules
from safety_lib.pipeline import NOTEBOOKS
from safety_lib.records import Attempt, GateHistory, GateReport, LedgerLine, Outcome, Pair
from safety_lib.streams import generator

ROOT = NOTEBOOKS.parent
LOOKS = load_look_rules()


def asked(candidate: str, baseline: str = "v1", **changes: Any) -> LedgerLine:
    """Return what is to be judged; the hash of a version is its name."""
    line = {name: changes.pop(name) for name in ("seed", "trials") if name in changes}
    pair: dict[str, Any] = {
        "baseline_sha256": baseline,
        "candidate_sha256": candidate,
        "suite_sha256": "4" * 64,
        "world_sha256": "3" * 64,
        "gate_policy_sha256": "5" * 64,
        "model": "simulated",
        "luck": "shared",
    }
    given: dict[str, Any] = {"seed": 7, "trials": 60}
    return LedgerLine(
        baseline=baseline, candidate=candidate, pair=Pair(**(pair | changes)), **(given | line)
    )


def report(line: LedgerLine, **changes: Any) -> GateReport:
    hashes = {line.baseline: line.baseline, line.candidate: line.candidate}
    fields: dict[str, Any] = {
        "config_sha256": hashes,
        "verdict": "OK",
        "baseline": line.baseline,
        "candidate": line.candidate,
        "trials": line.trials,
        "seed": line.seed,
        "attempt": line.attempt,
        "begun": hash_of(line),
    }
    return a_report(**(fields | changes))


def judged(file: Path, line: LedgerLine, **changes: Any) -> LedgerLine:
    """Enter an attempt, and its verdict where it has none yet."""
    _, entered = begin(file, line, LOOKS)
    return entered if entered.release else end(file, entered, report(entered, **changes))[1]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "h.json"


# --------------------------------------------------------------------------- the chain


def test_each_line_holds_the_hash_of_the_one_before_it(file: Path) -> None:
    for name in "abc":
        judged(file, asked(name))
    lines = read(file).lines
    before = ["", *(sha256_of(line.model_dump(mode="json")) for line in lines)]
    assert [line.before for line in lines] == before[:-1]
    assert head_of(read(file)) == before[-1]
    assert [line.begun for line in lines[1::2]] == before[1::2]
    assert [line.release is None for line in lines] == [True, False] * 3


def rewritten(history: GateHistory, lines: Sequence[LedgerLine]) -> GateHistory:
    return history.model_copy(update={"lines": tuple(lines)})


def chained_anew(lines: Sequence[LedgerLine]) -> list[LedgerLine]:
    """Return lines as somebody leaves them who can compute every hash of a file."""
    before, out = "", []
    for line in lines:
        out.append(line.model_copy(update={"before": before}))
        before = hash_of(out[-1])
    return out


FORGERIES: dict[str, Callable[[list[LedgerLine]], list[LedgerLine]]] = {
    "a verdict": lambda lines: [*lines[:1], forged(lines[1]), *lines[2:]],
    "a dropped line": lambda lines: [*lines[:2], *lines[3:]],
    "a dropped beginning": lambda lines: lines[2:],
    "another order": lambda lines: [lines[0], lines[1], lines[4], lines[5], lines[2], lines[3]],
}


def forged(line: LedgerLine) -> LedgerLine:
    assert line.release is not None
    return line.model_copy(update={"release": line.release.model_copy(update={"verdict": "WARN"})})


@pytest.mark.parametrize("how", FORGERIES)
def test_forging_is_found_and_chaining_anew_by_the_head(file: Path, how: str) -> None:
    for name in "abc":
        judged(file, asked(name))
    whole = read(file)
    lines = FORGERIES[how](list(whole.lines))
    write_artifact(file, rewritten(whole, lines))
    with pytest.raises(ArtifactError, match="does not follow the one before it") as refused:
        read(file)
    assert "\n" not in str(refused.value)
    write_artifact(file, rewritten(whole, chained_anew(lines)))
    assert lines_since(read(file), head_of(whole)) is None


def test_a_head_that_was_noted_finds_what_was_cut_off(file: Path) -> None:
    judged(file, asked("a"))
    head = head_of(read(file))
    judged(file, asked("b"))
    whole = read(file)
    assert (lines_since(whole, head), lines_since(whole, head_of(whole)[:16])) == (2, 0)
    assert lines_since(rewritten(whole, whole.lines[:-1]), head_of(whole)) is None
    assert lines_since(whole, head[:15]) is None  # too short to prove anything


# --------------------------------------------------------------------------- no second chance


def test_a_pair_has_one_verdict_and_one_report(file: Path) -> None:
    first = judged(file, asked("a"))
    kept = kept_report(file, first)
    for again in (asked("a", seed=99), asked("a", trials=5), asked("a", trials=90)):
        assert judged(file, again, verdict="BLOCK") == first
    assert kept_report(file, judged(file, asked("a"))) == kept
    assert len(read(file).lines) == 2
    assert judged(file, asked("a", model="another"), verdict="BLOCK") != first
    assert judged(file, asked("a", excused=("T-1",)), verdict="BLOCK") != first


def test_a_warning_stands_until_a_higher_cap_is_asked_for(file: Path) -> None:
    first = judged(file, asked("a", trials=20), verdict="WARN")
    assert judged(file, asked("a", trials=20, seed=9)) == first
    assert judged(file, asked("a", trials=10)) == first
    second = judged(file, asked("a", trials=60))
    assert (second.attempt.number, second.release and second.release.verdict) == (2, "OK")
    assert second.attempt.candidate == 1
    assert judged(file, asked("a", trials=200), verdict="BLOCK") == second


def test_runs_of_a_pair_share_the_error_and_never_spend_more(file: Path) -> None:
    shares = [
        judged(file, asked("a", trials=cap), verdict="WARN").attempt.block_share
        for cap in (5, 10, 20, 60)
    ]
    assert shares == pytest.approx([0.8, 0.16, 0.032, 0.0064])
    assert sum(LOOKS.attempt(n, 1).block_share for n in range(1, 50)) <= 1 + 1e-6
    every = (LOOKS.attempt(n, k).ok_share for n in range(1, 20) for k in range(1, 400))
    assert sum(every) <= 1 + 1e-6


def test_candidates_count_in_the_order_in_which_they_began(file: Path) -> None:
    started = [begin(file, asked(name), LOOKS)[1] for name in "abc"]
    assert [line.attempt.candidate for line in started] == [1, 2, 3]
    ends = [end(file, line, report(line))[1] for line in reversed(started)]
    assert [line.attempt.candidate for line in ends] == [3, 2, 1]
    assert judged(file, asked("d", model="another")).attempt.candidate == 4
    assert judged(file, asked("v1")).attempt.candidate == 1  # against itself it is no candidate
    assert judged(file, asked("e")).attempt.candidate == 5
    assert judged(file, asked("a", suite_sha256="9" * 64)).attempt.candidate == 1
    assert judged(file, asked("a", "v0")).attempt.candidate == 1


def test_a_run_that_was_given_up_goes_on_with_its_seed_and_else_counts(file: Path) -> None:
    _, given_up = begin(file, asked("a"), LOOKS)
    history, again = begin(file, asked("a"), LOOKS)
    assert (again, len(history.lines)) == (given_up, 1)
    _, other = begin(file, asked("a", seed=8), LOOKS)
    assert other.attempt == LOOKS.attempt(2, 1)
    assert judged(file, asked("b")).attempt == LOOKS.attempt(1, 2)


def test_what_ended_without_a_verdict_spends_nothing(file: Path) -> None:
    nothing = judged(file, asked("a"), verdict=None)
    assert nothing.release is not None
    again = judged(file, asked("a", seed=8), verdict="WARN")
    assert again.attempt == nothing.attempt == LOOKS.attempt(1, 1)
    assert judged(file, asked("b")).attempt == LOOKS.attempt(1, 2)


def test_the_first_verdict_of_two_runs_of_one_pair_stands(file: Path) -> None:
    runs = [begin(file, asked("a", seed=seed), LOOKS)[1] for seed in (7, 8)]
    assert [line.attempt.number for line in runs] == [1, 2]
    first = end(file, runs[1], report(runs[1], verdict="BLOCK"))[1]
    assert end(file, runs[0], report(runs[0], verdict="OK"))[1] == first


def test_a_kept_report_that_is_gone_edited_or_another_is_told(file: Path) -> None:
    lines = [judged(file, asked(name)) for name in "ab"]
    one, two = (file.with_suffix(".reports") / f"{line.report_sha256}.json" for line in lines)
    wrong = {
        "is not the one that was judged": two.read_text(encoding="utf-8"),
        "is missing or was edited": one.read_text(encoding="utf-8").replace('"OK"', '"WARN"'),
        "is missing": "",
    }
    for said, text in wrong.items():
        one.write_text(text, encoding="utf-8") if text else one.unlink()
        with pytest.raises(ArtifactError, match=said) as refused:
            kept_report(file, lines[0])
        assert "\n" not in str(refused.value)
    with pytest.raises(ArtifactError, match="is not the one that was judged"):
        kept_report(file, forged(lines[1]))


# --------------------------------------------------------------------------- drift


def test_drift_adds_up_what_was_released_and_nothing_else(file: Path) -> None:
    shift = {"delta": -0.02, "ci_low": -0.04, "ci_high": 0.0}
    judged(file, asked("b", "a"), **shift)
    judged(file, asked("tried", "b"), **shift)  # never the baseline of anything
    judged(file, asked("c", "b"), verdict="BLOCK", **shift)  # and released all the same
    judged(file, asked("c", "c"), delta=-0.5)  # against itself
    judged(file, asked("next", "c"), delta=-0.5)
    standing = Standing(history=read(file))
    assert standing.released_before("c") == (Shift(-0.02, pytest.approx(0.0102, abs=1e-4)),) * 2
    assert len(standing.released_before("next")) == 3
    assert standing.released_before("unknown") == ()
    assert Standing().released_before("c") == ()


# --------------------------------------------------------------------------- error rates


def looked(truth: Truth, plan: LookPlan, seed: int) -> Looked:
    """Judge one simulated release; the same seed holds the same trials, as far as they go."""
    return judge_looks(*drawn_gate(truth, generator(seed, "test", "ledger", truth.name)), plan)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(("loss", "wrong", "most"), [(0.0, "BLOCK", 0.02), (0.05, "OK", 0.05)])
def test_two_runs_of_a_pair_err_no_more_often_than_one_may(
    loss: float, wrong: str, most: float, fresh: bool
) -> None:
    truth, runs, erred = Truth(f"{loss}", everywhere(loss)), 60, 0
    for seed in range(runs):
        said = None
        for number, cap in ((1, 12), (2, 60)):
            if said in (None, "WARN"):
                plan = LookPlan(cap, rules=LOOKS, attempt=LOOKS.attempt(number, 1))
                said = looked(truth, plan, seed + 1000 * number * fresh).verdict
        erred += said == wrong
    assert erred <= binom.ppf(0.999, runs, most)


def test_five_candidates_that_lost_five_points_are_rarely_an_ok() -> None:
    truth, series, fooled = Truth("lost", everywhere(0.05)), 40, 0
    for n in range(series):
        plans = [LookPlan(rules=LOOKS, attempt=LOOKS.attempt(1, k)) for k in range(1, 6)]
        fooled += any(
            looked(truth, plan, 10 * n + k).verdict == "OK" for k, plan in enumerate(plans)
        )
    assert fooled <= binom.ppf(0.999, series, 0.05)


def test_what_stands_before_an_ok_does_not_shrink_with_the_error_that_is_left() -> None:
    def failing(every: int) -> list[Outcome]:
        return ["violation" if n % every == 0 else "safe" for n in range(1, 61)]

    calm = [entry(f"calm{i}", failing(61), failing(61)) for i in range(12)]
    one = entry("one", failing(60), failing(12))  # lost seven points, in sixty trials
    seen = {
        k: judge_looks(
            trials([*calm, one]).cases,
            (),
            LookPlan(rules=LOOKS, attempt=LOOKS.attempt(1, k)),
        )
        for k in (1, 9)
    }
    states = {k: found.families[-1].state for k, found in seen.items()}
    assert states == {1: "within its margin", 9: "open"}
    assert {k: found.verdict for k, found in seen.items()} == {1: "OK", 9: "WARN"}


def test_ten_equal_releases_are_a_false_alarm_in_one_history_of_twenty_at_most() -> None:
    dice, runs, alarms = generator(3, "test", "drift"), 1000, 0
    for _ in range(runs):
        ses = dice.uniform(0.01, 0.04, 10)
        shifts = [Shift(float(d), float(s)) for d, s in zip(dice.normal(0, ses), ses, strict=True)]
        alarms += any(judge_drift(shifts[:n], load_rules()).status == "warn" for n in range(2, 11))
    assert alarms <= binom.ppf(0.999, runs, 0.05)


# --------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ledger")
    shutil.copy(ROOT / "artifacts" / "regression_tests.json", made)
    return made


def gate(folder: Path, *options: str) -> int:
    given = ["--artifacts", str(folder), "--history", str(folder / "h.json"), *options]
    return main(["gate", "--candidate", "v2", *given])


def test_the_same_pair_again_is_the_same_bytes_and_asks_no_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    comment = folder / "gate.md"
    assert gate(folder, "--markdown", str(comment)) == 2
    (head,) = re.findall("head ([0-9a-f]{64})", capsys.readouterr().out)
    assert f"History `{head}`." in comment.read_text(encoding="utf-8")
    assert head in (folder / "gate_report.html").read_text(encoding="utf-8")
    names = ("gate_report.json", "gate_report.html", "gate.md")
    before = [(folder / name).read_bytes() for name in names]
    lines = read(folder / "h.json").lines
    assert read_artifact(folder, GateReport).begun == hash_of(lines[0])
    end(folder / "h.json", begin(folder / "h.json", asked("x"), LOOKS)[1], report(asked("x")))
    with counting_calls() as so_far:
        again = gate(folder, "--seed", "8", "--trials", "30", "--markdown", str(comment))
        assert (again, so_far().number) == (2, 0)
    assert "This pair was judged before" in capsys.readouterr().out
    assert [(folder / name).read_bytes() for name in names] == before
    assert main(["history", str(folder / "h.json"), "--head", head]) == 0
    assert "2 lines were added since" in capsys.readouterr().out


def one_line_and_no_trial(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    kept = (folder / "gate_report.html").read_bytes()
    with counting_calls() as so_far:
        assert (gate(folder), so_far().number) == (3, 0)
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "\n" not in said
    assert (folder / "gate_report.html").read_bytes() == kept
    return said


def test_a_ledger_that_was_tampered_with_ends_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    ledger = tmp_path / "h.json"
    whole = read(ledger)
    text = ledger.read_text(encoding="utf-8")
    ledger.write_text(text.replace('"BLOCK"', '"OK"'), encoding="utf-8")
    assert "edited or damaged" in one_line_and_no_trial(tmp_path, capsys)
    lines = [whole.lines[0], forged(whole.lines[1]), *whole.lines[2:]]
    write_artifact(ledger, rewritten(whole, lines))
    assert "does not follow the one before it" in one_line_and_no_trial(tmp_path, capsys)
    write_artifact(ledger, rewritten(whole, chained_anew(lines)))
    assert "is not the one that was judged" in one_line_and_no_trial(tmp_path, capsys)
    for left in (whole.lines[:-1], chained_anew(lines)):
        write_artifact(ledger, rewritten(whole, left))
        assert main(["history", str(ledger), "--head", head_of(whole)]) == 3
        assert "forged, cut off or chained anew" in capsys.readouterr().err
    old = {**json.loads(text), "schema_version": 1}
    ledger.write_text(json.dumps(old), encoding="utf-8")
    assert "begins another" in one_line_and_no_trial(tmp_path, capsys)


def test_a_report_that_is_not_where_it_was_kept_ends_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "h.reports")
    assert "its report is missing" in one_line_and_no_trial(tmp_path, capsys)


def test_two_gates_at_once_on_one_history_both_stand(tmp_path: Path) -> None:
    suite = ROOT / "artifacts" / "regression_tests.json"
    common = [sys.executable, "-m", "safety_lib", "gate", "--history", str(tmp_path / "h.json")]
    common += ["--suite", str(suite), "--workers", "1"]
    started = [
        subprocess.Popen(
            [*common, "--candidate", candidate, "--artifacts", str(tmp_path / candidate)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for candidate in ("v2", "v3")
    ]
    said = [one.communicate(timeout=240)[0] for one in started]
    assert [one.returncode for one in started] == [2, 0]
    history = read(tmp_path / "h.json")
    assert {release.candidate: release.verdict for release in history.releases} == {
        "v2": "BLOCK",
        "v3": "OK",
    }
    assert sorted(line.attempt.candidate for line in history.lines if line.release) == [1, 2]
    heads = [re.findall("head ([0-9a-f]{64})", text)[0] for text in said]
    assert all(lines_since(history, head) is not None for head in heads)
    assert head_of(history) in heads


def test_without_a_history_the_whole_error_is_left() -> None:
    assert LookPlan(rules=LOOKS).left == LOOKS
    halved = replace(LookPlan(rules=LOOKS), attempt=Attempt(block_share=0.5, ok_share=0.1)).left
    assert halved.false_block == pytest.approx(LOOKS.false_block / 2)
    assert halved.wrong_ok == pytest.approx(LOOKS.wrong_ok / 10)
