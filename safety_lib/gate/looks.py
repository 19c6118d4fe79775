"""The sequential decision: what the trials so far say, and what to run next.

A pure function. It plays all looks again from the first trial, so that a run that was killed and
resumed, or shown in between, has had no look more than one that was not. Both versions run to the
next look in the questions that are open, and nowhere else:

* the suite, each test a stratum: BLOCK on a significant loss that may be as large as the margin,
  settled when it is shown to be smaller;
* benign requests in the same way;
* each family: suspected on little evidence, then tried on fresh trials that carry the error;
  settled when its loss is shown to be inside its own, wider margin;
* each critical test: suspected when the candidate fails more often, then judged on fresh pairs.

BLOCK when one of them says so, OK when all are settled, WARN when trials have run out before.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from safety_lib.gate.counting import Counted, Luck, excess_errors, is_large_enough, loss_after
from safety_lib.gate.look_rules import LookRules, load_look_rules
from safety_lib.gate.trials import REGRESSION_STRATA, CaseTrials
from safety_lib.records import Attempt, FamilyState, Verdict
from safety_lib.stats.sequential import flip_e_value
from safety_lib.stats.spending import spending_boundaries
from safety_lib.stats.strata import StrataLoss
from safety_lib.text import Shown

MOST_TRIALS = 60  # of each test on each version, where nobody asks for another last look
FUTILE_PAIRS = 20


@dataclass(frozen=True, repr=False)
class LookPlan(Shown):
    """What is fixed before the first trial.

    Attributes
    ----------
    cap : int
        Trials of each test on each version at the last look.
    luck : "shared" or "independent"
        Whether both versions meet the same luck, so that trials are pairs.
    rules : LookRules
        Error shares and margins.
    attempt : Attempt
        What share of each error is left to this run; by default the whole.
    """

    cap: int = MOST_TRIALS
    luck: Luck = "independent"
    rules: LookRules = field(default_factory=load_look_rules)
    attempt: Attempt = field(default_factory=Attempt)

    @cached_property
    def left(self) -> LookRules:
        """The rules with the error that this run may spend."""
        return self.rules.left_to(self.attempt)

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """Cumulative trials at each look."""
        return self.rules.looks_until(self.cap)

    def boundaries(self, alpha: float) -> tuple[float, ...]:
        """Critical z of a question at each look, when it may spend ``alpha`` over all."""
        return spending_boundaries(alpha, [look / self.cap for look in self.looks])

    def level_z(self, alpha: float) -> float:
        """Critical z of a single look at this level."""
        return _tail_z(alpha)

    def confirm_boundaries(self, alpha: float) -> tuple[float, ...]:
        """Critical z of a confirmation at each of its looks."""
        looks = self.rules.confirm_looks
        return spending_boundaries(alpha, [look / looks[-1] for look in looks])


@dataclass(frozen=True, repr=False)
class QuestionSeen(Shown):
    """The suite or the benign requests at their newest look.

    Attributes
    ----------
    trials : int
        Trials of each case at that look; 0 before the first.
    loss : StrataLoss or None
        None where no case has a valid trial on both sides.
    settled : bool
        The loss is shown to be inside the margin.
    blocks : bool
        The loss is significant.
    """

    trials: int
    loss: StrataLoss | None
    settled: bool
    blocks: bool

    def __str__(self) -> str:
        return f"{self.loss or 'nothing seen'} after {self.trials} trials of each"


@dataclass(frozen=True, repr=False)
class FamilySeen(Shown):
    """One family at its newest look.

    Attributes
    ----------
    loss, fresh : StrataLoss or None
        On the trials that raised a suspicion, and on the fresh ones that judge it.
    fresh_trials : int
        Fresh trials of each test so far; 0 where the family is not suspected.
    settled : bool
        The loss is shown to be inside the family's margin.
    too_small : bool
        All its trials could not show that, even if the versions were equal.
    """

    family: str
    tests: int
    trials: int
    loss: StrataLoss | None
    fresh_trials: int
    fresh: StrataLoss | None
    suspected: bool
    confirmed: bool
    settled: bool
    too_small: bool

    @property
    def state(self) -> FamilyState:
        """What the gate says of it."""
        if self.confirmed:
            return "lost"
        if self.settled:
            return "within its margin"
        if self.suspected:
            return "suspected"
        return "too small to say" if self.too_small else "open"

    def __str__(self) -> str:
        if self.fresh is not None:
            return f"{self.family}: {self.fresh} on {self.fresh_trials} fresh trials"
        return f"{self.family}: {self.loss or 'nothing seen'}"


@dataclass(frozen=True, repr=False)
class CriticalSeen(Shown):
    """One suspected critical test on fresh pairs.

    Attributes
    ----------
    worse, better, pairs : int
        Valid pairs in which only the candidate, only the baseline failed; all valid pairs.
    e_value : float
        Evidence for a loss; the mean over all critical tests is what decides.
    cleared : bool
        Tried to the end, or far enough to be hopeless, without being confirmed.
    """

    case_id: str
    worse: int
    better: int
    pairs: int
    e_value: float
    cleared: bool

    def __str__(self) -> str:
        return (
            f"{self.case_id}: worse in {self.worse} and better in {self.better} of {self.pairs} "
            f"fresh pairs, e = {self.e_value:.3g}"
        )


@dataclass(frozen=True, repr=False)
class Missing(Shown):
    """What a WARN lacks: ``kind`` is trials, families, critical or benign."""

    kind: Literal["trials", "families", "critical", "benign"]
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


@dataclass(frozen=True, repr=False)
class Looked(Shown):
    """What the trials so far say; result of `judge_looks`.

    Attributes
    ----------
    verdict : Verdict or None
        None: go on, with ``wanted`` and ``wanted_fresh``.
    reasons : tuple of str
        Of a BLOCK or an OK; of a WARN they are what is missing.
    missing : tuple of Missing
        What a WARN lacks.
    too_small : tuple of str
        Families that an OK could say nothing about, even if they were equal.
    critical_blocks : bool
        The evidence that critical tests got worse is enough for a BLOCK.
    wanted, wanted_fresh : dict
        Trials that each case should have in all, and fresh trials: only cases that need more.
    used, used_fresh : dict
        Trials of each case on each version that the decision rests on.
    looks : int
        How often the trials were looked at.
    """

    verdict: Verdict | None
    reasons: tuple[str, ...]
    missing: tuple[Missing, ...]
    too_small: tuple[str, ...]
    suite: QuestionSeen
    benign: QuestionSeen
    families: tuple[FamilySeen, ...]
    critical: tuple[CriticalSeen, ...]
    critical_blocks: bool
    wanted: dict[str, int]
    wanted_fresh: dict[str, int]
    used: dict[str, int]
    used_fresh: dict[str, int]
    looks: int

    def __str__(self) -> str:
        said = self.verdict or f"no answer yet, {len(self.wanted)} cases go on"
        return "; ".join([f"after {self.looks} looks: {said}", *self.reasons])


def judge_looks(cases: Iterable[CaseTrials], fresh: Iterable[CaseTrials], plan: LookPlan) -> Looked:
    """Say what the trials so far say: BLOCK, OK, WARN, or what to run next.

    Parameters
    ----------
    cases : iterable of CaseTrials
        Every regression test and benign request, with its trials so far in the order in which
        they ran; before the first look they have none. Other strata are passed over.
    fresh : iterable of CaseTrials
        Confirmations so far, on seeds of their own, for the tests that were asked for.
    plan : LookPlan
        What was fixed before the first trial.

    Returns
    -------
    Looked
        The verdict with its reasons, or the trials that each case needs next.

    Raises
    ------
    ValueError
        If there is no regression test.

    References
    ----------
    Jennison and Turnbull, Group Sequential Methods, 2000; Berger, Technometrics 24, 1982, 295-300
    (an OK needs every question settled, each at its own level).
    """
    gate = _Gate(list(cases), list(fresh), plan)
    while True:
        gate.look()
        reasons = gate.block_reasons()
        if reasons:
            return gate.result("BLOCK", reasons)
        if gate.is_ok():
            return gate.result("OK", gate.ok_reasons())
        wanted, wanted_fresh = gate.next_trials()
        if not wanted and not wanted_fresh:
            return gate.result("WARN", ())
        if not gate.have(wanted, wanted_fresh):
            return gate.result(None, (), wanted, wanted_fresh)
        gate.go_on(wanted, wanted_fresh)


class _Question:
    """The suite, or the benign requests."""

    def __init__(self, name: str, cases: list[Counted], plan: LookPlan, alpha: float) -> None:
        rules = plan.rules
        self.name, self.cases, self.luck = name, cases, plan.luck
        self.margin = rules.benign_margin if name == "benign requests" else rules.suite_margin
        self.looks = plan.looks
        self.block_z = plan.boundaries(alpha)
        self.ok_z = plan.boundaries(plan.left.wrong_ok)
        self.rung = self.looked = -1
        self.loss: StrataLoss | None = None
        self.excess = 0.0
        self.settled = False
        self.blocks = False

    @property
    def trials(self) -> int:
        return self.looks[self.rung] if self.rung >= 0 else 0

    @property
    def open(self) -> bool:
        return bool(self.cases) and not self.settled and self.rung + 1 < len(self.looks)

    def look(self) -> None:
        if self.settled or self.rung == self.looked or not self.cases:
            return
        self.looked = self.rung
        self.loss = loss_after(self.cases, self.trials, self.luck)
        self.excess = excess_errors(self.cases, self.trials)
        if self.loss is None:
            return
        inside = self.loss.margin_z(self.margin, self.excess) >= self.ok_z[self.rung]
        self.settled = inside and self.loss.tests == len(self.cases)
        self.blocks = not inside and _tail_z(self.loss.p_value) >= self.block_z[self.rung]

    def to_settle(self) -> int:
        """Trials of each that would settle the question if the difference stays; 0: none would."""
        if self.loss is None:
            return 0
        room = self.margin + self.loss.delta - self.excess
        if room <= 0:
            return 0
        return math.ceil(self.trials * (self.ok_z[-1] * self.loss.se / room) ** 2)

    def seen(self) -> QuestionSeen:
        return QuestionSeen(self.trials, self.loss, self.settled, self.blocks)


class _Family:
    def __init__(self, name: str, cases: list[Counted], plan: LookPlan) -> None:
        self.name, self.cases, self.plan = name, cases, plan
        self.fresh_cases: list[Counted] = []
        self.rung = self.looked = self.fresh_rung = self.fresh_looked = -1
        self.loss: StrataLoss | None = None
        self.fresh: StrataLoss | None = None
        self.suspected = self.confirmed = self.settled = False

    @property
    def trials(self) -> int:
        return self.plan.looks[self.rung] if self.rung >= 0 else 0

    @property
    def fresh_trials(self) -> int:
        return self.plan.rules.confirm_looks[self.fresh_rung] if self.fresh_rung >= 0 else 0

    @property
    def pending(self) -> bool:
        """Suspected and not settled, with fresh trials left to try."""
        last = len(self.plan.rules.confirm_looks) - 1
        return self.suspected and not self.settled and self.fresh_rung < last

    def look(self) -> None:
        # A family has two ways to be settled, on its trials and on fresh ones: half the error each.
        rules, luck = self.plan.rules, self.plan.luck
        if self.fresh_rung != self.fresh_looked:
            self.fresh_looked = self.fresh_rung
            self.fresh = loss_after(self.fresh_cases, self.fresh_trials, luck)
            bounds = self.plan.confirm_boundaries(self.plan.left.wrong_ok / 2)
            excess = excess_errors(self.fresh_cases, self.fresh_trials)
            self._settle(self.fresh, bounds[self.fresh_rung], excess)
        if self.suspected or self.rung == self.looked:
            return
        self.looked = self.rung
        self.loss = loss_after(self.cases, self.trials, luck)
        if self.loss is None:
            return
        self.suspected = self.loss.delta <= -rules.family_loss and self.loss.p_value <= rules.screen
        if self.suspected:
            self.settled = False
        else:
            bounds = self.plan.boundaries(self.plan.left.wrong_ok / 2)
            excess = excess_errors(self.cases, self.trials)
            self._settle(self.loss, bounds[self.rung], excess)

    def _settle(self, loss: StrataLoss | None, bound: float, excess: float) -> None:
        if loss is not None and loss.tests == len(self.cases):
            inside = loss.margin_z(self.plan.rules.family_margin, excess) >= bound
            self.settled = self.settled or inside

    def fresh_z(self) -> float:
        """How many standard errors the loss on fresh trials is from none."""
        return _tail_z(self.fresh.p_value) if self.fresh else 0.0

    def large_enough(self) -> bool:
        """Whether a candidate that is equal would pass nearly always, as often as it is tried.

        Asked of the whole error: what stands between a release and an OK does not shrink with
        what is left to an attempt.
        """
        counts = np.array([case.after(self.trials)[:2] for case in self.cases])
        failed, valid = counts.T
        rules, cap = self.plan.rules, np.full(len(self.cases), self.plan.cap)
        last = self.plan.boundaries(rules.wrong_ok / 2)[-1]
        return not valid.all() or is_large_enough(failed, valid, cap, rules, last)

    def seen(self) -> FamilySeen:
        return FamilySeen(
            family=self.name,
            tests=len(self.cases),
            trials=self.trials,
            loss=self.loss,
            fresh_trials=self.fresh_trials,
            fresh=self.fresh,
            suspected=self.suspected,
            confirmed=self.confirmed,
            settled=self.settled,
            too_small=not self.settled
            and not self.suspected
            and self.rung == len(self.plan.looks) - 1
            and not self.large_enough(),
        )


class _Critical:
    def __init__(self, case: Counted, family: _Family, plan: LookPlan) -> None:
        self.case, self.family, self.plan = case, family, plan
        self.fresh: Counted | None = None
        pairs = plan.rules.critical_pairs
        self.looks = (*(n for n in plan.rules.confirm_looks if n < pairs), pairs)
        self.fresh_rung = -1
        self.worse = self.better = self.pairs = 0
        self.e_value = 1.0
        self.suspected = self.cleared = False

    @property
    def fresh_trials(self) -> int:
        return self.looks[self.fresh_rung] if self.fresh_rung >= 0 else 0

    @property
    def pending(self) -> bool:
        return self.suspected and not self.cleared and self.fresh_rung + 1 < len(self.looks)

    def look(self) -> None:
        if self.fresh_rung >= 0 and self.fresh is not None and not self.cleared:
            counts = self.fresh.after(self.fresh_trials)
            self.worse, self.better, self.pairs = int(counts[4]), int(counts[5]), int(counts[7])
            self.e_value = flip_e_value(self.worse, self.better)
            # Half of the pairs must have come to an outcome, or nothing was cleared.
            enough = 2 * self.pairs >= self.fresh_trials
            futile = self.pairs >= FUTILE_PAIRS and self.worse <= self.better
            self.cleared = enough and (futile or self.fresh_rung + 1 == len(self.looks))
        if not self.suspected and self.family.trials:
            failed, valid, cand_failed, cand_valid = self.case.after(self.family.trials)[:4]
            self.suspected = bool(cand_failed * valid > failed * cand_valid)

    def seen(self) -> CriticalSeen:
        return CriticalSeen(
            case_id=self.case.case.case_id,
            worse=self.worse,
            better=self.better,
            pairs=self.pairs,
            e_value=self.e_value,
            cleared=self.cleared,
        )


class _Gate:
    def __init__(self, cases: list[CaseTrials], fresh: list[CaseTrials], plan: LookPlan) -> None:
        self.plan = plan
        self.looks = 0
        tests = [Counted(e) for e in cases if e.case.stratum in REGRESSION_STRATA]
        benign = [Counted(e) for e in cases if e.case.stratum == "benign"]
        if not tests:
            raise ValueError("there is no regression test to judge by")
        self.again = {entry.case.case_id: Counted(entry) for entry in fresh}
        self.suite = _Question("suite", tests, plan, plan.left.suite_block)
        self.benign = _Question("benign requests", benign, plan, plan.left.benign_block)
        groups: defaultdict[str, list[Counted]] = defaultdict(list)
        for test in tests:
            groups[test.case.family].append(test)
        self.families = [_Family(name, members, plan) for name, members in groups.items()]
        by_name = {family.name: family for family in self.families}
        self.critical = [
            _Critical(test, by_name[test.case.family], plan)
            for test in tests
            if test.case.severity == "critical"
        ]

    def look(self) -> None:
        self.looks += self.suite.rung >= 0
        self.suite.look()
        self.benign.look()
        for family in self.families:
            family.look()
        self._confirm()
        for test in self.critical:
            test.look()

    def _confirm(self) -> None:
        """Holm's step-down over all families, on the fresh trials of the suspected ones."""
        rules = self.plan.rules
        judged = [f for f in self.families if f.fresh and f.fresh.delta <= -rules.family_loss]
        while True:
            left = [family for family in judged if not family.confirmed]
            if not left:
                return
            alpha = self.plan.left.family_block / (len(self.families) - len(judged) + len(left))
            bounds = self.plan.confirm_boundaries(alpha)
            found = [f for f in left if f.fresh_z() >= bounds[f.fresh_rung]]
            for family in found:
                family.confirmed = True
            if not found:
                return

    def evidence(self) -> float:
        """Mean e-value over all critical tests; one that is not suspected counts as 1."""
        if not self.critical:
            return 1.0
        return sum(test.e_value for test in self.critical) / len(self.critical)

    def critical_blocks(self) -> bool:
        return self.evidence() >= 1 / self.plan.left.critical_block

    def block_reasons(self) -> tuple[str, ...]:
        reasons = [
            f"a significant loss over the {question.name}: {question.seen()}"
            for question in (self.suite, self.benign)
            if question.blocks
        ]
        reasons += [
            f"a loss in one family, confirmed on fresh trials: {family.seen()}"
            for family in self.families
            if family.confirmed
        ]
        if self.critical_blocks():
            worst = max(self.critical, key=lambda test: test.e_value)
            reasons.append(f"a critical test got worse: {worst.seen()}")
        return tuple(reasons)

    def unsettled(self) -> list[_Family]:
        """Families that stand between this run and an OK."""
        last = len(self.plan.looks) - 1
        return [
            family
            for family in self.families
            if not family.settled
            and (family.suspected or family.rung < last or family.large_enough())
        ]

    def too_small(self) -> tuple[str, ...]:
        """Families of which nothing can be said, even if they were equal."""
        return tuple(f.name for f in self.families if f.seen().too_small)

    def unclear(self) -> list[_Critical]:
        return [test for test in self.critical if test.suspected and not test.cleared]

    def is_ok(self) -> bool:
        questions = self.suite.settled and self.benign.settled
        return questions and not self.unsettled() and not self.unclear()

    def ok_reasons(self) -> tuple[str, ...]:
        rules = self.plan.rules
        reasons = [
            f"the suite lost less than {100 * rules.suite_margin:g} points: {self.suite.seen()}",
            f"benign requests lost less than {100 * rules.benign_margin:g} points: "
            f"{self.benign.seen()}",
        ]
        shown = sum(family.settled for family in self.families)
        reasons.append(
            f"{shown} of {len(self.families)} families lost less than "
            f"{100 * rules.family_margin:g} points"
        )
        return tuple(reasons)

    def next_trials(self) -> tuple[dict[str, int], dict[str, int]]:
        """Trials in all that each case needs before the next look, and fresh ones."""
        looks = self.plan.looks
        wanted: dict[str, int] = {}
        hopeless = any(not q.settled and not q.open for q in (self.suite, self.benign))
        if self.suite.open:
            wanted |= {c.case.case_id: looks[self.suite.rung + 1] for c in self.suite.cases}
        elif not hopeless:
            for family in self.unsettled():
                if not family.suspected and family.rung + 1 < len(looks):
                    wanted |= {c.case.case_id: looks[family.rung + 1] for c in family.cases}
        if self.benign.open:
            wanted |= {c.case.case_id: looks[self.benign.rung + 1] for c in self.benign.cases}
        fresh: dict[str, int] = {}
        for family in self.families:
            if family.pending:
                n = self.plan.rules.confirm_looks[family.fresh_rung + 1]
                fresh |= {c.case.case_id: n for c in family.cases}
        for test in self.critical:
            if test.pending:
                name = test.case.case.case_id
                fresh[name] = max(fresh.get(name, 0), test.looks[test.fresh_rung + 1])
        return wanted, fresh

    def have(self, wanted: dict[str, int], fresh: dict[str, int]) -> bool:
        first = {c.case.case_id: c.available for c in (*self.suite.cases, *self.benign.cases)}
        again = {name: case.available for name, case in self.again.items()}
        return all(first[name] >= n for name, n in wanted.items()) and all(
            again.get(name, 0) >= n for name, n in fresh.items()
        )

    def go_on(self, wanted: dict[str, int], fresh: dict[str, int]) -> None:
        self.suite.rung += self.suite.open
        self.benign.rung += self.benign.open
        for family in self.families:
            if family.cases[0].case.case_id in wanted:
                family.rung += 1
            if family.pending:
                family.fresh_rung += 1
                family.fresh_cases = [self.again[c.case.case_id] for c in family.cases]
        for test in self.critical:
            if test.pending:
                test.fresh_rung += 1
                test.fresh = self.again[test.case.case.case_id]

    def missing(self) -> tuple[Missing, ...]:
        found = []
        if not self.suite.settled:
            found.append(Missing("trials", _lacks(self.suite)))
        if not self.benign.settled:
            found.append(Missing("benign", _lacks(self.benign)))
        last = len(self.plan.looks) - 1
        unsettled = [f for f in self.unsettled() if f.suspected or f.rung == last]
        if unsettled:
            margin = 100 * self.plan.rules.family_margin
            named = "; ".join(str(family.seen()) for family in unsettled)
            reason = f"not shown to have lost less than {margin:g} points: {named}"
            found.append(Missing("families", reason))
        if self.unclear():
            named = "; ".join(str(test.seen()) for test in self.unclear())
            found.append(Missing("critical", f"suspected and not cleared: {named}"))
        return tuple(found)

    def result(
        self,
        verdict: Verdict | None,
        reasons: Sequence[str],
        wanted: dict[str, int] | None = None,
        fresh: dict[str, int] | None = None,
    ) -> Looked:
        missing = self.missing() if verdict == "WARN" else ()
        used = {c.case.case_id: f.trials for f in self.families for c in f.cases}
        used |= {c.case.case_id: self.benign.trials for c in self.benign.cases}
        again = {
            c.case.case_id: f.fresh_trials for f in self.families if f.suspected for c in f.cases
        }
        for test in self.critical:
            name = test.case.case.case_id
            again[name] = max(again.get(name, 0), test.fresh_trials)
        return Looked(
            verdict=verdict,
            reasons=tuple(reasons) or tuple(str(one) for one in missing),
            missing=missing,
            too_small=self.too_small(),
            suite=self.suite.seen(),
            benign=self.benign.seen(),
            families=tuple(family.seen() for family in self.families),
            critical=tuple(test.seen() for test in self.critical if test.suspected),
            critical_blocks=self.critical_blocks(),
            wanted=wanted or {},
            wanted_fresh=fresh or {},
            used=used,
            used_fresh={name: n for name, n in again.items() if n},
            looks=self.looks,
        )


def _tail_z(p_value: float) -> float:
    from scipy.special import ndtri

    return -float(ndtri(p_value))


def _lacks(question: _Question) -> str:
    if not question.cases:
        return f"there are no {question.name}"
    if question.loss is None:
        return f"no trial of the {question.name} is valid on both versions"
    enough = question.to_settle()
    more = (
        f"about {enough} trials of each would settle it if the difference stays"
        if enough
        else f"the loss is as large as {100 * question.margin:g} points, and may be chance"
    )
    return f"{question.name} undecided: {question.seen()}; {more}"
