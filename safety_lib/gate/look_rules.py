"""The gate's looks: when they come, what error each question may spend, and what is tolerated."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from safety_lib.files import read_yaml
from safety_lib.records import Attempt, Record, first_fault

LOOKS_FILE = Path(__file__).with_name("looks.yaml")


class LookRules(Record):
    """Looks, error spending and margins of the sequential decision.

    Shares of error are one-sided and hold over all looks of a question. Losses are differences in
    pass rate, in (0, 1).
    """

    looks: tuple[int, ...] = Field(min_length=1)
    confirm_looks: tuple[int, ...] = Field(min_length=1)
    suite_block: float = Field(gt=0, lt=0.5)
    family_block: float = Field(gt=0, lt=0.5)
    critical_block: float = Field(gt=0, lt=0.5)
    benign_block: float = Field(gt=0, lt=0.5)
    wrong_ok: float = Field(gt=0, lt=0.5)
    suite_margin: float = Field(gt=0, lt=1)
    benign_margin: float = Field(gt=0, lt=1)
    family_margin: float = Field(gt=0, lt=1)
    family_loss: float = Field(gt=0, lt=1)
    screen: float = Field(gt=0, lt=0.5)
    large_enough: float = Field(gt=0.5, lt=1)
    critical_pairs: int = Field(ge=1)
    reserved: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _looks_rise(self) -> LookRules:
        for name in ("looks", "confirm_looks"):
            looks = getattr(self, name)
            if looks[0] < 1 or any(a >= b for a, b in pairwise(looks)):
                raise ValueError(f"{name} must rise from at least 1, not {list(looks)}")
        return self

    @property
    def false_block(self) -> float:
        """Chance of a false BLOCK that the four questions may spend together."""
        shares = self.suite_block, self.family_block, self.critical_block, self.benign_block
        return round(sum(shares), 12)

    def attempt(self, number: int, candidate: int) -> Attempt:
        """Say what share of each error the n-th run of a pair, of the k-th candidate, may spend.

        The first run leaves ``reserved`` of it, the second as much of that, and so on: all runs
        there may ever be spend the whole together. An OK is also one of a series of candidates:
        the k-th has 6 / (pi k)^2 of it, and these add up to 1 over all k, whatever their verdicts
        depend on (Bonferroni).

        Parameters
        ----------
        number, candidate : int
            Run of the pair and place of the candidate, both from 1.

        References
        ----------
        Foster and Stine, JRSS B 70, 2008, 429-444; Tian and Ramdas, Statistical Methods in Medical
        Research 30, 2021, 976-993 (error spent over a series without an end).

        Examples
        --------
        >>> print(load_look_rules().attempt(2, 1))
        run 2 of this pair, candidate 1 against this baseline and suite: 16.0% of the error of a \
BLOCK and 9.7% of that of an OK are left to it
        """
        share = (1 - self.reserved) * self.reserved ** (number - 1)
        series = 6 / (math.pi * candidate) ** 2
        return Attempt(
            number=number,
            candidate=candidate,
            block_share=round(share, 9),
            ok_share=round(share * series, 9),
        )

    def left_to(self, attempt: Attempt) -> LookRules:
        """Return the rules with the error that is left to an attempt."""
        blocks = ("suite_block", "family_block", "critical_block", "benign_block")
        left = {name: attempt.block_share * getattr(self, name) for name in blocks}
        return self.model_copy(update={**left, "wrong_ok": attempt.ok_share * self.wrong_ok})

    def looks_until(self, cap: int) -> tuple[int, ...]:
        """Return the looks of a run whose last one is at ``cap`` trials, set before the first.

        Raises
        ------
        ValueError
            If the cap is less than 1.

        Examples
        --------
        >>> load_look_rules().looks_until(10)
        (3, 5, 8, 10)
        """
        if cap < 1:
            raise ValueError(f"the last look must have at least 1 trial, not {cap}")
        return (*(look for look in self.looks if look < cap), cap)


@cache
def load_look_rules(path: Path = LOOKS_FILE) -> LookRules:
    """Read and validate the looks.

    Raises
    ------
    ValueError
        With one line that names the file and the field; an unknown key is an error.

    Examples
    --------
    >>> load_look_rules().false_block
    0.02
    """
    try:
        return LookRules.model_validate(read_yaml(path))
    except ValidationError as error:
        field, reason = first_fault(error)
        raise ValueError(f"{path.name}: field {field}: {reason}") from error
