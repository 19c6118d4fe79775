"""A pytest plugin: each active test of a suite is one pytest item.

``pytest -p safety_lib.regression.pytest_plugin --safety-suite artifacts/regression_tests.json
--safety-target v2`` runs the suite and nothing else, so that editors and CI show it natively; with
test files on the command line it runs beside them. Whoever does not name the plugin has none: a
project may have a ``safety_lib`` or a ``--safety-suite`` of its own.

A conversation that could not be held is an *error* of the item, never a failure and never a pass.
A test that the target fails no more than the suite's baseline does, on the same seeds and with one
trial in five for luck, is a known failure (``xfail``): the version that is out is never red.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from safety_lib.records import RegressionTest, Suite
    from safety_lib.regression.admission import TestRun
    from safety_lib.world.versions import Version

LUCK = 0.2
"""The share of trials by which a version may fail more often than the baseline, by luck alone."""

_KEY = pytest.StashKey[tuple["Version", "Version | None", "Suite"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("safety", "regression tests of an agent's safety")
    group.addoption("--safety-suite", metavar="FILE", help="a regression_tests.json")
    group.addoption("--safety-target", metavar="VERSION", default="v1", help="a name or .yaml file")
    group.addoption("--safety-trials", metavar="N", type=int, default=5, help="for each test (5)")
    group.addoption("--safety-seed", metavar="N", type=int, default=7, help="decides every draw")
    group.addoption("--safety-model", metavar="NAME", default="", help="in place of the version's")


def pytest_configure(config: pytest.Config) -> None:
    """Read the suite and the version, and put the suite among what is collected."""
    chosen = config.getoption("--safety-suite")
    if not chosen:
        return
    from safety_lib.artifacts import read_artifact
    from safety_lib.records import Suite
    from safety_lib.world import load_version

    path = (config.invocation_params.dir / chosen).resolve()
    try:
        if config.getoption("--safety-trials") < 1:
            raise ValueError("--safety-trials must be at least 1")
        suite = read_artifact(path, Suite)
        target = load_version(config.getoption("--safety-target"), suite.world)
        config.stash[_KEY] = target, _baseline(suite), suite
    except ValueError as error:
        raise pytest.UsageError(f"--safety-suite: {error}") from error
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args.clear()  # not the testpaths too: the suite alone was asked for
    if str(path) not in config.args:
        config.args.append(str(path))


def _baseline(suite: Suite) -> Version | None:
    """Return what the suite is compared with; None where its file is not here any more."""
    from safety_lib.world import load_version

    try:
        return load_version(suite.baseline, suite.world)
    except ValueError:
        return None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect the suite."""
    chosen = parent.config.getoption("--safety-suite")
    if not chosen or file_path != (parent.config.invocation_params.dir / chosen).resolve():
        return None
    collected: pytest.Collector = SuiteFile.from_parent(parent, path=file_path)
    return collected


class SuiteFile(pytest.File):
    """The suite: a collector of its active tests."""

    def collect(self) -> Iterator[pytest.Item]:
        """Yield an item for each active test."""
        *_, suite = self.config.stash[_KEY]
        for test in suite.active:
            yield SafetyItem.from_parent(self, name=test.test_id, test=test)


class SafetyItem(pytest.Item):
    """One regression test on the target."""

    def __init__(self, *, test: RegressionTest, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.test = test
        self.run: TestRun | None = None
        self.known = ""

    def setup(self) -> None:
        """Hold the conversations; what goes wrong here is an error, not a failure."""
        version, baseline, _ = self.config.stash[_KEY]
        self.run = self._held_on(version)
        failed = self.run.failed
        if True in failed and baseline is not None:
            same = baseline.sha256 == version.sha256
            before = self.run if same else self._held_on(baseline)
            more = failed.count(True) - before.failed.count(True)
            if more <= LUCK * len(failed) and (same or not before.errors):
                self.known = f"known failure: {self.run}; the baseline {baseline.version}: {before}"
        self.user_properties += [
            ("test_id", self.test.test_id),
            ("family", self.test.family),
            ("severity", self.test.severity),
            ("version", version.version),
            ("config_sha256", version.sha256),
            ("trials", len(failed)),
            ("failed", failed.count(True)),
            ("model_calls", sum(t.model_calls for t in self.run.trajectories)),
        ]
        if self.run.errors and True not in failed:
            raise HarnessError(
                f"{len(self.run.errors)} of {len(failed)} trials could not be counted, the first: "
                f"{self.run.errors[0]}"
            )

    def _held_on(self, version: Version) -> TestRun:
        from safety_lib.regression.admission import run_tests
        from safety_lib.rollout.campaign import Run

        option = self.config.getoption
        run = Run(seed=option("--safety-seed"), model=option("--safety-model"))
        (held,) = run_tests([self.test], version, run, trials=option("--safety-trials"))
        return held

    def runtest(self) -> None:
        """Fail if the rule broke more often than on the baseline."""
        if self.known:
            pytest.xfail(self.known)
        if self.run is not None and self.run.shown is not None:
            raise RuleBrokenError(self.run)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show the conversation in which the rule broke."""
        if isinstance(excinfo.value, RuleBrokenError | HarnessError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Say what the item is."""
        return self.path, None, f"{self.test.test_id} {self.test.name}"


class HarnessError(Exception):
    """The agent could not be asked."""


class RuleBrokenError(Exception):
    """The agent broke the rule; the message shows how often, and one conversation."""

    def __init__(self, run: TestRun) -> None:
        lines = [
            str(run),
            f"{run.test.severity} · {run.test.family} · {run.test.expected_behavior}",
            str(run.test.unit) if run.test.unit else "",
            "",
            str(run.shown),
        ]
        super().__init__("\n".join(lines))
