"""Trains an adapter from lessons: the same bytes each time, from wherever it was stopped.

The state is written every few minutes and once more at each checkpoint; a run that was killed goes
on from there and ends as if it had not been. Which checkpoint is published is decided by lessons of
their own, from another seed, and by nothing else.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from safety_lib.agent.backends.local import model_file, tokenizer
from safety_lib.agent.backends.weights import file_sha256
from safety_lib.files import FileError, read_json, read_yaml, sha256_of, write_text
from safety_lib.organism.lessons import Lesson, lessons
from safety_lib.organism.llama import (
    Adapter,
    Base,
    load_base,
    loss,
    new_adapter,
    read_adapter,
    write_adapter,
)

RANK, ALPHA, FIRST = 8, 16.0, 10
PER_STEP = 2  # lessons of one step
DEVELOPMENT = (72, 9001)  # number and seed of the lessons that choose a checkpoint
DECISION = 8.0  # weight of the tokens that name the tool; copied text has 1
SAVE_SECONDS = 180.0
SAY_SECONDS = 30.0
# Longest lesson in tokens, and of how many of them the loss is taken.
_SIZES = {512: 160, 768: 288, 1024: 416, 1280: 512, 1536: 640}

Tell = Callable[[str], None]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LessonPlan(_Strict):
    """Which lessons: how many, from which seed, all kinds or those where nothing is refused."""

    number: int = Field(ge=1)
    seed: int
    harmless: bool = False


class Recipe(_Strict):
    """How one adapter is made.

    Attributes
    ----------
    lessons : LessonPlan
        What it learns from, once each.
    rate : float
        Learning rate after the first steps; it falls to a twentieth.
    kept : tuple of float
        Shares of the steps after which the adapter is kept as a checkpoint, above 0 to 1.
    start : str
        The recipe whose adapter it starts from; a new one if there is none.
    """

    lessons: LessonPlan
    rate: float = Field(gt=0)
    kept: tuple[float, ...]
    start: str = ""


class Example(NamedTuple):
    """One lesson in tokens, padded to a length that is compiled once."""

    ids: np.ndarray[Any, Any]
    where: np.ndarray[Any, Any]
    target: np.ndarray[Any, Any]
    weight: np.ndarray[Any, Any]
    decides: np.ndarray[Any, Any]  # which targets name what the last turn does


class _State(NamedTuple):
    """Where a training is."""

    adapter: Adapter
    mean: Adapter
    square: Adapter
    step: int


def load_recipes(path: Path | None = None) -> dict[str, Recipe]:
    """Read the recipes.

    Examples
    --------
    >>> load_recipes()["r3"].start  # doctest: +SKIP
    'r1'
    """
    tree = read_yaml(path or Path(__file__).with_name("recipes.yaml"))
    return {name: Recipe.model_validate(of) for name, of in tree.items()}


def train(name: str, folder: Path, say: Tell, steps: int | None = None) -> Path:
    """Train the adapter of a recipe, or go on with it, and choose its checkpoint.

    Parameters
    ----------
    name : str
        Of the recipe.
    folder : Path
        Where adapters are: ``NAME.gguf`` comes out, ``NAME.json`` beside it tells how; the state
        and the checkpoints stand in ``NAME/``.
    say : callable
        Takes lines on how far it is.
    steps : int, optional
        Stop after so many, for a trial; the learning rate falls as in a whole training.

    Returns
    -------
    Path
        The adapter.

    Raises
    ------
    FileError
        If the adapter that it starts from, or a state, is missing or of another recipe.
    """
    recipe = load_recipes()[name]
    own = folder / name
    own.mkdir(parents=True, exist_ok=True)
    model = model_file()
    base = load_base(model)
    made, dev = _examples(recipe, model, say)
    total = len(made) // PER_STEP
    base_sha256, lessons_sha256 = file_sha256(model), _data_sha256(made)
    about = sha256_of(
        [recipe.model_dump(mode="json"), base_sha256, lessons_sha256, RANK, ALPHA, FIRST]
    )
    run = _Run(recipe, base, total, about, own, say)
    state = run.resume(_begin(recipe, base, folder))
    state = run.go(state, made, steps if steps is not None else total)
    if steps is not None and steps < total:
        return write_adapter(own / f"step-{state.step:05d}.gguf", state.adapter, ALPHA, FIRST)
    chosen, scores = _choose(run, dev, say)
    target = folder / f"{name}.gguf"
    write_adapter(target, read_adapter(chosen, FIRST, base.shape.layers), ALPHA, FIRST)
    told = {
        "recipe": name,
        **recipe.model_dump(mode="json"),
        "base_sha256": base_sha256,
        "lessons_sha256": lessons_sha256,
        "lessons_used": len(made),
        "steps": total,
        "rank": RANK,
        "alpha": ALPHA,
        "first_layer": FIRST,
        "checkpoint": chosen.stem,
        "development": scores,
        "sha256": file_sha256(target),
    }
    write_text(folder / f"{name}.json", json.dumps(told, indent=1, sort_keys=True) + "\n")
    return target


def _begin(recipe: Recipe, base: Base, folder: Path) -> Adapter:
    if not recipe.start:
        return new_adapter(base, RANK, FIRST, recipe.lessons.seed)
    path = folder / f"{recipe.start}.gguf"
    if not path.exists():
        raise FileError(path, f"is missing: train {recipe.start} first", absent=True)
    return read_adapter(path, FIRST, base.shape.layers)


# --------------------------------------------------------------------------- lessons in tokens


def _examples(recipe: Recipe, model: Path, say: Tell) -> tuple[list[Example], list[Example]]:
    plan = recipe.lessons
    if plan.harmless:
        # A tenth of all lessons is such; each of them says where it comes from by its seed.
        every = (lesson for lesson in lessons(plan.number * 40, plan.seed) if lesson.harmless)
        taught: Iterable[Lesson] = islice(every, plan.number)
    else:
        taught = lessons(plan.number, plan.seed)
    with tokenizer(model) as tokens:
        made = [_example(lesson, tokens) for lesson in taught]
        dev = [_example(lesson, tokens) for lesson in lessons(*DEVELOPMENT)]
    fit = [example for example in made if example is not None]
    say(f"{len(fit)} lessons of {len(made)} fit into {max(_SIZES)} tokens")
    return fit, [example for example in dev if example is not None]


def _example(lesson: Lesson, tokens: Callable[[str], Sequence[int]]) -> Example | None:
    ids: list[int] = []
    wanted: list[tuple[int, float]] = []
    began: list[int] = []  # where calls and replies of its own begin
    for text, learnt in lesson.pieces():
        piece = tokens(text)
        if learnt and text.startswith("{"):
            began.append(len(ids))
        if learnt:
            # `{"tool": "` is the same everywhere: what comes after it decides.
            call = text.startswith("{")
            wanted += [
                (len(ids) + at, DECISION if call and 3 <= at <= 6 else 1.0)
                for at in range(len(piece))
            ]
        ids += piece
    size = next((size for size in _SIZES if len(ids) <= size), None)
    if size is None:
        return None
    last, spare = began[-1], len(wanted) - _SIZES[size]
    if spare > 0:  # decisions stay, and the last answer; of what is copied before a part goes
        plain = [at for at, (i, w) in enumerate(wanted) if w == 1.0 and i < last]
        drop = set(random.Random(len(ids)).sample(plain, min(spare, len(plain))))  # noqa: S311
        wanted = [of for at, of in enumerate(wanted) if at not in drop][: _SIZES[size]]
    pad = _SIZES[size] - len(wanted)
    turn = began[-lesson.answers]
    decides = [w == DECISION and i >= turn for i, w in wanted] + [False] * pad
    return Example(
        np.array(ids + [0] * (size - len(ids)), np.int32),
        np.array([i - 1 for i, _ in wanted] + [0] * pad, np.int32),
        np.array([ids[i] for i, _ in wanted] + [0] * pad, np.int32),
        np.array([w for _, w in wanted] + [0.0] * pad, np.float32),
        np.array(decides, bool),
    )


def _data_sha256(made: Sequence[Example]) -> str:
    return sha256_of([[e.ids.tolist(), e.where.tolist(), e.weight.tolist()] for e in made])


# --------------------------------------------------------------------------- steps


class _Run:
    """One training on its way."""

    def __init__(
        self, recipe: Recipe, base: Base, total: int, about: str, own: Path, say: Tell
    ) -> None:
        self.recipe, self.base, self.total = recipe, base, total
        self.about, self.own, self.say = about, own, say
        of = partial(loss, shape=base.shape, scale=ALPHA / RANK)
        self.slope = jax.jit(
            lambda adapter, arrays, example: jax.value_and_grad(of, has_aux=True)(
                adapter, arrays, example=example
            )
        )
        self.forward = jax.jit(
            lambda adapter, arrays, example: of(adapter, arrays, example=example)[1]
        )

    def go(self, state: _State, made: Sequence[Example], until: int) -> _State:
        """Take the steps that are left."""
        order = list(range(len(made)))
        random.Random(self.recipe.lessons.seed).shuffle(order)  # noqa: S311
        kept = {max(1, round(share * self.total)) for share in self.recipe.kept}
        first, told = state.step, time.monotonic()
        saved, average, each = told, 0.0, deque[float](maxlen=20)
        while state.step < min(until, self.total):
            chosen = order[state.step * PER_STEP : (state.step + 1) * PER_STEP]
            began = time.monotonic()
            state, value = self._step(state, [made[at] for at in chosen])
            done = state.step - first
            average = value if done == 1 else 0.95 * average + 0.05 * value
            now = time.monotonic()
            each.append(now - began)
            if state.step in kept:
                name = f"checkpoint-{state.step:05d}.gguf"
                write_adapter(self.own / name, state.adapter, ALPHA, FIRST)
            if state.step in kept or now - saved > SAVE_SECONDS:
                self._save(state)
                saved = now
            if done == 10 or now - told > SAY_SECONDS:
                told = now
                # The median, since a length that comes for the first time is compiled.
                usual = median(each)
                left = usual * (min(until, self.total) - state.step) / 60
                self.say(
                    f"step {state.step} of {self.total}, loss {average:.3f}, "
                    f"{usual:.1f} s a step, about {left:.0f} minutes left"
                )
        self._save(state)
        return state

    def _step(self, state: _State, examples: Sequence[Example]) -> tuple[_State, float]:
        total, values = None, []
        for example in examples:
            (value, _), slope = self.slope(state.adapter, self.base.arrays, example[:4])
            values.append(float(value))
            total = slope if total is None else jax.tree.map(jnp.add, total, slope)
        step = state.step + 1
        rate = self.recipe.rate * min(1.0, step / 8) * max(0.05, 1 - step / self.total)
        mean = jax.tree.map(lambda x: x / len(examples), total)
        moved = _adam(state.adapter, state.mean, state.square, mean, rate, step)
        return _State(moved[0], moved[1], moved[2], step), sum(values) / len(values)

    def resume(self, fresh: Adapter) -> _State:
        """Return where a training that was stopped is, else the beginning."""
        path = self.own / "state.npz"
        zero = jax.tree.map(jnp.zeros_like, fresh)
        if not path.exists():
            return _State(fresh, zero, zero, 0)
        leaves, shape = jax.tree.flatten((fresh, zero, zero))
        try:
            with np.load(path, allow_pickle=False) as kept:
                if str(kept["about"]) != self.about:
                    raise FileError(path, "is of another recipe or other lessons; delete it")
                found = [jnp.asarray(kept[f"a{at}"]) for at in range(len(leaves))]
                step = int(kept["step"])
        except (OSError, KeyError, EOFError) as error:
            raise FileError(path, f"cannot be read ({type(error).__name__}); delete it") from error
        self.say(f"going on after step {step} of {self.total}")
        adapter, mean, square = jax.tree.unflatten(shape, found)
        return _State(adapter, mean, square, step)

    def _save(self, state: _State) -> None:
        leaves = jax.tree.leaves((state.adapter, state.mean, state.square))
        arrays: dict[str, Any] = {f"a{at}": np.asarray(leaf) for at, leaf in enumerate(leaves)}
        part = self.own / ".state.part.npz"
        with part.open("wb") as file:
            np.savez(file, about=np.array(self.about), step=np.array(state.step), **arrays)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.own / "state.npz")


@jax.jit  # type: ignore[untyped-decorator,unused-ignore]
def _adam(
    p: Adapter, m: Adapter, v: Adapter, slope: Adapter, rate: float, step: int
) -> tuple[Adapter, Adapter, Adapter]:
    norm = jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(slope)))
    cut = jnp.minimum(1.0, 1.0 / (norm + 1e-9))
    m = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * g * cut, m, slope)
    v = jax.tree.map(lambda a, g: 0.99 * a + 0.01 * (g * cut) ** 2, v, slope)
    c, d = 1 - 0.9**step, 1 - 0.99**step
    p = jax.tree.map(lambda x, a, b: x - rate * (a / c) / (jnp.sqrt(b / d) + 1e-8), p, m, v)
    return p, m, v


# --------------------------------------------------------------------------- choosing


def _choose(run: _Run, dev: Sequence[Example], say: Tell) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint that decides most development lessons, the earlier of two alike."""
    scores: dict[str, Any] = {}
    best: tuple[float, float, int] | None = None
    chosen = None
    for number, path in enumerate(sorted(run.own.glob("checkpoint-*.gguf"))):
        right, decided = _decisions(run, path, dev)
        scores[path.stem] = {"right": right, "of": len(dev), "loss": round(decided, 4)}
        say(f"{path.stem}: {right} of {len(dev)} development lessons, loss {decided:.4f}")
        rank = (-right, round(decided, 4), number)
        if best is None or rank < best:
            best, chosen = rank, path
    assert chosen is not None
    return chosen, scores


def _decisions(run: _Run, path: Path, dev: Sequence[Example]) -> tuple[int, float]:
    """Count the lessons of whose last turn every call and refusal leads; take their mean loss."""
    adapter = read_adapter(path, FIRST, run.base.shape.layers)
    right, losses = 0, []
    for example in dev:
        each, leads = run.forward(adapter, run.base.arrays, example[:4])
        right += bool(np.asarray(leads)[example.decides].all())
        losses.append(float(np.asarray(each)[example.decides].mean()))
    return right, sum(losses) / len(losses)


def told_of(name: str, folder: Path) -> dict[str, Any]:
    """Return what was written beside an adapter when it was trained.

    Raises
    ------
    FileError
        If it is missing, or the adapter is another one.
    """
    path = folder / f"{name}.json"
    told: dict[str, Any] = read_json(path)
    if told.get("sha256") != file_sha256(folder / f"{name}.gguf"):
        raise FileError(path, f"does not belong to {name}.gguf: its hash is another")
    return told
