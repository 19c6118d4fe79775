"""The stored measurement of the suite is what the code measures."""

import pytest

from safety_lib.artifacts import read_experiment
from safety_lib.experiments.mutants import ROLLOUTS, adequacy_of
from safety_lib.pipeline import NOTEBOOKS
from safety_lib.records.experiments import MutationAdequacy

STORED = read_experiment(NOTEBOOKS.parent / "artifacts", "mutation_adequacy")
SUITES = STORED.expect(MutationAdequacy).suites


@pytest.mark.slow
def test_a_slice_of_the_stored_result_comes_out_again() -> None:
    names = ("pin_policy: off", "pre_action.hold_records_in_mail: 3 -> 4", "another style")
    stored = SUITES[ROLLOUTS[0]]
    seen = adequacy_of(ROLLOUTS[0], names)
    assert seen.mutant == {name: stored.mutant[name] for name in names}
    assert (seen.tests, seen.mutants, seen.harmless) == (stored.tests, 2, 1)


def test_the_score_is_kept_with_its_interval_and_every_survivor_with_its_reason() -> None:
    for suite in SUITES.values():
        harmful = [mutant for mutant in suite.mutant.values() if mutant.kind != "harmless"]
        assert suite.mutants == len(harmful) >= 15
        assert suite.killed == sum(mutant.killed for mutant in harmful)
        assert suite.ci_low < suite.score == round(suite.killed / suite.mutants, 6)
        assert suite.score < suite.ci_high
        assert all(mutant.why for mutant in harmful if not mutant.killed)
