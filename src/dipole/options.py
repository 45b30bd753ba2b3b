"""Options from the command line and from YAML files: one dataclass describes them, and both spellings fill it.

jsonargparse turns text into typed values and prints configurations. What it says of a mistake is meant for developers,
so names are checked here first, with the nearest known one at hand, and the rest of its messages is put into words.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ArgumentParser

from dipole.errors import ConfigError, nearest

T = TypeVar("T")
Hints = Mapping[str, Any]
"""The type of every option, by its dotted name."""

_BUILT_IN = ("help", "config", "print_config")
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp")}
_LONG_HINT = 120
MOST_BYTES = 2**20
"""Of a file of options; reading YAML takes a minute for what JSON takes a second for."""


def parse(kind: type[T], argv: Sequence[str], *, prog: str, example: str, positional: Sequence[str] = ()) -> T:
    """Options of a verb from its command line.

    Flags win over files, wherever they stand; a later file wins over an earlier one.

    Args:
        kind: a dataclass; the docstrings under its fields are the help. A field that is itself a dataclass gives dotted
            names, such as ``--loss.beta``. No two fields of one dataclass share a name with a nested one.
        argv: what comes after the verb.
        prog: how the verb is called, such as ``"dipole train"``.
        example: a command, for the help.
        positional: fields that are given without their name.

    Raises:
        ConfigError: an option is unknown, missing, twice in a file, or of the wrong type.
        SystemExit: after ``--help`` or ``--print_config`` was printed.
    """
    parser = _parser(kind, prog, example, positional)
    hints = option_types(kind)
    files, flags = _split_config(argv)
    _check_flags(flags, hints, prog)
    places: dict[str, str] = {}
    for file in files:
        places |= _check_file(Path(file), hints, prog)
    given = {_flag_name(flag) for flag in flags}
    try:
        values = parser.parse_args([*(f"--config={file}" for file in files), *flags]).as_dict()
    except argparse.ArgumentError as fault:
        elsewhere = {name: place for name, place in places.items() if name not in given}
        raise _in_plain_words(str(fault), hints, elsewhere, positional, prog) from fault
    return _build(kind, values)


def _parser(kind: type[Any], prog: str, example: str, positional: Sequence[str]) -> ArgumentParser:
    required = [item.name for item in fields(kind) if item.default is item.default_factory is MISSING]
    usage = [name.upper() if name in positional else f"--{name} {name.upper()}" for name in required]
    parser = ArgumentParser(
        prog=prog,
        usage=" ".join([prog, *usage, "[OPTIONS]"]),
        description=_first_line(kind),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", metavar="FILE", help="A YAML file of options; flags override it.")
    _add_options(parser.add_argument_group("arguments"), parser.add_argument_group, kind, "", positional)
    return parser


def _add_options(
    group: Any, new_group: Callable[..., Any], kind: type[Any], prefix: str, positional: Sequence[str]
) -> None:
    """Adds a dataclass's fields to a group of the help; nested dataclasses get a group of their own, after it."""
    hints, docs = get_type_hints(kind), _field_docs(kind)
    for item in fields(kind):
        if not _is_part(hints[item.name]):
            name = item.name if item.name in positional else f"--{prefix}{item.name}"
            settings = _argument(item, hints[item.name], docs[item.name])
            if item.name not in positional:  # argparse takes a positional for required by itself
                settings["required"] = item.default is MISSING
            group.add_argument(name, **settings)
    for item in fields(kind):
        nested = hints[item.name]
        if _is_part(nested):
            part = new_group(item.name, _first_line(nested))
            _add_options(part, new_group, nested, f"{prefix}{item.name}.", positional)


def _argument(item: Field[Any], hint: Any, doc: str) -> dict[str, Any]:
    """What ``add_argument`` takes for a field."""
    settings: dict[str, Any] = {"type": hint}
    if item.default is MISSING:
        doc += " (required)"
    else:
        settings["default"] = item.default
        doc += f" (default: {str(item.default).lower()})" if item.default is not None else ""
    if hint is bool:  # a plain flag, which may also be told true or false
        settings |= {"nargs": "?", "const": True}
    if get_origin(hint) is not Literal:
        settings["metavar"] = item.name.upper() if hint is not bool else "true|false"
    return settings | {"help": doc.replace("``", "").replace("%", "%%")}


def _first_line(kind: type[Any]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0].replace("``", "")


def _is_part(hint: Any) -> TypeGuard[type[Any]]:
    return is_dataclass(hint)


def _field_docs(kind: type[Any]) -> dict[str, str]:
    """The docstring under each field, those of the classes that it inherits from first."""
    docs: dict[str, str] = {}
    for part in reversed([part for part in kind.__mro__ if is_dataclass(part)]):
        parsed = docstring_parser.parse_from_object(part)
        docs |= {item.arg_name: " ".join((item.description or "").split()) for item in parsed.params}
    return docs


def option_types(kind: type[Any], prefix: str = "") -> Hints:
    """The type of every option of a dataclass and those nested in it, by its dotted name."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        found |= option_types(hint, f"{prefix}{name}.") if _is_part(hint) else {prefix + name: hint}
    return found


def _build(kind: type[T], values: Mapping[str, Any]) -> T:
    hints = get_type_hints(kind)
    parts = {item.name: (hints[item.name], values[item.name]) for item in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: _build(hint, value) if _is_part(hint) else value for name, (hint, value) in parts.items()})


def _split_config(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files named by ``--config``, and everything else."""
    files, rest = [], []
    tokens = iter(argv)
    for token in tokens:
        if token == "--config":
            files.append(next(tokens, ""))
        elif token.startswith("--config="):
            files.append(token.partition("=")[2])
        else:
            rest.append(token)
    if "" in files:
        raise ConfigError("a file is missing", where="--config")
    return files, rest


def _flag_name(token: str) -> str:
    return token.partition("=")[0].removeprefix("--") if token.startswith("--") else ""


def _check_flags(tokens: Sequence[str], hints: Hints, prog: str) -> None:
    """Every token that begins with two dashes has to be a known flag: argparse takes no value that does."""
    for token in tokens:
        name = _flag_name(token)
        if name and name not in hints and name not in _BUILT_IN:
            raise ConfigError(f"there is no option --{name}", remedy=_nearest(name, hints, prog))


def _nearest(name: str, hints: Hints, prog: str) -> str:
    hint = nearest(name, hints)
    return hint if len(hint) < _LONG_HINT else f"'{prog} --help' lists all"  # a list of forty names helps nobody


class _StrictLoader(yaml.SafeLoader):
    """No aliases: a few of them can stand for gigabytes, and options have no use for them."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None,
                None,
                "aliases (*name) aren't taken; write the value out",
                self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        return super().compose_node(parent, index)


def _check_file(path: Path, hints: Hints, prog: str) -> dict[str, str]:
    """Reads a YAML file of options without making values of it.

    Returns:
        The place of every option in it, such as ``{"loss.beta": "a.yaml:3"}``.

    Raises:
        ConfigError: it can't be read, or an option is unknown, given twice, or no plain value.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError("is too large to be a file of options", where=f"--config {path}")
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except yaml.MarkedYAMLError as fault:
        line = f":{fault.problem_mark.line + 1}" if fault.problem_mark else ""
        raise ConfigError(f"isn't YAML that Dipole reads: {fault.problem}", where=f"{path}{line}") from fault
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as fault:
        reason = str(fault).splitlines()[0]
        raise ConfigError(f"isn't YAML that Dipole reads: {reason}", where=str(path)) from fault
    except OSError as fault:
        raise ConfigError(f"can't be read: {fault.strerror}", where=f"--config {path}") from fault
    places: dict[str, str] = {}
    for name, place in _options_in(node, "", path, hints, prog):
        if name in places:
            raise ConfigError(f"'{name}' is given twice, first in {places[name]}", where=place)
        places[name] = place
    return places


def _options_in(node: yaml.Node | None, prefix: str, path: Path, hints: Hints, prog: str) -> Iterator[tuple[str, str]]:
    """Every option's dotted name, with the place of its value."""
    if not isinstance(node, yaml.MappingNode):
        where = f"{path}:{node.start_mark.line + 1}" if node else str(path)
        within = f"'{prefix.rstrip('.')}' has" if prefix else "the file has"
        example = next(name for name in hints if name.startswith(prefix)).removeprefix(prefix)
        raise ConfigError(f"{within} to hold options", where=where, remedy=f"Write them as '{example}: VALUE'")
    for key, value in node.value:
        word = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
        name, place = f"{prefix}{word}", f"{path}:{key.start_mark.line + 1}"
        if name in hints:
            if not isinstance(value, yaml.ScalarNode) or value.tag not in _PLAIN_TAGS:
                raise ConfigError(f"'{name}' takes one plain value", where=place)
            yield name, place
        elif any(known.startswith(f"{name}.") for known in hints):
            yield from _options_in(value, f"{name}.", path, hints, prog)
        else:
            raise ConfigError(f"there is no option '{name}'", where=place, remedy=_nearest(name, hints, prog))


def _in_plain_words(
    message: str, hints: Hints, places: Mapping[str, str], positional: Sequence[str], prog: str
) -> ConfigError:
    """The fault behind a message of jsonargparse."""
    if missing := re.fullmatch(r"the following arguments are required: (.+)", message):
        names = [name.upper() if name in positional else f"--{name}" for name in missing[1].split(", ")]
        verb = "is" if len(names) == 1 else "are"
        return ConfigError(f"{' and '.join(names)} {verb} missing", remedy=f"'{prog} --help' has an example")
    if without := re.fullmatch(r"argument (\S+): expected one argument", message):
        return ConfigError("a value is missing", where=without[1])
    if surplus := re.fullmatch(r"unrecognized arguments: (.+)", message):
        return ConfigError(f"'{surplus[1]}' belongs to no option", remedy="Options are written '--name value'")
    name = re.search(r'Parser key "([^"]+)"', message)
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    if name and value and name[1] in hints:
        option = name[1]
        where = places.get(option) or (option.upper() if option in positional else f"--{option}")
        subject = f"'{option}' " if option in places else ""
        return ConfigError(f"{subject}has to be {_wanted(hints[option])}, not '{value[1]}'", where=where)
    return ConfigError(" ".join(message.split()))


def _wanted(hint: Any) -> str:
    for part in (hint, *get_args(hint)):  # a choice that may be left out is a union with None
        if get_origin(part) is Literal:
            return "one of " + ", ".join(map(str, get_args(part)))
    if get_origin(hint) is tuple:
        return """a list, as '["one", "two"]'"""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return next(words for kind, words in names.items() if kind is hint or kind in get_args(hint))
