"""Long lists are read entry by entry, and what is read is what the whole file says."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safety_lib import judge_results
from safety_lib.results import in_pieces
from safety_lib.results.in_pieces import read_in_pieces
from safety_lib.results.table import ResultsError

ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.text(st.sampled_from('ab"\\[]{},: \n\u00e9\u202e'), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rows", "in", 'a"b', "]"]), inner, max_size=3)
    ),
    max_leaves=12,
)
ROW = st.dictionaries(st.text('x"]}', max_size=3), ANY, max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(ROW | ANY, max_size=5),
    before=st.dictionaries(st.sampled_from(["a", "rowsx", "]"]), ANY, max_size=2),
    after=st.dictionaries(st.sampled_from(["z", "row", "{"]), ANY, max_size=2),
    indent=st.sampled_from([None, 2]),
    step=st.integers(1, 40),
)
def test_what_is_read_in_pieces_is_what_the_file_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[Any],
    before: dict[str, Any],
    after: dict[str, Any],
    indent: int | None,
    step: int,
) -> None:
    monkeypatch.setattr(in_pieces, "_STEP", step)
    # Entries that are no objects and no lists stand between no brackets: several are one piece.
    rows = [row for row in rows if isinstance(row, dict | list)]
    for place in (("in", "rows"), ("rows",), ()):
        whole: Any = rows
        for key in reversed(place):
            whole = {**before, key: whole, **after}
        path = tmp_path / "whole.json"
        path.write_text(json.dumps(whole, indent=indent))
        read = read_in_pieces(path, {place: object}, "rows")
        assert read.entries == {place: rows}
        emptied: Any = []
        for key in reversed(place):
            emptied = {**before, key: emptied, **after}
        assert json.loads(read.around) == emptied


@pytest.mark.parametrize(
    "text",
    [
        '{"rows": [{"a": 1}, {"a": 2}',
        '{"rows": [{"a": 1}, {"a": "cut',
        '{"rows": [{"a": 1},, {"a": 2}]}',
        '{"rows": [{"a": 1},]}',
        '{"rows": [,{"a": 1}]}',
        '{"rows": [{"a": 1} {"a": 2}]}',
        '{"rows": [{"a": 1]]}',
        '{"rows": [1, {"a": 1}]}',
        '{"rows": [{"a": 1}], "rows": []}',
        '{"rows": [{"a": 1}]',
        '{"rows": [{"a": 1}]}}',
    ],
)
def test_what_is_no_json_is_refused_wherever_it_breaks(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=r"^broken\.json: [^\n]+$"):
        read = read_in_pieces(path, {("rows",): dict[str, int]}, "rows")
        in_pieces.parsed(path, read.around, dict[str, Any], "rows")


def test_a_log_is_not_held_in_memory(tmp_path: Path) -> None:
    def log(name: str, samples: int) -> tuple[Path, int]:
        path = tmp_path / name
        head = {"task": "t", "model": name, "dataset": {"samples": samples}}
        with path.open("w") as file:
            file.write(json.dumps({"version": 2, "status": "success", "eval": head})[:-1])
            file.write(', "samples": [')
            for i in range(samples):
                passed = "C" if i % 10 else name[0].upper()
                said = [{"role": "user", "content": "[" + "word { " * 20_000}]
                sample = {"id": i, "epoch": 1, "messages": said, "scores": {"s": {"value": passed}}}
                file.write((", " if i else "") + json.dumps(sample))
            file.write('], "reductions": null}')
        return path, path.stat().st_size

    (one, size), (other, _) = log("c.json", 250), log("i.json", 250)
    assert size > 30_000_000
    tracemalloc.start()
    report = judge_results(one, other)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.test_results[0].baseline.passed == 1 and report.test_results[0].candidate.failed
    assert peak < size / 3
