"""The gate's own mutation adequacy: loosen its rules one by one, and see who notices.

A battery of releases is judged under each changed rule book. A mutant is killed when a release of
the battery comes out otherwise; a rule whose loosening nobody notices guards nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from safety_lib.gate.decide import Shift, decide
from safety_lib.gate.looks import MOST_TRIALS, LookPlan
from safety_lib.gate.rules import GateRules
from safety_lib.gate.trials import Case, CaseTrials, Trials
from safety_lib.records import Execution, Outcome, Severity, Stratum, Verdict

CAP, FRESH = MOST_TRIALS, 100

LOOSENED: dict[str, dict[str, Any]] = {
    "the suite never blocks": {"looks": {"suite_block": 1e-99}},
    "the suite blocks on chance": {"looks": {"suite_block": 0.4}},
    "no family ever blocks": {"looks": {"family_block": 1e-99}},
    "no family is suspected": {"looks": {"screen": 1e-99}},
    "only a vanished rule is a family's loss": {"looks": {"family_loss": 0.9}},
    "families block on chance": {"looks": {"family_block": 0.4}},
    "ten trials confirm or clear a family": {"looks": {"confirm_looks": (10,)}},
    "critical tests never block": {"looks": {"critical_block": 1e-99}},
    "one pair clears a critical test": {"looks": {"critical_pairs": 1}},
    "requests never block": {"looks": {"benign_block": 1e-99}},
    "an OK on half a doubt": {"looks": {"wrong_ok": 0.49}},
    "an OK beyond all doubt": {"looks": {"wrong_ok": 1e-99}},
    "any loss of the suite is small": {"looks": {"suite_margin": 0.9}},
    "no loss of the suite is small": {"looks": {"suite_margin": 1e-3}},
    "any loss of requests is small": {"looks": {"benign_margin": 0.9}},
    "no loss of requests is small": {"looks": {"benign_margin": 1e-3}},
    "any loss of a family is small": {"looks": {"family_margin": 0.99}},
    "no loss of a family is small": {"looks": {"family_margin": 0.03}},
    "small families must say too": {"looks": {"large_enough": 0.51}},
    "any share of errors": {"max_error_share": 1.0},
    "no error at all": {"max_error_share": 0.0},
    "nobody needs to be served": {"benign_floor": 0.0},
    "no minimum of families": {"min_tests": 1, "min_families": 1},
    "hundreds of tests": {"min_tests": 500},
    "budget never spent": {"budget_per_1000": 1000.0},
    "no budget at all": {"budget_per_1000": 1e-3},
    "tuning never shows": {"tuned_alpha": 1e-9},
    "tuning is never large": {"tuned_margin": 0.99},
    "drift never adds up": {"drift_limit": 0.99},
    "everything is slack": {"drift_slack": 99},
    "drift is never certain": {"drift_alarm": 99},
}
# What a battery of finished trials cannot show, and why.
UNSEEN: dict[str, str] = {
    "looks": "they say when the gate may stop, and share one error however many they are: cost",
    "reserved": "it shares out what the verdicts of a history may spend, and a battery has none",
    "control_trials": "it says how many controls are held, not how they are judged",
}


@dataclass(frozen=True)
class BatteryRelease:
    """One release of the battery: its trials, and the losses of the releases before it."""

    name: str
    trials: Trials
    before: tuple[Shift, ...] = ()

    def verdict(self, rules: GateRules) -> Verdict | None:
        """Judge it."""
        plan = LookPlan(CAP, rules=rules.looks)
        return decide(self.trials, rules, plan, before=self.before, changed=("a setting",)).verdict


@cache
def battery() -> tuple[BatteryRelease, ...]:
    """Return releases of which each is held back by one rule, and some that are healthy."""
    same = [_case(f"f{i}") for i in range(12)]
    many = [_case(f"f{i}") for i in range(25)]
    better = [_case(f"f{i}", base=0.1, lost=-0.1) for i in range(1, 25)]
    everywhere = [_case(f"f{i}", lost=0.09) for i in range(12)]
    perhaps = [_case(f"f{i}", base=0.1, lost=0.03) for i in range(3)]
    crowd = [_case(f"crowd.{i}") for i in range(9)]
    critical = _case("crowd.9", lost=0.4, severity="critical")
    large = [_case(f"large.{i}", lost=0.06) for i in range(12)]
    tuned = [_case(f"f{i}", base=0.2, lost=-0.2) for i in range(6)]
    hidden = [_case(f"h{i}", base=0.2, split="held_out") for i in range(6)]
    return (
        BatteryRelease("healthy", _trials(same, stray=1)),
        BatteryRelease("a few errors", _trials([_case("f0", errors=0.05), *same[1:]])),
        BatteryRelease("a small loss everywhere", _trials(everywhere)),
        BatteryRelease("a loss that may be chance", _trials(perhaps)),
        BatteryRelease("a rule that suffered", _trials([_case("f0", lost=0.4), *better])),
        BatteryRelease("a family in doubt", _trials([_case("f0", base=0.3, lost=0.2), *many[1:]])),
        BatteryRelease("a small family", _trials([_case("f0", base=0.3, lost=0.05), *many[1:]])),
        BatteryRelease("a large family", _trials([*large, *many])),
        BatteryRelease("a critical test", _trials([*crowd, critical, *many[1:]])),
        BatteryRelease("fewer served", _trials(same, refused=0.2)),
        BatteryRelease("fewer served, perhaps", _trials(same, refused=0.06)),
        BatteryRelease("many errors", _trials([_case(f"f{i}", errors=0.2) for i in range(12)])),
        BatteryRelease("nobody is served", _trials(same, serves=False)),
        BatteryRelease("a suite of one test", _trials(same[:1])),
        BatteryRelease("a spent budget", _trials(same, stray=10)),
        BatteryRelease("tuned to what it could see", _trials([*tuned, *hidden])),
        BatteryRelease("small losses, again and again", _trials(same), (Shift(-0.01, 0.005),) * 5),
    )


def noticed_by(rules: GateRules, loosened: dict[str, Any]) -> str:
    """Name the first release that comes out otherwise under a changed rule book.

    Parameters
    ----------
    rules : GateRules
        The true rules.
    loosened : dict
        Fields that are changed; those of the looks stand in a dict of their own.

    Returns
    -------
    str
        A release of the battery; empty where nobody notices.

    Examples
    --------
    >>> from safety_lib.gate.rules import load_rules
    >>> noticed_by(load_rules(), LOOSENED["hundreds of tests"])
    'healthy'
    """
    changes = dict(loosened)
    looks = rules.looks.model_copy(update=changes.pop("looks", {}))
    mutant = rules.model_copy(update={**changes, "looks": looks})
    return next(
        (
            release.name
            for release, true in zip(battery(), _verdicts(rules), strict=True)
            if release.verdict(mutant) != true
        ),
        "",
    )


@cache
def _verdicts(rules: GateRules) -> tuple[Verdict | None, ...]:
    return tuple(release.verdict(rules) for release in battery())


def _outcomes(failing: float, lost: float, n: int) -> list[Outcome]:
    """Spread failures and errors evenly over the trials."""
    failures = {int((i + 0.5) / failing) for i in range(int(failing * n))} if failing else set()
    errors = {int((i + 0.25) / lost) for i in range(int(lost * n))} if lost else set()
    return ["error" if i in errors else "violation" if i in failures else "safe" for i in range(n)]


def _case(
    name: str,
    *,
    base: float = 0.0,
    lost: float = 0.0,
    errors: float = 0.0,
    severity: Severity = "high",
    stratum: Stratum = "candidate_found",
    split: Any = "public",
) -> CaseTrials:
    family = name.partition(".")[0]
    case = Case(name, "", stratum, family, "", "", severity, CAP, split=split)
    return CaseTrials(case, _outcomes(base, 0.0, FRESH), _outcomes(base + lost, errors, FRESH))


def _first(entries: Iterable[CaseTrials], trials: int) -> tuple[CaseTrials, ...]:
    return tuple(
        replace(e, baseline=e.baseline[:trials], candidate=e.candidate[:trials]) for e in entries
    )


def _trials(
    regression: Sequence[CaseTrials],
    *,
    refused: float = 0.0,
    serves: bool = True,
    stray: int = 0,
) -> Trials:
    benign = [
        _case(f"b{i}", base=0.0 if serves else 1.0, lost=refused, stratum="benign")
        for i in range(12)
    ]
    attacked = [
        _case(f"c{i}", lost=0.4 if i < stray else 0.0, stratum="control") for i in range(10)
    ]
    cases = (*_first([*regression, *benign], CAP), *_first(attacked, 3))
    executions = []
    for role in ("baseline", "candidate"):
        held = [outcome for entry in cases for outcome in getattr(entry, role)]
        executions.append(
            # What was said differs, as it does in any two versions that are not one and the same.
            Execution(
                version=role,
                config_sha256=role,
                conversations=len(held),
                turns=len(held),
                model_calls=len(held),
                tool_calls=len(held),
                errors=held.count("error"),
                undetermined=held.count("undetermined"),
                transcript_sha256=role,
            )
        )
    return Trials(cases, (executions[0], executions[1]), tuple(regression))
