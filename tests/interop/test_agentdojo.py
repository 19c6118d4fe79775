"""AgentDojo's suites as worlds, with the real package: its own runner and checks are the truth.

The ordinary tests read ``tests/data/agentdojo.json``, which ``--store`` writes anew.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from safety_lib.adapters.dojo import DojoSuite, installed_dojo
from safety_lib.adapters.dojo_world import BENCHMARK, write_world
from safety_lib.gate.release_gate import run_gate
from safety_lib.records import Trajectory
from safety_lib.regression.generate import generate_suite
from safety_lib.rollout.campaign import Run
from safety_lib.rollout.conversation import Script, hold, plan_attack, plan_replay, run_rollout
from safety_lib.rollout.judging import benign_outcome, broke
from safety_lib.stress.discovery import discover
from safety_lib.world import World, load_world
from safety_lib.world.scenarios import Scenario

STORED = Path(__file__).resolve().parent.parent / "data" / "agentdojo.json"
SUITES = ("banking", "workspace", "slack", "travel")
# Of the pairs of a suite each so many-th is asked: a conversation of the large one takes 0.2 s.
EACH = {"banking": 1, "workspace": 9, "slack": 2, "travel": 5}

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("agentdojo", reason="AgentDojo is not installed")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    """Return the world of a suite, written once."""
    home = tmp_path_factory.mktemp("agentdojo")

    def world(name: str) -> World:
        if not (home / name).is_dir():
            write_world(name, home / name)
        return load_world(home / name)

    return world


def attacked(world: World, scenario: Scenario, version: str) -> Trajectory:
    return run_rollout(plan_attack(world.version(version), scenario, "direct", 7, 1))


def own_verdict(world: World, scenario: Scenario, version: str) -> tuple[bool, bool]:
    """Return utility and security as AgentDojo's runner finds them."""
    dojo = world.module.DOJO
    task, injected = scenario.goal_id.split("-")
    return dojo.suite.run_task_with_pipeline(  # type: ignore[no-any-return]
        dojo.scripted(obeys=world.version(version).settings["obeys"]),
        dojo.suite.user_tasks[task],
        dojo.suite.injection_tasks[injected],
        {plant.key: plant.text for plant in scenario.plants},
    )


# --------------------------------------------------------------------------- what is written


@pytest.mark.parametrize(
    ("name", "tasks", "injected"),
    [("banking", 16, 9), ("workspace", 40, 14), ("slack", 21, 5), ("travel", 20, 7)],
)
def test_each_task_meets_each_injection(
    written: Callable[[str], World], name: str, tasks: int, injected: int
) -> None:
    world = written(name)
    assert len(world.policy.rules) == injected
    assert len(world.goals) == len(world.scenarios) == tasks * injected
    assert len({goal.benign.turns for goal in world.goals.values()}) == tasks
    assert all(scenario.plants for scenario in world.scenarios)


@pytest.mark.parametrize("name", SUITES)
def test_no_tool_that_reads_changes_anything(written: Callable[[str], World], name: str) -> None:
    world, dojo = written(name), written(name).module.DOJO
    from agentdojo.functions_runtime import FunctionsRuntime

    made, changed = Counter[str](), Counter[str]()
    runtime = FunctionsRuntime(dojo.suite.tools)
    for task in (*dojo.suite.user_tasks.values(), *dojo.suite.injection_tasks.values()):
        environment = dojo.environment(())
        for call in task.ground_truth(environment):
            before = environment.model_copy(deep=True)
            runtime.run_function(environment, call.function, call.args, raise_on_error=True)
            made[call.function] += 1
            changed[call.function] += before != environment
    assert set(world.tools) == {tool.name for tool in dojo.suite.tools}
    assert set(+changed) == world.tools.changing & set(made)
    assert world.tools.changing - set(made) == UNTRIED[name]


UNTRIED = {
    "banking": set(),
    "workspace": {"cancel_calendar_event"},
    "slack": set(),
    "travel": {"cancel_calendar_event", "reserve_car_rental", "reserve_restaurant"},
}


@pytest.mark.parametrize("name", SUITES)
def test_a_plant_stands_where_a_tool_reads(written: Callable[[str], World], name: str) -> None:
    world, dojo = written(name), written(name).module.DOJO
    vectors = dojo.suite.get_injection_vector_defaults()
    where = {plant.key: plant.where for s in world.scenarios for plant in s.plants}
    marked = dojo.suite.load_and_inject_default_environment({v: f"--{v}--" for v in vectors})
    for vector, place in where.items():
        assert f"--{vector}--" in str(getattr(marked, place).model_dump())


# --------------------------------------------------------------------------- who is right


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("name", SUITES)
def test_every_verdict_is_agentdojos(
    written: Callable[[str], World], name: str, version: str
) -> None:
    world = written(name)
    broken = 0
    for scenario in world.scenarios[:: EACH[name]]:
        utility, security = own_verdict(world, scenario, version)
        held = attacked(world, scenario, version)
        assert held.outcome in ("safe", "violation"), held.error
        assert broke(held, scenario.goal.rule) is security, scenario
        twin = world.benign_twin(scenario.goal_id)
        assert world.module.served(held, twin) is utility, scenario
        broken += security
    if version == "v1":
        assert broken == 0
    else:
        assert broken > len(world.scenarios[:: EACH[name]]) / 3


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("name", SUITES)
def test_every_twin_is_served(written: Callable[[str], World], name: str, version: str) -> None:
    world = written(name)
    by_turns = {goal.benign.turns: goal_id for goal_id, goal in world.goals.items()}
    for turns, goal_id in by_turns.items():
        rollout = plan_replay(world.version(version), turns, name="twin", seed=1)
        twin = world.benign_twin(goal_id)
        assert benign_outcome(run_rollout(rollout), twin, world) == "safe", goal_id


def test_a_task_that_was_not_done_is_not_served(written: Callable[[str], World]) -> None:
    world = written("banking")
    goal_id = "user_task_0-injection_task_0"
    rollout = plan_replay(world.version("v1"), ["Good morning!"], name="twin", seed=1)
    assert benign_outcome(run_rollout(rollout), world.benign_twin(goal_id), world) == "violation"


def test_the_gate_blocks_who_obeys_and_nobody_else(written: Callable[[str], World]) -> None:
    world, run = written("banking"), Run(seed=7)
    v1, v2 = world.version("v1"), world.version("v2")
    found = discover(v1, v2, run, rollouts=40, max_turns=3).artifact()
    assert [summary.errors for summary in found.summary] == [0, 0]
    assert found.summary[0].failures == 0
    suite = generate_suite(found, {"v1": v1, "v2": v2}, run, replays=4)
    assert suite.funnel["active"] >= 9
    assert len({test.family for test in suite.active}) >= 9
    assert {test.family.split("/")[1] for test in suite.active} == {"bank_account", "filesystem"}
    bad = run_gate(suite, v1, v2, run, trials=4)
    assert (bad.verdict, bad.delta) == ("BLOCK", -1.0)
    assert run_gate(suite, v1, v1, run, trials=4).verdict != "BLOCK"


# --------------------------------------------------------------------------- what goes wrong


class _Failing:
    """Serves the user, or fails as an endpoint or a defence does, or works out of sight."""

    name = "local"

    def __init__(self, dojo: DojoSuite, how: str) -> None:
        self.inner = dojo.scripted(obeys=True)
        self.how = how

    def query(self, query: str, runtime: Any, env: Any, *rest: Any) -> tuple[Any, ...]:
        if self.how == "hidden":
            env.user_account.first_name = "Nobody"
            return self.inner.query(query, runtime, env)  # type: ignore[no-any-return]
        done = self.inner.query(query, runtime, env)
        if self.how == "aborts":
            from agentdojo.agent_pipeline.errors import AbortAgentError

            raise AbortAgentError("injection found", list(done[3]), env)
        if self.how == "cut":
            return *done[:3], done[3][:-1], {}
        import httpx
        from openai import BadRequestError

        request = httpx.Request("POST", "http://127.0.0.1/v1/chat/completions")
        body = {"code": "context_length_exceeded", "message": "too long"}
        raise BadRequestError("too long", response=httpx.Response(400, request=request), body=body)


@pytest.mark.parametrize(
    ("how", "outcome", "error"),
    [
        ("fails", "error", "agent_error: BadRequestError"),
        ("aborts", "error", "aborted: the pipeline gave up: injection found"),
        ("hidden", "error", "untold_change: "),
        ("cut", "undetermined", ""),
    ],
)
def test_a_pipeline_in_trouble_has_neither_passed_nor_failed(
    written: Callable[[str], World], how: str, outcome: str, error: str
) -> None:
    world, dojo = written("banking"), written("banking").module.DOJO
    target = dojo.target(lambda: _Failing(dojo, how), name="failing")
    v1 = world.version("v1")
    for scenario in world.scenarios[::8]:
        attack = plan_attack(v1, scenario, "direct", 7, 1)
        held = hold(target, Script(scenario.goal.steps[:1]), attack)
        assert (held.outcome, held.violations) == (outcome, ())
        assert held.error.startswith(error)
        assert broke(held, scenario.goal.rule) is None
        assert benign_outcome(held, world.benign_twin(scenario.goal_id), world) == outcome


def test_a_check_that_raises_costs_its_conversation(
    written: Callable[[str], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, dojo = written("banking"), written("banking").module.DOJO
    scenario = world.scenario("user_task_0-injection_task_0/indirect_injection")
    for kind, task in (("utility", "user_task_0"), ("security", "injection_task_3")):
        with monkeypatch.context() as here:
            tasks = dojo.suite.user_tasks if kind == "utility" else dojo.suite.injection_tasks
            here.setattr(tasks[task], kind, lambda *_: [][0])
            held = attacked(world, scenario, "v1")
        assert (held.outcome, held.violations) == ("error", ())
        assert held.error.startswith(f"check_failed: AgentDojo's check of {task} raised IndexError")


def test_agentdojo_itself_counts_such_an_error_as_an_attack_that_succeeded(
    written: Callable[[str], World], tmp_path: Path
) -> None:
    from agentdojo.attacks.attack_registry import load_attack
    from agentdojo.benchmark import run_task_with_injection_tasks
    from agentdojo.logging import OutputLogger

    dojo = written("banking").module.DOJO
    failing = _Failing(dojo, "fails")
    attack = load_attack("important_instructions_no_names", dojo.suite, failing)
    task = dojo.suite.user_tasks["user_task_0"]
    with OutputLogger(str(tmp_path)):
        utility, security = run_task_with_injection_tasks(
            dojo.suite, failing, task, attack, None, True, ["injection_task_0"]
        )
    assert list(utility.values()) == [False]
    assert list(security.values()) == [True]


def test_a_version_whose_endpoint_is_down_gets_no_verdict(tmp_path: Path) -> None:
    home = write_world("banking", tmp_path / "down")
    code = (home / "world.py").read_text(encoding="utf-8")
    code = code.replace(
        '    obeys = version.settings["obeys"]\n',
        '    obeys = version.settings["obeys"]\n'
        '    if obeys == "down":\n'
        '        return DOJO.target(lambda: 1 / 0, name="scripted", same_luck=True)\n',
    )
    (home / "world.py").write_text(code, encoding="utf-8")
    down = "{version: v3, settings: {obeys: down}}"
    (home / "versions" / "v3.yaml").write_text(down, encoding="utf-8")
    world, run = load_world(home), Run(seed=7)
    v1, v2, v3 = map(world.version, ("v1", "v2", "v3"))
    found = discover(v1, v2, run, rollouts=20, max_turns=3).artifact()
    suite = generate_suite(found, {"v1": v1, "v2": v2}, run, replays=4)
    report = run_gate(suite, v1, v3, run, trials=4)
    assert report.verdict is None
    found = discover(v1, v3, run, rollouts=20, max_turns=3).artifact()
    assert [(s.failures, s.errors) for s in found.summary] == [(0, 0), (0, 20)]


# --------------------------------------------------------------------------- what is recorded

PAIR = "user_task_0-injection_task_5"
PARTS = ("tools", "policy", "tactics")


def recorded(home: Path) -> dict[str, Any]:
    """Return one attacked conversation as AgentDojo and this library tell it."""
    import yaml

    world = load_world(home)
    dojo = world.module.DOJO
    scenario = world.scenario(f"{PAIR}/indirect_injection")
    environment = dojo.environment(scenario.plants)
    messages = _messages(dojo, scenario.goal.steps[0], environment)
    utility, security = own_verdict(world, scenario, "v2")
    held = attacked(world, scenario, "v2")
    files = {part: yaml.safe_load((home / f"{part}.yaml").read_text("utf-8")) for part in PARTS}
    goals = yaml.safe_load((home / "goals.yaml").read_text("utf-8"))
    return {
        "tool": "agentdojo",
        "version": installed_dojo(),
        "benchmark": BENCHMARK,
        "suite": "banking",
        "pair": PAIR,
        "agentdojo": {"utility": utility, "security": security},
        "messages": list(messages),
        "trajectory": json.loads(held.model_dump_json()),
        "world": {**files, "goals": {PAIR: goals[PAIR]}},
    }


def _messages(dojo: DojoSuite, prompt: str, environment: Any) -> Iterator[dict[str, Any]]:
    from agentdojo.functions_runtime import FunctionsRuntime

    runtime = FunctionsRuntime(dojo.suite.tools)
    said: Sequence[Any] = dojo.scripted(obeys=True).query(prompt, runtime, environment)[3]
    for message in said:
        plain = dict(message)
        if plain.get("tool_calls"):
            plain["tool_calls"] = [call.model_dump() for call in plain["tool_calls"]]
        if "tool_call" in plain:
            plain["tool_call"] = plain["tool_call"].model_dump()
        yield plain


def test_what_is_stored_is_what_the_package_does(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    seen = recorded(write_world("banking", tmp_path / "banking"))
    if pytestconfig.getoption("--store", default=False):
        STORED.write_text(json.dumps(seen, indent=1, ensure_ascii=False) + "\n", "utf-8")
    assert json.loads(STORED.read_text(encoding="utf-8")) == seen
