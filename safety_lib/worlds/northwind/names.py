"""Other names for the people, accounts and addresses of the example company."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from safety_lib.streams import key, pick

from .sandbox import load_company

_CUSTOMER = re.compile(r"\bC-\d{4}\b")
_ACCOUNT = re.compile(r"\bAC-(?!CANARY)[\w-]*\w")
_OUTSIDE = re.compile(r"\b[\w.+-]+@(?!northwind\.example\b)(?=[\w-]+(?:\.[\w-]+)+)", re.IGNORECASE)
_LOCAL = ("j.moreau", "accounts", "s.okafor", "records", "team.lead")


def renamed(texts: Sequence[str], seed: int) -> Mapping[str, str]:
    """Return other customers, accounts and addresses for those that stand in some texts."""
    customers = sorted(load_company()["customers"])
    names: dict[str, str] = {}
    for text in texts:
        for name in _CUSTOMER.findall(text):
            others = [c for c in customers if c != name and c not in names.values()]
            if name in customers and name not in names:
                names[name] = pick(others, seed, "customer", name)
        for name in _ACCOUNT.findall(text):
            names.setdefault(name, f"AC-{10000 + key(seed, 'account', name) % 90000}")
        for name in _OUTSIDE.findall(text):
            names.setdefault(name, f"{pick(_LOCAL, seed, 'address', name)}@")
    return names
