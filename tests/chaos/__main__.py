"""A campaign of faults that fits a seed and half an hour: ``make chaos``.

Every campaign yields outcomes; the table counts them by kind, and whatever did not come as expected
is told with what brings it about again. The exit code is 1 then.

    make chaos                     a seed of its own, 1,000 bad inputs, 300 kills, 100 endpoints
    .venv/bin/python tests/chaos --seed 7 --inputs 100 --kills 0

A campaign is a module with ``campaign(seed, count)``: bad inputs, kills of a live process, faults
of an endpoint.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent)]

from chaos import endpoints, inputs_apart, kills  # noqa: E402
from chaos.outcome import AS_EXPECTED, Came, Outcome  # noqa: E402
from chaos.processes import MemoryWatch  # noqa: E402

Campaign = Callable[[int, int], Iterator[Outcome]]

CAMPAIGNS: dict[str, tuple[Campaign, int]] = {
    "inputs": (inputs_apart.campaign, 1_000),
    "kills": (kills.campaign, 300),
    "endpoints": (endpoints.campaign, 100),
}
"""Name to campaign, and how many faults of it are tried by default."""
SAY_SECONDS = 60.0
MOST_MEMORY = 1_536  # MiB, of all processes together


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**9))
    for name, (_, count) in CAMPAIGNS.items():
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    found: list[Outcome] = []
    with MemoryWatch() as memory:
        for name, (campaign, _) in CAMPAIGNS.items():
            started = time.monotonic()
            outcomes = _told(name, campaign(given.seed, getattr(given, name)))
            found += outcomes
            seconds = time.monotonic() - started
            print(f"{len(outcomes):,} {name} in {seconds:.0f} s", flush=True)
    came: Came = AS_EXPECTED if memory.most <= MOST_MEMORY else "memory"
    found.append(Outcome("memory of all together", came, f"{memory.most:,} MiB"))
    print_table(found)
    print(f"\nmemory: at most {memory.most:,} MiB, of {MOST_MEMORY:,}")
    return int(any(outcome.came != AS_EXPECTED for outcome in found))


def _told(name: str, campaign: Iterator[Outcome]) -> list[Outcome]:
    """Collect outcomes; what goes wrong is told at once, and how far it is each minute."""
    found: list[Outcome] = []
    told = time.monotonic()
    for outcome in campaign:
        found.append(outcome)
        if outcome.came != AS_EXPECTED:
            print_other(outcome)
        if time.monotonic() - told > SAY_SECONDS:
            told = time.monotonic()
            print(f"{len(found):,} {name} so far", flush=True)
    return found


def print_other(outcome: Outcome) -> None:
    said = outcome.said.strip()[-600:]
    print(f"\n{outcome.came}: {outcome.how!r}\n  {said!r}", flush=True)


def print_table(found: list[Outcome]) -> None:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for outcome in found:
        counts[outcome.kind][outcome.came] += 1
    width = max((len(kind) for kind in counts), default=4)
    print(f"\n{'kind':{width}}  tried  as expected  otherwise")
    for kind in sorted(counts):
        came = counts[kind]
        others = ", ".join(f"{n} {what}" for what, n in came.items() if what != AS_EXPECTED)
        print(f"{kind:{width}}  {came.total():>5}  {came[AS_EXPECTED]:>11}  {others}")
    whole = Counter(outcome.came for outcome in found)
    print(f"{'all':{width}}  {whole.total():>5}  {whole[AS_EXPECTED]:>11}")


if __name__ == "__main__":
    sys.exit(main())
