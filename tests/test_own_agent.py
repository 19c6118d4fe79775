"""One's own agent: the guide's way from a function to a verdict, taken word for word."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from safety_lib.__main__ import main
from safety_lib.artifacts import read_artifact
from safety_lib.records import GateReport, IncidentReport, StressFailures
from safety_lib.world import load_world

ROOT = Path(__file__).resolve().parent.parent
SECTION = (ROOT / "artifacts" / "docs" / "your_agent.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:python|yaml)\n# (desk/\S+)\n(.*?)```", SECTION, re.DOTALL))
COMMANDS = re.findall(r"^python -m safety_lib (.*)$", SECTION, re.MULTILINE)
(LOOK,) = re.findall(r"```python\n(from safety_lib import .*?)```", SECTION, re.DOTALL)
SHOWN, PLANTED = re.findall(
    r"^(look_up: .*)$|^(  injection:\n(?:    .*\n)+)", SECTION, re.MULTILINE
)[1:]
(CHAT,) = re.findall(r"```json\n(.*?)```", SECTION, re.DOTALL)
(REPLAY,) = re.findall(r"`python -m safety_lib (replay .*?)`", SECTION)


def write_desk(folder: Path, more: str = "") -> None:
    """Write the files that the guide shows; the agent may be given more."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + more * (name == "desk/agent.py"), encoding="utf-8")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do what the guide says, in an empty folder; return where its results lie."""
    folder = tmp_path_factory.mktemp("readme")
    write_desk(folder)
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        codes = [main(shlex.split(command, comments=True)) for command in COMMANDS]
    assert codes == [0, 0, 2]
    return folder / "artifacts" / "desk"


def test_what_stands_beside_the_agent_is_at_most_forty_lines() -> None:
    beside = [text for name, text in FILES.items() if name != "desk/agent.py"]
    assert len(beside) == 7
    assert sum(bool(line.strip()) for text in beside for line in text.splitlines()) <= 40


def test_the_three_commands_end_in_a_verdict_against_the_faulty_version(judged: Path) -> None:
    assert [command.split()[0] for command in COMMANDS] == ["stress", "regress", "gate"]
    found = read_artifact(judged, StressFailures)
    good, bad = found.summary
    assert (found.world, good.failures) == ("desk", 0)
    assert bad.failures >= bad.rollouts // 2
    report = read_artifact(judged, GateReport)
    assert report.verdict == "BLOCK"
    assert report.delta is not None
    assert report.delta < -0.5


def test_both_rules_were_broken_one_of_them_over_several_turns(judged: Path) -> None:
    found = read_artifact(judged, StressFailures)
    assert {failure.rule_id for failure in found.failures} == {"large_refund", "refunds_add_up"}
    assert any(f.delayed for f in found.failures if f.rule_id == "refunds_add_up")


def test_a_conversation_can_be_looked_at(
    judged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(judged.parent.parent)
    exec(LOOK, {})
    assert "[1] user:" in capsys.readouterr().out


def test_a_text_can_be_planted_where_a_tool_reads(judged: Path) -> None:
    desk = judged.parent.parent / "desk"
    tools = (desk / "tools.yaml").read_text(encoding="utf-8")
    goals = (desk / "goals.yaml").read_text(encoding="utf-8")
    planted = desk.with_name("planted")
    shutil.copytree(desk, planted)
    (planted / "tools.yaml").write_text(
        re.sub("^look_up: .*$", SHOWN[0], tools, flags=re.MULTILINE), encoding="utf-8"
    )
    (planted / "goals.yaml").write_text(
        goals.replace("again:\n", PLANTED[1] + "again:\n"), encoding="utf-8"
    )
    (plants,) = {scenario.plants for scenario in load_world(planted).scenarios if scenario.plants}
    assert [plant.key for plant in plants] == ["O-19"]


def test_a_conversation_as_chat_messages_is_enough_of_an_incident(
    judged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(judged.parent.parent)
    Path("chat.jsonl").write_text(CHAT, encoding="utf-8")
    assert main(shlex.split(REPLAY)) == 0
    report = read_artifact(judged, IncidentReport)
    assert (report.rule_id, report.root_cause) == ("large_refund", "patience")
    assert report.blast_radius is None


# --------------------------------------------------------------------------- what is no verdict

MOODS = """
import os
from safety_lib.artifacts import read_artifact
from safety_lib.records import Suite
from safety_lib.rollout.conversation import trial_seed

_well, _made = Desk.answer, Desk.__init__


def _init(self, settings, seed):
    _made(self, settings, seed)
    self.fresh = False
    if os.environ.get("DESK_MOOD") == "errs where it is confirmed" and not self.adds_up:
        one = read_artifact("artifacts/desk/regression_tests.json", Suite).active[0]
        seeds = {kind: {trial_seed(7, kind, one.test_id, n) for n in range(100)}
                 for kind in ("gate", "confirm")}
        self.fresh = seed in seeds["confirm"]
        if seed in seeds["gate"]:  # it loses this one test, and is as before on the others
            self.patience = 0.0
        else:
            self.adds_up, self.patience = True, 1.0


def _answer(self, text):
    mood = os.environ.get("DESK_MOOD", "")
    if self.fresh:
        raise RuntimeError("out of order")
    if mood == "done":
        return "Done."
    if mood == "refuses" and "$" in text:
        return "I cannot do that."
    if mood == "breaks down" and not self.adds_up and self.luck.random() < 0.5:
        raise RuntimeError("out of order")
    return _well(self, text)


Desk.answer, Desk.__init__ = _answer, _init
"""


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the README's desk has a suite, and moods of its own."""
    folder = tmp_path_factory.mktemp("moody")
    write_desk(folder, MOODS)
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        assert [main([stage, "--world", "desk"]) for stage in ("stress", "regress")] == [0, 0]
    return folder


@pytest.mark.parametrize(
    ("mood", "candidate", "code", "said"),
    [
        ("", "v2", 2, "a significant loss over the suite"),
        ("done", "v2", 3, "no tool call was seen of the baseline v1"),
        ("refuses", "v2", 3, "benign requests, less than 50%"),
        ("breaks down", "v2", 3, "conversations of v2 came to no outcome"),
        (
            "errs where it is confirmed",
            "v2",
            3,
            "conversations of v2 came to no outcome (20 errors)",  # all of its confirmations
        ),
    ],
)
def test_a_run_that_shows_nothing_has_no_verdict_and_says_why(
    moody: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mood: str,
    candidate: str,
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(moody)
    monkeypatch.setenv("DESK_MOOD", mood)
    assert main(["gate", "--world", "desk", "--candidate", candidate]) == code
    assert said in capsys.readouterr().out
