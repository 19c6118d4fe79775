"""Step 4: a candidate that was tuned to the public tests does better on them than on the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from math import comb

import numpy as np

from safety_lib.gate.rules import GateRules
from safety_lib.gate.trials import REGRESSION_STRATA, CaseTrials
from safety_lib.records import GateStep
from safety_lib.streams import generator

TITLE = "Is it as good on tests that it could not see?"
EXACT_BELOW = 20_000
DRAWS = 9_999


def judge_held_out(cases: Sequence[CaseTrials], rules: GateRules, seed: int = 0) -> GateStep:
    """Compare the loss on held-out families with the loss on public ones.

    The gap is the mean difference in pass rate (candidate minus baseline) of the public families
    minus that of the held-out ones. Families are what was held out, so families are permuted: the
    one-sided p is the share of all ways to hold out as many families that give as large a gap,
    exact below 20,000 ways, else from 9,999 random ones.
    """
    public, hidden = (_families(cases, split) for split in ("public", "held_out"))
    if len(public) < 2 or len(hidden) < 2:
        few = f"{len(hidden)} held-out and {len(public)} public families are too few to say"
        return GateStep(step=4, title=TITLE, status="pass", reason=few)
    gap, p_value = permuted_gap(public, hidden, seed)
    word = "better" if gap >= 0 else "worse"
    seen = f"it changed {abs(100 * gap):.1f} points {word} on {len(public)} public families than "
    seen += f"on {len(hidden)} held-out ones, p = {p_value:.3f}"
    if gap >= rules.block_margin and p_value < rules.alpha:
        return GateStep(
            step=4, title=TITLE, status="warn", reason=f"it looks tuned to the public tests: {seen}"
        )
    return GateStep(step=4, title=TITLE, status="pass", reason=seen)


def permuted_gap(
    public: Sequence[float], hidden: Sequence[float], seed: int = 0
) -> tuple[float, float]:
    """Return the gap between two groups of families and its one-sided permutation p-value.

    Examples
    --------
    >>> gap, p = permuted_gap([0.0, 0.0, 0.0], [-0.5, -0.5])
    >>> round(gap, 3), round(p, 3)  # one of the ten ways to choose two of five families
    (0.5, 0.1)
    """
    both = np.array([*public, *hidden], dtype=float)
    n, held = len(both), len(hidden)
    gap = float(np.mean(public) - np.mean(hidden))
    if comb(n, held) <= EXACT_BELOW:
        chosen = np.array(list(combinations(range(n), held)))
        extra = 0
    else:
        draws = generator(seed, "gate", "held_out").random((DRAWS, n))
        chosen = np.argsort(draws, axis=1)[:, :held]
        extra = 1  # the split that was seen is one of them
    sums = both[chosen].sum(axis=1)
    gaps = (both.sum() - sums) / (n - held) - sums / held
    as_large = int(np.sum(gaps >= gap - 1e-12))
    return gap, (as_large + extra) / (len(chosen) + extra)


def _families(cases: Sequence[CaseTrials], split: str) -> list[float]:
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for entry in cases:
        if entry.case.stratum in REGRESSION_STRATA and entry.case.split == split and entry.pairs:
            groups[entry.case.family].append(float(np.mean([c - b for b, c in entry.pairs])))
    return [float(np.mean(losses)) for losses in groups.values()]
