"""Attackers at equal budgets, and all combinations of safeguards with the credit of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factories import NORTHWIND

from safety_lib.artifacts import read_experiment
from safety_lib.attack.mutators import mutators
from safety_lib.experiments.ablation import SAFEGUARDS, ablate, run_safeguard_ablation
from safety_lib.experiments.equal_budget import (
    WAYS,
    Hunt,
    Way,
    hunt,
    lead,
    run_attackers_at_equal_budget,
)
from safety_lib.experiments.levers import run_memory_window, run_mutators_effect
from safety_lib.records.experiments import (
    Ablation,
    AttackersAtEqualBudget,
    MemoryWindow,
    MutatorsEffect,
    SafeguardAblation,
)
from safety_lib.stress.search import ThompsonSearch
from safety_lib.world import load_version

ARTIFACTS = Path(__file__).resolve().parent.parent / "artifacts"
V2 = load_version("northwind/v2")


# --------------------------------------------------------------------------- attackers


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("budget", [1, 7, 60])
def test_the_whole_budget_is_spent_and_no_more(way: Way, budget: int) -> None:
    found = hunt(V2, way, budget, seed=3)
    assert found.queries == budget
    assert found.modes <= found.violations <= found.conversations <= budget
    assert hunt(V2, way, budget, seed=3) == found


@pytest.mark.parametrize(("way", "budget"), [("static", 0), ("guess", 9)])
def test_a_hunt_that_cannot_be_is_refused(way: Any, budget: int) -> None:
    with pytest.raises(ValueError, match=r"budget must be|way must be"):
        hunt(V2, way, budget, seed=1)


def test_the_search_goes_where_little_is_known() -> None:
    scenarios = NORTHWIND.scenarios[:6]
    search = ThompsonSearch(scenarios, seed=5)
    for scenario in scenarios[:3]:
        for _ in range(6):
            search.tell(scenario, broke=True)  # shown its mode often enough
    chosen = []
    for _ in range(30):
        scenario, _ = search.choose()
        chosen.append(scenario.scenario_id)
        search.tell(scenario, broke=False)
    known = {s.scenario_id for s in scenarios[:3]}
    assert sum(c in known for c in chosen) < 10


def test_the_search_gives_every_attack_on_a_scenario_its_own_number() -> None:
    search = ThompsonSearch(NORTHWIND.scenarios[:2], seed=1)
    met = []
    for _ in range(20):
        scenario, number = search.choose()
        met.append((scenario.scenario_id, number))
        search.tell(scenario, broke=False)
    assert len(set(met)) == 20


def hunts(way: Way, found: list[int], queries: int = 100) -> list[Hunt]:
    return [Hunt(way, queries, 20, n, n) for n in found]


def test_a_lead_is_the_mean_of_paired_differences() -> None:
    one = lead(
        hunts("static", [1, 2, 3, 4, 2, 1]), hunts("adaptive", [3, 4, 5, 6, 4, 3]), "modes", 1
    )
    assert one.gain == pytest.approx(2)
    assert one.p_value == pytest.approx(2 / 2**6)
    assert (one.of, one.over) == ("adaptive", "static")
    none = lead(hunts("static", [1, 5, 3]), hunts("adaptive", [5, 1, 3]), "violations", 1)
    assert none.low < 0 < none.high
    assert none.p_value == 1
    with pytest.raises(ValueError, match="same budgets"):
        lead(hunts("static", [1, 2]), hunts("adaptive", [1, 2], 50), "modes", 1)


# --------------------------------------------------------------------------- safeguards


@pytest.fixture(scope="module")
def strict() -> Ablation:
    version = V2.having({"safeguards.trajectory.stop_at": 1.5}, name="strict")
    return ablate(version, repeats=2, seed=4)


def test_every_combination_meets_the_same_number_of_attacks(strict: Ablation) -> None:
    assert len(strict.combinations) == 8
    assert strict.combinations[0].on == ()
    assert strict.combinations[-1].on == SAFEGUARDS
    assert {c.attacks for c in strict.combinations} == {2 * len(NORTHWIND.scenarios)}
    assert {c.requests for c in strict.combinations} == {16}


def test_the_credit_adds_up_to_what_all_safeguards_prevent(strict: Ablation) -> None:
    none, every = strict.combinations[0], strict.combinations[-1]
    prevented = (none.broke - every.broke) / none.attacks
    credit = sum(share.value for share in strict.prevented.values())
    assert credit == pytest.approx(prevented, abs=2e-4)  # each is rounded to four places
    assert all(i.low <= i.value <= i.high for i in strict.prevented.values())


def test_a_safeguard_that_ends_sessions_gets_the_credit_for_it(strict: Ablation) -> None:
    assert strict.prevented["trajectory"].low > 0
    assert strict.prevented["trajectory"].value == max(i.value for i in strict.prevented.values())
    alone = strict.combinations[1 << SAFEGUARDS.index("trajectory")]
    assert alone.broke < strict.combinations[0].broke


def test_what_the_version_had_switched_off_does_not_matter(strict: Ablation) -> None:
    off = {f"safeguards.{name}.enabled": False for name in SAFEGUARDS}
    changes = off | {"safeguards.trajectory.stop_at": 1.5}
    again = ablate(V2.having(changes, name="strict"), repeats=2, seed=4)
    assert again.combinations == strict.combinations


def test_no_repeats_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        ablate(V2, repeats=0)


# --------------------------------------------------------------------------- experiments


@pytest.mark.slow
def test_a_slice_of_the_attackers_comes_out_as_stored() -> None:
    kept = read_experiment(ARTIFACTS, "attackers_at_equal_budget").expect(AttackersAtEqualBudget)
    made = run_attackers_at_equal_budget(names=["v2"], budgets=[200], seeds=[1, 2]).result
    for way in WAYS:
        row, old = (r.budgets["v2, 200 turns"].found[way].violations_each for r in (made, kept))
        assert row == old[:2]


@pytest.mark.slow
def test_a_slice_of_the_memories_comes_out_as_stored() -> None:
    kept = read_experiment(ARTIFACTS, "memory_window").expect(MemoryWindow)
    made = run_memory_window(windows=kept.window[-2:]).result
    assert made.pinned == kept.pinned[-2:]
    assert made.unpinned == kept.unpinned[-2:]


@pytest.mark.slow
def test_a_slice_of_the_ablation_comes_out_as_stored() -> None:
    kept = read_experiment(ARTIFACTS, "safeguard_ablation")
    assert kept.parameters["repeats"] == 10
    few = run_safeguard_ablation(names=["v2"], repeats=1).result
    assert set(few.versions) == {"v2", "v2, strict monitor"}
    for name, seen in kept.expect(SafeguardAblation).versions.items():
        broke = [c.broke for c in seen.combinations]
        total = sum(share.value for share in seen.prevented.values())
        assert (broke[0] - broke[-1]) / 300 == pytest.approx(total, abs=2e-4), name


@pytest.mark.slow
def test_a_slice_of_the_mutators_comes_out_as_stored() -> None:
    kept = read_experiment(ARTIFACTS, "mutators_effect").expect(MutatorsEffect)
    made = run_mutators_effect(only=["as_agreed"]).result
    assert made.mutators["as_agreed"] == kept.mutators["as_agreed"]
    assert made.broke_without == kept.broke_without
    assert kept.mutators.keys() == mutators().keys()


def test_what_is_stored_bears_out_what_the_notebook_says() -> None:
    attackers = read_experiment(ARTIFACTS, "attackers_at_equal_budget")
    large = attackers.expect(AttackersAtEqualBudget).budgets["v2, 800 turns"]
    (modes,) = (x for x in large.leads if (x.of, x.what) == ("search", "modes"))
    assert modes.low > 0
    memory = read_experiment(ARTIFACTS, "memory_window").expect(MemoryWindow)
    assert memory.unpinned[-1].failures < memory.unpinned[-3].failures / 4
    ablation = read_experiment(ARTIFACTS, "safeguard_ablation").expect(SafeguardAblation)
    assert ablation.versions["v2, strict monitor"].prevented["trajectory"].low > 0
