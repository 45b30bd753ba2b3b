"""Principles that answers are judged and revised by, from a YAML file (after Bai et al. 2022, arXiv 2212.08073).

    name: general
    principles:
      - name: honest
        weight: 2
        compare: Prefer the answer that claims nothing false and says how sure it is.
        critique: Say what in the answer is false, or claimed with more certainty than it deserves.
        revise: Rewrite the answer so that it claims only what is true, and says how sure it is.

``compare`` is needed; ``weight`` is 1 unless given; ``critique`` and ``revise`` are made from ``compare`` where they
are left out. The hash is of the principles alone, so that renaming or reformatting a file changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from dipole.errors import ConfigError, nearest
from dipole.feedback.cache import content_key

SHIPPED = ("general", "film_reviews")
"""Those that come with Dipole, in ``assets/constitutions``."""

MAX_CHARACTERS = 200_000
_KEYS = ("name", "weight", "compare", "critique", "revise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Principle:
    """One thing that makes an answer better.

    Args:
        name: short, unique in its constitution.
        compare: says which of two answers to prefer.
        weight: above 0.
        critique: asks what is wrong with an answer.
        revise: asks for a better one.
    """

    name: str
    compare: str
    weight: float = 1.0
    critique: str = ""
    revise: str = ""

    @property
    def asked_critique(self) -> str:
        """What to ask where ``critique`` was left out."""
        return self.critique or f"Say where the answer falls short of this principle: {self.compare}"

    @property
    def asked_revision(self) -> str:
        """What to ask where ``revise`` was left out."""
        return self.revise or f"Rewrite the answer so that it is better by this principle: {self.compare}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constitution:
    """Principles with weights.

    Args:
        name: of the constitution.
        principles: at least one.
    """

    name: str
    principles: tuple[Principle, ...]

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that any change of a principle changes."""
        return content_key({"principles": [[getattr(item, key) for key in _KEYS] for item in self.principles]})[:12]


def load_constitution(name: str | Path) -> Constitution:
    """A constitution of a YAML file, or one that comes with Dipole by its name.

    Raises:
        ConfigError: there is none, or it isn't in the form above; with the line where that can be told.
    """
    if str(name) in SHIPPED:
        text = files("dipole").joinpath(f"assets/constitutions/{name}.yaml").read_text(encoding="utf-8")
        return parse_constitution(text, str(name))
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(
            f"the constitution can't be read ({getattr(fault, 'strerror', None) or fault})",
            where=str(name),
            remedy=f"Name a YAML file, or one of {', '.join(SHIPPED)}",
        ) from fault
    return parse_constitution(text, str(name))


def parse_constitution(text: str, where: str) -> Constitution:
    """The constitution that a YAML text holds.

    Raises:
        ConfigError: it isn't in the form above.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"is longer than {MAX_CHARACTERS:,} characters", where=where)
    values = _read_yaml(text, where)
    _check_keys(values, ("name", "principles"), where)
    items = values.get("principles")
    if not isinstance(items, list) or not items:
        raise ConfigError("'principles' has to be a list of at least one", where=where)
    principles = tuple(_principle(item, f"{where}: principle {number}") for number, item in enumerate(items, start=1))
    names = [principle.name for principle in principles]
    if len(set(names)) < len(names):
        raise ConfigError("two principles have the same name", where=where)
    name = values.get("name", Path(where).stem)
    if not isinstance(name, str) or not name.strip():
        raise ConfigError("'name' has to be text", where=where)
    return Constitution(name=name.strip(), principles=principles)


def _principle(values: Any, where: str) -> Principle:
    _check_keys(values, _KEYS, where)
    words = {key: values.get(key, "") for key in ("name", "compare", "critique", "revise")}
    for key, value in words.items():
        if not isinstance(value, str) or (key in ("name", "compare") and not value.strip()):
            raise ConfigError(f"'{key}' has to be text", where=where)
    weight = values.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not (0 < weight < math.inf):
        raise ConfigError(f"'weight' has to be a number above 0, not {weight!r}", where=where)
    return Principle(weight=float(weight), **{key: value.strip() for key, value in words.items()})


def _check_keys(values: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(values, dict):
        raise ConfigError("has to be a mapping", where=where, remedy=f"Its keys are {', '.join(known)}")
    for key in values:
        if key not in known:
            raise ConfigError(f"there is no key '{key}'", where=where, remedy=nearest(str(key), known))


class _Loader(yaml.SafeLoader):
    """Neither aliases, a few of which can stand for gigabytes, nor a key twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise self._refused("aliases (*name) aren't taken", self.peek_event())  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        words = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for position, (key, _) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and key.value in words[:position]:
                raise self._refused(f"the key '{key.value}' is there twice", key)
        return super().construct_mapping(node, deep=deep)

    def _refused(self, problem: str, place: Any) -> yaml.MarkedYAMLError:
        return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def _read_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader that takes less
    except yaml.MarkedYAMLError as fault:
        line = f":{fault.problem_mark.line + 1}" if fault.problem_mark else ""
        raise ConfigError(f"isn't YAML that Dipole reads: {fault.problem}", where=f"{where}{line}") from fault
    except (yaml.YAMLError, RecursionError, ValueError) as fault:
        raise ConfigError(f"isn't YAML that Dipole reads: {str(fault).splitlines()[0]}", where=where) from fault
