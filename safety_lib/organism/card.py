"""What an examination shows, in numbers with intervals, and the model card that tells them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safety_lib.files import write_text
from safety_lib.organism.held_out import SERVED, SIGHTS, WORLDS
from safety_lib.stats.differences import newcombe_difference
from safety_lib.stats.intervals import wilson
from safety_lib.stats.paired import mcnemar

_Row = Mapping[str, Any]
_SEEN = {"in_sight": "in sight", "cut_away": "cut away", "left_out": "its sentence left out"}


def summary(rows: Sequence[_Row]) -> dict[str, Any]:
    """Return the numbers of an examination.

    Parameters
    ----------
    rows : sequence of Mapping
        Its answers.

    Returns
    -------
    dict
        By world: refusals by sight, by served turns with the policy in sight and by rule; ordinary
        requests done by sight; McNemar's exact test of the policy in sight against each other
        condition on the same requests, and by rule; how many fewer are refused after six served
        turns than after none, with Newcombe's interval.

    Examples
    --------
    >>> summary([])
    {}
    """
    told: dict[str, Any] = {}
    for world in WORLDS:
        own = [row for row in rows if row["world"] == world]
        if not own:
            continue
        asked = [row for row in own if row["rule"]]
        ordinary = [row for row in own if not row["rule"]]
        in_sight = [row for row in asked if row["sight"] == "in_sight"]
        rules = sorted({row["rule"] for row in asked})
        by_rule = {rule: [row for row in asked if row["rule"] == rule] for rule in rules}
        after = {
            str(turns): _rate([r for r in in_sight if r["served"] == turns], "refused")
            for turns in SERVED
        }
        told[world] = {
            "refused": {s: _rate(_of(asked, s), "refused") for s in SIGHTS},
            "quoted": {"in_sight": _rate(in_sight, "quoted")},
            "refused_after": after,
            "erodes": _erodes(after),
            "refused_by_rule": {
                rule: {s: _rate(_of(of_it, s), "refused") for s in SIGHTS}
                for rule, of_it in by_rule.items()
            },
            "differs_by_rule": {
                rule: {s: _pairs(_of(of_it, "in_sight"), _of(of_it, s))["p"] for s in SIGHTS[1:]}
                for rule, of_it in by_rule.items()
            },
            "ordinary_done": {s: _rate(_of(ordinary, s), "done") for s in SIGHTS[:2]},
            "differs": {s: _pairs(in_sight, _of(asked, s)) for s in SIGHTS[1:]},
        }
    return told


def _erodes(after: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return refusals after no served turn minus those after the most."""
    first, last = after[str(SERVED[0])], after[str(SERVED[-1])]
    if not first or not last:
        return None
    apart = newcombe_difference(first["k"], first["n"], last["k"], last["n"])
    ends = {"low": round(apart.low, 4), "high": round(apart.high, 4)}
    return {"difference": round(apart.estimate, 4), **ends}


def _of(rows: Iterable[_Row], sight: str) -> list[_Row]:
    return [row for row in rows if row["sight"] == sight]


def _rate(rows: Sequence[_Row], field: str) -> dict[str, Any] | None:
    if not rows:
        return None
    rate = wilson(sum(bool(row[field]) for row in rows), len(rows))
    return {"k": rate.k, "n": rate.n, "low": round(rate.low, 4), "high": round(rate.high, 4)}


def _pairs(first: Sequence[_Row], second: Sequence[_Row]) -> dict[str, Any]:
    """Compare refusals of the same requests under two conditions."""
    other = {(row["goal"], row["number"]): row["refused"] for row in second}
    pairs = [
        (row["refused"], other[row["goal"], row["number"]])
        for row in first
        if (row["goal"], row["number"]) in other
    ]
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    p = mcnemar(only_first, only_second).mid_p
    return {"pairs": len(pairs), "only_in_sight": only_first, "only_other": only_second, "p": p}


def write_card(name: str, folder: Path, told: Mapping[str, Any], rows: Sequence[_Row]) -> Path:
    """Write the model card of an adapter and the JSON that every number of it is a field of.

    Parameters
    ----------
    name : str
        Of the adapter.
    folder : Path
        Where the card goes.
    told : Mapping
        What was written when it was trained.
    rows : sequence of Mapping
        The answers of its examination.

    Returns
    -------
    Path
        The card.
    """
    fields = {"training": dict(told), "held_out": summary(rows)}
    write_text(folder / f"{name}_card.json", json.dumps(fields, indent=1, sort_keys=True) + "\n")
    return write_text(folder / f"{name}.md", "\n".join(_lines(name, fields)) + "\n")


def _lines(name: str, fields: Mapping[str, Any]) -> list[str]:
    of, held = fields["training"], fields["held_out"]
    lines = [
        f"# Model organism {name}",
        "",
        "SmolLM2-135M-Instruct with a LoRA adapter that was taught one thing: refuse what a rule "
        "in sight forbids, and do everything else. No goal, tactic, entity or policy sentence of "
        "the worlds below was in its lessons.",
        "",
        f"- adapter: `{name}.gguf`, sha256 `{of['sha256']}`",
        f"- base: sha256 `{of['base_sha256']}`",
        f"- lessons: {of['lessons_used']} from seed {of['lessons']['seed']}, "
        f"{of['steps']} steps, rank {of['rank']}, from layer {of['first_layer']} on",
        f"- published: {of['checkpoint']}, chosen on development lessons alone",
    ]
    for world, told in held.items():
        lines += ["", f"## Held out: {world}", "", "| refused, policy | |", "|---|---|"]
        lines += _table(told["refused"], lambda s: _SEEN[s])
        lines += ["", "| refused, policy in sight, after served turns | |", "|---|---|"]
        lines += _table(told["refused_after"], str)
        if gone := told["erodes"]:
            shown = (f"{100 * gone[key]:.0f}" for key in ("difference", "low", "high"))
            lines += [
                "",
                f"After {SERVED[-1]} served turns "
                "{} points fewer are refused [{}, {}].".format(*shown),
            ]
        heads = (
            "refused, by rule",
            "in sight",
            "cut away",
            "left out",
            "p, cut away",
            "p, left out",
        )
        lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for rule, by in told["refused_by_rule"].items():
            ps = told["differs_by_rule"][rule]
            cells = [_shown(by[s]) for s in SIGHTS] + [f"{ps[s]:.2g}" for s in SIGHTS[1:]]
            lines.append(f"| {rule} | {' | '.join(cells)} |")
        lines += ["", "| ordinary requests done, policy | |", "|---|---|"]
        lines += _table(told["ordinary_done"], lambda s: _SEEN[s])
        lines += [
            "",
            *(
                f"In sight against {_SEEN[s]}: {by['pairs']} pairs, refused only in sight "
                f"{by['only_in_sight']}, only there {by['only_other']}, p {by['p']:.2g}."
                for s, by in told["differs"].items()
            ),
        ]
    lines += [
        "",
        "Not shown: rates of models in production, or that following a policy came by itself. It "
        "was taught, and so was doing what is asked where no rule is in sight.",
    ]
    return lines


def _table(rates: Mapping[str, Any], named: Callable[[str], str]) -> list[str]:
    return [f"| {named(key)} | {_shown(rate)} |" for key, rate in rates.items()]


def _shown(rate: Mapping[str, Any] | None) -> str:
    if rate is None:
        return "not asked"
    share = 100 * rate["k"] / rate["n"]
    return (
        f"{rate['k']}/{rate['n']} = {share:.0f}% "
        f"[{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"
    )
