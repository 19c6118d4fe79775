"""The gate beside other release gates, each asked in an environment of its own.

They judge the same simulated releases: independent luck, a fixed number of trials of each test,
which is what they take. Rules are compared where they err as seldom: for each peer the settings
that it offers are tried on trials of their own, and the one that meets both limits and is right
most often is then measured on fresh ones, beside the settings that the peer comes with. That
favours the peers: their settings are chosen for the very suite on which they are compared.
"""

from __future__ import annotations

import json
import subprocess
import venv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safety_lib.artifacts import CHECKOUT
from safety_lib.experiments import peer_driver
from safety_lib.experiments.characteristics import (
    LOSING,
    RUNS,
    shares_of_found,
    under_gate_rules,
)
from safety_lib.experiments.results import SEED
from safety_lib.experiments.simulated_gates import (
    RATES,
    TEST_CALLS,
    Found,
    Truth,
    drawn_gate,
    fixed_calls,
    in_one_test,
    simulate_gates,
)
from safety_lib.gate.at_once import Arms, judge_at_once, one_look
from safety_lib.gate.looks import LookPlan
from safety_lib.records import Experiment
from safety_lib.records.experiments import Peer, PeerRule, Peers, PeerSetting, VerdictShares
from safety_lib.streams import generator

PEER_TRIALS = (10, 30, 60, 100)
AS_IT_COMES = 60  # trials of each test for a peer's own settings: our last look
COMPARED_AT = (60, 100)  # where a peer's best setting is measured
SEARCH = 200
FALSE_BLOCK, WRONG_OK = 0.02, 0.05
EQUAL, FIVE_POINTS = "in every family, 0.0", "in every family, 0.05"
_MOST = LookPlan(cap=max(PEER_TRIALS))
PeerSettings = Mapping[str, Any]


def _grid(**choices: Sequence[Any]) -> tuple[PeerSettings, ...]:
    rows: list[dict[str, Any]] = [{}]
    for key, values in choices.items():
        rows = [{**row, key: value} for row in rows for value in values]
    return tuple(rows)


@dataclass(frozen=True)
class PeerTool:
    """Another gate: what is installed, and what it is asked with.

    Attributes
    ----------
    name, version : str
        As they are installed.
    settings : tuple of mapping
        Tried in the search; the first is what the tool comes with.
    """

    name: str
    version: str
    settings: tuple[PeerSettings, ...]


PEER_TOOLS = (
    PeerTool(
        "statgate",
        "0.1.1",
        (
            {"mode": "compare", "alpha": 0.05, "margin": 0.02},
            *_grid(mode=["compare"], alpha=[0.05, 0.1, 0.2], margin=[0.03, 0.04, 0.05]),
            *_grid(mode=["compare"], alpha=[0.02, 0.1, 0.2], margin=[0.02]),
            *_grid(mode=["sequential"], alpha=[0.05, 0.2], margin=[0.02, 0.04]),
        ),
    ),
    PeerTool(
        "toolkit-eval-harness",
        "1.0.0",
        (
            {"method": "bootstrap", "confidence": 0.95, "max_score_regression_pct": 2.0},
            *_grid(
                method=["bootstrap"],
                confidence=[0.8, 0.95],
                max_score_regression_pct=[4.0, 5.0, 6.0, 8.0, 10.0],
            ),
            *_grid(method=["mean"], max_score_regression_pct=[2.0, 2.5, 2.75, 3.0, 3.25, 4.0]),
        ),
    ),
    PeerTool(
        "evalsig",
        "0.1.2",
        (
            {"asks": "does it gain", "min_delta": 0.005, "alpha": 0.05},
            {"asks": "does it gain", "min_delta": 0.05, "alpha": 0.05},
            *_grid(
                asks=["is it a loss"],
                min_delta=[0.01, 0.02, 0.025, 0.03, 0.035],
                alpha=[0.02, 0.05],
            ),
            *_grid(asks=["is it a loss"], min_delta=[0.025, 0.035], alpha=[0.05], cluster=["test"]),
        ),
    ),
    PeerTool(
        "regression-substrate",
        "0.3.0",
        (
            {"alpha": 0.05},
            {"alpha": 0.02},
            *_grid(alpha=[0.02, 0.05, 0.1], min_n=[15], margin=[0.0, -0.03, -0.04, -0.05]),
        ),
    ),
)


def peer_releases() -> dict[str, Truth]:
    """List the releases that every gate judges, by name.

    Returns
    -------
    dict
        Those of the operating characteristics under the names that they have there, and a loss
        that is large in one small family and small in the mean.

    Examples
    --------
    >>> len(peer_releases()), next(iter(peer_releases()))
    (11, 'in every family, 0.0')
    """
    points = [("in every family", 0.0)]
    ways = ("in every family", "in half of the families", "in one family")
    points += [(way, loss) for way in ways for loss in (0.05, 0.07, 0.1)]
    made = {f"{way}, {loss}": Truth(f"{way}, {loss}", LOSING[way][0](loss)) for way, loss in points}
    small = Truth("30 points in a family of one test", in_one_test(0.3))
    return {**made, small.name: small}


def peer_python(tool: PeerTool, folder: Path = CHECKOUT / ".venv-peers") -> Path | str:
    """Return the Python of a peer's environment, which is made where there is none.

    Parameters
    ----------
    tool : PeerTool
        What is installed in it.
    folder : Path, optional
        Where the environments are.

    Returns
    -------
    Path or str
        The interpreter, or why the peer cannot be asked.
    """
    python = folder / tool.name / "bin" / "python"
    if not python.exists():
        venv.create(folder / tool.name, with_pip=True)
    wanted = f"{tool.name}=={tool.version}"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wanted]
    done = subprocess.run(pip, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return said[0] if said else "pip could not install it"
    return python


def drawn_for_peers(truth: Truth, runs: int, seed: int) -> list[dict[str, Any]]:
    """Draw gates of one truth as the driver of a peer reads them.

    Parameters
    ----------
    truth : Truth
        What is true.
    runs : int
        Gates.
    seed : int
        Decides the draws.

    Returns
    -------
    list of dict
        Whether each test passed on either side, trial by trial up to the most that a peer is
        given, and the family of each test. Benign requests are left out.
    """
    dice = generator(seed, "gate", "peers", truth.name)
    most = replace(truth, plan=_MOST)
    made = []
    for _ in range(runs):
        cases, _fresh = drawn_gate(most, dice)
        tests = [entry for entry in cases if entry.case.stratum != "benign"]
        made.append(
            {
                "baseline": [[int(o == "safe") for o in entry.baseline] for entry in tests],
                "candidate": [[int(o == "safe") for o in entry.candidate] for entry in tests],
                "families": [entry.case.family for entry in tests],
            }
        )
    return made


def ask_peer(
    python: Path,
    name: str,
    gates: Sequence[Mapping[str, Any]],
    asked: Sequence[tuple[PeerSettings, int]],
) -> list[Found]:
    """Ask a peer about gates under settings, each with so many trials of each test.

    Parameters
    ----------
    python : Path
        Of the peer's environment.
    name : str
        Which tool of :mod:`safety_lib.experiments.peer_driver`.
    gates : sequence of mapping
        As from :func:`drawn_for_peers`.
    asked : sequence of tuple
        PeerSettings and trials.

    Returns
    -------
    list of Found
        For each of ``asked``; calls are those of the tests alone.

    Raises
    ------
    RuntimeError
        If the tool stops with an error; its last line is in the message.
    """
    found = []
    for trials in dict.fromkeys(trials for _, trials in asked):
        settings = [setting for setting, n in asked if n == trials]
        short = [
            {
                "families": gate["families"],
                **{side: [t[:trials] for t in gate[side]] for side in ("baseline", "candidate")},
            }
            for gate in gates
        ]
        done = subprocess.run(  # noqa: S603
            [str(python), "-W", "ignore", peer_driver.__file__, name],
            input=json.dumps({"settings": settings, "gates": short}),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
        full = 2 * TEST_CALLS * len(RATES) * trials / fixed_calls(Truth.twins)
        for said in zip(*json.loads(done.stdout), strict=True):
            verdicts = Counter(verdict for verdict, _ in said)
            calls = full * sum(used for _, used in said) / len(said)
            found.append(Found(len(said), verdicts, Counter(), calls, fresh=0.0))
    return found


def search_settings(python: Path, tool: PeerTool, runs: int = SEARCH) -> tuple[PeerSetting, ...]:
    """Measure every setting of a peer where the limits are, with every number of trials.

    Parameters
    ----------
    python : Path
        Of the peer's environment.
    tool : PeerTool
        With the settings.
    runs : int
        Gates of each of the two releases.

    Returns
    -------
    tuple of PeerSetting
        Each setting with each number of trials.
    """
    asked = [(setting, trials) for trials in PEER_TRIALS for setting in tool.settings]
    releases = peer_releases()
    equal, five = (
        ask_peer(python, tool.name, drawn_for_peers(releases[name], runs, SEED + 1), asked)
        for name in (EQUAL, FIVE_POINTS)
    )
    return tuple(
        PeerSetting(
            setting=said_setting(setting),
            trials=trials,
            false_block=at_equal.verdicts["BLOCK"] / runs,
            right_ok=at_equal.verdicts["OK"] / runs,
            wrong_ok=at_five.verdicts["OK"] / runs,
            right_block=at_five.verdicts["BLOCK"] / runs,
        )
        for (setting, trials), at_equal, at_five in zip(asked, equal, five, strict=True)
    )


def said_setting(setting: PeerSettings) -> str:
    """Say a peer's setting in a few words.

    Examples
    --------
    >>> said_setting({"mode": "compare", "alpha": 0.05})
    'mode compare, alpha 0.05'
    """
    return ", ".join(f"{key} {value}" for key, value in setting.items())


def _missed(one: PeerSetting) -> float:
    return max(one.false_block / FALSE_BLOCK, one.wrong_ok / WRONG_OK)


def best_setting(tried: Sequence[PeerSetting]) -> PeerSetting:
    """Choose the setting at which a peer is compared.

    Parameters
    ----------
    tried : sequence of PeerSetting
        As from :func:`search_settings`.

    Returns
    -------
    PeerSetting
        Of those that meet both limits, the one that is right most often about equals and about a
        loss of 5 points; where none does, the one that misses them least.

    Examples
    --------
    >>> blind = PeerSetting(
    ...     setting="never", trials=10, false_block=0, right_ok=0, wrong_ok=0, right_block=0
    ... )
    >>> good = blind.model_copy(update={"setting": "good", "right_ok": 0.9})
    >>> hasty = good.model_copy(update={"setting": "hasty", "right_block": 1, "false_block": 0.1})
    >>> best_setting([blind, good, hasty]).setting
    'good'
    """
    within = [one for one in tried if _missed(one) <= 1]
    if within:
        return max(within, key=lambda one: one.right_ok + one.right_block)
    return min(tried, key=_missed)


def measure_peer(
    python: Path, tool: PeerTool, chosen: Sequence[tuple[PeerSettings, int]], runs: int = RUNS
) -> list[dict[str, VerdictShares]]:
    """Let a peer judge every release under some settings.

    Parameters
    ----------
    python : Path
        Of the peer's environment.
    tool : PeerTool
        Who is asked.
    chosen : sequence of tuple
        PeerSettings and trials.
    runs : int
        Gates of each release.

    Returns
    -------
    list of dict
        For each of ``chosen`` the shares of its verdicts, by release.
    """
    made: list[dict[str, VerdictShares]] = [{} for _ in chosen]
    for name, truth in peer_releases().items():
        gates = drawn_for_peers(truth, runs, SEED)
        for row, found in zip(made, ask_peer(python, tool.name, gates, chosen), strict=True):
            row[name] = shares_of_found(found)
    return made


def judged_at_once(truth: Truth, trials: Sequence[int], runs: int = RUNS) -> list[VerdictShares]:
    """Let this gate judge finished results, as it does those of another tool.

    Parameters
    ----------
    truth : Truth
        What is true.
    trials : sequence of int
        Of each test and of each benign request.
    runs : int
        Gates.

    Returns
    -------
    list of VerdictShares
        For each of ``trials``, on the same draws.

    Examples
    --------
    >>> worse = peer_releases()["in every family, 0.1"]
    >>> judged_at_once(worse, [60], runs=5)[0].shares["BLOCK"].value
    1.0
    """
    dice = generator(SEED, "gate", "at once", truth.name)
    most = replace(truth, plan=LookPlan(cap=max(trials)))
    verdicts: list[Counter[str]] = [Counter() for _ in trials]
    for _ in range(runs):
        cases, _fresh = drawn_gate(most, dice)
        for counted, n in zip(verdicts, trials, strict=True):
            arms = [Arms(e.case, tuple(e.baseline[:n]), tuple(e.candidate[:n])) for e in cases]
            tests = [each for each in arms if each.case.stratum != "benign"]
            benign = [each for each in arms if each.case.stratum == "benign"]
            counted[str(judge_at_once(tests, benign, one_look(n)).verdict)] += 1
    cost = [n / AS_IT_COMES for n in trials]
    return [
        shares_of_found(Found(runs, counted, Counter(), calls, fresh=0.0))
        for counted, calls in zip(verdicts, cost, strict=True)
    ]


def run_peers(runs: int = RUNS) -> Experiment[Peers]:
    """Compare this gate with every peer that can be installed.

    Parameters
    ----------
    runs : int
        Simulated gates of each release.

    Returns
    -------
    Experiment
        ``peers``.

    Raises
    ------
    RuntimeError
        If no peer can be installed: there is nothing to compare with.
    """
    ours = {
        name: shares_of_found(simulate_gates(truth, runs, SEED))
        for name, truth in peer_releases().items()
    }
    at_once: dict[int, dict[str, VerdictShares]] = {n: {} for n in COMPARED_AT}
    for name, truth in peer_releases().items():
        judged = judged_at_once(truth, COMPARED_AT, runs)
        for n, shares in zip(COMPARED_AT, judged, strict=True):
            at_once[n][name] = shares
    peers: dict[str, Peer] = {}
    left_out: dict[str, str] = {}
    for tool in PEER_TOOLS:
        python = peer_python(tool)
        if isinstance(python, str):
            left_out[tool.name] = python
        else:
            peers[tool.name] = _peer(python, tool, runs)
    if not peers:
        raise RuntimeError("no peer could be installed: " + "; ".join(left_out.values()))
    parameters = {
        "runs": runs,
        "search": SEARCH,
        "trials": list(PEER_TRIALS),
        "false_block": FALSE_BLOCK,
        "wrong_ok": WRONG_OK,
    }
    found = Peers(ours=ours, at_once=at_once, peers=peers, left_out=left_out)
    return under_gate_rules(found, parameters)


def _peer(python: Path, tool: PeerTool, runs: int) -> Peer:
    tried = search_settings(python, tool)
    best = [best_setting([one for one in tried if one.trials == n]) for n in COMPARED_AT]
    by_name = {said_setting(setting): setting for setting in tool.settings}
    chosen = [(tool.settings[0], AS_IT_COMES)]
    chosen += [(by_name[one.setting], one.trials) for one in best]
    own, *matched = (
        PeerRule(
            setting=said_setting(setting),
            trials=trials,
            within_limits=meets_limits(releases),
            releases=releases,
        )
        for (setting, trials), releases in zip(
            chosen, measure_peer(python, tool, chosen, runs), strict=True
        )
    )
    return Peer(version=tool.version, as_it_comes=own, best=tuple(matched), tried=tried)


def meets_limits(releases: Mapping[str, VerdictShares]) -> bool:
    """Say whether what was measured is compatible with both limits on error, at 95%."""
    false_block = releases[EQUAL].shares["BLOCK"].low
    return false_block <= FALSE_BLOCK and releases[FIVE_POINTS].shares["OK"].low <= WRONG_OK
