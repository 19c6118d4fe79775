"""The gate beside others: the stored comparison, and the driver that asks them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from scipy.stats import hypergeom

from safety_lib.artifacts import CHECKOUT, read_experiment
from safety_lib.experiments.characteristics import RUNS
from safety_lib.experiments.peer_driver import evalsig, regression_substrate
from safety_lib.experiments.peers import (
    COMPARED_AT,
    EQUAL,
    PEER_TOOLS,
    PEER_TRIALS,
    PeerTool,
    ask_peer,
    best_setting,
    drawn_for_peers,
    judged_at_once,
    measure_peer,
    meets_limits,
    peer_python,
    peer_releases,
    said_setting,
)
from safety_lib.experiments.results import SEED
from safety_lib.experiments.simulated_gates import simulate_gates
from safety_lib.figures.tables import peers_table
from safety_lib.gate.rules import load_rules
from safety_lib.pipeline import NOTEBOOKS
from safety_lib.records.experiments import OperatingCharacteristics, Peers

ARTIFACTS = NOTEBOOKS.parent / "artifacts"
STORED = read_experiment(ARTIFACTS, "peers")
RESULT = STORED.expect(Peers)
TOOLS = {tool.name: tool for tool in PEER_TOOLS}
CURVES = read_experiment(ARTIFACTS, "operating_characteristics").expect(OperatingCharacteristics)


def test_the_comparison_was_made_under_these_rules_with_every_peer_or_a_reason() -> None:
    assert STORED.parameters["gate_policy_sha256"] == load_rules().sha256
    assert {*RESULT.peers, *RESULT.left_out} == set(TOOLS)
    for name, peer in RESULT.peers.items():
        assert peer.version == TOOLS[name].version
        assert peer.as_it_comes.setting == said_setting(TOOLS[name].settings[0])
        assert len(peer.tried) == len(TOOLS[name].settings) * len(PEER_TRIALS)
        for rule in (peer.as_it_comes, *peer.best):
            assert rule.releases.keys() == RESULT.ours.keys() == peer_releases().keys()


def test_the_gate_has_the_numbers_of_its_operating_characteristics() -> None:
    for name, shares in RESULT.ours.items():
        way, _, loss = name.rpartition(", ")
        if way:
            assert shares == CURVES.curves[way][float(loss)]


def test_the_first_gates_of_the_stored_ones_come_out_again() -> None:
    some = 20
    for name in (EQUAL, "30 points in a family of one test"):
        found = simulate_gates(peer_releases()[name], some, SEED)
        for verdict, share in RESULT.ours[name].shares.items():
            drawn = hypergeom(RUNS, round(share.value * RUNS), some)
            assert drawn.ppf(1e-5) <= found.verdicts[verdict] <= drawn.isf(1e-5)


def test_finished_results_are_judged_as_well_as_the_stored_comparison_says() -> None:
    some = 20
    assert tuple(sorted(RESULT.at_once)) == COMPARED_AT
    for name in (EQUAL, "in every family, 0.05"):
        for n, shares in zip(
            COMPARED_AT, judged_at_once(peer_releases()[name], COMPARED_AT, some), strict=True
        ):
            for verdict, share in RESULT.at_once[n][name].shares.items():
                drawn = hypergeom(RUNS, round(share.value * RUNS), some)
                value = round(shares.shares[verdict].value * some)
                assert drawn.ppf(1e-5) <= value <= drawn.isf(1e-5)
    for releases in RESULT.at_once.values():
        assert meets_limits(releases)


@pytest.mark.parametrize("name", RESULT.peers)
def test_a_peer_is_compared_at_the_best_setting_that_meets_both_limits(name: str) -> None:
    peer = RESULT.peers[name]
    assert tuple(rule.trials for rule in peer.best) == COMPARED_AT
    for rule in peer.best:
        tried = [one for one in peer.tried if one.trials == rule.trials]
        assert best_setting(tried).setting == rule.setting
    for rule in (peer.as_it_comes, *peer.best):
        assert rule.within_limits is meets_limits(rule.releases)


def test_the_gate_errs_no_more_than_its_peers_may_and_asks_for_less() -> None:
    assert meets_limits(RESULT.ours)
    for peer in RESULT.peers.values():
        for rule in (peer.as_it_comes, *peer.best):
            if rule.within_limits:
                assert RESULT.ours[EQUAL].calls < rule.releases[EQUAL].calls


def test_a_threshold_on_the_mean_comes_out_by_hand() -> None:
    """toolkit-eval-harness without its bootstrap is a threshold on the relative loss."""
    tried = RESULT.peers["toolkit-eval-harness"].tried
    gates = drawn_for_peers(peer_releases()[EQUAL], STORED.parameters["search"], SEED + 1)
    for trials in (10, 60):
        for percent in (2.0, 3.0):
            blocked = 0
            for gate in gates:
                before, after = (
                    sum(sum(test[:trials]) for test in gate[side])
                    for side in ("baseline", "candidate")
                )
                blocked += 100 * (before - after) / before > percent
            setting = f"method mean, max_score_regression_pct {percent}"
            (stored,) = [t for t in tried if (t.setting, t.trials) == (setting, trials)]
            # A difference that lies on the threshold may be rounded to either side of it.
            assert stored.false_block * len(gates) == pytest.approx(blocked, abs=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESULT.peers)
def test_a_peer_says_again_what_it_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    python = CHECKOUT / ".venv-peers" / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{name} is not installed: python -m safety_lib.experiments peers")
    stored = RESULT.peers[name].best[-1]
    setting = {said_setting(s): s for s in TOOLS[name].settings}[stored.setting]
    only = {EQUAL: peer_releases()[EQUAL]}
    monkeypatch.setattr("safety_lib.experiments.peers.peer_releases", lambda: only)
    (seen,) = measure_peer(python, TOOLS[name], [(setting, stored.trials)])
    assert seen == {EQUAL: stored.releases[EQUAL]}


def test_the_table_has_a_row_for_every_rule() -> None:
    table = peers_table(STORED)
    assert len(table) == 1 + len(COMPARED_AT) + 3 * len(RESULT.peers)
    assert table.index[0] == "this gate"
    assert not table.isna().any().any()


# --------------------------------------------------------------------------- asking


def script(folder: Path, text: str) -> Path:
    python = folder / "some" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\ncat > /dev/null\n{text}\n", encoding="utf-8")
    python.chmod(0o755)
    return python


GATES = [{"baseline": [[1, 1]], "candidate": [[1, 0]], "families": ["f0"]}] * 2


def test_verdicts_are_counted_and_a_peer_that_stops_early_costs_less(tmp_path: Path) -> None:
    python = script(tmp_path, """echo '[[["OK", 0.5]], [["BLOCK", 1.0]]]'""")
    (found,) = ask_peer(python, "statgate", GATES, [({}, 60)])
    (whole,) = ask_peer(python, "statgate", GATES, [({}, 30)])
    assert (found.runs, found.verdicts) == (2, {"OK": 1, "BLOCK": 1})
    assert found.calls == 2 * whole.calls > 0.5


def test_a_peer_that_fails_is_named_with_its_last_line(tmp_path: Path) -> None:
    python = script(tmp_path, "echo 'it broke' >&2; exit 1")
    with pytest.raises(RuntimeError, match="statgate: it broke"):
        ask_peer(python, "statgate", GATES, [({}, 60)])


def test_a_peer_that_cannot_be_installed_is_named_with_the_reason(tmp_path: Path) -> None:
    script(tmp_path, "echo 'ERROR: nothing fits' >&2; exit 1")
    assert peer_python(PeerTool("some", "1", ({},)), tmp_path) == "ERROR: nothing fits"


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **what: Any) -> None:
    module = ModuleType(name)
    for key, value in what.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def test_a_gate_for_gains_is_asked_the_other_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(old: Any, new: Any, **_: Any) -> Any:
        gains = sum(i.score for i in new.items) > sum(i.score for i in old.items)
        return SimpleNamespace(verdict=SimpleNamespace(value="ALLOW" if gains else "REJECT"))

    stand_in(monkeypatch, "evalsig")
    stand_in(monkeypatch, "evalsig.compare", gate=judge)
    stand_in(
        monkeypatch,
        "evalsig.types",
        ItemResult=SimpleNamespace,
        RunFrame=lambda *given: SimpleNamespace(items=given[-1]),
    )
    worse = GATES[0]
    better = {**worse, "baseline": worse["candidate"], "candidate": worse["baseline"]}
    for asks, said in (("does it gain", ("BLOCK", "OK")), ("is it a loss", ("BLOCK", "OK"))):
        setting = {"asks": asks, "min_delta": 0.02}
        assert tuple(evalsig(gate)(setting)[0] for gate in (worse, better)) == said
    assert evalsig({**worse, "candidate": [[1, 1]]})({"asks": "is it a loss"})[0] == "OK"
    assert evalsig({**worse, "candidate": [[1, 1]]})({"asks": "does it gain"})[0] == "BLOCK"


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("SHIP", "OK"), ("SHIP_WITH_FLAGS", "OK"), ("HOLD", "WARN"), ("REGRESSION", "BLOCK")],
)
def test_words_of_a_peer_are_ours(verdict: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(old: Any, new: Any, clusters: Any, **_: Any) -> Any:
        assert old.shape == new.shape == (1, 2)
        assert list(clusters) == [0]
        return SimpleNamespace(verdict=verdict)

    stand_in(monkeypatch, "regression_substrate", gate=judge)
    assert regression_substrate(GATES[0])({"alpha": 0.05}) == (said, 1.0)
