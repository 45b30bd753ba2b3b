"""The command line: parses, dispatches, and turns faults into exit statuses. It decides nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dipole import __version__
from dipole.errors import ConfigError, DipoleError, nearest
from dipole.verbs import VERBS, verb

EXIT_STATUSES = (
    "0 done · 1 the machine refused · 2 usage · 3 data · 4 training, or not better · 5 judge or budget"
    " · 130, 143 stopped"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    A person's mistake, or a machine that refuses, is one line on the standard error stream. Anything else is a bug and
    keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character is no reason to fail
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except DipoleError as fault:
        return _failed(str(fault), fault.exit_status)
    except KeyboardInterrupt:
        return _failed("stopped", 130)
    except BrokenPipeError:  # whoever read the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush would complain
        return 0
    except OSError as fault:
        if fault.filename is None:
            raise
        return _failed(f"{fault.filename}: {fault.strerror}", 1)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"dipole {__version__}")
        return 0
    from dipole.options import parse

    name, rest = _split_verb(argv)
    found = verb(name)
    try:
        options = parse(found.options, rest, prog=f"dipole {name}", example=found.example, positional=found.positional)
    except SystemExit:  # --help or --print_config has been printed
        return 0
    return found.run(options)


def _split_verb(argv: list[str]) -> tuple[str, list[str]]:
    """The verb, which may be of two words such as ``evaluate winrate``, and what comes after it.

    Raises:
        ConfigError: there is no such verb.
    """
    for count in (2, 1):
        if (name := " ".join(argv[:count])) in VERBS:
            return name, argv[count:]
    word = argv[0]
    if second := [name.removeprefix(f"{word} ") for name in VERBS if name.startswith(f"{word} ")]:
        listed = ", ".join(second)
        raise ConfigError(f"'{word}' needs to know what", remedy=f"One of {listed}: 'dipole {word} {second[0]} --help'")
    raise ConfigError(f"there is no verb '{word}'", remedy=nearest(word, VERBS))


def _failed(problem: str, status: int) -> int:
    from dipole.terminal import show_error

    show_error(problem)
    return status


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb(name).summary}" for name in VERBS)
    return (
        "Dipole: preference optimization for language models.\n\n"
        "usage: dipole VERB [OPTIONS]\n\n"
        f"{verbs}\n\n"
        "'dipole VERB --help' explains each with its defaults and an example.\n"
        f"Exit status: {EXIT_STATUSES}.\n"
    )
