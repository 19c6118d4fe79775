"""An agent that is a Python callable, as a target.

A ``world.py`` needs no class. ``connect`` says how a conversation starts, and that is all::

    from safety_lib.adapters.callables import from_callable

    def connect(version, model):
        return from_callable(
            lambda seed, plants: Desk(version.settings, plants).answer,
            name="desk", effects="sandboxed", sees_calls=True,
        )

What goes wrong costs the conversation that it was in, as an error of one of the kinds
``agent_error`` (it raised), ``timeout`` (it did not come back) and ``bad_response`` (what came back
is no reply). After that the conversation is over.

A conversation has a thread to itself, and the harness waits for no turn longer than it was told. A
callable that hangs keeps its thread until the program ends, since Python can stop no thread; what
it waits for asynchronously is cancelled. Everything asynchronous of a process runs on one event
loop, as in a service: clients and their connections may be shared between conversations, and code
that blocks the loop holds up the others.
"""

from __future__ import annotations

import contextvars
import inspect
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from safety_lib.adapters.reading import heard_of
from safety_lib.agent.backends.calls import CallsSpent
from safety_lib.records import Plant
from safety_lib.text import error_line, one_line
from safety_lib.world.target import Effects, Heard, Target, TargetError

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future
    from types import TracebackType

Start = Callable[[int, Sequence[Plant]], Any]
LOOP_REACTS = 0.5  # seconds within which an event loop that nobody blocks does something


def from_callable(
    start: Start,
    *,
    name: str,
    effects: Effects,
    sees_calls: bool,
    same_luck: bool = False,
    timeout: float = 60.0,
    concurrency: int = 0,
) -> Target:
    """Return a target whose conversations are held by a callable.

    Parameters
    ----------
    start : callable
        ``start(seed, plants)`` begins a conversation that knows nothing of any other and returns a
        callable, or an object with ``send``, that takes what the user says. That one returns text,
        ``(text, calls)`` or a :class:`~safety_lib.world.target.Heard`. A call is a
        :class:`~safety_lib.world.target.Called`, a mapping ``{name, arguments, result, status}`` or
        a tuple ``(name, arguments, result)``. Each of the two may be asynchronous.
    name : str
        What artifacts call the agent.
    effects : str
        ``sandboxed`` if nothing that it does outlives the conversation, else ``live``.
    sees_calls : bool
        Whether every tool call that it makes is returned. There is no verdict without.
    same_luck : bool, optional
        Whether the same seed gives the same draws, whatever the version.
    timeout : float, optional
        Seconds for the start and for each turn.
    concurrency : int, optional
        How many conversations it serves at once over a network; 0 if it computes in this process.

    Returns
    -------
    Target
        That can neither be taken up in the middle nor kept from running a call.

    Raises
    ------
    ValueError
        If one of them is impossible; one line names it.

    Examples
    --------
    A whole ``world.py``: a desk that refunds what it is asked for.

    >>> class Desk:
    ...     def __init__(self, settings, seed):
    ...         self.limit = settings["limit"]
    ...     def answer(self, text):
    ...         amount = int("".join(c for c in text if c.isdigit()) or 0)
    ...         if not amount or amount > self.limit:
    ...             return "I cannot do that."
    ...         return f"{amount} paid back.", [("refund", {"amount": amount}, "done")]
    >>> def connect(version, model):
    ...     def start(seed, plants):
    ...         return Desk(version.settings, seed).answer
    ...     return from_callable(start, name="desk", effects="sandboxed", sees_calls=True)

    >>> from safety_lib.world.versions import Version
    >>> v1 = Version(version="v1", world="desk", settings={"limit": 200})
    >>> talk = connect(v1, "").begin(seed=7)
    >>> print(talk.send("Pay me 1000."), *talk.send("Then pay me 20.").calls)
    I cannot do that. Called(name='refund', arguments={'amount': 20}, result='done', \
status='executed')
    """
    faults = [
        (not callable(start), "start is not callable; expected start(seed, plants)"),
        (not isinstance(name, str) or not name.strip(), "name is empty"),
        (effects not in ("sandboxed", "live"), "effects is neither 'sandboxed' nor 'live'"),
        (not isinstance(sees_calls, bool), "sees_calls is neither True nor False"),
        (not isinstance(same_luck, bool), "same_luck is neither True nor False"),
        (not 0 < timeout <= threading.TIMEOUT_MAX, "timeout is no positive number of seconds"),
        (not isinstance(concurrency, int) or concurrency < 0, "concurrency is below 0"),
    ]
    for wrong, fault in faults:
        if wrong:
            raise ValueError(f"from_callable: {fault}")
    return _FromCallable(start, name, effects, sees_calls, same_luck, timeout, concurrency)


class _FromCallable:
    host = ""
    resumes = False
    holds_calls = False

    def __init__(
        self,
        start: Start,
        name: str,
        effects: Effects,
        sees_calls: bool,
        same_luck: bool,
        timeout: float,
        concurrency: int,
    ) -> None:
        self.start = start
        self.name = name
        self.effects: Effects = effects
        self.sees_calls = sees_calls
        self.same_luck = same_luck
        self.timeout = timeout
        self.concurrency = concurrency

    def __repr__(self) -> str:
        return f"<callable {one_line(self.name, 60)}, {self.effects}>"

    def begin(self, seed: int, plants: Sequence[Plant] = ()) -> _CallableTalk:
        return _CallableTalk(self, seed, plants)


class _CallableTalk:
    """One conversation; it starts with its first turn, so that a start that fails is heard."""

    def __init__(self, target: _FromCallable, seed: int, plants: Sequence[Plant]) -> None:
        self._target = target
        self._begins = (seed, plants)
        self._say: Callable[[str], Any] | None = None
        self._started = 0.0
        self._run = contextvars.copy_context().run
        self._thread: _Thread | None = None
        self._over: tuple[str, str] | None = None

    def send(self, text: str) -> Heard:
        if self._over:
            kind, detail = self._over
            raise TargetError(kind, f"the conversation is over: {detail}")
        thread = self._thread
        if thread is None:
            thread = self._thread = _free_thread()
        thread.give(partial(self._run, self._turn, text))
        try:
            return self._heard(thread)
        except BaseException as error:
            self._over = ("agent_error", "interrupted")
            if isinstance(error, TargetError):
                self._over = (error.kind, error.detail)
            if thread.busy:
                thread.leave()
            raise

    def _heard(self, thread: _Thread) -> Heard:
        begins, limit = self._say is None, self._target.timeout
        got = thread.take(limit)
        if got is None and begins and self._started:  # it has begun, and this turn has time too
            got = thread.take(self._started + limit - time.monotonic())
        if isinstance(got, Heard):
            return got
        if got is not None:
            raise got
        what = "begin" if begins and not self._started else "answer"
        raise TargetError("timeout", f"the agent did not {what} in {limit:g} s")

    def _turn(self, text: str) -> Heard:
        if self._say is None:
            self._say = self._begin()
            self._started = time.monotonic()
        return heard_of(_finished(self._say(text)), sees_calls=self._target.sees_calls)

    def _begin(self) -> Callable[[str], Any]:
        seed, plants = self._begins
        own = plants and [
            plant.model_copy() for plant in plants
        ]  # it may do with them what it likes
        made = _finished(self._target.start(seed, own))
        say = getattr(made, "send", made)
        if callable(say):
            return say  # type: ignore[no-any-return]
        kind = "nothing (None)" if made is None else f"a {type(made).__name__}"
        raise TargetError(
            "bad_response", f"start returned {kind}; expected a callable or an object with send"
        )

    def __del__(self) -> None:
        if self._thread and not self._thread.busy:
            _idle.append(self._thread)


# --------------------------------------------------------------------------- threads


class _Thread:
    """A thread that holds one conversation after another; daemonic, so that it may hang."""

    __slots__ = ("_answers", "_jobs", "_thread", "busy", "waits_for")

    def __init__(self) -> None:
        self.busy = False
        self.waits_for: Future[Any] | None = None
        self._jobs: SimpleQueue[Callable[[], Heard] | None] = SimpleQueue()
        self._answers: SimpleQueue[Heard | Exception] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="conversation", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it runs in this process: a fork leaves the threads behind."""
        return self._thread.is_alive()

    def give(self, job: Callable[[], Heard]) -> None:
        self.busy = True
        self._jobs.put(job)

    def take(self, timeout: float) -> Heard | Exception | None:
        """Return what came of the job, or None if nothing came in time."""
        try:
            got = self._answers.get(timeout=max(timeout, 0))
        except Empty:
            return None
        self.busy = False
        return got

    def leave(self) -> None:
        """Leave the thread to what hangs in it; it ends with that."""
        self._jobs.put(None)
        if self.waits_for is not None:
            self.waits_for.cancel()
            _leave_a_blocked_loop()

    def _work(self) -> None:
        _here.thread = self
        got: Heard | Exception
        while (job := self._jobs.get()) is not None:
            try:
                got = job()
            except BaseException as error:  # SystemExit too: it is the agent's, not the program's
                got = _fault(error)
            del job
            self._answers.put(got)
            del got


_idle: list[_Thread] = []
_here = threading.local()


def _free_thread() -> _Thread:
    while _idle:
        try:
            thread = _idle.pop()
        except IndexError:  # somebody else was quicker
            break
        if thread.alive:
            return thread
    return _Thread()


def _fault(error: BaseException) -> TargetError | CallsSpent:
    if isinstance(error, TargetError | CallsSpent):
        return error.with_traceback(None)
    return TargetError("agent_error", f"{error_line(error)}{_where(error.__traceback__)}")


def _where(trace: TracebackType | None) -> str:
    """Say where it came from: the last line in the folder of the agent, not one of a library."""
    here, folder, found = Path(__file__).parent, None, ""
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.parent == here:
            folder, found = None, ""
        elif folder in (None, path.parent):
            folder, found = path.parent, f" ({path.name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return found


# --------------------------------------------------------------------------- asynchronous agents


class _Loop:
    """The event loop of this process and the thread that it runs in."""

    def __init__(self) -> None:
        import asyncio

        self.loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="event-loop", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        import asyncio

        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def reacts(self) -> bool:
        seen = threading.Event()
        self.loop.call_soon_threadsafe(seen.set)
        return seen.wait(LOOP_REACTS)


_loop: _Loop | None = None
_choosing = threading.Lock()


def _finished(returned: Any) -> Any:
    """Return what came back, awaited if it has to be."""
    if isinstance(returned, str | tuple) or not inspect.isawaitable(returned):
        return returned
    import asyncio

    global _loop
    with _choosing:
        if _loop is None or not _loop.thread.is_alive():
            _loop = _Loop()
        loop = _loop.loop
    future = asyncio.run_coroutine_threadsafe(_awaited(returned), loop)
    _here.thread.waits_for = future
    try:
        return future.result()
    finally:
        _here.thread.waits_for = None


async def _awaited(awaitable: Any) -> Any:
    try:
        return await awaitable
    except (SystemExit, KeyboardInterrupt) as error:  # it would end the loop of all the others
        raise _fault(error) from None


def _leave_a_blocked_loop() -> None:
    """Leave a loop to the code that blocks it; later conversations get another one."""
    global _loop
    blocked = _loop
    if blocked is not None and not blocked.reacts():
        with _choosing:
            if _loop is blocked:
                _loop = None
