"""The history of verdicts: nothing is judged twice, spent twice or rewritten."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from factories import a_report
from scipy.stats import binom

from safety_lib.__main__ import main
from safety_lib.agent.backends.calls import counting_calls
from safety_lib.artifacts import ArtifactError, read_artifact, sha256_of
from safety_lib.experiments.simulated_gates import Truth, everywhere, simulate_gates
from safety_lib.gate.look_rules import load_look_rules
from safety_lib.gate.looks import LookPlan
from safety_lib.gate.releases import (
    Standing,
    add_release,
    finished,
    head_of,
    pair_of,
    read_history,
    record,
    since,
)
from safety_lib.pipeline import NOTEBOOKS
from safety_lib.records import GateHistory, GateReport

ROOT = NOTEBOOKS.parent
LOOKS = load_look_rules()


def report(candidate: str, baseline: str = "v1", **changes: Any) -> GateReport:
    """Return a verdict on a candidate, whose hash is its name."""
    hashes = {"config_sha256": {baseline: baseline, candidate: candidate}}
    fields: dict[str, Any] = {"verdict": "OK", "baseline": baseline, "candidate": candidate}
    return a_report(**(hashes | fields | changes))


def history_of(*reports: GateReport) -> GateHistory:
    kept = None
    for one in reports:
        kept = add_release(kept, one)
    assert kept is not None
    return kept


# --------------------------------------------------------------------------- the chain


def rewritten(history: GateHistory, *releases: Any) -> GateHistory:
    """Return the history as somebody leaves it who can compute every hash of a file."""
    return history.model_copy(update={"releases": tuple(releases)})


def test_each_line_follows_the_one_before_it(tmp_path: Path) -> None:
    file = tmp_path / "history.json"
    for name in ("a", "b", "c"):
        kept = record(file, report(name))
    first, second, third = read_history(file).releases
    assert first.before == ""
    assert second.before == sha256_of(first.model_dump(mode="json"))
    assert third.before == sha256_of(second.model_dump(mode="json"))
    assert head_of(kept) == sha256_of(third.model_dump(mode="json"))


@pytest.mark.parametrize(
    "forged",
    [
        lambda one, two, three: (one.model_copy(update={"verdict": "BLOCK"}), two, three),
        lambda one, two, three: (one, three),
        lambda one, two, three: (two, three),
        lambda one, two, three: (one, three, two),
    ],
)
def test_a_line_that_was_changed_dropped_or_moved_is_found(tmp_path: Path, forged: Any) -> None:
    from safety_lib.artifacts import write_artifact

    kept = history_of(*map(report, "abc"))
    file = write_artifact(tmp_path / "h.json", rewritten(kept, *forged(*kept.releases)))
    with pytest.raises(ArtifactError, match="does not follow the one before it") as refused:
        read_history(file)
    assert "\n" not in str(refused.value)


def test_a_head_that_was_noted_finds_what_hashes_alone_cannot() -> None:
    whole = history_of(*map(report, "abc"))
    head = head_of(whole)
    assert since(whole, head) == 0
    assert since(add_release(whole, report("d")), head[:16]) == 1
    cut = rewritten(whole, *whole.releases[:2])
    anew = history_of(report("a"), report("b", verdict="WARN"), report("c"))
    for other in (cut, anew, None):
        assert since(other, head) is None
    assert since(whole, head[:4]) is None  # too short to prove anything


def test_the_command_shows_and_checks_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "h.json"
    head = head_of(record(file, report("a")))
    record(file, report("b"))
    assert main(["history", str(file), "--head", head]) == 0
    assert "1 verdicts were added since" in capsys.readouterr().out
    assert main(["history", str(file), "--head", "0" * 64]) == 3
    assert "forged, cut off or chained anew" in capsys.readouterr().err
    file.write_text(file.read_text(encoding="utf-8").replace('"OK"', '"WARN"'), encoding="utf-8")
    assert main(["history", str(file)]) == 3


# --------------------------------------------------------------------------- no second chance


def test_a_pair_that_was_judged_returns_its_report_and_a_higher_cap_does_not(
    tmp_path: Path,
) -> None:
    file, one = tmp_path / "h.json", report("a", trials=20)
    kept = record(file, one)
    again = finished(file, kept, pair_of(one), 20)
    assert again is not None
    assert again == one
    assert finished(file, kept, pair_of(report("a", seed=99)), 5) == one
    assert finished(file, kept, pair_of(one), 21) is None
    assert finished(file, kept, pair_of(report("b")), 20) is None
    assert finished(file, kept, pair_of(report("a", suite_sha256="8" * 64)), 20) is None
    nothing = record(tmp_path / "n.json", report("a", verdict=None))
    assert finished(tmp_path / "n.json", nothing, pair_of(one), 20) is None


def test_a_kept_report_that_is_gone_or_another_is_told(tmp_path: Path) -> None:
    file, one, two = tmp_path / "h.json", report("a"), report("b")
    record(file, one)
    kept = record(file, two)
    first, second = sorted((tmp_path / "h.reports").glob("*/gate_report.json"))
    swapped = first.read_bytes(), second.read_bytes()
    second.write_bytes(swapped[0])
    first.write_bytes(swapped[1])
    with pytest.raises(ArtifactError, match="is not the one that was judged"):
        finished(file, kept, pair_of(one), 60)
    shutil.rmtree(tmp_path / "h.reports")
    with pytest.raises(ArtifactError, match="there is no such file"):
        finished(file, kept, pair_of(one), 60)


def test_without_a_history_nothing_is_shared_out() -> None:
    assert Standing().attempt(pair_of(report("a")), LOOKS) is None


def attempt(history: GateHistory, of: GateReport) -> Any:
    return Standing(history=history).attempt(pair_of(of), LOOKS)


def test_runs_of_a_pair_share_the_error_and_never_spend_more(tmp_path: Path) -> None:
    kept = read_history(tmp_path / "none.json")
    shares = []
    for cap in (5, 10, 20, 60):
        seen = attempt(kept, report("a"))
        shares.append(seen.block_share)
        assert (seen.number, seen.candidate) == (len(shares), 1)
        kept = add_release(kept, report("a", trials=cap))
    assert shares == pytest.approx([0.8, 0.16, 0.032, 0.0064])
    assert sum(LOOKS.share_of_run(n) for n in range(1, 100)) == pytest.approx(1.0)


def test_candidates_in_a_row_share_the_error_of_an_ok() -> None:
    kept = history_of(*map(report, "abc"), report("v1"), report("x", verdict=None))
    seen = attempt(kept, report("d"))
    assert (seen.candidate, seen.number) == (4, 1)
    assert seen.ok_share == pytest.approx(0.8 * 6 / (3.14159265 * 4) ** 2, abs=1e-6)
    assert seen.block_share == pytest.approx(0.8)
    assert attempt(kept, report("b", trials=100)).candidate == 2
    assert attempt(kept, report("v1")).candidate == 1  # the baseline against itself is no candidate
    assert attempt(kept, report("e", suite_sha256="9" * 64)).candidate == 1


def test_five_tries_at_a_loss_at_the_margin_are_rarely_an_ok() -> None:
    runs, found = 60, []
    for k in range(1, 6):
        shares = attempt(
            history_of(*(report(f"r{i}") for i in range(k - 1)), report("v1")), report("new")
        )
        plan = LookPlan(rules=LOOKS.leaving(shares.block_share, shares.ok_share))
        truth = Truth(f"try {k}", everywhere(0.05), plan)
        found.append(simulate_gates(truth, runs, seed=k).verdicts["OK"])
    # That any of the five is an OK is at most their sum.
    assert sum(found) <= binom.ppf(0.999, runs, 0.05)


def test_drift_adds_up_what_was_released_and_nothing_else() -> None:
    shift = {"delta": -0.02, "ci_low": -0.04, "ci_high": 0.0}
    kept = history_of(
        report("b", "a", **shift),
        report("tried", "b", **shift),  # never the baseline of anything
        report("c", "b", **shift),
        report("c", "c", delta=-0.5),  # against itself
        report("blocked", "c", verdict="BLOCK", delta=-0.5),
    )
    chain = Standing(history=kept).released_before("c")
    assert [round(s.delta, 6) for s in chain] == [-0.02, -0.02]
    assert chain[0].se == pytest.approx(0.04 / (2 * 1.96), abs=1e-4)
    assert Standing(history=kept).released_before("tried")[-1].delta == -0.02
    assert Standing(history=kept).released_before("unknown") == ()


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
    assert gate(folder, "--markdown", str(folder / "first.md")) == 2
    said = capsys.readouterr().out
    (head,) = re.findall("head ([0-9a-f]{64})", said)
    assert f"History `{head}`." in (folder / "first.md").read_text(encoding="utf-8")
    names = ("gate_report.json", "gate_report.html", "h.json")
    before = [(folder / name).read_bytes() for name in names]
    with counting_calls() as so_far:
        assert gate(folder, "--seed", "8", "--trials", "30") == 2
        assert so_far().number == 0
    assert "This pair was judged before" in capsys.readouterr().out
    assert [(folder / name).read_bytes() for name in names] == before
    report = read_artifact(folder, GateReport)
    assert report.attempt is not None
    assert (report.attempt.number, report.attempt.candidate) == (1, 1)


def test_a_ledger_that_was_tampered_with_ends_in_three_and_turns_no_verdict(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "h.json"
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.replace('"BLOCK"', '"OK"'), encoding="utf-8")
    assert gate(tmp_path / "copy") == 3
    assert "h.json: content differs from its hash" in capsys.readouterr().err
    file.write_text(whole, encoding="utf-8")
    tree = json.loads(file.read_text(encoding="utf-8"))
    tree["releases"][0]["verdict"] = "OK"
    tree.pop("content_sha256")
    tree["content_sha256"] = sha256_of(tree)  # whoever forges can hash
    file.write_text(json.dumps(tree), encoding="utf-8")
    assert gate(tmp_path / "copy") == 2  # its own report says what it was
    assert Counter(r.verdict for r in read_history(file).releases)["BLOCK"] == 1


@pytest.mark.slow
def test_two_gates_at_once_on_one_history_both_stand(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(ROOT / "artifacts" / "regression_tests.json", tmp_path / name)
    common = [sys.executable, "-m", "safety_lib", "gate", "--history", str(tmp_path / "h.json")]
    started = [
        subprocess.Popen(
            [*common, "--candidate", candidate, "--artifacts", str(tmp_path / name)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        for name, candidate in (("one", "v2"), ("two", "v3"))
    ]
    assert [one.wait(timeout=120) for one in started] == [2, 0]
    assert {r.candidate for r in read_history(tmp_path / "h.json").releases} == {"v2", "v3"}
