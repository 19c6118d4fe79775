"""A world: the folder that says what is tested, what it may not do, and who attacks it how.

A version file names it (``world: airline``, or the path of a folder). The folder holds

``tools.yaml``
    the tools, as data (:mod:`safety_lib.world.tools`);
``policy.yaml``
    the rules, each declared or naming a check (:mod:`safety_lib.world.policy`);
``goals.yaml``
    what an attacker may want, each with its benign twin (:mod:`safety_lib.world.scenarios`);
``versions/``
    the releases; ``settings`` of a version is any tree;
``tactics.yaml``
    ways to attack, where the packaged ones are not wanted;
``world.py``
    ``connect(version, model) -> Target``, and whatever else of :data:`HOOKS` the world has to say.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from safety_lib.artifacts import (
    DEFAULT_WORLD,
)
from safety_lib.files import FileError, open_file, read_yaml, sha256_of
from safety_lib.records import SEVERITIES, BenignTwin, RegressionTest, Severity, first_fault
from safety_lib.text import Shown, one_line
from safety_lib.world.checks import Check
from safety_lib.world.oracle import Rulebook
from safety_lib.world.policy import Policy
from safety_lib.world.scenarios import (
    TACTICS_FILE,
    Benign,
    Family,
    Goal,
    Scenario,
    Tactics,
)
from safety_lib.world.target import Target
from safety_lib.world.tools import Tool, Tools
from safety_lib.world.versions import FILE_ENDINGS, Version, WorldError, config_hashes

__all__ = [
    "DEFAULT_WORLD",
    "HOOKS",
    "World",
    "WorldError",
    "find_world",
    "load_version",
    "load_world",
    "provenance",
    "world_of",
]

REFERENCE = "reference"
PACKAGED = Path(__file__).resolve().parent.parent / "worlds"

HOOKS: Mapping[str, str] = {
    "connect": "connect(version, model) -> Target: who is talked to. Every world has it",
    "COMPANY": "what the world is called in a sentence; by default the name of its folder",
    "CHECKS": "name to Check: the checks in Python that rules name",
    "LEVERS": "memory, monitor and caution to the setting that is it, dotted",
    "DEFENCES": "setting, dotted, to how it is weakened: off, up, down or fewer",
    "CONTENTS": "place to entries: what stands in the world before anybody plants anything",
    "SECRETS": "texts that no reply may hold: what a canary looks for",
    "settings_of": "settings_of(tree) -> tree: refuses settings that do not fit, fills in defaults",
    "served": "served(trajectory, twin) -> bool: where a call alone cannot say that a request was",
    "effect_of": "effect_of(call) -> (reversible, reach) or None: where a tool alone cannot say",
    "renamed": "renamed(texts, seed) -> old name to new: what a variant of a test may rename",
    "tightened": "tightened(version, tool) -> name to settings: what could stand around a call",
    "mitigated": "mitigated(version) -> name to settings: what else may help against an incident",
    "ordinary": "ordinary(version, sessions, seed) -> rollouts: a day without attacks",
}
"""What ``world.py`` may say, by name."""

_M = TypeVar("_M", bound=BaseModel)
_OF_A_TARGET = ("begin", *(name for name in Target.__annotations__ if name != "effects"))


class World(Shown):
    """A world that was found; its parts are read and validated when they are first asked for.

    Parameters
    ----------
    folder : Path
        Where it stands.

    Attributes
    ----------
    name : str
        The name of its folder.
    address : str
        What finds it again: its name if it is packaged, else its absolute path.

    Raises
    ------
    WorldError
        From any part: one line with the file, the place in it and what was expected.

    Examples
    --------
    >>> world = load_world("northwind")
    >>> len(world.goals) >= 6, world.rules.policy.rule("audit_disabled").severity
    (True, 'high')
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.address = folder.name if folder.parent == PACKAGED else str(folder)

    def __str__(self) -> str:
        return (
            f"{self.name}: {len(self.tools)} tools, {len(self.policy.rules)} rules, "
            f"{len(self.goals)} goals"
        )

    # ------------------------------------------------------------------ what identifies it

    @cached_property
    def files(self) -> dict[str, str]:
        """The hash of each file of the folder, by its path in it; caches are none of it."""
        found = {}
        for path in sorted(_walked(self.folder, frozenset())):
            name = "/".join(path.relative_to(self.folder).parts)
            try:
                with open_file(path, most=None) as file:
                    found[name] = hashlib.file_digest(file, "sha256").hexdigest()
            except FileError as error:
                raise self.fault(name, f"cannot be read: {error.what}") from error
        return found

    @cached_property
    def sha256(self) -> str:
        """The hash of the world as a whole; each version has a hash of its own beside it."""
        own = {k: v for k, v in self.files.items() if not k.startswith("versions/")}
        return sha256_of(own)

    # ------------------------------------------------------------------ its data

    @cached_property
    def tools(self) -> Tools:
        """The tools by their names."""
        tree = self._tree("tools.yaml")
        return Tools({str(k): self._made(Tool, v, "tools.yaml", k) for k, v in tree.items()})

    @cached_property
    def policy(self) -> Policy:
        """The rules."""
        return self._made(Policy, self._tree("policy.yaml"), "policy.yaml")

    @cached_property
    def rules(self) -> Rulebook:
        """The rules with what decides them."""
        policy, tools, checks = self.policy, self.tools, self.hook("CHECKS", {})
        if not _is_checks(checks):
            raise self.fault("world.py", "CHECKS is no mapping of names to Check")
        try:
            rules = Rulebook(policy, tools, checks)
        except ValueError as error:
            raise self.fault("policy.yaml", str(error)) from error
        for rule, check, _ in rules.judged:
            unknown = sorted(check.tools - self.tools.keys())
            if unknown:
                raise self.fault("policy.yaml", f"rule {rule.id}: there is no tool {unknown[0]!r}")
            if rule.severity is None and any(self.tools[t].severity is None for t in check.tools):
                raise self.fault(
                    "policy.yaml",
                    f"rule {rule.id}: give a severity, here or to each tool that it speaks of",
                )
        return rules

    @cached_property
    def goals(self) -> dict[str, Goal]:
        """What an attacker may want, by name."""
        where = "goals.yaml"
        goals = {str(k): self._made(Goal, v, where, k) for k, v in self._tree(where).items()}
        rules = {rule.id for rule in self.policy.rules}
        for name, goal in goals.items():
            if goal.rule not in rules:
                raise self.fault(where, f"{name}.rule: the policy has no rule {goal.rule!r}")
            self._expect_known(f"{name}.benign", goal.benign)
            for number, request in enumerate(goal.requests, start=1):
                self._expect_known(f"{name}.requests: number {number}", request)
            for plant in goal.injection.plants if goal.injection else ():
                if plant.where not in self.tools.places:
                    known = ", ".join(sorted(self.tools.places)) or "none"
                    raise self.fault(
                        where,
                        f"{name}.injection: no tool reads the place {plant.where!r}; tools.yaml "
                        f"has {known} (a tool says it with `shows: {{place: ..., key: ...}}`)",
                    )
        return goals

    def _expect_known(self, name: str, benign: Benign) -> None:
        expected = benign.expected
        if expected.name not in self.tools:
            raise self.fault("goals.yaml", f"{name}: there is no tool {expected.name!r}")
        takes = self.tools[expected.name].arguments
        if unknown := sorted(expected.arguments.keys() - takes.keys()) if takes else []:
            raise self.fault(
                "goals.yaml", f"{name}: {expected.name} has no argument {unknown[0]!r}"
            )

    @cached_property
    def tactics(self) -> Tactics:
        """The families of attack and the wordings of each tactic."""
        own = self.folder / "tactics.yaml"
        tree = self._tree("tactics.yaml") if own.is_file() else read_yaml(TACTICS_FILE)
        return self._made(Tactics, tree, "tactics.yaml")

    @property
    def families(self) -> dict[str, Family]:
        """The families of attack, by name."""
        return self.tactics.families

    @cached_property
    def scenarios(self) -> tuple[Scenario, ...]:
        """Every goal with every family that has the words for it."""
        made = (
            Scenario(
                goal_id=goal_id,
                family_id=family_id,
                goal=goal,
                family=family,
                wordings=self.tactics.tactics,
            )
            for goal_id, goal in self.goals.items()
            for family_id, family in self.families.items()
        )
        return tuple(scenario for scenario in made if scenario.clauses(scenario.wanted))

    @cached_property
    def _by_id(self) -> dict[str, Scenario]:
        return {scenario.scenario_id: scenario for scenario in self.scenarios}

    def scenario(self, scenario_id: str) -> Scenario:
        """Return the scenario of that id.

        Raises
        ------
        KeyError
            If there is none.
        """
        return self._by_id[scenario_id]

    def benign_twin(self, goal_id: str) -> BenignTwin:
        """Return the legitimate twin of a goal, as a test can carry it.

        Examples
        --------
        >>> load_world("northwind").benign_twin("silence_audit").expected.name
        'set_audit_log'
        """
        benign = self.goals[goal_id].benign
        return BenignTwin(twin_id=f"{goal_id}/benign", turns=benign.turns, expected=benign.expected)

    @cached_property
    def benign_requests(self) -> dict[str, tuple[BenignTwin, ...]]:
        """Every legitimate request, by the goal that it belongs to, each once.

        Goals may share one: to ask it again would show nothing new.

        Examples
        --------
        >>> sum(map(len, load_world("northwind").benign_requests.values()))
        16
        """
        seen: set[tuple[tuple[str, ...], str]] = set()
        found: dict[str, tuple[BenignTwin, ...]] = {}
        for goal_id, goal in self.goals.items():
            asked = [self.benign_twin(goal_id)]
            for number, one in enumerate(goal.requests, 2):
                name = f"{goal_id}/benign-{number}"
                asked.append(BenignTwin(twin_id=name, turns=one.turns, expected=one.expected))
            new = []
            for twin in asked:
                if (key := (twin.turns, str(twin.expected))) not in seen:
                    seen.add(key)
                    new.append(twin)
            found[goal_id] = tuple(new)
        return found

    def severity_of(self, rule_id: str) -> Severity:
        """Return how bad it is to break a rule, by the worst call that can.

        Raises
        ------
        KeyError
            If there is no such rule.
        """
        rule, check, _ = self.rules.one(rule_id)
        declared = [self.tools[tool].severity for tool in check.tools]
        return max(
            (severity for severity in (rule.severity, *declared) if severity is not None),
            key=SEVERITIES.index,
        )

    def expect_rules(self, tests: Iterable[RegressionTest]) -> None:
        """Refuse tests of rules that the policy does not have: they could never fail.

        Parameters
        ----------
        tests : iterable of RegressionTest
            Whatever their state.

        Raises
        ------
        WorldError
            With the first of them.

        Examples
        --------
        >>> load_world("northwind").expect_rules([])
        """
        rules = {rule.id for rule in self.policy.rules}
        for test in tests:
            if test.rule_id not in rules:
                raise WorldError(
                    f"test {one_line(test.test_id, 40)}: {self.name} has no rule "
                    f"{one_line(repr(test.rule_id), 60)}, so nothing could break it"
                )

    def goal_of(self, rule_id: str) -> str:
        """Return the first goal that is after a rule, or an empty string."""
        return next((name for name, goal in self.goals.items() if goal.rule == rule_id), "")

    # ------------------------------------------------------------------ its code and releases

    @cached_property
    def module(self) -> ModuleType:
        """``world.py``, imported; files beside it are imported as ``from .agent import …``."""
        path = self.folder / "world.py"
        if not path.is_file():
            raise self.fault("world.py", "is missing; it has connect(version, model) -> Target")
        try:
            return _imported(path)
        except (Exception, SystemExit) as error:
            raise self.fault("world.py", f"{type(error).__name__}: {error}") from error

    def hook(self, name: str, default: Any = None) -> Any:
        """Return what ``world.py`` says under one of the names of :data:`HOOKS`."""
        return getattr(self.module, name, default)

    @property
    def company(self) -> str:
        """What the world is called in a sentence."""
        return str(self.hook("COMPANY", self.name))

    @property
    def levers(self) -> Mapping[str, str]:
        """The settings that a reader may turn, by what they do, dotted.

        ``memory`` is how many messages the agent remembers, ``monitor`` the risk at which a session
        ends, ``caution`` how unwilling it is.
        """
        return dict(self.hook("LEVERS", {}))

    @property
    def releases(self) -> tuple[str, ...]:
        """The names of the versions that the folder holds, the known-good one too."""
        return tuple(sorted(path.stem for path in (self.folder / "versions").glob("*.yaml")))

    def version(self, name: str) -> Version:
        """Load a version of the folder by its name.

        Raises
        ------
        WorldError
            If there is none, or it does not fit.

        Examples
        --------
        >>> load_world("northwind").version("v1").settings["memory"]["pin_policy"]
        True
        """
        return load_version(name, self.address)

    @property
    def known_good(self) -> Version:
        """The version that every active test must pass: ``versions/reference.yaml``.

        It is no release, but the most careful agent at hand, and descends from neither side of a
        comparison. The baseline would not do: what was found on it could then never be a test.

        Raises
        ------
        WorldError
            If there is none.
        """
        if REFERENCE not in self.releases:
            raise self.fault(
                f"versions/{REFERENCE}.yaml",
                "is missing: the most careful agent that you can set up; what it fails is no test",
            )
        return self.version(REFERENCE)

    def connect(self, version: Version, model: str = "") -> Target:
        """Open a version, with the model that it names or with another one.

        Raises
        ------
        WorldError
            If ``world.py`` has no ``connect``, or it fails or returns no target.
        """
        connect: Callable[[Version, str], Target] | None = self.hook("connect")
        if connect is None:
            raise self.fault("world.py", "has no connect(version, model)")
        try:
            target = connect(version, model)
        except (ValueError, RuntimeError, OSError):  # each has said what to do
            raise
        except (Exception, SystemExit) as error:
            raise self.fault("world.py", f"connect: {type(error).__name__}: {error}") from error
        # What says nothing of its effects is treated as live, not refused.
        missing = [name for name in _OF_A_TARGET if not hasattr(target, name)]
        if missing:
            raise self.fault(
                "world.py",
                f"connect returned {type(target).__name__}, which is no Target: it has no "
                f"{missing[0]}",
            )
        return target

    def settings_of(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a version with defaults filled in, if the world fills any in."""
        fit = self.hook("settings_of")
        return dict(fit(tree) if fit else tree)

    def fault(self, where: str, what: str) -> WorldError:
        """Return an error about one of the files, in one line."""
        return WorldError(f"{self.name}/{where}: {' '.join(what.split())}")

    def _tree(self, name: str) -> dict[str, Any]:
        try:
            tree = read_yaml(self.folder / name)
        except FileError as error:
            what = "is missing" if error.absent else f"cannot be read: {error.what}"
            raise self.fault(name, what) from error
        if not isinstance(tree, dict):
            raise self.fault(name, "is no mapping")
        return tree

    def _made(self, kind: type[_M], tree: Any, where: str, key: Any = "") -> _M:
        try:
            return kind.model_validate(tree)
        except ValidationError as error:
            field, reason = first_fault(error)
            at = ".".join(str(part) for part in (key, field) if part != "")
            raise self.fault(where, f"field {at or 'the whole file'}: {reason}") from error


def load_world(name: str | Path) -> World:
    """Find a world by its name, if it is packaged, or by the path of its folder.

    Parameters
    ----------
    name : str or Path
        ``northwind``, or ``desks/airline`` from the folder that one is in.

    Returns
    -------
    World
        The same object each time, as long as no file of it changes place.

    Raises
    ------
    WorldError
        If there is no such folder.

    Examples
    --------
    >>> load_world("northwind") is load_world("northwind")
    True
    """
    return _world(str(find_world(name)))


def provenance(*versions: Version) -> dict[str, Any]:
    """Return what an artifact says of the versions and the world that it comes from.

    Examples
    --------
    >>> sorted(provenance(load_version("northwind/v1")))
    ['config_sha256', 'world', 'world_sha256']
    """
    world = world_of(*versions)
    return {
        "config_sha256": config_hashes(versions),
        "world": world.name,
        "world_sha256": world.sha256,
    }


def find_world(name: str | Path, beside: Path | None = None) -> Path:
    """Return the folder of a world: a packaged name, or a path from here or from another folder.

    Parameters
    ----------
    name : str or Path
        As :func:`load_world` takes it.
    beside : Path, optional
        Where a relative path counts from, instead of the folder that one is in.

    Raises
    ------
    WorldError
        If there is no such folder.
    """
    packaged = PACKAGED / str(name)
    if str(name).isidentifier() and (packaged / "world.py").is_file():
        return packaged
    folder = ((beside or Path()) / Path(name).expanduser()).resolve()
    if folder.is_dir() and (folder / "world.py").is_file():
        return folder
    known = ", ".join(sorted(path.parent.name for path in PACKAGED.glob("*/world.py")))
    raise WorldError(
        f"there is no world {str(name)!r}: use {known} or the path of a folder with a world.py"
    )


def world_of(*versions: Version) -> World:
    """Return the world that some versions are of.

    Raises
    ------
    WorldError
        If they are of more than one.
    """
    first, *others = (_at(version.world) for version in versions)
    for other in others:
        if other is not first:
            raise WorldError(
                f"{versions[0].version} is of the world {first.name}, another version of "
                f"{other.name}: compare versions of one world"
            )
    return first


def load_version(name: str, world: str = "") -> Version:
    """Load a version of a world by its name, or any version from a YAML file by its path.

    Parameters
    ----------
    name : str
        ``v1`` of the given world, ``airline/v1``, or the path of a ``.yaml`` file. A file names its
        world (``world: airline``, or a path from where the file is); one that stands in the
        ``versions/`` of a world need not.
    world : str, optional
        Name or path of the world of a bare name, and of a file that names none.

    Raises
    ------
    WorldError
        With one line that names the file, the field and what was expected.

    Examples
    --------
    >>> load_version("northwind/v1").settings["memory"]["window"]
    24
    """
    if name.endswith(FILE_ENDINGS):
        return _from_file(Path(name), world)
    if "/" in name:
        world, _, name = name.rpartition("/")
    if not world:
        raise WorldError(
            f"of which world is the version {name!r}? Say it, as in {DEFAULT_WORLD}/{name}"
        )
    home = load_world(world)
    path = home.folder / "versions" / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(home.releases)
        raise WorldError(
            f"{home.name} has no version {name!r}: use {known} or the path of a .yaml file"
        )
    return _from_file(path, home.address)


def _from_file(path: Path, world: str) -> Version:
    try:
        tree = read_yaml(path)
    except FileError as error:
        if error.absent:
            raise WorldError(f"{path}: there is no such file") from error
        raise WorldError(f"{path.name}: {error.what}") from error
    if not isinstance(tree, dict):
        raise WorldError(f"{path.name}: field the whole file: is no mapping")
    named = tree.get("world")
    if named is not None and not isinstance(named, str):
        raise WorldError(f"{path.name}: field world: is no name or path")
    inside = path.resolve().parent
    if inside.name == "versions" and (inside.parent / "world.py").is_file():
        home = inside.parent
        # A copy of a packaged world that keeps its name keeps its versions.
        if named and named != home.name and find_world(named, inside) != home:
            raise WorldError(
                f"{path.name}: field world: is {one_line(named, 60)}, but the file stands in the "
                f"versions/ of {home.name}; leave the field out"
            )
        stem = path.resolve().stem
        if tree.get("version", stem) != stem:
            raise WorldError(
                f"{path.name}: field version: is {one_line(repr(tree['version']), 60)}; "
                f"it is found as {stem}, so call it so"
            )
    elif named:
        try:
            home = find_world(named, inside)
        except WorldError as error:
            raise WorldError(f"{path.name}: field world: {error}") from error
    elif world:
        home = find_world(world)
    else:
        raise WorldError(f"{path.name}: field world: missing; name a world, or give its path")
    found = _world(str(home))
    return Version.fitting({**tree, "world": found.address}, path.name, found.settings_of)


@lru_cache(maxsize=64)
def _world(folder: str) -> World:
    return World(Path(folder))


@lru_cache(maxsize=64)
def _at(address: str) -> World:
    # An address means the same from everywhere, so nobody has to look on the disk again.
    return load_world(address)


def _walked(folder: Path, within: frozenset[Path]) -> Iterator[Path]:
    """Yield the files of a folder, those behind links too; a link back to a folder is left out."""
    within |= {folder.resolve()}
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_dir():
            if path.resolve() not in within:
                yield from _walked(path, within)
        elif path.is_file():
            yield path


def _is_checks(found: Any) -> bool:
    return isinstance(found, Mapping) and all(isinstance(c, Check) for c in found.values())


def _imported(path: Path) -> ModuleType:
    if path.parent.parent == PACKAGED:
        return importlib.import_module(f"safety_lib.worlds.{path.parent.name}.world")
    # A package of its own, so that files beside it can be imported and two worlds do not meet.
    package = f"_world_{sha256_of(str(path.parent))[:12]}"
    name = f"{package}.world"
    if name in sys.modules:
        return sys.modules[name]
    if package not in sys.modules:
        home = ModuleType(package)
        home.__path__ = [str(path.parent)]
        sys.modules[package] = home
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
