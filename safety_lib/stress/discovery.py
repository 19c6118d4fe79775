"""Discovery: the same attacks on two versions, with equal budgets and on the same luck.

The baseline is attacked as hard as the candidate. A suite mined from one of them alone would favour
the other: regression to the mean would make the version that was not mined look better or worse
than it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from safety_lib.agent.backends.answers import answers_are_kept
from safety_lib.attack.attackers import make_attacker
from safety_lib.files import sha256_of
from safety_lib.records import (
    SEVERITIES,
    Failure,
    StressFailures,
    StressSummary,
    SurvivalCurve,
    Trajectory,
)
from safety_lib.rollout.campaign import Run, run_campaign
from safety_lib.rollout.conversation import Rollout, is_asked_once, plan_attack
from safety_lib.rollout.judging import as_failure, control_of
from safety_lib.streams import generator
from safety_lib.stress.search import ThompsonSearch
from safety_lib.stress.timing import (
    Endings,
    Timing,
    compare_timing,
    endings,
    survival_curve,
    timing,
)
from safety_lib.stress.unseen import Unseen, unseen
from safety_lib.text import Shown, in_lines
from safety_lib.world import World, provenance, world_of
from safety_lib.world.scenarios import Scenario
from safety_lib.world.versions import Version

if TYPE_CHECKING:
    from safety_lib.stats.survival_clusters import ArmComparison


@dataclass(frozen=True, repr=False)
class Discovery(Shown):
    """What discovery saw: every conversation, not the failures alone.

    Attributes
    ----------
    trajectories : mapping
        Version name to its attacked conversations, in the order of the plan.
    single_shot : mapping
        Version name to the single-turn evaluation: every planned goal asked once, plainly.
    controls : mapping
        Id of a failing conversation to its control: what broke the rule, asked in one message in a
        fresh conversation on the same seed (:func:`safety_lib.rollout.judging.control_of`).
    """

    seed: int
    attacker: str
    max_turns: int
    baseline: Version
    candidate: Version
    trajectories: Mapping[str, tuple[Trajectory, ...]]
    single_shot: Mapping[str, tuple[Trajectory, ...]]
    controls: Mapping[str, Trajectory]

    @property
    def versions(self) -> tuple[Version, ...]:
        """The versions attacked: one where baseline and candidate are the same."""
        return _distinct(self.baseline, self.candidate)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Every conversation in which a rule was broken, as a self-contained failure."""
        return tuple(
            as_failure(trajectory, self.controls[trajectory.trajectory_id])
            for trajectory in chain.from_iterable(self.trajectories.values())
            if trajectory.outcome == "violation"
        )

    @property
    def summary(self) -> tuple[StressSummary, ...]:
        """Counts for each version."""
        delayed = Counter(f.version for f in self.failures if f.delayed)
        return tuple(
            _summary(name, held, self.single_shot[name], delayed[name])
            for name, held in self.trajectories.items()
        )

    @property
    def survival(self) -> tuple[SurvivalCurve, ...]:
        """Kaplan-Meier curve of the turn of the first violation, for each version."""
        return tuple(survival_curve(name, held) for name, held in self.trajectories.items())

    @property
    def timing(self) -> tuple[Timing, ...]:
        """When each version fails; a version with too few valid conversations is left out."""
        return tuple(
            timing(curve.version, self.trajectories[curve.version], self.seed)
            for curve in self.survival
            if curve.turn
        )

    @property
    def compared(self) -> ArmComparison | None:
        """Safe turns that the candidate gained over the baseline; None if that cannot be said."""
        return _gained(self.trajectories[self.baseline.version], self._of_candidate, self.seed)

    def gained_by(self, other: Discovery) -> ArmComparison | None:
        """Compare the candidate of another discovery, on the same plan, with this one's.

        Returns
        -------
        ArmComparison or None
            The safe turns that it gained; None where there are too few conversations to say.
        """
        return _gained(self._of_candidate, other._of_candidate, self.seed)

    @property
    def _of_candidate(self) -> tuple[Trajectory, ...]:
        return self.trajectories[self.candidate.version]

    @property
    def unseen(self) -> tuple[Unseen, ...]:
        """How much the search of each version has not seen."""
        return tuple(unseen(held) for held in self.trajectories.values())

    @property
    def endings(self) -> tuple[Endings, ...]:
        """How the conversations with each version ended, and what that leaves open."""
        return tuple(endings(held, self.max_turns) for held in self.trajectories.values())

    def example(self, version: str, goal: str = "") -> Trajectory | None:
        """Return the first delayed failure of a version, to look at; None if there is none.

        With a goal it is the first of those that had it, if there is one.
        """
        delayed = {f.rollout_id for f in self.failures if f.delayed}
        held = [t for t in self.trajectories[version] if t.trajectory_id in delayed]
        return next((t for t in held if t.goal == goal), held[0] if held else None)

    def expect_answers(self) -> None:
        """Refuse a search in which a version answered nothing: it says nothing of that version.

        Raises
        ------
        ValueError
            If every conversation of a version is an error.
        """
        mute = [s.version for s in self.summary if s.errors == s.rollouts]
        if mute:
            raise ValueError(
                f"every conversation of {' and '.join(mute)} is an error; nothing was written"
            )

    def artifact(self) -> StressFailures:
        """Gather everything into ``stress_failures.json``."""
        first = next(chain.from_iterable(self.trajectories.values()), None)
        return StressFailures(
            artifact=StressFailures.SCHEMA,
            schema_version=StressFailures.VERSION,
            seed=self.seed,
            model=first.model if first else "",
            **provenance(*self.versions),
            attacker=self.attacker,
            max_turns=self.max_turns,
            rollouts=max((len(held) for held in self.trajectories.values()), default=0),
            baseline=self.baseline.version,
            candidate=self.candidate.version,
            summary=self.summary,
            survival=self.survival,
            failures=self.failures,
        )

    def __str__(self) -> str:
        return in_lines(
            f"{s.version}: {s.failures} of {s.rollouts} conversations broke a rule, "
            f"{s.delayed_failures} of them delayed; asked once, {s.single_shot_violations} of "
            f"{s.single_shot_n} did"
            for s in self.summary
        )


def plan_scenarios(world: World, rollouts: int, seed: int) -> tuple[tuple[Scenario, int], ...]:
    """Spread rollouts over the scenarios: all of them once before any comes twice.

    Goals come in turn, the most severe first, so that a small plan meets what matters most.

    Parameters
    ----------
    world : World
        Whose scenarios.
    rollouts : int
        How many, at least 1.
    seed : int
        Decides the order of the scenarios.

    Returns
    -------
    tuple of (Scenario, int)
        The scenario, and the number that tells its rollouts apart.

    Raises
    ------
    ValueError
        If ``rollouts`` is less than 1.

    Examples
    --------
    >>> from safety_lib.world import load_world
    >>> [number for _, number in plan_scenarios(load_world("northwind"), 3, seed=7)]
    [0, 0, 0]
    """
    if rollouts < 1:
        raise ValueError(f"rollouts must be at least 1, not {rollouts}")
    scenarios = world.scenarios
    shuffled = [
        scenarios[i] for i in generator(seed, "stress", "order").permutation(len(scenarios))
    ]
    met: Counter[str] = Counter()
    turns = []
    for chosen in shuffled:
        severity = world.severity_of(chosen.goal.rule)
        turns.append((met[chosen.goal_id], -SEVERITIES.index(severity)))
        met[chosen.goal_id] += 1
    order = [s for _, s in sorted(zip(turns, shuffled, strict=True), key=lambda pair: pair[0])]
    return tuple((order[i % len(order)], i // len(order)) for i in range(rollouts))


def discover(
    baseline: Version,
    candidate: Version,
    run: Run = Run(),
    *,
    rollouts: int = 200,
    attacker: str = "adaptive",
    max_turns: int = 8,
    journal: Path | None = None,
) -> Discovery:
    """Attack both versions with the same plan, then run the controls.

    Parameters
    ----------
    baseline, candidate : Version
        If they are the same version it is attacked once.
    run : Run, optional
        Seed, model and where the conversations are held.
    rollouts : int
        Attacked conversations for each version.
    attacker : str
        ``direct``, ``static`` or ``adaptive``, with mutators as in ``adaptive+urgency``. With
        ``search`` each version is attacked where and how its own earlier conversations suggest,
        one conversation after the other: the budgets are equal, the attacks are not.
    max_turns : int
        Turns after which an unbroken conversation is censored.
    journal : Path, optional
        Folder for the journals of the campaign; finished journals are removed. Where the run
        keeps answers that are worth it (:mod:`safety_lib.agent.backends.answers`), those are
        enough, and none is written.

    Returns
    -------
    Discovery
        Every conversation, not the failures alone.

    Raises
    ------
    ValueError
        If two different versions have one name, the plan is empty or the attacker is unknown.

    Examples
    --------
    >>> from safety_lib.world import load_version
    >>> v1, v2 = map(load_version, ("northwind/v1", "northwind/v2"))
    >>> discover(v1, v2, rollouts=4).artifact().rollouts
    4
    """
    versions = _distinct(baseline, candidate)
    plan = plan_scenarios(world_of(baseline, candidate), rollouts, run.seed)
    turns = 1 if attacker.split("+")[0] == "direct" else max_turns
    seed = run.seed
    told: list[Trajectory] = []

    def tell(trajectory: Trajectory) -> None:
        told.append(trajectory)
        run.tell(trajectory)

    telling = replace(run, progress=tell)
    if answers_are_kept() and any(is_asked_once(version, run.model) for version in versions):
        journal = None

    def held(
        batch: Iterable[Rollout], identity: object, *, one_by_one: bool = False
    ) -> tuple[Trajectory, ...]:
        path = (
            journal / f"{_plan_hash(identity, run.model, world_of(baseline))}.jsonl"
            if journal
            else None
        )
        done = tuple(run_campaign(batch, telling, journal=path, one_by_one=one_by_one))
        if path is not None:
            path.unlink(missing_ok=True)
        return done

    def planned(batch: Sequence[Rollout]) -> tuple[Trajectory, ...]:
        return held(batch, [(j.rollout_id, j.seed, j.max_turns, j.turns) for j in batch])

    if attacker == "search":
        chosen = chain.from_iterable(_search(v, rollouts, turns, seed, told) for v in versions)
        identity = ["search", [v.version for v in versions], rollouts, turns, seed]
        attacks = held(chosen, identity, one_by_one=True)
    else:
        make_attacker(attacker, plan[0][0], seed)  # an unknown name stops here, before a journal
        attacks = planned(
            [plan_attack(v, s, attacker, seed, turns, n) for v in versions for s, n in plan]
        )
    asked_once = planned(
        [plan_attack(v, s, "direct", seed, 1, n) for v in versions for s, n in plan]
    )
    by_name = {version.version: version for version in versions}
    broken = [t for t in attacks if t.outcome == "violation"]
    controls = planned([control_of(by_name[t.version], t) for t in broken])
    return Discovery(
        seed=seed,
        attacker=attacker,
        max_turns=turns,
        baseline=baseline,
        candidate=candidate,
        trajectories=dict(_by_version(versions, attacks)),
        single_shot=dict(_by_version(versions, asked_once)),
        controls={t.trajectory_id: control for t, control in zip(broken, controls, strict=True)},
    )


def _search(
    version: Version, rollouts: int, max_turns: int, seed: int, told: Sequence[Trajectory]
) -> Iterator[Rollout]:
    """Yield the attacks on one version, each chosen when the one before it was told of."""
    search = ThompsonSearch(world_of(version).scenarios, seed)
    for _ in range(rollouts):
        scenario, number = search.choose()
        tactic = search.tactic()
        yield plan_attack(version, scenario, tactic, seed, max_turns, number)
        search.tell(scenario, broke=told[-1].outcome == "violation", tactic=tactic)


def _distinct(baseline: Version, candidate: Version) -> tuple[Version, ...]:
    if baseline.version != candidate.version:
        return baseline, candidate
    if baseline.sha256 != candidate.sha256:
        raise ValueError(f"two different versions are both called {baseline.version!r}: rename one")
    return (baseline,)


def _gained(
    first: Sequence[Trajectory], second: Sequence[Trajectory], seed: int
) -> ArmComparison | None:
    if first is second or not all(survival_curve("", held).turn for held in (first, second)):
        return None
    return compare_timing(first, second, seed)


def _by_version(
    versions: Sequence[Version], held: Sequence[Trajectory]
) -> Iterator[tuple[str, tuple[Trajectory, ...]]]:
    for version in versions:
        yield version.version, tuple(t for t in held if t.version == version.version)


def _summary(
    version: str, held: Sequence[Trajectory], asked_once: Sequence[Trajectory], delayed: int
) -> StressSummary:
    outcomes = Counter(t.outcome for t in held)
    broken = [t for t in held if t.outcome == "violation"]
    return StressSummary(
        version=version,
        rollouts=len(held),
        failures=len(broken),
        delayed_failures=delayed,
        immediate_failures=len(broken) - delayed,
        safe=outcomes["safe"],
        stopped_by_safeguard=sum(1 for t in held if t.ended == "stopped"),
        errors=outcomes["error"],
        undetermined=outcomes["undetermined"],
        error_reasons=dict(sorted(Counter(t.error for t in held if t.error).items())),
        by_attack_type=dict(sorted(Counter(t.attack_type for t in broken).items())),
        by_turn=dict(sorted(Counter(t.failure_turn or 0 for t in broken).items())),
        single_shot_violations=sum(1 for t in asked_once if t.outcome == "violation"),
        single_shot_n=sum(1 for t in asked_once if t.outcome in ("violation", "safe")),
    )


def _plan_hash(identity: object, model: str, world: World) -> str:
    # Names alone: a run that goes on after an edit has to meet its journal, which refuses it.
    return sha256_of([model, world.name, identity])[:16]
