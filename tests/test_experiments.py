"""Results of experiments as files: each in the record of its experiment, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from factories import NORTHWIND

from safety_lib import figures
from safety_lib.artifacts import (
    ArtifactError,
    read_experiment,
    write_artifact,
)
from safety_lib.experiments.registry import EXPERIMENTS, ExperimentError, run_experiments
from safety_lib.figures import tables
from safety_lib.files import sha256_of
from safety_lib.production.monitors import trained_monitors
from safety_lib.records.experiments import (
    DetectionLatency,
    HarmlessReleases,
    Proportion,
)

ARTIFACTS = Path(__file__).resolve().parent.parent / "artifacts"


def changed(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write a stored experiment with a change and a hash that is right for it."""
    tree = json.loads((ARTIFACTS / "experiments" / f"{name}.json").read_text(encoding="utf-8"))
    change(tree)
    del tree["content_sha256"]
    tree["content_sha256"] = sha256_of(tree)
    path = folder / "experiments" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(tree), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_stored_result_is_read_and_written_byte_for_byte(name: str, tmp_path: Path) -> None:
    again = write_artifact(tmp_path, read_experiment(ARTIFACTS, name))
    assert again.read_bytes() == (ARTIFACTS / "experiments" / again.name).read_bytes()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_promises_the_record_that_its_file_is_read_into(name: str) -> None:
    promised = get_type_hints(EXPERIMENTS[name])["return"]
    (kind,) = promised.__pydantic_generic_metadata__["args"]
    assert name == kind.NAME
    assert type(read_experiment(ARTIFACTS, name).result) is kind


def test_every_stored_file_belongs_to_an_experiment() -> None:
    assert {path.stem for path in (ARTIFACTS / "experiments").glob("*.json")} == set(EXPERIMENTS)


def test_parts_of_a_result_have_names() -> None:
    seen = read_experiment(ARTIFACTS, "detection_latency").expect(DetectionLatency)
    canary = seen.monitors["canary"]
    assert isinstance(canary.detected, Proportion)
    assert canary.detected.estimate == canary.detected.k / canary.detected.n
    assert str(Proportion(k=1200, n=3400, ci_low=0.3, ci_high=0.4)) == "1,200 of 3,400"


def test_entries_that_stand_beside_other_fields_are_one_mapping() -> None:
    candidates = read_experiment(ARTIFACTS, "harmless_releases").expect(HarmlessReleases).candidates
    assert "v2" in candidates
    assert candidates["v2"].verdicts == {"BLOCK": 12}
    assert candidates["v2"].mean_delta < -0.4
    assert candidates["v2"].model_dump() == {"BLOCK": 12, "mean_delta": candidates["v2"].mean_delta}


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (
            "detection_latency",
            lambda tree: tree["result"]["monitors"]["canary"].update(more=1),
            "field result.monitors.canary.more: Extra inputs",
        ),
        (
            "detection_latency",
            lambda tree: tree["result"]["monitors"]["canary"]["detected"].pop("k"),
            "field result.monitors.canary.detected.k: Field required",
        ),
        (
            "harmless_releases",
            lambda tree: tree["result"]["v2"].update(MAYBE=1),
            "field result.candidates.v2.verdicts.MAYBE",
        ),
        (
            "safeguard_ablation",
            lambda tree: tree["result"]["v2"]["prevented"].update(trajectory=[0.1, 0.0]),
            "field result.versions.v2.prevented.trajectory",
        ),
        (
            "early_warning",
            lambda tree: tree.update(name="detection_latency"),
            "field result.share_judged: Field required",
        ),
        ("early_warning", lambda tree: tree.update(name="guess"), "no experiment 'guess'"),
    ],
)
def test_a_file_that_is_not_the_experiments_is_refused_in_one_line(
    name: str, change: Callable[[dict[str, Any]], None], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError) as refused:
        read_experiment(changed(tmp_path, name, change), name)
    said = str(refused.value)
    assert f"{name}.json" in said and told in said and "make experiments" in said
    assert "\n" not in said


TAKERS: dict[str, Callable[[Any], Any]] = {
    "undiscovered_prediction": tables.predictions_table,
    "attackers_at_equal_budget": lambda experiment: tables.leads_table(experiment, "v2"),
    "memory_window": tables.memory_table,
    "peers": tables.peers_table,
    "safeguard_ablation": tables.safeguards_table,
    "safeguard_faults": tables.safeguard_faults_table,
    "sentence_removals": tables.sentence_removals_table,
    "detection_latency": lambda experiment: trained_monitors(experiment, NORTHWIND),
}
FIGURES: list[tuple[Callable[[Any], Any], str]] = [
    (figures.detection, "detection_latency"),
    (figures.near_misses, "early_warning"),
    (figures.early_warning, "early_warning"),
    (figures.root_cause_accuracy, "root_cause_accuracy"),
    (figures.radius_coverage, "blast_radius_coverage"),
    (figures.loop_rounds, "loop_against_no_loop"),
    (figures.safeguard_credit, "safeguard_ablation"),
    (figures.operating_characteristics, "operating_characteristics"),
    (figures.peers, "peers"),
]


@pytest.mark.parametrize("name", TAKERS)
def test_whoever_is_given_the_wrong_experiment_says_which_is_needed(name: str) -> None:
    other = read_experiment(ARTIFACTS, "mutators_effect")
    with pytest.raises(ValueError, match=f"{name}.*not 'mutators_effect'") as refused:
        TAKERS[name](other)
    assert "\n" not in str(refused.value)
    TAKERS[name](read_experiment(ARTIFACTS, name))


@pytest.mark.parametrize(("draw", "name"), FIGURES)
def test_a_figure_of_the_wrong_experiment_says_which_is_needed(
    draw: Callable[[Any], Any], name: str
) -> None:
    with pytest.raises(ValueError, match=f"{name}.*not 'mutators_effect'"):
        draw(read_experiment(ARTIFACTS, "mutators_effect"))


def test_an_experiment_that_there_is_not_is_refused_before_any_is_run(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no experiment 'guess': there are attackers"):
        list(run_experiments(["mutators_effect", "guess"], tmp_path))
    assert not list(tmp_path.iterdir())
