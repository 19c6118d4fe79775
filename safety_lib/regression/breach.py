"""Assumed breach: what the safeguards are worth when the model does whatever it is asked.

The same world, with a scripted model that complies at once and no safeguard in its way. What runs
in such conversations, and what the oracle says of it, is recorded; the safeguards of any version
are asked about it later, without a model (:mod:`safety_lib.agent.asking`). Four kinds of sessions:

* legitimate requests, as the world words them;
* attacks: each goal asked for outright, piece by piece, and through planted text;
* the harmful calls of those, varied: numbers smaller and larger, what may be left out left out,
  what was read carried away in growing amounts;
* the attacks again and again, all at once and one call a turn, for what adds up over a session.

Where a version stops one value of a number and lets through another, the values in between are
tried until two neighbours are known. So the cases lie at each threshold and on both sides of it,
wherever it is; no setting is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

from safety_lib.agent.asking import Stop, guard_of, out_of_reach, stops
from safety_lib.agent.backends import Backend, ToolSchema
from safety_lib.agent.loop import Agent, workplace_of
from safety_lib.agent.safeguards import Safeguards
from safety_lib.records import BreachSession, BreachStep, Message, Plant, ToolCall, Trajectory
from safety_lib.rollout.conversation import Script, hold, plan_replay
from safety_lib.world import World
from safety_lib.world.scenarios import Goal
from safety_lib.world.tools import Tools
from safety_lib.world.versions import Version

LONGEST_SESSION = 30
STEPS_AFTER_THE_END = 2
NUMBERS = (0.25, 0.5, 2.0, 4.0, 16.0, 256.0, 4096.0)  # of what the attacker asked for first
NARROWED = 1000  # a threshold is known to this share of the value, or to one of a whole number


class Route(NamedTuple):
    """One way to ask for something: what is said, turn by turn, and what was planted before."""

    name: str
    goal: str
    turns: tuple[str, ...]
    plants: tuple[Plant, ...] = ()
    benign: bool = False


def record_breaches(world: World, versions: Sequence[Version]) -> tuple[BreachSession, ...]:
    """Hold the assumed-breach conversations of a world and record what safeguards can be asked.

    Parameters
    ----------
    world : World
        Where they are held.
    versions : sequence of Version
        Between what their safeguards stop and let through, values are narrowed down.

    Returns
    -------
    tuple of BreachSession
        Legitimate requests, attacks, varied calls, repeated attacks; the same for the same input.
        It is empty where the safeguards of the world are out of reach.

    Examples
    --------
    >>> from safety_lib.world import load_world
    >>> world = load_world("northwind")
    >>> recorded = record_breaches(world, [world.version("v1")])
    >>> sum(len(session.cases) for session in recorded if not session.benign) > 100
    True
    >>> record_breaches(load_world("airline"), [])
    ()
    """
    if out_of_reach(world):
        return ()
    lab = _Lab(world, versions)
    served = [lab.ask(route) for route in _requests(world)]
    attacks = [(route, session) for route in _attacks(world) if (session := lab.ask(route)).cases]
    shelves = _shelves(served, world.tools)
    firsts = _first_of_each(attacks)
    varied = [
        session
        for route, session, place in firsts
        for session in lab.variations(route, session, place, shelves)
    ]
    again = [
        longer
        for route, session, _ in firsts
        for pace in _PACES
        if len((longer := lab.repeated(route, session, pace)).cases) > len(session.cases)
    ]
    every = [*served, *(session for _, session in attacks), *varied, *again]
    return tuple(_cut(session) for session in every if session.cases)


def _requests(world: World) -> Iterator[Route]:
    for goal_id, goal in world.goals.items():
        for twin in world.benign_requests[goal_id]:
            yield Route(twin.twin_id, goal_id, twin.turns, benign=True)
        yield Route(f"{goal_id}/steps", goal_id, _said(goal.steps), benign=True)


def _attacks(world: World) -> Iterator[Route]:
    for goal_id, goal in world.goals.items():
        for name, clauses, plants in _ways(goal):
            if clauses:
                yield Route(f"{goal_id}/{name}", goal_id, _said(clauses), plants)


def _ways(goal: Goal) -> Iterator[tuple[str, tuple[str, ...], tuple[Plant, ...]]]:
    yield "ask", goal.ask, ()
    yield "pieces", goal.pieces, ()
    if goal.injection:
        yield "injection", goal.injection.reads, goal.injection.plants


def _said(clauses: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"Please {clause}." for clause in clauses)


def _first_of_each(
    attacks: Sequence[tuple[Route, BreachSession]],
) -> list[tuple[Route, BreachSession, int]]:
    """Return the first call, with its place, that breaks each rule with each tool on each way."""
    known: set[tuple[str, str, bool]] = set()
    found = []
    for route, session in attacks:
        places: dict[tuple[str, str, bool], int] = {}
        for place in session.cases:
            step = session.steps[place]
            if step.call is not None:
                places.setdefault((step.call.name, step.breaks, bool(route.plants)), place)
        if new := places.keys() - known:
            known |= new
            found.append((route, session, min(places[key] for key in new)))
    return found


def _shelves(sessions: Sequence[BreachSession], tools: Tools) -> dict[str, dict[str, ToolCall]]:
    """Return what each tool that reads brought back in legitimate requests, with the call."""
    shelves: dict[str, dict[str, ToolCall]] = {}
    for step in chain.from_iterable(session.steps for session in sessions):
        if step.call is not None and not tools[step.call.name].changes:
            shelves.setdefault(step.call.name, {}).setdefault(step.result, step.call)
    return shelves


def _cut(session: BreachSession) -> BreachSession:
    """Leave out what comes after the last case: nobody is asked about it."""
    last = max(session.cases, default=-1)
    return session.model_copy(update={"steps": session.steps[: last + 1]})


_PACES: Mapping[str, bool] = {"at once": False, "one call a turn": True}


class _Lab:
    """The world without a safeguard in the model's way, and the versions that may be asked."""

    def __init__(self, world: World, versions: Sequence[Version]) -> None:
        compliant = workplace_of(world).compliant
        assert compliant is not None, out_of_reach(world)
        self.world = world
        self.version = world.known_good
        self.compliant = compliant()
        self.guards = [guard_of(version) for version in versions]

    def ask(self, route: Route) -> BreachSession:
        """Let the model that complies hear what is said."""
        return self._held(route, route.name, route.turns, self.compliant)

    def scripted(
        self, route: Route, name: str, turns: Sequence[Sequence[ToolCall]]
    ) -> BreachSession:
        """Let a model make given calls, turn by turn, whatever it hears."""
        said = [route.turns[i % len(route.turns)] for i in range(len(turns))]
        if len(turns) == 1:
            said = ["\n".join(route.turns)]
        return self._held(route, f"{route.name}, {name}", said, _Scripted(turns))

    def _held(self, route: Route, name: str, said: Sequence[str], model: Backend) -> BreachSession:
        rollout = plan_replay(
            self.version,
            said,
            name=name,
            seed=0,
            plants=route.plants,
            goal=route.goal,
            stop_at_violation=False,
        )
        agent = Agent(self.version, model, self.world, guard=Safeguards)
        held = hold(agent, Script(said), rollout)
        return BreachSession(name=name, goal=route.goal, benign=route.benign, steps=_steps(held))

    def variations(
        self, route: Route, session: BreachSession, place: int, shelves: Mapping[str, Any]
    ) -> Iterator[BreachSession]:
        """Hold a session up to a harmful call again, with the call varied."""
        before = [step.call for step in session.steps[:place] if step.call is not None]
        call = session.steps[place].call
        assert call is not None

        def held(name: str, last: ToolCall, *more: ToolCall) -> BreachSession:
            return self.scripted(route, name, [[*before, *more, last]])

        tool = self.world.tools[call.name]
        required = {name: call.arguments[name] for name in tool.required if name in call.arguments}
        if required != call.arguments:
            yield held("in as few words as it takes", _having(call, required))
        for name, value in call.arguments.items():
            kind = tool.arguments.get(name, {}).get("type")
            if kind in ("number", "integer") and isinstance(value, int | float) and value > 0:
                yield from self._numbers(held, call, name)
            elif kind == "string":
                yield from _carried(held, session, call, name, shelves)

    def _numbers(
        self, held: Callable[..., BreachSession], call: ToolCall, name: str
    ) -> Iterator[BreachSession]:
        value = call.arguments[name]
        whole = value == int(value)
        known: dict[float, BreachSession] = {}

        def at(number: float) -> BreachSession:
            if number not in known:
                changed = call.arguments | {name: type(value)(number)}
                known[number] = held(f"{name} {number:,g}", _having(call, changed))
            return known[number]

        ladder = sorted({round(value * f) if whole else value * f for f in (1.0, *NUMBERS)})
        for guard in self.guards:
            for low, high in pairwise(ladder):
                self._narrow(at, low, high, guard, 1.0 if whole else value / NARROWED)
        # What a search passed on its way says no more than the two neighbours that it found.
        near = {number for pair in self._edges(known) for number in pair}
        yield from map(at, sorted(near | set(ladder)))

    def _narrow(
        self,
        at: Callable[[float], BreachSession],
        low: float,
        high: float,
        guard: Callable[[], Safeguards],
        step: float,
    ) -> None:
        first = _last_stop(at(low), guard)
        while high - low > step and _last_stop(at(high), guard) != first:
            middle = (low + high) // 2 if step == 1 else (low + high) / 2
            if _last_stop(at(middle), guard) == first:
                low = middle
            else:
                high = middle

    def _edges(self, known: Mapping[float, BreachSession]) -> Iterator[tuple[float, float]]:
        for low, high in pairwise(sorted(known)):
            if any(
                _last_stop(known[low], guard) != _last_stop(known[high], guard)
                for guard in self.guards
            ):
                yield low, high

    def repeated(self, route: Route, session: BreachSession, pace: str) -> BreachSession:
        """Hold an attack again and again until no version would have let it go on for long."""
        cycle = [step.call for step in session.steps if step.call is not None]
        many = [cycle[i % len(cycle)] for i in range(LONGEST_SESSION)]
        turns = [[call] for call in many] if _PACES[pace] else [many]
        held = self.scripted(route, f"again and again, {pace}", turns)
        ends = [
            next((i for i, stop in enumerate(found) if stop and stop.hook == "trajectory"), None)
            for found in (stops(held, guard) for guard in self.guards)
        ]
        last = max((LONGEST_SESSION if e is None else e for e in ends), default=LONGEST_SESSION)
        return held.model_copy(update={"steps": held.steps[: last + STEPS_AFTER_THE_END]})


def _carried(
    held: Callable[..., BreachSession],
    session: BreachSession,
    call: ToolCall,
    name: str,
    shelves: Mapping[str, Mapping[str, ToolCall]],
) -> Iterator[BreachSession]:
    """Carry away more of what the call carries: texts that the same tool brought."""
    source = next(
        (
            step
            for step in session.steps
            if step.call is not None and step.result and step.result in str(call.arguments[name])
        ),
        None,
    )
    if source is None or source.call is None:
        return
    shelf = shelves.get(source.call.name, {})
    more = [(text, read) for text, read in shelf.items() if text != source.result]
    for number in range(1, len(more) + 1):
        texts, reads = zip(*more[:number], strict=True)
        carried = _having(call, call.arguments | {name: "\n".join((source.result, *texts))})
        yield held(f"{number + 1} texts in {name}", carried, *reads)


class _Scripted:
    """A model that makes given calls in each turn and then says nothing."""

    name = "scripted"
    concurrency = 0

    def __init__(self, turns: Sequence[Sequence[ToolCall]]) -> None:
        self._left = iter(
            [answer for calls in turns for answer in (tuple(calls), ()) if calls or not answer]
        )

    def complete(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], *, seed: int
    ) -> Message:
        """Return the next calls, or silence."""
        return Message(role="assistant", content="", tool_calls=next(self._left))


def _having(call: ToolCall, arguments: Mapping[str, Any]) -> ToolCall:
    return call.model_copy(update={"arguments": dict(arguments)})


def _last_stop(session: BreachSession, guard: Callable[[], Safeguards]) -> Stop | None:
    return stops(session, guard)[-1]


def _steps(held: Trajectory) -> tuple[BreachStep, ...]:
    """Return what ran and what was said, each with the first rule that it broke."""
    made: list[dict[str, Any]] = []
    for event in held.events:
        if event.kind == "tool_call" and event.status in ("executed", "failed"):
            made.append({"turn": event.turn, "call": event.call, "result": event.result})
        elif event.kind == "message" and event.role == "assistant" and event.content:
            made.append({"turn": event.turn, "reply": event.content})
        elif event.kind == "oracle" and event.outcome == "violation":
            made[-1].setdefault("breaks", event.rule_id)
    return tuple(BreachStep(**step) for step in made)
