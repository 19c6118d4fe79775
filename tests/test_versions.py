"""Versions: what differs between two of them, what their hash depends on, and bad files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from factories import NORTHWIND
from hypothesis import given
from hypothesis import strategies as st

from safety_lib.agent.loop import Agent
from safety_lib.world import WorldError, load_version
from safety_lib.world.versions import Version, config_hashes

RELEASED = ("v1", "v2", "v3")
V1, V2, V3 = (NORTHWIND.version(name) for name in RELEASED)
TREE: dict[str, Any] = yaml.safe_load(
    (NORTHWIND.folder / "versions" / "v1.yaml").read_text(encoding="utf-8")
)


def written(path: Path, tree: Any) -> str:
    file = path / "mine.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=True), encoding="utf-8")
    return str(file)


def with_setting(key: str, value: Any) -> dict[str, Any]:
    *path, leaf = key.split(".")
    tree: dict[str, Any] = yaml.safe_load(yaml.safe_dump(TREE))
    node = tree if key in ("version", "colour") else tree["settings"]
    for part in path:
        node = node[part]
    node[leaf] = value
    return tree


def refused(name: str) -> str:
    with pytest.raises(WorldError) as error:
        load_version(name, "northwind")
    assert "\n" not in str(error.value)
    return str(error.value)


# --------------------------------------------------------------- the released ones


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_version_loads_and_opens(name: str) -> None:
    assert load_version(name, "northwind").version == name
    assert Agent.load(f"northwind/{name}").version.version == name


def test_the_candidate_differs_by_a_short_list_of_changes() -> None:
    changes = V1.changes_to(V2)
    assert 7 <= len(changes) <= 10
    assert len({change.key for change in changes}) == len(changes)


def test_the_fix_differs_from_the_candidate_by_memory_alone() -> None:
    assert {change.key for change in V2.changes_to(V3)} == {"memory.window", "memory.pin_policy"}


def test_a_version_does_not_differ_from_itself() -> None:
    assert V1.changes_to(V1) == ()


def test_changes_read_the_same_backwards() -> None:
    there, back = V1.changes_to(V2), V2.changes_to(V1)
    assert [(c.key, c.before, c.after) for c in there] == [(c.key, c.after, c.before) for c in back]


def test_making_every_change_makes_the_other_version() -> None:
    made = V1.having({change.key: change.after for change in V1.changes_to(V2)}, name="v2")
    assert made == V2
    assert made.sha256 == V2.sha256


def test_a_long_change_is_shown_short() -> None:
    shown = [str(change) for change in V1.changes_to(V2)]
    assert all(
        len(line) < 160 and "\n" not in line.strip() for line in shown if "prompt" not in line
    )


# --------------------------------------------------------------- the hash


def test_the_hash_does_not_depend_on_the_name() -> None:
    assert V1.having({}, name="another").sha256 == V1.sha256


def test_the_hash_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    assert load_version(written(tmp_path, dict(reversed(TREE.items())))).sha256 == V1.sha256


@pytest.mark.parametrize("key", sorted(V1.flat))
def test_the_hash_depends_on_each_setting(key: str) -> None:
    value = V1.flat[key]
    other: Any
    if isinstance(value, bool):
        other = not value
    elif isinstance(value, int | float):
        other = value + 1
    elif isinstance(value, list):
        other = value[:-1]
    else:
        other = {"model.style": "friendly", "model.tool_protocol": "json"}.get(key, value + "x")
    changed = V1.having({key: other})
    assert changed.sha256 != V1.sha256
    assert [change.key for change in V1.changes_to(changed)] == [key]
    assert changed.having({key: value}).sha256 == V1.sha256


def test_hashes_are_told_by_name() -> None:
    assert config_hashes([V1, V2]) == {"v1": V1.sha256, "v2": V2.sha256}
    assert len({v.sha256 for v in (V1, V2, V3)}) == 3


def test_settings_left_out_are_the_defaults(tmp_path: Path) -> None:
    full = V1.model_dump(mode="json")
    assert load_version(written(tmp_path, full)).sha256 == V1.sha256


# --------------------------------------------------------------- having


@given(window=st.integers(1, 100), pinned=st.booleans(), limit=st.integers(0, 10**6))
def test_a_setting_can_be_changed_and_changed_back(window: int, pinned: bool, limit: int) -> None:
    changes = {
        "memory.window": window,
        "memory.pin_policy": pinned,
        "safeguards.pre_action.block_payment_over": limit,
    }
    changed = V1.having(changes)
    assert {key: changed.flat[key] for key in changes} == changes
    assert changed.having({key: V1.flat[key] for key in changes}).sha256 == V1.sha256


def test_a_changed_version_says_so_in_its_name() -> None:
    assert V1.having({"memory.window": 3}).version == "v1+memory.window"
    assert V1.having({"memory.window": 3}, name="short").version == "short"
    assert V1.flat["memory.window"] != 3


@pytest.mark.parametrize(
    "key",
    ["", "memory", "memory.windw", "windw", "memory.window.x", "system_prompt.x", "a.b.c", "."],
)
def test_a_setting_that_does_not_exist_cannot_be_changed(key: str) -> None:
    with pytest.raises(WorldError) as error:
        V1.having({key: 3})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory.window", 0),
        ("memory.window", "many"),
        ("memory.pin_policy", "perhaps"),
        ("model.temperature", 3),
        ("model.caution", float("nan")),
        ("safeguards.trajectory.stop_at", float("inf")),
        ("safeguards.trajectory.decay", -1),
        ("permissions", ["telepathy"]),
        ("limits.max_steps", None),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(WorldError, match=key.split(".")[-1]) as error:
        V1.having({key: value})
    assert "\n" not in str(error.value)


# --------------------------------------------------------------- files


def test_a_file_of_ones_own_is_a_version(tmp_path: Path) -> None:
    mine = load_version(written(tmp_path, with_setting("memory.window", 5) | {"version": "mine"}))
    assert (mine.version, mine.flat["memory.window"]) == ("mine", 5)


def test_a_file_that_was_edited_is_read_again(tmp_path: Path) -> None:
    assert (
        load_version(written(tmp_path, with_setting("memory.window", 5))).flat["memory.window"] == 5
    )
    assert (
        load_version(written(tmp_path, with_setting("memory.window", 6))).flat["memory.window"] == 6
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory.windw", 5),
        ("colour", "red"),
        ("memory.window", "many"),
        ("memory", 5),
        ("safeguards.pre_action.enabled", None),
        ("safeguards.trajectory.stop_at", float("inf")),
        ("permissions", "send_mail"),
        ("version", ""),
    ],
)
def test_a_bad_file_is_refused_by_file_and_field(tmp_path: Path, key: str, value: Any) -> None:
    told = refused(written(tmp_path, with_setting(key, value)))
    where = "" if key in ("version", "colour") else "settings."
    assert told.startswith(f"mine.yaml: field {where}{key}")


def test_a_field_that_is_missing_is_named(tmp_path: Path) -> None:
    tree = with_setting("memory", {"window": 5})
    assert (
        refused(written(tmp_path, tree))
        == "mine.yaml: field settings.memory.pin_policy: Field required"
    )


def test_a_tool_that_does_not_exist_is_named(tmp_path: Path) -> None:
    told = refused(written(tmp_path, with_setting("permissions", ["run_job", "telepathy"])))
    assert told == "mine.yaml: field settings.permissions: there is no tool 'telepathy'"


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "42", "just words"])
def test_a_file_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "shape.yaml"
    path.write_text(text, encoding="utf-8")
    assert refused(str(path)).startswith("shape.yaml: field the whole file")


@pytest.mark.parametrize("data", [b"memory: [", b"a: b: c", b"\xff\xfe\xff", b"\x00", b"&a *b"])
def test_a_file_that_is_not_yaml_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(data)
    assert re.match(r"broken\.yaml: (line 1: |not YAML: |not UTF-8 at byte 0)", refused(str(path)))


def test_a_folder_is_not_a_version(tmp_path: Path) -> None:
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    assert refused(str(folder)) == "folder.yaml: is a folder, not a file"


@pytest.mark.parametrize("name", ["v9", "", "V1 "])
def test_a_version_that_does_not_exist_is_named_with_those_that_do(name: str) -> None:
    assert refused(name) == (
        f"northwind has no version {name!r}: use reference, v1, v2, v3 or the path of a .yaml file"
    )


def test_a_file_that_is_not_there_is_named_as_it_was_given() -> None:
    assert refused("nowhere/mine.yaml") == "nowhere/mine.yaml: there is no such file"


def test_a_name_without_a_world_is_asked_of_which() -> None:
    with pytest.raises(WorldError, match="of which world is the version 'v1'"):
        load_version("v1")
    assert load_version("northwind/v1") == V1


def test_a_yaml_tag_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tag.yaml"
    path.write_text("!!python/object/apply:os.getcwd []", encoding="utf-8")
    assert refused(str(path)).startswith("tag.yaml: line 1: could not determine a constructor for")


def test_a_version_survives_its_own_json() -> None:
    assert Version.model_validate_json(V2.model_dump_json()) == V2
