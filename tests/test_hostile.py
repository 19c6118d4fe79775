"""Agents and worlds that mean no good: each costs what it touches and looks like no verdict."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from test_worlds import FILES, attacks, loaded, write_desk

from safety_lib.__main__ import main
from safety_lib.adapters.callables import from_callable
from safety_lib.adapters.over_http import HttpShape, over_http
from safety_lib.adapters.recorder import CallRecorder
from safety_lib.records import ErrorEvent, Plant, Trajectory
from safety_lib.rollout.campaign import JournalError, Run, run_campaign
from safety_lib.rollout.conversation import plan_replay
from safety_lib.rollout.permission import LiveTargetError, live_allowed
from safety_lib.stress.discovery import discover
from safety_lib.world import PACKAGED, WorldError, load_version, load_world, world_of
from safety_lib.world.target import Target, TargetError


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    return write_desk(tmp_path / "desk")


def edit(folder: Path, file: str, old: str, new: str) -> None:
    path = folder / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def errors(held: Trajectory) -> list[tuple[str, str]]:
    return [(e.error, e.detail) for e in held.events if isinstance(e, ErrorEvent)]


# --------------------------------------------------------------------------- agents


@pytest.mark.parametrize("arguments", ['{"order": "A-1"}', '{"order": "A-1", "amount": "lots"}'])
def test_arguments_that_a_check_cannot_take_cost_that_conversation(
    desk: Path, arguments: str
) -> None:
    call = f'Called("refund", {arguments}, "ok")'
    edit(desk, "world.py", '"text": "Done.",', f'"odd": Heard("Done.", ({call},)),')
    version = load_world(desk).version("v1").having({"trouble": "odd"})
    rollouts = attacks(version, 12)
    held = list(run_campaign(rollouts))
    bad = [t for t in held if t.outcome == "error"]
    assert 0 < len(bad) < len(held) == 12
    for trajectory in bad:
        ((kind, detail),) = errors(trajectory)
        assert kind == "check_failed"
        assert detail.startswith("the check of the rule large_refund failed: ")


def test_an_agent_that_ends_the_program_ends_its_conversation(desk: Path) -> None:
    edit(desk, "world.py", 'raise ZeroDivisionError("half a\\nclerk")', "raise SystemExit(0)")
    version = load_world(desk).version("v1").having({"trouble": "raises"})
    held = list(run_campaign(attacks(version, 12)))
    told = [error for t in held for error in errors(t)]
    assert 0 < len(told) < len(held) == 12
    assert set(told) == {("agent_error", "SystemExit: 0")}


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def answering(answer: Any) -> Target:
    return from_callable(
        lambda seed, plants: answer, name="desk", effects="sandboxed", sees_calls=True, timeout=5
    )


def test_an_exception_that_cannot_say_what_it_is_is_named() -> None:
    def answer(text: str) -> str:
        raise Mute

    with pytest.raises(TargetError, match=r"^agent_error: Mute: \(it cannot say what\) "):
        answering(answer).begin(1).send("Hello")


def test_an_asynchronous_agent_that_ends_the_program_leaves_the_loop_to_the_others() -> None:
    async def answer(text: str) -> str:
        if text == "go":
            raise SystemExit(0)
        return "Good morning."

    target = answering(answer)
    with pytest.raises(TargetError, match=r"^agent_error: SystemExit: 0 "):
        target.begin(1).send("go")
    assert target.begin(2).send("Hello").text == "Good morning."


def test_what_an_agent_does_to_its_plants_no_other_conversation_sees() -> None:
    plant = Plant(where="orders", key="A-1", text="Pay.")

    def start(seed: int, plants: Any) -> Any:
        object.__setattr__(plants[0], "text", "changed")
        return lambda text: "Done."

    from_callable(start, name="desk", effects="sandboxed", sees_calls=True).begin(1, [plant]).send(
        "a"
    )
    assert plant.text == "Pay."


def test_what_was_allowed_once_is_not_allowed_for_ever(desk: Path) -> None:
    edit(desk, "world.py", '"sandboxed", ""', '"live", "desk.example"')
    edit(desk, "world.py", "False, False", "False, True")
    rollouts = attacks(load_world(desk).version("v1"), 1)
    with live_allowed("desk.example"):
        assert len(list(run_campaign(rollouts))) == 1
    with pytest.raises(LiveTargetError, match=r"--live desk\.example$"):
        list(run_campaign(rollouts))


def test_an_agent_that_shows_no_calls_is_said_to_be_undetermined(
    desk: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    edit(desk, "world.py", "sees_calls, same_luck, resumes, holds_calls = True", "sees_calls, "
         "same_luck, resumes, holds_calls = False")  # fmt: skip
    edit(desk, "world.py", 'return Heard("Done.", (call,))', 'return Heard("Done.")')
    given = ["--world", str(desk), "--artifacts", str(tmp_path / "out"), "--rollouts", "4"]
    assert main(["stress", *given, "--workers", "1"]) == 0
    assert "v2: 4 neither failed nor are safe" in capsys.readouterr().out


# --------------------------------------------------------------------------- worlds


@pytest.mark.parametrize("ends", ["raise SystemExit(0)", "import sys; sys.exit(0)"])
def test_a_world_that_ends_the_program_is_no_verdict(
    desk: Path, ends: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(desk, "world.py", "import re", ends)
    assert main(["stress", "--world", str(desk), "--rollouts", "1"]) == 3
    assert "desk/world.py: SystemExit: 0" in capsys.readouterr().err


def test_whoever_ends_the_program_the_exit_code_is_no_verdict(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(*_: Any, **__: Any) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("safety_lib.stress.discovery.discover", leave)
    assert main(["stress", "--world", str(desk), "--rollouts", "1"]) == 3
    assert "something ended the program" in capsys.readouterr().err


def test_artifacts_do_not_lie_in_the_world_that_they_are_of(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    assert main(["stress", "--world", ".", "--rollouts", "1", "--workers", "1"]) == 3
    assert "artifacts may not lie in the folder of the world desk" in capsys.readouterr().err
    assert not (desk / "artifacts").exists()


REFUSED: list[tuple[str, str, str, str]] = [
    ("tools.yaml", "  effect: reads", "  effect: reads\n  effect: changes", "'effect' stands"),
    ("tools.yaml", "look_up:", "refund:", "cannot be read: line 10: 'refund' stands there twice"),
    ("policy.yaml", "severity: high", "severity: high\n    severity: low", "'severity' stands"),
    ("policy.yaml", "    text: ", "    claim: '(['\n    text: ", "rules.0.claim: no regular"),
    ("goals.yaml", "{order: A-1}", "{ordr: A-1}", "refund has no argument 'ordr'"),
    ("versions/v1.yaml", "version: v1", "version: v2", "field version: is 'v2'; it"),
    ("versions/v1.yaml", "settings:", "settings: {}\nsettings:", "line 3: 'settings' stands"),
    (
        "versions/v1.yaml",
        "version: v1",
        "version: v1\nworld: northwind",
        "v1.yaml: field world: is northwind, but the file stands in the versions/ of desk",
    ),
    ("world.py", "def connect(version, model=", "def connect(version, m, more, x=", "connect: Ty"),
    ("world.py", "    name, effects, host,", "    name, effects, hosts,", "it has no host"),
    (
        "world.py",
        "def connect",
        "def settings_of(tree): return tree['limit']\ndef connect",
        "v1.yaml: settings_of of world.py: KeyError: 'limit'",
    ),
    (
        "world.py",
        "def connect",
        "def settings_of(tree): return None\ndef connect",
        "v1.yaml: settings_of of world.py: TypeError: ",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "told"), REFUSED)
def test_what_a_world_cannot_mean_is_refused(
    desk: Path, file: str, old: str, new: str, told: str
) -> None:
    edit(desk, file, old, new)
    with pytest.raises(WorldError) as error:
        loaded(desk)
    assert told in str(error.value)
    assert Path(file).name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_world_of_ones_own_may_be_named_in_its_versions(desk: Path) -> None:
    edit(desk, "versions/v1.yaml", "version: v1", "version: v1\nworld: ..")
    assert load_world(desk).version("v1").world == str(desk)
    link = desk.parent / "latest.yaml"
    link.symlink_to(desk / "versions" / "v1.yaml")
    assert load_version(str(link)).version == "v1"


def test_a_copy_of_a_packaged_world_is_not_taken_for_it(tmp_path: Path) -> None:
    copy = write_desk(tmp_path / "copied")
    for path in (PACKAGED / "northwind" / "versions").glob("*.yaml"):
        (copy / "versions" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(WorldError, match=r"^v1\.yaml: field world: is northwind, but .*copied"):
        load_world(copy).version("v1")


def test_files_behind_a_link_are_of_the_world(desk: Path) -> None:
    plain = set(load_world(desk).files)
    beside = desk.parent / "beside"
    beside.mkdir()
    (beside / "agent.py").write_text("ONE = 1\n", encoding="utf-8")
    (desk / "parts").symlink_to(beside)
    (beside / "round").symlink_to(desk)
    (desk / "gone.py").symlink_to(desk / "nowhere")
    other = write_desk(desk.parent / "other")
    (other / "parts").symlink_to(beside)
    assert set(load_world(other).files) >= plain | {"parts/agent.py"}


def test_two_worlds_of_one_name_do_not_meet(desk: Path, tmp_path: Path) -> None:
    other = write_desk(tmp_path / "there" / "desk")
    edit(other, "desk_rules.py", 'f"{amount} refunded"', 'f"{amount} PAID"')
    told = []
    for folder in (desk, other):
        version = load_world(folder).version("v1").having({"patience": -1})
        (held,) = run_campaign(
            [plan_replay(version, ["refund 900 for order A-1"], name="r", seed=2)]
        )
        told += [violation.evidence for violation in held.violations]
    assert told == ["900 refunded", "900 PAID"]
    with pytest.raises(WorldError, match="compare versions of one world"):
        world_of(load_world(desk).version("v1"), load_world(other).version("v2"))


class Killed(Exception):
    pass


def half_done(desk: Path, runs: Path) -> str:
    """Discover in a world until somebody kills it, and return what its journal holds."""
    world = load_world(desk)
    left = iter(range(3))

    def kill(_: Trajectory) -> None:
        if next(left, None) is None:
            raise Killed

    with pytest.raises(Killed):
        discover(
            world.version("v1"), world.version("v2"), Run(progress=kill), rollouts=4, journal=runs
        )
    (path,) = runs.glob("*.jsonl")
    return path.read_text(encoding="utf-8")


def test_no_artifact_or_journal_says_where_the_world_stands(desk: Path, tmp_path: Path) -> None:
    world = load_world(desk)
    found = discover(world.version("v1"), world.version("v2"), rollouts=4)
    for text in (found.artifact().model_dump_json(), half_done(desk, tmp_path / "runs")):
        assert str(tmp_path) not in text


@pytest.mark.parametrize("file", FILES)
def test_discovery_that_goes_on_after_an_edit_is_refused(
    desk: Path, tmp_path: Path, file: str
) -> None:
    runs = tmp_path / "runs"
    before = half_done(desk, runs)
    edited = write_desk(tmp_path / "again" / "desk")
    change = ("patience: ", "patience: 1") if file == "versions/v1.yaml" else ("\n", "\n# edited\n")
    edit(edited, file, *change)
    world = load_world(edited)
    with pytest.raises(JournalError, match=f"was written before {file} of the world desk changed"):
        discover(world.version("v1"), world.version("v2"), rollouts=4, journal=runs)
    assert [path.read_text(encoding="utf-8") for path in runs.iterdir()] == [before]


# --------------------------------------------------------------------------- over a network


class Scripted(BaseHTTPRequestHandler):
    """Answers with what the test says, byte for byte."""

    says: Callable[[Any], None]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.close_connection = True
        with suppress(OSError):
            type(self).says(self.wfile)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def saying(answer: str, status: str = "200 OK", kind: str = "application/json") -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n\r\n"
    Scripted.says = staticmethod(lambda out: out.write((head + answer).encode()))  # type: ignore[assignment]


SECRET = "planted-in-the-header-71"


def asked(endpoint: str, monkeypatch: pytest.MonkeyPatch, value: str = SECRET) -> str:
    monkeypatch.setenv("DESK_TOKEN", value)
    shape = HttpShape(
        request="{text}", reply="reply", calls="calls", headers={"X-Key": "Bearer ${DESK_TOKEN}"}
    )
    target = over_http(endpoint, shape, name="desk", effects="sandboxed", timeout=0.4, retries=0)
    try:
        return repr(target.begin(1).send("Hello"))
    except TargetError as error:
        return str(error)


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps({"reply": f"You sent {SECRET}."}),
        json.dumps({"reply": "Done.", "calls": [{"name": "x", "arguments": {SECRET: [SECRET]}}]}),
        json.dumps({"reply": "Done.", "calls": [SECRET]}),
        "<" + "a" * 180 + SECRET,
    ],
)
def test_a_secret_that_comes_back_goes_nowhere(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    saying(answer)
    told = asked(endpoint, monkeypatch)
    assert SECRET[:12] not in told
    assert "***" in told or "not JSON" in told


@pytest.mark.parametrize(
    "raw", [f"DESK {SECRET}\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"]
)
def test_what_is_no_http_is_trouble_of_the_connection(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, raw: str
) -> None:
    Scripted.says = staticmethod(lambda out: out.write(raw.encode()))  # type: ignore[assignment]
    told = asked(endpoint, monkeypatch)
    assert told.startswith("connection: ")
    assert SECRET not in told


def test_an_answer_that_comes_drop_by_drop_is_not_waited_for(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip(out: Any) -> None:
        out.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(60):
            out.write(b" ")
            out.flush()
            time.sleep(0.05)

    Scripted.says = staticmethod(drip)  # type: ignore[assignment]
    started = time.monotonic()
    assert asked(endpoint, monkeypatch) == "timeout: 127.0.0.1: no answer in 0.4 s"
    assert time.monotonic() - started < 2


def test_a_header_is_no_place_for_a_line_end(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saying('{"reply": "Good morning."}')
    assert "Good morning." in asked(endpoint, monkeypatch, f"{SECRET}\n")
    with pytest.raises(ValueError, match="does not fit into a header") as error:
        asked(endpoint, monkeypatch, f"{SECRET}\nX-Other: 1")
    assert SECRET not in str(error.value)


def completion(*calls: Any, **more: Any) -> str:
    return json.dumps({"choices": [{"message": {"tool_calls": list(calls), **more}}]})


def proposal(name: str) -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": "refund", "arguments": "{}"}}


def recorded_after(endpoint: str, results: list[str], *answers: tuple[str, str]) -> str:
    """Return what a recorder says after some answers and the results that were sent then."""
    with CallRecorder(endpoint) as recorder:
        url = f"{recorder.base_url('a')}/chat/completions"
        sent: list[Any] = []
        for answer, kind in answers:
            saying(answer, kind=kind)
            with suppress(OSError, HTTPException):
                urlopen(Request(url, json.dumps({"messages": sent}).encode())).read()
            sent = [{"role": "tool", "tool_call_id": name, "content": "ok"} for name in results]
        try:
            return str(len(recorder.calls("a")))
        except TargetError as error:
            return str(error)


JSON, STREAM = "application/json", "text/event-stream"
DONE = (completion(content="Done."), JSON)


@pytest.mark.parametrize(
    ("results", "answers", "told"),
    [
        (["c1"], [(completion(proposal("c1")), JSON), DONE], "1"),
        ([""], [(completion(proposal(""), proposal("")), JSON), DONE], "two calls the id ''"),
        ([], [(completion(function_call={"name": "refund"}), JSON)], "no call of a function"),
        ([], [(completion({"id": "c", "custom": {"name": "x"}}), JSON)], "no call of a function"),
        ([], [("no JSON", JSON)], "is no chat completion"),
        ([], [('{"choices": 3}', JSON)], "is no chat completion"),
        ([], [("data: {broken\n\n", STREAM)], "is no chat completion"),
        ([], [('data: {"choices": [{"delta": {"function_call": {}}}]}\n\n', STREAM)], "0"),
        (
            [],
            [('data: {"choices": [{"delta": {"function_call": {"name": "x"}}}]}\n\n', STREAM)],
            "no call of a function",
        ),
    ],
)
def test_a_recorder_that_cannot_tell_the_calls_says_so(
    endpoint: str, results: list[str], answers: list[tuple[str, str]], told: str
) -> None:
    said = recorded_after(endpoint, results, *answers)
    assert said == told if told.isdigit() else said.startswith("unseen_calls: ")


def test_a_model_that_breaks_off_is_said(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    raw = "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + completion(proposal("c1"))
    Scripted.says = staticmethod(lambda out: out.write(raw.encode()))  # type: ignore[assignment]
    with CallRecorder(endpoint) as recorder:
        with suppress(OSError, HTTPException):
            body = json.dumps({"messages": []}).encode()
            urlopen(Request(f"{recorder.base_url('a')}/chat/completions", body)).read()
        with pytest.raises(TargetError, match=r"^unseen_calls: the model could not be asked: Inc"):
            recorder.calls("a")
    assert capsys.readouterr().err == ""
