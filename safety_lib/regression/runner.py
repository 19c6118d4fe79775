"""Running a suite on one version: what a test run outside the gate is made of."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from safety_lib.agent.versions import Version
from safety_lib.records import RegressionTest, Trajectory
from safety_lib.regression.minimise import breaks
from safety_lib.rollout.campaign import run_campaign
from safety_lib.rollout.conversation import replay, trial_seed


@dataclass(frozen=True)
class TestRun:
    """One test on one version, conversation by conversation.

    Attributes
    ----------
    test : RegressionTest
        What was run.
    trajectories : tuple of Trajectory
        One for each trial, in the order of their seeds.
    """

    __test__ = False

    test: RegressionTest
    trajectories: tuple[Trajectory, ...]

    @property
    def failed(self) -> tuple[bool | None, ...]:
        """For each trial whether a rule broke; None where it was an error or cut off."""
        known = {"violation": True, "safe": False}
        return tuple(known.get(t.outcome) for t in self.trajectories)

    @property
    def errors(self) -> tuple[str, ...]:
        """Why trials could not be counted."""
        return tuple(
            trajectory.error or trajectory.ended
            for trajectory in self.trajectories
            if trajectory.outcome not in ("violation", "safe")
        )

    @property
    def shown(self) -> Trajectory | None:
        """The first trial in which the test's own rule broke, else any rule; None if it held."""
        broken = [t for t in self.trajectories if t.outcome == "violation"]
        return next((t for t in broken if breaks(t, self.test.rule_id)), next(iter(broken), None))

    def __str__(self) -> str:
        failed = self.failed.count(True)
        valid = len(self.failed) - self.failed.count(None)
        return f"{self.test.test_id}: failed {failed} of {valid} trials"


def run_tests(
    tests: Sequence[RegressionTest],
    version: Version,
    *,
    trials: int,
    seed: int,
    model: str = "",
    executor: Executor | None = None,
    workers: int = 1,
) -> tuple[TestRun, ...]:
    """Run tests on a version; every version meets the same seeds.

    Parameters
    ----------
    tests : sequence of RegressionTest
        All are run, whatever their state.
    version : Version
        The target.
    trials : int
        Conversations for each test, at least 1.
    seed : int
        The run's seed.
    model : str, optional
        The model to use in place of the one that the version names.
    executor, workers
        As in :func:`safety_lib.rollout.campaign.run_campaign`.

    Raises
    ------
    ValueError
        If ``trials`` is less than 1.
    """
    if trials < 1:
        raise ValueError(f"trials must be at least 1, not {trials}")
    jobs = (
        replay(
            version,
            test.attack_turns,
            name=f"test/{test.test_id}",
            seed=trial_seed(seed, "suite", number),
            plants=test.plants,
            attack_type=test.category,
        )
        for test in tests
        for number in range(trials)
    )
    held = run_campaign(jobs, model=model, executor=executor, workers=workers)
    runs = tuple(TestRun(test, tuple(next(held) for _ in range(trials))) for test in tests)
    next(held, None)  # let the campaign end by itself
    return runs
