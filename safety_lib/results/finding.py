"""Finds out which tool wrote a file, and reads it.

Each reader stands in a module of its own and is listed here; what none of them knows is refused
with the list of what is read. A folder holds the results of one tool on one agent. Its files are
read in the order of their names, and where a trial of a test has a number that an earlier file gave
already, the file's trials of that test are numbered on: the second file is another run of it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from safety_lib.results import (
    agentdojo_runs,
    columns,
    deepeval_runs,
    inspect_logs,
    journals,
    junit_results,
    promptfoo_runs,
    tau_bench,
)
from safety_lib.results.opening import (
    MOST_SAMPLES,
    Held,
    glimpse,
    noted,
    refused,
    several,
    showable,
    title,
)
from safety_lib.results.table import ResultFile, ResultsError, Sample
from safety_lib.text import count, one_line

MAX_BYTES = 1 << 30
MOST_FILES = 200_000
_HEAD = 1 << 16


class Reader(NamedTuple):
    """How the results of one tool are known, and read.

    Attributes
    ----------
    tool : str
        Whose results, as messages name them.
    reads : str
        What such a file is, in a few words, for the list of what is read.
    knows : callable
        ``knows(path, head)`` says whether a file is one, from its name and its first bytes; it
        never raises.
    read : callable
        ``read(path, max_bytes)`` returns what it holds, and raises `ResultsError` in one line;
        packed files are refused where they unpack to more than ``max_bytes``.
    dated : bool
        Whether such a file says when it was written, so that equal bytes are one run.
    """

    tool: str
    reads: str
    knows: Callable[[Path, bytes], bool]
    read: Callable[[Path, int], Held]
    dated: bool = True


RESULT_READERS: tuple[Reader, ...] = (
    Reader("Inspect", ".eval log", inspect_logs.knows_eval, inspect_logs.read_inspect_eval),
    Reader("Inspect", ".json log", inspect_logs.knows_json, inspect_logs.read_inspect_json),
    Reader(
        "promptfoo",
        "eval -o out.json",
        promptfoo_runs.knows_promptfoo,
        promptfoo_runs.read_promptfoo,
    ),
    Reader(
        "AgentDojo", "runs/PIPELINE", agentdojo_runs.knows_agentdojo, agentdojo_runs.read_agentdojo
    ),
    Reader("tau2-bench", "results .json", tau_bench.knows_tau, tau_bench.read_tau),
    Reader("tau-bench", "results .json", tau_bench.knows_first_tau, tau_bench.read_first_tau),
    Reader(
        "DeepEval", "test_run_*.json", deepeval_runs.knows_deepeval, deepeval_runs.read_deepeval
    ),
    Reader(
        "deepteam",
        "risk assessment .json",
        deepeval_runs.knows_assessment,
        deepeval_runs.read_assessment,
    ),
    Reader("JUnit", ".xml of a run", junit_results.knows_junit, junit_results.read_junit, False),
    Reader("safety_lib", "journal .jsonl", journals.knows_journal, journals.read_journal),
    Reader("Parquet", "test, outcome", columns.knows_parquet, columns.read_parquet, False),
    Reader("CSV", "test, outcome", columns.knows_csv, columns.read_csv, False),
)


def read_one(path: Path, max_bytes: int = MAX_BYTES) -> ResultFile:
    r"""Read one file or folder of results, whichever tool wrote it.

    Parameters
    ----------
    path : Path
        A file, or a folder with those of several runs.
    max_bytes : int
        Most bytes of the file, or of all files of the folder; packed ones also unpacked.

    Raises
    ------
    ResultsError
        If it is missing, too large, damaged, or of no tool that is read.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "runs.csv")
    ...     _ = path.write_text("test,outcome\nrefund,pass\nrefund,fail\n")
    ...     print(read_one(path))
    runs.csv: 2 trials, written by CSV
    """
    try:
        if path.is_file():
            reader = _reader_of(path)
            if reader is None:
                raise refused(path, f"not results that are read but {_looks(path)}", _list())
            files = {path: reader}
            left_out: list[Path] = []
        elif path.is_dir():
            files, left_out = _within(path)
        elif path.exists():
            raise refused(path, "neither a file nor a folder")
        else:
            raise ResultsError(f"{one_line(path, 120)}: there is no such file")
        size = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise refused(path, f"cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        if isinstance(error, ResultsError):
            raise
        raise refused(path, f"cannot be read ({error})") from None  # a NUL in its name
    if size > max_bytes:
        raise refused(path, f"{size:,} bytes, more than --max-bytes {max_bytes:,}")
    return _folded(path, files, left_out, max_bytes)


def _reader_of(path: Path) -> Reader | None:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return next((reader for reader in RESULT_READERS if reader.knows(path, head)), None)


def _within(folder: Path) -> tuple[dict[Path, Reader], list[Path]]:
    """Return the files of a folder that are results of one tool, and the others."""
    files: dict[Path, Reader] = {}
    left_out = []
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if number > MOST_FILES:
            raise refused(folder, f"holds more than {MOST_FILES:,} files", "give a part of it")
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.is_file():
            reader = None if path.is_symlink() else _reader_of(path)
            if reader is None:
                left_out.append(path)
            else:
                files[path] = reader
    tools = {reader.tool: path for path, reader in files.items()}
    if len(tools) > 1:
        shown = several(f"{tool} ({path.name})" for tool, path in tools.items())
        raise refused(folder, f"a folder with results of {len(tools)} tools: {shown}", "give one")
    if not files:
        held = several(path.name for path in left_out) or "nothing"
        raise refused(folder, f"a folder without results that are read (it holds {held})", _list())
    return files, left_out


def _folded(
    path: Path, files: dict[Path, Reader], left_out: list[Path], max_bytes: int
) -> ResultFile:
    """Make one of what some files hold."""
    held: dict[Path, Held] = {}
    digests: dict[Path, str] = {}
    for file, reader in files.items():
        held[file] = reader.read(file, max_bytes)
        digests[file] = _digest(file, *held[file].beside)
        _once(file, held[file])
    copies = _copies(path, files, digests)
    held, replaced = _latest(held)
    subjects = list(dict.fromkeys(found.subject for found in held.values() if found.subject))
    if len(subjects) > 1:
        what = f"holds results of {len(subjects)} agents: {several(subjects)}"
        raise refused(path, what, "give a folder of one")
    samples, numbered_on = _numbered_on(held)
    if not samples:
        raise refused(path, "holds no trial")
    if len(samples) > MOST_SAMPLES:
        raise refused(path, f"holds {len(samples):,} trials, too many")
    beside = {file for found in held.values() for file in found.beside}
    unread = [file for file in left_out if file not in beside]
    asked = [found.model_calls for found in held.values()]
    whole = hashlib.sha256("".join(digests.values()).encode()).hexdigest()
    return ResultFile(
        name=one_line(path.name, 120),
        tool=next(iter(files.values())).tool,
        sha256=whole if path.is_dir() else digests[path],
        samples=tuple(samples),
        model_calls=None if None in asked else sum(number or 0 for number in asked),
        graded_by_model=any(found.graded_by_model for found in held.values()),
        notes=(
            *_together(held),
            *noted(replaced, "file", "of a run that a later one took up again: not counted"),
            *noted(copies, "file", "with the bytes of an earlier one, counted as a run of its own"),
            *noted(numbered_on, "trial", "of tests of an earlier file, numbered on by file name"),
            *noted(
                len(unread),
                "file",
                f"of other kinds, not read: {several(file.name for file in unread)}",
            ),
        ),
    )


def _digest(*files: Path) -> str:
    digests = []
    for path in files:
        try:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise refused(path, f"cannot be read ({error.strerror or error})") from None
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def _copies(folder: Path, files: dict[Path, Reader], digests: dict[Path, str]) -> int:
    """Return how many files are like an earlier one, where two runs may be."""
    first: dict[str, Path] = {}
    copies = 0
    for file, digest in digests.items():
        if digest in first and files[file].dated:
            what = f"{first[digest].name} and {file.name} are the same bytes"
            raise refused(folder, what, "a copy is no second run: remove it")
        copies += digest in first
        first.setdefault(digest, file)
    return copies


def _once(file: Path, found: Held) -> None:
    numbers = Counter((sample.test, sample.trial) for sample in found.samples)
    twice = next((key for key, times in numbers.items() if times > 1), None)
    if twice is not None:
        test, trial = twice
        raise refused(file, f"trial {trial} of {one_line(test, 80)} stands there twice")
    wrong = next((s for s in found.samples if s.trial < 1), None)
    if wrong is not None:
        raise refused(file, f"trial {wrong.trial} of {one_line(wrong.test, 80)}: they begin at 1")


def _latest(held: dict[Path, Held]) -> tuple[dict[Path, Held], int]:
    """Return the last file of each run, and how many others there were."""
    last: dict[str, Path] = {}
    for file, found in held.items():
        before = last.get(found.run or str(file))
        if before is None or held[before].written <= found.written:
            last[found.run or str(file)] = file
    kept = set(last.values())
    return {file: found for file, found in held.items() if file in kept}, len(held) - len(kept)


def _numbered_on(held: dict[Path, Held]) -> tuple[list[Sample], int]:
    scopes = {found.scope for found in held.values() if found.scope}
    samples: list[Sample] = []
    seen: set[tuple[str, int]] = set()
    most: Counter[str] = Counter()
    numbered_on = 0
    for found in held.values():
        own = found.samples
        if len(scopes) > 1 and found.scope:
            own = [sample._replace(test=title(found.scope, sample.test)) for sample in own]
        again = {sample.test for sample in own if (sample.test, sample.trial) in seen}
        before = {test: most[test] for test in again}
        for sample in own:
            if sample.test in again:
                sample = sample._replace(trial=sample.trial + before[sample.test])
                numbered_on += 1
            samples.append(showable(sample))
            seen.add((sample.test, sample.trial))
            most[sample.test] = max(most[sample.test], sample.trial)
    return samples, numbered_on


def _together(held: dict[Path, Held]) -> list[str]:
    """Return what the files note; of many that say the same, how many do."""
    said = Counter(note for found in held.values() for note in found.notes)
    return [
        one_line(note if times == 1 else f"{note} (in {times} files)", 240)
        for note, times in said.items()
    ]


def _list() -> str:
    tools: dict[str, list[str]] = {}
    for reader in RESULT_READERS:
        tools.setdefault(reader.tool, []).append(reader.reads)
    return "what is read: " + ", ".join(
        f"{tool} ({' or '.join(reads)})" for tool, reads in tools.items()
    )


def _looks(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head.strip():
        return "an empty file"
    seen = glimpse(head)
    if isinstance(seen, dict) and isinstance(seen.get("artifact"), str):
        return f"this project's {one_line(seen['artifact'], 40)}, which holds no trials"
    if isinstance(seen, dict):
        return f"a JSON object with keys {several(seen)}" if seen else "an empty JSON object"
    if isinstance(seen, list):
        return f"a JSON list of {count(len(seen), 'entry', 'entries')} or more"
    if head.startswith(b"PK"):
        return "a zip"
    if head.lstrip().startswith(b"<"):
        return "XML or HTML without test suites"
    if b"\0" in head:
        return "a binary file"
    return f"a text that begins with {one_line(head.decode('utf-8', 'replace').strip(), 40)!r}"
