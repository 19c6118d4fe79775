"""Artifacts: written whole or not at all, read back equal, refused with one useful line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from factories import a_suite, a_test
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safety_lib.artifacts import (
    ArtifactError,
    content_hash,
    read_artifact,
    read_incident,
    sealed,
    write_artifact,
)
from safety_lib.files import FileError, sha256_of, write_text
from safety_lib.records import (
    BenignTwin,
    ExpectedCall,
    GateReport,
    Reproduction,
    StressFailures,
    Suite,
    id_of_test,
)

SAMPLE = Path(__file__).parents[1] / "artifacts" / "incident_example.json"


def message_for(path: Path, text: str | bytes, kind: Any = Suite) -> str:
    """Write a file, try to read it, return the refusal."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArtifactError) as refused:
        read_artifact(path, kind)
    message = str(refused.value)
    assert "\n" not in message, "the message is one line"
    assert message.isprintable()
    assert len(message) < 500
    return message


def edited(folder: Path, **changes: Any) -> str:
    """Return the text of a written suite after somebody edited it."""
    tree = json.loads(write_artifact(folder, a_suite()).read_text(encoding="utf-8"))
    return json.dumps({**tree, **changes})


# --------------------------------------------------------------------------- writing


def test_the_file_is_canonical_json_under_the_schemas_name(tmp_path: Path) -> None:
    path = write_artifact(tmp_path / "new" / "folder", a_suite())
    text = path.read_text(encoding="utf-8")
    tree = json.loads(text)
    assert path.name == "regression_tests.json"
    assert text.endswith("}\n")
    assert list(tree) == sorted(tree)
    assert text == json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    assert tree["tests"][0]["reproduction"]["ci_low"] == 0.1


def test_the_hash_covers_everything_but_itself(tmp_path: Path) -> None:
    tree = json.loads(write_artifact(tmp_path, a_suite()).read_text(encoding="utf-8"))
    written = tree.pop("content_sha256")
    assert written == sha256_of(tree) == content_hash(a_suite()) == sealed(a_suite()).content_sha256
    assert content_hash(a_suite(seed=8)) != written


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_artifact(tmp_path / "a", a_suite(config_sha256={"v1": "aa", "v2": "bb"}))
    second = write_artifact(tmp_path / "b", a_suite(config_sha256={"v2": "bb", "v1": "aa"}))
    assert first.read_bytes() == second.read_bytes()


def test_a_json_path_is_the_file_itself(tmp_path: Path) -> None:
    path = write_artifact(tmp_path / "held_out.json", a_suite())
    assert path == tmp_path / "held_out.json"
    assert read_artifact(path, Suite) == sealed(a_suite())


def test_an_artifact_under_a_foreign_name_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="'suite' version 1, but its schema is 'regression_te"):
        write_artifact(tmp_path, a_suite(artifact="suite"))
    assert not list(tmp_path.iterdir())


def test_nan_is_refused_and_leaves_the_old_file(tmp_path: Path) -> None:
    old = write_artifact(tmp_path, a_suite()).read_bytes()
    bad = Reproduction(version="v2", k=0, n=0, ci_low=0.0, ci_high=1.0)
    arguments = {"amount": float("inf")}
    twin = BenignTwin(
        twin_id="B", turns=("hi",), expected=ExpectedCall(name="x", arguments=arguments)
    )
    field = r"regression_tests\.tests\.0\.benign_twin\.expected\.arguments\.amount is NaN or inf"
    with pytest.raises(ArtifactError, match=field):
        write_artifact(tmp_path, a_suite(tests=(a_test(reproduction=bad, benign_twin=twin),)))
    assert (tmp_path / "regression_tests.json").read_bytes() == old


def test_a_write_that_fails_before_the_swap_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_artifact(tmp_path, a_suite())
    old = path.read_bytes()

    def no_swap(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", no_swap)
    with pytest.raises(FileError, match=r"^regression_tests\.json: cannot be written \(d"):
        write_artifact(tmp_path, a_suite(seed=8))
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path], "no temporary file stays behind"


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    endless = (
        "import sys; from safety_lib.artifacts import write_text\n"
        "while True:\n"
        "    for letter in 'ab': write_text(sys.argv[1], letter * 3_000_000)\n"
    )
    seen = set()
    for delay in (0.0, 0.003, 0.011):
        writer = subprocess.Popen([sys.executable, "-c", endless, str(path)])
        while not path.exists() or not path.stat().st_size:
            time.sleep(0.001)
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        text = path.read_text(encoding="utf-8")
        seen.add((len(text), text.count(text[0])))
        path.unlink()
    assert seen == {(3_000_000, 3_000_000)}


def test_a_file_is_readable_by_others(tmp_path: Path) -> None:
    path = write_text(tmp_path / "page.html", "<p>é</p>")
    assert path.read_bytes() == "<p>é</p>".encode()
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o644


# --------------------------------------------------------------------------- round trip

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Half surrogates too: JSON can say them, so a model can send them.
    | st.text(st.characters(exclude_categories=())),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    arguments=st.dictionaries(st.text(max_size=5), anything, max_size=3),
    text=st.text(),
    limits=st.tuples(*[st.floats(0, 1)] * 2).map(sorted).map(tuple),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_was_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    arguments: dict[str, Any],
    text: str,
    limits: tuple[float, float],
) -> None:
    twin = BenignTwin(
        twin_id="B", turns=(text,), expected=ExpectedCall(name="x", arguments=arguments)
    )
    seen = Reproduction(version="v2", k=1, n=2, ci_low=limits[0], ci_high=limits[1])
    suite = a_suite(tests=(a_test(benign_twin=twin, reproduction=seen, description=text),))
    folder = tmp_path_factory.mktemp("round")
    path = write_artifact(folder, suite)
    assert read_artifact(path, Suite) == sealed(suite)


def test_ten_megabytes_and_control_characters_survive(tmp_path: Path) -> None:
    suite = a_suite(tests=(a_test(attack_turns=("x" * 10_000_000, "\x00\x1b[31m\u2028\x7f")),))
    write_artifact(tmp_path, suite)
    assert read_artifact(tmp_path, Suite) == sealed(suite)


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["mine", "run.2"])
def test_a_folder_is_one_with_a_dot_in_its_name_and_before_it_is_there(
    tmp_path: Path, name: str
) -> None:
    suite = a_suite()
    write_artifact(tmp_path / name, suite)
    assert read_artifact(tmp_path / name, Suite) == sealed(suite)
    with pytest.raises(ArtifactError, match=r"^regression_tests\.json: there is no such file"):
        read_artifact(tmp_path / "not there", Suite)


def test_a_missing_file_names_the_step_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as refused:
        read_artifact(tmp_path, StressFailures)
    assert str(refused.value) == (
        f"stress_failures.json: there is no such file in {tmp_path}; make it again with "
        "notebook 01_stress_testing, or `python -m safety_lib stress`"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON at line 1, column 1"),
        ("{\n", "not JSON at line 2, column 1, so truncated or damaged"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"\xef\xbb\xbf{}", "artifact is missing, expected"),
        ("[1]", "holds list, expected one JSON object"),
        ('"' + "x" * 10_000_000 + '"', "expected one JSON object"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": 1' + "0" * 5000 + "}", "line 1: a number of 5,001 digits"),
        ("[" * 200_000, "nested too deeply"),
        ("{}", "artifact is missing, expected 'regression_tests'"),
        ('{"artifact": "gate_report"}', "artifact is 'gate_report', expected 'regression_tests'"),
        (json.dumps({"artifact": "\x1b[2J" + "y" * 10_000_000}), "expected 'regression_tests'"),
    ],
)
def test_what_is_not_this_artifact_is_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    message = message_for(tmp_path / "regression_tests.json", text)
    assert message.startswith("regression_tests.json: ")
    assert said in message
    assert "notebook 02_regression_tests" in message


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    message = message_for(tmp_path / "x.json", edited(tmp_path, schema_version=2))
    assert "schema_version is 2, expected 1" in message


def test_a_wrong_field_is_named_with_what_was_expected(tmp_path: Path) -> None:
    message = message_for(tmp_path / "x.json", edited(tmp_path, seed="soon", funnel=3))
    assert "field seed: Input should be a valid integer" in message
    assert "(and 1 more)" in message


def test_a_missing_field_and_an_unknown_field_are_named(tmp_path: Path) -> None:
    tree = json.loads(edited(tmp_path))
    del tree["tests"][0]["rule_id"]
    message = message_for(tmp_path / "x.json", json.dumps(tree))
    assert "field tests.0.rule_id: Field required" in message
    message = message_for(tmp_path / "x.json", edited(tmp_path, **{"\x1b[31m" + "k" * 10**7: 1}))
    assert "field \\x1b[31mkkk" in message


@pytest.mark.parametrize("changes", [{"seed": 8}, {"content_sha256": "0" * 64}, {"funnel": {}}])
def test_an_edit_by_hand_is_noticed(tmp_path: Path, changes: dict[str, Any]) -> None:
    message = message_for(tmp_path / "regression_tests.json", edited(tmp_path, **changes))
    assert "so it was edited or damaged; make it again with notebook 02" in message


def of_ten(k: int, n: int = 10) -> Reproduction:
    return Reproduction(version="v2", k=k, n=n, ci_low=0.0, ci_high=1.0)


OWN = id_of_test("record_exfiltration", ("hello",), ())


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ([a_test(attack_turns=())], "test 1 (T-001): it has no attack turns"),
        ([a_test(), a_test(2, attack_turns=("a", " "))], "test 2 (T-002): attack turn 2 is empty"),
        ([a_test(), a_test(2), a_test()], "test 3 (T-001): test 1 is the same one"),
        (
            [a_test(test_id=OWN, attack_turns=("Good day.",))],
            f"test 1 ({OWN}): its rule, turns",
        ),
        ([a_test(test_id=OWN, rule_id="another")], f"test 1 ({OWN}): its rule, turns"),
        ([a_test(reproduction=of_ten(11))], "test 1 (T-001): reproduction: 11 of 10 is no count"),
        ([a_test(reference=of_ten(-1))], "test 1 (T-001): reference: -1 of 10 is no count"),
        ([a_test(reproduction=of_ten(0))], "test 1 (T-001): it is active and never came back"),
        ([a_test(duplicates=-1)], "test 1 (T-001): it stands for -1 others"),
    ],
)
def test_a_suite_that_makes_no_sense_is_refused_whatever_its_hash(
    tmp_path: Path, tests: list[Any], said: str
) -> None:
    path = write_artifact(tmp_path, a_suite(tests=tuple(tests)))
    with pytest.raises(ArtifactError) as error:
        read_artifact(path, Suite)
    assert str(error.value).startswith(f"regression_tests.json: {said}")


def test_a_test_under_the_id_of_its_own_is_read(tmp_path: Path) -> None:
    suite = a_suite(tests=(a_test(test_id=OWN),))
    assert read_artifact(write_artifact(tmp_path, suite), Suite) == sealed(suite)


@pytest.mark.parametrize("turn", [0, -1, 999])
def test_a_failure_in_a_turn_that_never_was_is_refused(tmp_path: Path, turn: int) -> None:
    found = read_artifact(SAMPLE.parent, StressFailures)
    bad = found.failures[1].model_copy(update={"failure_turn": turn})
    wrong = found.model_copy(update={"failures": (found.failures[0], bad)})
    with pytest.raises(ArtifactError, match=rf"failure 2 \(F-\w+\): it broke .* turn {turn} of"):
        read_artifact(write_artifact(tmp_path, wrong), StressFailures)


def test_a_truncated_copy_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    text = write_artifact(tmp_path, a_suite()).read_bytes()
    for end in range(0, len(text) - 2, 97):
        assert "not JSON" in message_for(tmp_path / "x.json", text[:end])


def test_unreadable_paths_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="null byte"):
        read_artifact(tmp_path / "a\x00b.json", GateReport)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_artifact(write_text(tmp_path / "file", "") / "gate_report.json", GateReport)


# --------------------------------------------------------------------------- incidents


def test_the_sample_incident_is_read() -> None:
    assert read_incident(SAMPLE).incident_id == "INC-2024-001"


def test_an_incident_is_refused_with_the_field(tmp_path: Path) -> None:
    tree = json.loads(SAMPLE.read_text(encoding="utf-8"))
    tree["trajectory"][0]["turn"] = 0
    path = write_text(tmp_path / "incident.json", json.dumps(tree))
    with pytest.raises(ArtifactError) as refused:
        read_incident(path)
    assert str(refused.value) == (
        "incident.json: field trajectory.0.turn: Input should be greater than or equal to 1; "
        "correct the file"
    )


def test_a_missing_incident_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="give the path of an incident file, such as"):
        read_incident(tmp_path / "none.json")


def test_the_hash_does_not_depend_on_order_or_spelling() -> None:
    assert sha256_of({"a": [1, 2.5, "é"], "b": None}) == sha256_of({"b": None, "a": [1, 2.5, "é"]})
    assert sha256_of([1, 2]) != sha256_of([2, 1])
    with pytest.raises(ValueError, match="JSON compliant"):
        sha256_of(float("nan"))
