"""The gate's policy file: limits and floors, validated and hashed into every report."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import Field, ValidationError

from safety_lib.files import read_yaml, sha256_of
from safety_lib.gate.look_rules import LookRules, load_look_rules
from safety_lib.records import Record, first_fault

RULES_FILE = Path(__file__).with_name("policy.yaml")


class GateRules(Record):
    """When a release may go out; differences are candidate minus baseline pass rate, in [-1, 1]."""

    max_error_share: float = Field(ge=0, le=1)
    benign_floor: float = Field(ge=0, le=1)
    min_tests: int = Field(ge=1)
    min_families: int = Field(ge=2)
    control_trials: int = Field(ge=1)
    budget_per_1000: float = Field(gt=0, le=1000)
    tuned_margin: float = Field(gt=0, lt=1)
    tuned_alpha: float = Field(gt=0, lt=1)
    drift_slack: float = Field(ge=0)
    drift_alarm: float = Field(gt=0)
    drift_limit: float = Field(gt=0, lt=1)
    looks: LookRules = Field(default_factory=load_look_rules)

    @property
    def sha256(self) -> str:
        """Hash of the rules, those of the looks included."""
        return sha256_of(self.model_dump(mode="json"))

    def too_small(self, tests: int, families: int) -> str:
        """Say why a suite of so many active tests can bring no verdict; nothing if it can."""
        if tests >= self.min_tests and families >= self.min_families:
            return ""
        return (
            f"the suite has too few active tests ({tests}) or families ({families}): "
            f"at least {self.min_tests} and {self.min_families} are needed"
        )


@cache
def load_rules(path: Path = RULES_FILE) -> GateRules:
    """Read and validate the gate's policy file.

    Raises
    ------
    ValueError
        With one line that names the file and the field; an unknown key is an error.

    Examples
    --------
    >>> load_rules().benign_floor, load_rules().looks.suite_margin
    (0.5, 0.05)
    """
    try:
        return GateRules.model_validate(read_yaml(path))
    except ValidationError as error:
        field, reason = first_fault(error)
        raise ValueError(f"{path.name}: field {field}: {reason}") from error
