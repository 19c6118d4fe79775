"""Every experiment by its name, and how they are run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from safety_lib.artifacts import find_folder, write_artifact
from safety_lib.experiments.ablation import run_safeguard_ablation
from safety_lib.experiments.alarms import run_detection_latency, run_early_warning
from safety_lib.experiments.calibration import run_next_scenarios_gain, run_undiscovered_prediction
from safety_lib.experiments.characteristics import run_operating_characteristics
from safety_lib.experiments.claims import run_typical_claims
from safety_lib.experiments.equal_budget import run_attackers_at_equal_budget
from safety_lib.experiments.levers import run_memory_window, run_mutators_effect
from safety_lib.experiments.mutants import run_lost_defences, run_mutation_adequacy
from safety_lib.experiments.own_luck import run_equal_releases, run_harmless_changes
from safety_lib.experiments.peers import run_peers
from safety_lib.experiments.radius_coverage import run_blast_radius_coverage
from safety_lib.experiments.real_releases import run_harmless_releases, run_selection_bias
from safety_lib.experiments.root_cause import run_decisive_turn_accuracy, run_root_cause_accuracy
from safety_lib.experiments.rounds import run_closing_the_loop, run_loop_against_no_loop
from safety_lib.experiments.safeguard_faults import run_safeguard_faults
from safety_lib.experiments.sentence_removals import run_sentence_removals
from safety_lib.records import Experiment

EXPERIMENTS: dict[str, Callable[[], Experiment[Any]]] = {
    "attackers_at_equal_budget": run_attackers_at_equal_budget,
    "mutators_effect": run_mutators_effect,
    "memory_window": run_memory_window,
    "safeguard_ablation": run_safeguard_ablation,
    "safeguard_faults": run_safeguard_faults,
    "undiscovered_prediction": run_undiscovered_prediction,
    "next_scenarios_gain": run_next_scenarios_gain,
    "mutation_adequacy": run_mutation_adequacy,
    "lost_defences": run_lost_defences,
    "sentence_removals": run_sentence_removals,
    "operating_characteristics": run_operating_characteristics,
    "peers": run_peers,
    "harmless_releases": run_harmless_releases,
    "harmless_changes": run_harmless_changes,
    "equal_releases": run_equal_releases,
    "selection_bias": run_selection_bias,
    "root_cause_accuracy": run_root_cause_accuracy,
    "blast_radius_coverage": run_blast_radius_coverage,
    "closing_the_loop": run_closing_the_loop,
    "decisive_turn_accuracy": run_decisive_turn_accuracy,
    "loop_against_no_loop": run_loop_against_no_loop,
    "early_warning": run_early_warning,
    "detection_latency": run_detection_latency,
    "typical_claims": run_typical_claims,
}


class ExperimentError(ValueError):
    """There is no such experiment."""


def run_experiments(names: Iterable[str] = (), folder: Path | None = None) -> Iterator[Path]:
    """Run experiments, and write each result as soon as it is there.

    Parameters
    ----------
    names : iterable of str, optional
        Which; all of them by default.
    folder : Path, optional
        Where the results go; by default ``artifacts/experiments`` of the checkout.

    Yields
    ------
    Path
        The file of each result.

    Raises
    ------
    ExperimentError
        If there is no experiment of a name.
    ArtifactError
        If no folder is given and the library was installed without a checkout.
    """
    chosen = list(names) or list(EXPERIMENTS)
    for name in chosen:
        if name not in EXPERIMENTS:
            raise ExperimentError(f"no experiment {name!r}: there are {', '.join(EXPERIMENTS)}")
    folder = folder or find_folder() / "experiments"
    for name in chosen:
        yield write_artifact(folder, EXPERIMENTS[name]())
