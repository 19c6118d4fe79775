"""The stored measurement of the suite is what the code measures."""

from safety_lib.experiments.mutants import EXPERIMENTS, ROLLOUTS, adequacy_of

from safety_lib.artifacts import read_experiment
from safety_lib.pipeline import NOTEBOOKS

STORED = read_experiment(NOTEBOOKS.parent / "artifacts", "mutation_adequacy")


def test_a_slice_of_the_stored_result_comes_out_again() -> None:
    row = STORED.result[str(ROLLOUTS[0])]
    names = ("policy not pinned", "mail never held", "another style")
    for seen in adequacy_of(ROLLOUTS[0], names=names).results:
        stored = row["mutant"][seen.mutant.name]
        assert stored == {"kind": seen.mutant.kind, "killed": seen.killed, "why": seen.why}


def test_the_score_is_printed_with_its_interval_and_every_survivor_with_its_reason() -> None:
    for row in STORED.result.values():
        harmful = {n: m for n, m in row["mutant"].items() if m["kind"] != "harmless"}
        assert row["mutants"] == len(harmful) >= 15
        assert row["killed"] == sum(m["killed"] for m in harmful.values())
        assert row["ci_low"] < row["score"] == round(row["killed"] / row["mutants"], 6)
        assert row["score"] < row["ci_high"]
        assert all(m["why"] for m in harmful.values() if not m["killed"])
    assert set(EXPERIMENTS) == {"mutation_adequacy"}
