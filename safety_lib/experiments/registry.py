"""Every experiment by its name, and how they are run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from safety_lib.artifacts import write_artifact
from safety_lib.experiments.ablation import safeguard_ablation
from safety_lib.experiments.alarms import detection_latency, early_warning
from safety_lib.experiments.calibration import next_scenarios_gain, undiscovered_prediction
from safety_lib.experiments.characteristics import operating_characteristics
from safety_lib.experiments.equal_budget import attackers_at_equal_budget
from safety_lib.experiments.levers import memory_window, mutators_effect
from safety_lib.experiments.mutants import mutation_adequacy
from safety_lib.experiments.radius_coverage import blast_radius_coverage
from safety_lib.experiments.real_releases import harmless_releases, selection_bias
from safety_lib.experiments.results import ARTIFACTS
from safety_lib.experiments.root_cause import decisive_turn_accuracy, root_cause_accuracy
from safety_lib.experiments.rounds import closing_the_loop, loop_against_no_loop
from safety_lib.records import Experiment

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "attackers_at_equal_budget": attackers_at_equal_budget,
    "mutators_effect": mutators_effect,
    "memory_window": memory_window,
    "safeguard_ablation": safeguard_ablation,
    "undiscovered_prediction": undiscovered_prediction,
    "next_scenarios_gain": next_scenarios_gain,
    "mutation_adequacy": mutation_adequacy,
    "operating_characteristics": operating_characteristics,
    "harmless_releases": harmless_releases,
    "selection_bias": selection_bias,
    "root_cause_accuracy": root_cause_accuracy,
    "blast_radius_coverage": blast_radius_coverage,
    "closing_the_loop": closing_the_loop,
    "decisive_turn_accuracy": decisive_turn_accuracy,
    "loop_against_no_loop": loop_against_no_loop,
    "early_warning": early_warning,
    "detection_latency": detection_latency,
}


class ExperimentError(ValueError):
    """There is no such experiment."""


def run_experiments(
    names: Iterable[str] = (), folder: Path = ARTIFACTS / "experiments"
) -> Iterator[Path]:
    """Run experiments, and write each result as soon as it is there.

    Parameters
    ----------
    names : iterable of str, optional
        Which; all of them by default.
    folder : Path, optional
        Where the results go.

    Yields
    ------
    Path
        The file of each result.

    Raises
    ------
    ExperimentError
        If there is no experiment of a name.
    """
    chosen = list(names) or list(EXPERIMENTS)
    for name in chosen:
        if name not in EXPERIMENTS:
            raise ExperimentError(f"no experiment {name!r}: there are {', '.join(EXPERIMENTS)}")
    for name in chosen:
        yield write_artifact(folder, EXPERIMENTS[name]())
