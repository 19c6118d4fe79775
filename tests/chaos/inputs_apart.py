"""Bad inputs, tried in processes of their own: what ends or hangs one costs one input."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from chaos.bad_inputs import SECONDS, Desktop, inputs, try_one
from chaos.outcome import Outcome

_TESTS = Path(__file__).resolve().parent.parent
_PATHS = (str(_TESTS), str(_TESTS.parent))
_CHUNK = 250


def campaign(seed: int, count: int) -> Iterator[Outcome]:
    """Try so many inputs, on all cores; results come in the order of the inputs."""
    chunks = [(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for outcomes in pool.map(lambda chunk: _tried(seed, *chunk), chunks):
            yield from outcomes


def _tried(seed: int, first: int, end: int) -> list[Outcome]:
    """Try the inputs of a chunk in a process; where it stops, another goes on behind that one."""
    found: list[Outcome] = []
    while first + len(found) < end:
        start = first + len(found)
        with subprocess.Popen(
            [sys.executable, "-m", "chaos.inputs_apart", str(seed), str(start), str(end)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(_PATHS)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as child:
            assert child.stdout is not None
            ended = False
            while not ended and select.select([child.stdout], [], [], 3 * SECONDS)[0]:
                line = child.stdout.readline()
                ended = not line
                found += [Outcome(*json.loads(line))] if line else []
            child.kill()
        if first + len(found) < end:
            how = f"input {first + len(found)} of seed {seed}"
            found.append(Outcome("of a process", "died" if ended else "hang", how))
    return found


def _main() -> None:
    seed, first, end = map(int, sys.argv[1:])
    with TemporaryDirectory(prefix="chaos-") as home:
        desktop = Desktop(Path(home))
        for bad in islice(inputs(seed, end, desktop), first, None):
            print(json.dumps(try_one(bad, desktop)), flush=True)


if __name__ == "__main__":
    _main()
