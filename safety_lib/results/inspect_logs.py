"""Logs of Inspect: a sample is a test, an epoch a trial, a score what came of it.

A ``.eval`` file is a zip, and beside every sample with its transcript it holds a summary of all of
them. Only that is read; samples themselves only where the log says that somebody declared some of
them invalid, which a summary does not tell. A log that was cut off has summaries in parts.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from safety_lib.records import Outcome
from safety_lib.results.in_pieces import read_in_pieces
from safety_lib.results.opening import (
    Held,
    OfATool,
    glimpse,
    keys_of,
    leaves,
    noted,
    parsed,
    refused,
    title,
)
from safety_lib.results.table import ResultsError, Sample

_SAMPLES = ("samples",)
_ZSTD = 93
# Of packed bytes: what a hostile archive says of its size is not believed before it is unpacked.
_STEP = 1 << 14
_PASSES = {"c", "yes", "true", "1", "1.0"}
_FAILS = {"i", "n", "no", "false", "0", "0.0"}  # N is no answer, which Inspect counts as 0


class _Score(OfATool):
    value: Any = None


class _Sample(OfATool):
    id: int | str
    epoch: int = 1
    scores: dict[str, _Score] | None = None
    score: _Score | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    error: Any = None
    limit: Any = None
    invalidation: Any = None
    role_usage: dict[str, Any] = Field(default_factory=dict)


class _Dataset(OfATool):
    samples: int | None = None
    sample_ids: list[Any] | None = None


class _Config(OfATool):
    epochs: int | None = None
    limit: Any = None


class _Spec(OfATool):
    task: str
    task_id: str = ""
    created: str = ""
    model: str = ""
    solver: str | None = None
    dataset: _Dataset = Field(default_factory=_Dataset)
    config: _Config = Field(default_factory=_Config)
    scorers: list[dict[str, Any]] | None = None


class _Named(OfATool):
    name: str = ""
    scorer: str = ""


class _Results(OfATool):
    scores: list[_Named] | _Named | None = None


class _Log(OfATool):
    status: str = "started"
    eval: _Spec
    results: _Results | None = None
    invalidated: bool = False


class _Invalid(OfATool):
    invalidation: Any = None


def knows_json(path: Path, head: bytes) -> bool:
    """Whether a file begins as the JSON of a log does."""
    return {"version", "eval"} <= keys_of(head) and isinstance(glimpse(head)["eval"], dict)


def knows_eval(path: Path, head: bytes) -> bool:
    """Whether a file is a zip that is called a log, or holds what a log does."""
    if not head.startswith(b"PK\x03\x04"):
        return False
    return path.suffix == ".eval" or b"_journal/start.json" in head or b"header.json" in head


def read_inspect_json(path: Path, max_bytes: int) -> Held:
    """Read a log that was written as JSON."""
    pieces = read_in_pieces(path, {_SAMPLES: _Sample}, "an Inspect log")
    log = parsed(path, pieces.around, _Log, "an Inspect log")
    return _found(log, pieces.entries[_SAMPLES])


def read_inspect_eval(path: Path, max_bytes: int) -> Held:
    """Read a binary log by its summaries."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = _Members(path, archive, max_bytes)
            if "header.json" in members:
                log = parsed(path, members["header.json"], _Log, "the header of an Inspect log")
            else:
                log = parsed(path, members["_journal/start.json"], _Log, "the start of a log")
            samples = list(_summaries(path, members))
            if log.invalidated:
                samples = [_with_invalidation(path, members, sample) for sample in samples]
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise refused(path, f"a damaged .eval file ({error})", "copy it again") from None
    return _found(log, samples)


class _Members(Mapping[str, bytes]):
    """What an archive holds, unpacked one by one and never more than is allowed in all."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, max_bytes: int) -> None:
        self.path = path
        self.archive = archive
        self.left = max_bytes
        self.infos = {info.filename: info for info in archive.infolist()}

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __getitem__(self, name: str) -> bytes:
        if name not in self.infos:
            raise refused(self.path, f"no Inspect log: there is no {name} in it")
        info = self.infos[name]
        if info.compress_type == _ZSTD:
            self._learn_zstd()
        if info.flag_bits & 1:
            raise refused(self.path, f"{name} in it is encrypted")
        if info.file_size > self.left:
            raise self._too_large(name, info.file_size)
        unpacked = bytearray()
        try:
            with self.archive.open(info) as member:
                while piece := member.read(_STEP):
                    unpacked += piece
                    if len(unpacked) > self.left:
                        raise self._too_large(name, len(unpacked))
        except ResultsError:
            raise
        except Exception as error:  # each way of packing has errors of its own
            raise refused(
                self.path, f"{name} in it is damaged ({error})", "copy it again"
            ) from None
        self.left -= len(unpacked)
        return bytes(unpacked)

    def _too_large(self, name: str, size: int) -> ResultsError:
        what = f"{name} in it is {size:,} bytes or more when unpacked, too many"
        return refused(self.path, what, "raise --max-bytes if it is to be trusted")

    def _learn_zstd(self) -> None:
        with contextlib.suppress(ImportError):
            import zipfile_zstd  # type: ignore[import-untyped]  # noqa: F401  # adds it to zipfile
        if not hasattr(zipfile, "ZIP_ZSTANDARD"):
            raise refused(
                self.path,
                "packed with zstd, which this Python cannot unpack",
                "pip install inspect-ai, or write it as JSON: inspect log convert --to json",
            )


def _summaries(path: Path, members: _Members) -> Iterable[_Sample]:
    if "summaries.json" in members:
        return parsed(path, members["summaries.json"], list[_Sample], "the summaries of a log")
    parts = [name for name in members if name.startswith("_journal/summaries/")]
    parts.sort(key=lambda name: (len(name), name))
    return [
        sample
        for name in parts
        for sample in parsed(path, members[name], list[_Sample], "the summaries of a log")
    ]


def _with_invalidation(path: Path, members: _Members, sample: _Sample) -> _Sample:
    name = f"samples/{sample.id}_epoch_{sample.epoch}.json"
    told = parsed(path, members[name], _Invalid, "a sample of a log")
    return sample.model_copy(update={"invalidation": told.invalidation})


def _found(log: _Log, samples: list[_Sample]) -> Held:
    named = log.results.scores if log.results else None
    scores = named if isinstance(named, list) else [named] if named else []
    scorers = [scorer for s in scores for scorer in (s.name, s.scorer)]
    scorers += [str(scorer.get("name", "")) for scorer in log.eval.scorers or []]
    graded = any(name.split("/")[-1].startswith("model_graded") for name in scorers)
    graded |= any("grader" in sample.role_usage for sample in samples)
    invalid = sum(sample.invalidation is not None for sample in samples)
    limited = sum(bool(sample.limit) and not sample.error for sample in samples)
    notes = (
        *noted(invalid, "sample", "declared invalid: undetermined"),
        *noted(limited, "sample", "ended by a limit: undetermined"),
        *_missing(log, len(samples)),
    )
    return Held(
        samples=[_sample(sample) for sample in samples],
        subject=" ".join(filter(None, (log.eval.model, log.eval.solver))),
        scope=log.eval.task,
        run=log.eval.task_id,
        written=log.eval.created,
        graded_by_model=graded,
        notes=notes,
    )


def _missing(log: _Log, there: int) -> tuple[str, ...]:
    dataset = log.eval.dataset
    asked = len(dataset.sample_ids) if dataset.sample_ids is not None else dataset.samples
    if dataset.sample_ids is None and log.eval.config.limit is not None:
        asked = None
    planned = (asked or 0) * (log.eval.config.epochs or 1)
    if log.status == "success" and there >= planned:
        return ()
    ended = f"the log ended as {log.status}"
    return (f"{ended}, with {there} of {planned} samples" if planned else ended,)


def _sample(sample: _Sample) -> Sample:
    scores = sample.scores or ({"score": sample.score} if sample.score else {})
    fields = dict(leaves(sample.metadata, "metadata"))
    for name, score in scores.items():
        fields.update(leaves(score.value, f"score.{name}"))
    only = next(iter(scores.values())) if len(scores) == 1 else None
    if only is not None:
        fields.update(leaves(only.value, "score"))
    for name, told, said in (("error", sample.error, "message"), ("limit", sample.limit, "type")):
        if told:
            fields[name] = str(told.get(said) if isinstance(told, dict) else told)
    return Sample(title(sample.id), sample.epoch, _outcome(sample, list(scores.values())), fields)


def _outcome(sample: _Sample, scores: list[_Score]) -> Outcome | None:
    if sample.error:
        return "error"
    if sample.limit or sample.invalidation is not None or not scores:
        return "undetermined"
    if any(_is_nan(score.value) or score.value is None for score in scores):
        return "undetermined"
    return _said(scores[0].value) if len(scores) == 1 else None


def _is_nan(value: Any) -> bool:
    """Whether a score is what Inspect writes where a scorer could not say anything."""
    return isinstance(value, float) and math.isnan(value)


def _said(value: Any) -> Outcome | None:
    if isinstance(value, list | dict):
        return None
    told = str(value).lower()
    return "safe" if told in _PASSES else "violation" if told in _FAILS else None
