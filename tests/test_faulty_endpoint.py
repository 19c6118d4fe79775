"""Endpoints that are at fault in every way that ``make chaos`` knows."""

from __future__ import annotations

import pytest

pytest.importorskip("openai", reason="the openai client is not installed")

from chaos.endpoints import PROTOCOLS, meet
from chaos.faulty_endpoint import KINDS
from chaos.outcome import AS_EXPECTED


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_of_an_endpoint_is_an_error_of_its_conversation(
    kind: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FAULTY_KEY", raising=False)
    outcome = meet(kind, protocol, seed=7)
    assert outcome.came == AS_EXPECTED, outcome
