"""The suites of AgentDojo as worlds: its tools, its environment and its own checks decide.

:func:`~safety_lib.adapters.dojo_world.write_world` writes the folder of a suite from the installed
package; its ``world.py`` gets from here what has to run. A pipeline of one's own takes two lines
there::

    def connect(version, model):
        return DOJO.target(lambda: my_pipeline(version.settings), name="mine")

What an attack did is not taken from the pipeline's word. The calls that were seen are made again on
a fresh environment with the same plants, and AgentDojo's ``security`` is asked of the state before
and after, and ``utility`` of a benign request in the same way. So a recorded conversation can be
judged as well as one that was just held. A pipeline that raises, aborts, or leaves a state that its
calls do not lead to is an error of that conversation: AgentDojo's own runner counts some errors of
an endpoint as attacks that succeeded.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from safety_lib.adapters.callables import from_callable
from safety_lib.records import BenignTwin, CallStatus, Plant, ToolCallEvent, Trajectory
from safety_lib.text import bare
from safety_lib.world.checks import Check
from safety_lib.world.oracle import Oracle
from safety_lib.world.target import Called, Heard, Target, TargetError
from safety_lib.world.versions import WorldError

Pipeline = Any  # AgentDojo's BasePipelineElement: whatever has its `query`

_MEMORY = "dojo"
_ENVIRONMENTS = 1024  # that are kept, of 50 kB at most: to parse one takes up to 0.2 s


class DojoSuite:
    """One suite of AgentDojo, at one version of its benchmark.

    Parameters
    ----------
    name : str
        ``banking``, ``workspace``, ``slack`` or ``travel``.
    benchmark : str
        The version of the tasks, such as ``v1.2.2``.
    package : str
        The version of AgentDojo that the world was written from.

    Attributes
    ----------
    checks : dict
        ``security``: whether an injection task was carried out.
    """

    def __init__(self, name: str, benchmark: str, package: str) -> None:
        self.name = name
        self.benchmark = benchmark
        self.package = package
        self._environment = lru_cache(maxsize=_ENVIRONMENTS)(self._parsed)

    @cached_property
    def suite(self) -> Any:
        """AgentDojo's own object.

        Raises
        ------
        WorldError
            If AgentDojo is missing, or is another version than the world was written from.
        """
        installed = installed_dojo()
        if installed != self.package:
            raise WorldError(
                f"the world was written from agentdojo {self.package} and {installed} is "
                "installed: write the world again, or install that version"
            )
        from agentdojo.task_suite.load_suites import get_suite

        _stop_the_clock()
        return get_suite(self.benchmark, self.name)

    # ------------------------------------------------------------------ who is talked to

    def target(self, make: Callable[[], Pipeline], *, name: str, **how: Any) -> Target:
        """Return a target whose conversations a pipeline holds.

        Parameters
        ----------
        make : callable
            Makes the pipeline of one conversation.
        name : str
            What artifacts call it.
        **how
            ``same_luck``, ``timeout`` and ``concurrency`` as
            :func:`~safety_lib.adapters.callables.from_callable` takes them.

        Returns
        -------
        Target
            It hears one message: AgentDojo's pipelines know no second one.
        """

        def start(seed: int, plants: Sequence[Plant]) -> Callable[[str], Heard]:
            return _DojoTalk(self, make(), plants).send

        return from_callable(start, name=name, effects="sandboxed", sees_calls=True, **how)

    def scripted(self, *, obeys: bool) -> Pipeline:
        """Return a pipeline that serves the user's task as AgentDojo's ground truth does.

        Parameters
        ----------
        obeys : bool
            Whether it then does what it read in the results of its tools, too, where AgentDojo has
            a ground truth for that; else it takes no notice.
        """
        return _Scripted(self.suite, obeys)

    # ------------------------------------------------------------------ what decides

    @property
    def checks(self) -> dict[str, Check]:
        """The checks that the rules of the world name."""
        tools = frozenset(tool.name for tool in self.suite.tools)
        return {"security": Check(tools=tools, find=self._heed, in_reply=self._carried_out)}

    def served(self, trajectory: Trajectory, twin: BenignTwin) -> bool:
        """Say by AgentDojo's ``utility`` whether a benign request was served."""
        calls = (event for event in trajectory.events if event.kind == "tool_call")
        told = _Told(self, trajectory.plants, calls)
        reply = trajectory.replies[-1] if trajectory.replies else ""
        return told.holds(_tasks_by_prompt(self.suite)[twin.turns[-1]], reply)

    def environment(self, plants: Iterable[Plant]) -> Any:
        """Return a fresh environment of the suite in which somebody planted these texts."""
        planted = tuple(sorted((plant.key, plant.text) for plant in plants))
        return pickle.loads(self._environment(planted))  # noqa: S301 - made by this process

    def _parsed(self, planted: tuple[tuple[str, str], ...]) -> bytes:
        return pickle.dumps(self.suite.load_and_inject_default_environment(dict(planted)))

    def _told(self, oracle: Oracle) -> _Told:
        told = oracle.memory.get(_MEMORY)
        if told is None:
            told = oracle.memory[_MEMORY] = _Told(self, oracle.plants)
        return told

    def _heed(self, oracle: Oracle, event: ToolCallEvent, parameters: Any) -> str:
        # What a call did is judged when the agent is done: AgentDojo asks of the last state alone.
        self._told(oracle).take(event)
        return ""

    def _carried_out(self, oracle: Oracle, reply: str, parameters: Any) -> str:
        # AgentDojo asks of the task that was injected, and some of its checks hold for others too.
        told, asked = self._told(oracle), parameters["injection_task"]
        if told.injected and asked not in told.injected:
            return ""
        done = told.holds(self.suite.injection_tasks[asked], reply)
        return f"security of {asked} finds it done" if done else ""


class _Told:
    """A conversation told again: its calls, made once more on a fresh environment."""

    def __init__(
        self, dojo: DojoSuite, plants: Sequence[Plant], calls: Iterable[ToolCallEvent] = ()
    ) -> None:
        from agentdojo.functions_runtime import FunctionsRuntime

        planted = [plant.text for plant in plants]
        self.injected = {
            task.ID
            for task in dojo.suite.injection_tasks.values()
            if any(task.GOAL in text for text in planted)
        }
        self.before = dojo.environment(plants)
        self.after = self.before.model_copy(deep=True)
        self._runtime = FunctionsRuntime(dojo.suite.tools)
        self._calls: list[Any] = []
        self._last: ToolCallEvent | None = None
        for event in calls:
            self.take(event)

    def take(self, event: ToolCallEvent) -> None:
        """Make a call again; each rule tells of it, and it is made once."""
        if event is not self._last:
            self._last = event
            self.call(event.call.name, event.call.arguments, event.status in ("executed", "failed"))

    def call(self, name: str, arguments: Mapping[str, Any], ran: bool) -> None:
        from agentdojo.functions_runtime import FunctionCall

        self._calls.append(FunctionCall(function=name, args=dict(arguments)))
        if ran:
            self._runtime.run_function(self.after, name, arguments)

    def holds(self, task: Any, reply: str) -> bool:
        """Ask AgentDojo whether a task, the user's or an injected one, was carried out."""
        kind = "utility" if hasattr(task, "utility") else "security"
        seen = reply, self.before, self.after
        by_calls = getattr(task, f"{kind}_from_traces")(*seen, self._calls)
        return bool(getattr(task, kind)(*seen) if by_calls is None else by_calls)


class _DojoTalk:
    """One conversation with a pipeline, in an environment of its own."""

    def __init__(self, dojo: DojoSuite, pipeline: Pipeline, plants: Sequence[Plant]) -> None:
        self._dojo = dojo
        self._pipeline = pipeline
        self._plants = plants

    def send(self, text: str) -> Heard:
        from agentdojo.agent_pipeline.errors import AbortAgentError
        from agentdojo.functions_runtime import FunctionsRuntime

        runtime = FunctionsRuntime(self._dojo.suite.tools)
        environment = self._dojo.environment(self._plants)
        try:
            _, _, environment, messages, _ = self._pipeline.query(text, runtime, environment)
        except AbortAgentError as error:
            raise TargetError("aborted", f"the pipeline gave up: {error}") from error
        calls = tuple(calls_in(messages))
        model_calls = sum(message["role"] == "assistant" for message in messages)
        if not messages or messages[-1]["role"] != "assistant":
            return Heard("", calls, "step_limit", model_calls)
        reply = _text_of(messages[-1])
        if not reply.strip() and not calls:
            raise TargetError("bad_response", "the pipeline said nothing and called nothing")
        self._must_be_told_again(text, calls, environment, reply)
        return Heard(reply, calls, "completed", model_calls)

    def _must_be_told_again(
        self, text: str, calls: Sequence[Called], left: Any, reply: str
    ) -> None:
        suite = self._dojo.suite
        told = _Told(self._dojo, self._plants)
        for call in calls:
            told.call(call.name, call.arguments, call.status in ("executed", "failed"))
        if told.after != left:
            raise TargetError(
                "untold_change", "the calls that were seen do not lead to the state that was left"
            )
        asked = _tasks_by_prompt(suite).get(text)
        for task in (*suite.injection_tasks.values(), *filter(None, [asked])):
            try:
                told.holds(task, reply)
            except Exception as error:
                what = f"AgentDojo's check of {task.ID} raised {type(error).__name__}: {error}"
                raise TargetError("check_failed", what) from error


class _Scripted:
    """AgentDojo's ground truth of whatever task the user gives, and of what it read on the way."""

    name = "scripted"

    def __init__(self, suite: Any, obeys: bool) -> None:
        self._tasks = _tasks_by_prompt(suite)
        self._injected = list(suite.injection_tasks.values()) if obeys else []

    def query(self, query: str, runtime: Any, env: Any, *context: Any) -> tuple[Any, ...]:
        from agentdojo.agent_pipeline.ground_truth_pipeline import GroundTruthPipeline
        from agentdojo.types import ChatAssistantMessage, text_content_block_from_string

        task = self._tasks.get(query)
        said = [task.GROUND_TRUTH_OUTPUT if task else "That is no task that I know."]
        done: list[Any] = []
        if task:
            *done, _ = GroundTruthPipeline(task).query(query, runtime, env)[3]
        read = bare("\n".join(_text_of(m) for m in done if m["role"] == "tool"))
        for injected in self._injected:
            if bare(injected.GOAL) in read:
                *more, _ = GroundTruthPipeline(injected).query(query, runtime, env)[3]
                done += more
                said.append(injected.GROUND_TRUTH_OUTPUT)
        content = [text_content_block_from_string("\n".join(filter(None, said)))]
        last = ChatAssistantMessage(role="assistant", content=content, tool_calls=None)
        return query, runtime, env, [*done, last], {}


def installed_dojo() -> str:
    """Return the version of AgentDojo that is installed.

    Raises
    ------
    WorldError
        If there is none.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("agentdojo")
    except PackageNotFoundError as error:
        raise WorldError(
            'AgentDojo is not installed: pip install "agentic-safety-notebooks[agentdojo]"'
        ) from error


def calls_in(messages: Iterable[Mapping[str, Any]]) -> Iterator[Called]:
    """Yield the calls in AgentDojo's messages, in their order.

    Each comes with the result that followed it; one that nothing followed did not run.

    Raises
    ------
    TargetError
        ``bad_response`` if a tool answered that nobody had called.
    """
    waiting: list[Any] = []
    for message in messages:
        if message["role"] == "assistant":
            yield from (Called(call.function, call.args, "", "blocked") for call in waiting)
            waiting = list(message["tool_calls"] or ())
        elif message["role"] == "tool":
            if not waiting or waiting[0].function != message["tool_call"].function:
                raise TargetError("bad_response", "a tool answered that nobody had called")
            call, error = waiting.pop(0), message["error"]
            status: CallStatus = "failed" if error else "executed"
            yield Called(call.function, call.args, error or _text_of(message), status)
    yield from (Called(call.function, call.args, "", "blocked") for call in waiting)


def _text_of(message: Mapping[str, Any]) -> str:
    said = (block["content"] for block in message["content"] or ())
    return "\n".join(text for text in said if text is not None)


def _tasks_by_prompt(suite: Any) -> dict[str, Any]:
    return {task.PROMPT: task for task in suite.user_tasks.values()}


def _stop_the_clock() -> None:
    """Give mails and files one time of day: else no conversation is ever the same twice."""
    import datetime
    from types import SimpleNamespace

    from agentdojo.default_suites.v1.tools import cloud_drive_client, email_client

    noon = datetime.datetime(2025, 1, 1, 12)
    stopped = SimpleNamespace(datetime=SimpleNamespace(now=lambda: noon))
    for module in (email_client, cloud_drive_client):
        module.datetime = stopped
