"""The command line: parses, dispatches, prints, and turns faults into exit statuses. It decides nothing else.

Whatever a verb needs is imported inside of it, so that ``dipole --help`` needs neither torch nor numpy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dipole import __version__
from dipole.config import TrainConfig
from dipole.errors import ConfigError, DataError, DipoleError, TrainingFault, nearest
from dipole.progress import is_first_process

EXIT_STATUSES = "0 done · 1 the machine refused · 2 usage · 3 data · 4 training, or not better · 130, 143 stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Makes a small real model write better film reviews, from real judgments, in minutes and without a GPU."""

    output: str = "runs/demo"
    """The run folder to write."""
    model: str | None = None
    """A local folder or a hub id; SmolLM2-135M-Instruct by default, which is fetched once (100 MB)."""
    seed: int = 0
    """Of the data's split and order, the adapter's first weights, and the samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """Checks preferences: errors that stop training, and findings that should worry."""

    data: str
    """A file of preferences in any dialect, a folder of such files, or a hub dataset."""
    eval_data: str | None = None
    """Held-out preferences, checked for prompts and answers that are also trained on, and for what reaches them."""
    allow_shared_prompts: bool = False
    """Training and held-out data may share prompts."""
    depth: Literal["errors", "cheap", "full"] = "full"
    """``errors`` alone; ``cheap`` adds what training looks at by itself; ``full`` everything."""
    model: str | None = None
    """A local folder or a hub id: tries its tokenizer and chat template on the data."""
    max_length: int | None = None
    """Most tokens of a prompt with one answer, with a model; by default what training takes."""
    prompt_format: Literal["as_is", "chat"] = "as_is"
    """``chat`` makes a plain prompt a user's message, with a model."""
    model_pairs: int = 64
    """How many pairs the model is asked about for the likelihood of their answers; 0 loads no weights."""
    embeddings: str | None = None
    """A local folder of a sentence-embedding model, for topics and reach; without it TF-IDF tells them."""
    output: str | None = None
    """A folder for audit.json and audit.html."""
    fix: str | None = None
    """A file to write without the errors (.jsonl or .jsonl.gz), beside it FILE.changes.jsonl; never the data itself."""
    eval_share: float | None = None
    """With --fix, the share of prompts to hold out where a group has no split: near-duplicates together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Reads preferences in any dialect and writes one."""

    data: str
    """A file of preferences in any dialect, a folder of such files, or a hub dataset."""
    to: Literal["groups", "pairs", "unpaired"]
    """``groups`` keeps everything; ``pairs`` is prompt, chosen, rejected; ``unpaired`` is prompt, completion, label."""
    output: str
    """The file to write, .jsonl or .jsonl.gz."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """Writes report.html of a run, from the files in its folder."""

    run: str
    """The run folder."""


def demo(options: DemoOptions) -> int:
    """The main job; status 4 when the model isn't better."""
    from dipole import terminal

    with terminal.progress() as progress:
        if is_first_process():
            progress.stage("Starting")
        from dipole.demo import run_demo

        result = run_demo(Path(options.output), model=options.model, seed=options.seed, progress=progress)
    terminal.show_measures(result.measures)
    terminal.show("The model is better." if result.better else "The model isn't better, by these intervals.")
    terminal.show(f"Report: {result.report}")
    return 0 if result.better else TrainingFault.exit_status


def train(config: TrainConfig) -> int:
    """A training run and its report."""
    from dipole import terminal

    with terminal.progress() as progress:
        if is_first_process():
            progress.stage("Starting")
        from dipole.api import run_training
        from dipole.evaluate.headline import lead
        from dipole.evaluate.run_folder import read_run_folder

        folder = run_training(config, progress)
    if not is_first_process():
        return 0
    run = read_run_folder(folder)
    what, *outcome = lead(run)
    terminal.show(what)
    if run.measures:
        terminal.show_measures(run.measures)
    for sentence in outcome:
        terminal.show(sentence)
    terminal.show(f"Model: {folder / 'final'}")
    terminal.show(f"Report: {folder / 'report.html'}")
    return 0


def audit(options: AuditOptions) -> int:
    """Prints what was found; status 3 when there are errors."""
    from dipole import api, terminal
    from dipole.auditing import fix_data

    if options.eval_share is not None and options.fix is None:
        raise ConfigError("a file is needed to write splits to", where="--eval_share", remedy="Give --fix FILE")
    _refuse_without_model(options)
    with terminal.progress() as progress:
        report = api.audit(
            options.data,
            eval_data=options.eval_data,
            allow_shared_prompts=options.allow_shared_prompts,
            depth=options.depth,
            model=options.model,
            max_length=options.max_length,
            prompt_format=options.prompt_format,
            model_pairs=options.model_pairs,
            embeddings=options.embeddings,
            progress=progress,
        )
    terminal.show_audit(report)
    if options.output is not None:
        for file in api.write_audit(report, Path(options.output), name=Path(options.data).name):
            terminal.show(f"Written: {file}")
    if options.fix is not None:
        counts = fix_data(
            options.data,
            Path(options.fix),
            eval_data=options.eval_data,
            allow_shared_prompts=options.allow_shared_prompts,
            eval_share=options.eval_share,
        )
        terminal.show(f"{options.fix}: {counts['groups']:,} groups, {counts['changes']:,} changes")
    return DataError.exit_status if report.errors else 0


def _refuse_without_model(options: AuditOptions) -> None:
    if options.embeddings is not None and options.depth != "full":
        raise ConfigError("topics are part of the full audit", where="--embeddings", remedy="Leave out --depth")
    if options.model is None:
        given = {"max_length": options.max_length is not None, "prompt_format": options.prompt_format != "as_is"}
        for name, is_given in given.items():
            if is_given:
                raise ConfigError("means something with a model alone", where=f"--{name}", remedy="Give --model")


def convert(options: ConvertOptions) -> int:
    """Says how much was written and what was left out."""
    from dipole import terminal
    from dipole.data.formats import load_groups, save_groups, save_pairs, save_unpaired

    if Path(options.output).resolve() == Path(options.data).resolve():
        raise ConfigError("this is the file that is read", where=f"--output {options.output}", remedy="Name another")
    groups = load_groups(options.data)
    if options.to == "groups":
        counts = {"groups": save_groups(groups, options.output)}
    else:
        save = save_pairs if options.to == "pairs" else save_unpaired
        counts = save(groups, options.output)
    written = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
    terminal.show(f"{options.output}: {written}")
    return 0


def report(options: ReportOptions) -> int:
    """Says where the page is."""
    from dipole import terminal
    from dipole.evaluate.report import write_report

    terminal.show(f"Report: {write_report(Path(options.run))}")
    return 0


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb of the command line: what runs it, what it takes, and a command that shows it."""

    run: Callable[[Any], int]
    options: type[Any]
    example: str
    positional: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the options' docstring."""
        return (self.options.__doc__ or "").splitlines()[0]


VERBS = {
    "demo": Verb(demo, DemoOptions, "dipole demo --output runs/demo"),
    "train": Verb(
        train,
        TrainConfig,
        "dipole train --model path/to/model --data pairs.jsonl --output runs/a --loss.beta 0.1 --peft.method lora",
    ),
    "audit": Verb(audit, AuditOptions, "dipole audit pairs.jsonl --output runs/audit", ("data",)),
    "convert": Verb(convert, ConvertOptions, "dipole convert pairs.csv --to groups --output groups.jsonl", ("data",)),
    "report": Verb(report, ReportOptions, "dipole report runs/a", ("run",)),
}


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
    name, *rest = argv
    if name not in VERBS:
        raise ConfigError(f"there is no verb '{name}'", remedy=nearest(name, VERBS))
    from dipole.options import parse

    verb = VERBS[name]
    try:
        options = parse(verb.options, rest, prog=f"dipole {name}", example=verb.example, positional=verb.positional)
    except SystemExit:  # --help or --print_config has been printed
        return 0
    return verb.run(options)


def _failed(problem: str, status: int) -> int:
    from dipole.terminal import show_error

    show_error(problem)
    return status


def _help() -> str:
    verbs = "\n".join(f"  {name:<9} {verb.summary}" for name, verb in VERBS.items())
    return (
        "Dipole: preference optimization for language models.\n\n"
        "usage: dipole VERB [OPTIONS]\n\n"
        f"{verbs}\n\n"
        "'dipole VERB --help' explains each with its defaults and an example.\n"
        f"Exit status: {EXIT_STATUSES}.\n"
    )
