"""What a campaign has tried, what broke at which turn, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safety_lib.records import SEVERITIES, Severity, Trajectory
from safety_lib.text import Shown
from safety_lib.world import World
from safety_lib.world.scenarios import Scenario

NEIGHBOURS_WEIGH = 2.0  # trials that the neighbours of a scenario are worth


@dataclass(frozen=True, repr=False)
class Cell(Shown):
    """One goal attacked by one family: valid trials, and the turns at which a rule broke.

    ``possible`` is False where the family has no words for the goal.
    """

    goal: str
    family: str
    possible: bool
    tried: int
    turns: tuple[int, ...]

    @property
    def broke(self) -> int:
        """How many of the trials broke a rule."""
        return len(self.turns)


@dataclass(frozen=True, repr=False)
class Suggestion(Shown):
    """A scenario to try next: the chance that it breaks for the first time, and why we think so."""

    scenario_id: str
    severity: Severity
    tried: int
    chance: float
    reason: str

    def __str__(self) -> str:
        return f"{self.scenario_id} ({self.severity}): {self.chance:.0%}, {self.reason}"


@dataclass(frozen=True, repr=False)
class Coverage(Shown):
    """Goals by families by turns: what the conversations with one version have covered.

    Attributes
    ----------
    version : str
        The target.
    max_turns : int
        The longest conversation.
    rules : mapping
        Goal to the rule that it would break, the most severe first.
    families : tuple of str
        The families of attack.
    cells : mapping
        (goal, family) to what happened there.
    severities : mapping
        Goal to how bad it is to break its rule.
    """

    version: str
    max_turns: int
    rules: Mapping[str, str]
    families: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    severities: Mapping[str, Severity]

    @property
    def scenarios(self) -> tuple[Cell, ...]:
        """The cells that can be attacked."""
        return tuple(cell for cell in self.cells.values() if cell.possible)

    def next_scenarios(self, count: int = 5) -> tuple[Suggestion, ...]:
        """Say which scenarios to try next: those that may break for the first time.

        A scenario that broke before has told what it knows. For the others the chance is a mean of
        their own trials, of which none broke, and of the rate in their neighbours, the scenarios of
        the same goal or the same family; the neighbours weigh as much as two trials.

        Parameters
        ----------
        count : int
            How many at most.

        Examples
        --------
        >>> from safety_lib.world import load_world
        >>> laid = coverage([], load_world("northwind"))
        >>> [cell.tried for cell in laid.scenarios][:3]
        [0, 0, 0]
        >>> laid.next_scenarios(1)[0].reason
        'never tried'
        """
        open_cells = [cell for cell in self.scenarios if not cell.broke]
        ranked = sorted(
            (self._suggestion(cell) for cell in open_cells),
            key=lambda s: (-s.chance, -SEVERITIES.index(s.severity), s.scenario_id),
        )
        return tuple(ranked[:count])

    def _suggestion(self, cell: Cell) -> Suggestion:
        near = [
            other
            for other in self.scenarios
            if other is not cell and (other.goal == cell.goal or other.family == cell.family)
        ]
        broke, tried = sum(c.broke for c in near), sum(c.tried for c in near)
        beside = (broke + 0.5) / (tried + 1)
        reason = "never tried" if not cell.tried else f"0 of {cell.tried} here"
        if tried:
            reason += f", {broke} of {tried} beside it"
        return Suggestion(
            scenario_id=f"{cell.goal}/{cell.family}",
            severity=self.severities[cell.goal],
            tried=cell.tried,
            chance=round(NEIGHBOURS_WEIGH * beside / (NEIGHBOURS_WEIGH + cell.tried), 6),
            reason=reason,
        )

    def __str__(self) -> str:
        tried = sum(1 for cell in self.scenarios if cell.tried)
        broke = sum(1 for cell in self.scenarios if cell.broke)
        return (
            f"{self.version}: {tried} of {len(self.scenarios)} scenarios tried, {broke} of them "
            "broke a rule"
        )


def coverage(held: Sequence[Trajectory], world: World) -> Coverage:
    """Lay out the conversations with one version by goal, family and turn.

    Parameters
    ----------
    held : sequence of Trajectory
        Conversations of a campaign; errors and undetermined ones have tried nothing.
    world : World
        Where they were held.

    Examples
    --------
    >>> from safety_lib.world import load_world
    >>> print(coverage([], load_world("northwind")))
    no version: 0 of 30 scenarios tried, 0 of them broke a rule
    """
    severity = {name: world.severity_of(goal.rule) for name, goal in world.goals.items()}
    goals = sorted(severity, key=lambda name: (-SEVERITIES.index(severity[name]), name))
    possible = {(s.goal_id, s.family_id): s for s in world.scenarios}
    valid = [t for t in held if t.outcome in ("violation", "safe")]
    return Coverage(
        version=valid[0].version if valid else "no version",
        max_turns=max((t.n_turns for t in valid), default=0),
        rules={goal_id: world.goals[goal_id].rule for goal_id in goals},
        families=tuple(world.families),
        cells={
            (goal_id, family_id): _cell(goal_id, family_id, possible, valid)
            for goal_id in goals
            for family_id in world.families
        },
        severities=severity,
    )


def _cell(
    goal: str,
    family: str,
    possible: Mapping[tuple[str, str], Scenario],
    valid: Sequence[Trajectory],
) -> Cell:
    here = [t for t in valid if (t.goal, t.attack_type) == (goal, family)]
    turns = sorted(t.failure_turn for t in here if t.failure_turn is not None)
    return Cell(goal, family, (goal, family) in possible, len(here), tuple(turns))
