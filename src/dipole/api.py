"""The Python surface: whole pieces of work in one call each, as the command line offers them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipole.auditing import ModelOptions, Preferences, audit_data
from dipole.config import LossConfig, PeftConfig, TrainConfig, train_config
from dipole.data.audit import AuditReport, Depth
from dipole.data.formats import save_groups
from dipole.errors import ConfigError
from dipole.group import Group
from dipole.progress import Progress, Silent, is_first_process

if TYPE_CHECKING:
    from dipole.data.tokenize import PromptFormat
    from dipole.generating import Sampler
    from dipole.objective.constraints import Constraint, ConstraintFunction
    from dipole.policy.load import DType


def train(
    model: str | Path,
    data: Preferences,
    output: str | Path,
    loss: str | LossConfig = "dpo",
    peft: str | PeftConfig = "none",
    *,
    eval_data: Preferences | None = None,
    constraints: Sequence[Constraint | ConstraintFunction] = (),
    progress: Progress | None = None,
    **options: Any,
) -> Path:
    """Trains a model on preferences and writes a report.

    Args:
        model: a local folder or a hub id of a causal language model.
        data: what to train on. Groups are first written into the run folder, so that it holds all that made it.
        output: the run folder.
        loss: name of a loss, or a ``LossConfig``.
        peft: ``"none"``, ``"lora"``, or a ``PeftConfig``.
        eval_data: held-out preferences.
        constraints: terms beside a pairwise loss: ``dipole.objective.constraints`` has the kinds. A function
            ``f(model, pi_logps, ref_logps, yw_idxs, yl_idxs)`` returns a scalar with a gradient.
        progress: is told where the run is.
        options: any other field of ``TrainConfig``, ``LossConfig``, ``PeftConfig`` or ``PairingConfig``, such as
            ``beta=0.1, rank=8, max_steps=100``.

    Returns:
        The run folder; the model is in its ``final``, the report is ``report.html``.

    Raises:
        ConfigError, DataError, TrainingFault, Stopped: see ``dipole.errors``.
    """
    config = train_config(
        model=str(model),
        data=_named(data, Path(output) / "preferences.jsonl"),
        eval_data=None if eval_data is None else _named(eval_data, Path(output) / "eval_preferences.jsonl"),
        output=str(output),
        loss=loss,
        peft=peft,
        **options,
    )
    for given, file in ((data, config.data), (eval_data, config.eval_data)):
        if given is None or isinstance(given, str | Path) or not is_first_process():
            continue
        if not _holds_another_run(config):
            save_groups(given, str(file))
    return run_training(config, progress, constraints)


def run_training(
    config: TrainConfig,
    progress: Progress | None = None,
    constraints: Sequence[Constraint | ConstraintFunction] = (),
) -> Path:
    """What ``dipole train`` does: a training run, its measures and its report. Returns the run folder.

    Of several processes the first one measures and reports.
    """
    from dipole.evaluate.measure import measure_run
    from dipole.evaluate.report import write_report
    from dipole.train.run import train

    run = train(config, progress, constraints=constraints)
    if is_first_process():
        measure_run(run)
        write_report(run)
    return run


def audit(
    data: Preferences,
    *,
    eval_data: Preferences | None = None,
    allow_shared_prompts: bool = False,
    depth: Depth = "full",
    model: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> AuditReport:
    """Checks preference data: errors that stop training, and findings that should worry.

    Args:
        data: the training data. Rows of a file that can't be read are one of the errors.
        eval_data: held-out data; looked at for leaks, and for how much of it the training data reaches.
        allow_shared_prompts: training and held-out data may have prompts in common.
        depth: ``"errors"``, ``"cheap"`` (what training looks at by itself) or ``"full"``.
        model: a local folder or hub id, whose tokenizer and chat template are tried on the data.
        progress: is told where the audit is.
        options: any other field of ``auditing.ModelOptions``, such as ``max_length=512`` or ``embeddings="folder"``.

    Raises:
        DataError: a file can't be read at all, or is damaged.
        ConfigError: a model can't be loaded.
    """
    models = ModelOptions(model=None if model is None else str(model), **options)
    return audit_data(
        data,
        eval_data=eval_data,
        allow_shared_prompts=allow_shared_prompts,
        depth=depth,
        models=models,
        progress=progress,
    )


def write_audit(report: AuditReport, output: Path, *, name: str) -> list[Path]:
    """Writes audit.json and audit.html into a folder.

    Args:
        report: what the audit found.
        output: the folder.
        name: of the data, for the page's heading.
    """
    from dipole.evaluate.audit_report import write_audit_report

    output.mkdir(parents=True, exist_ok=True)
    file = output / "audit.json"
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8", errors="backslashreplace")
    return [file, write_audit_report(report, output / "audit.html", name=name)]


def _named(data: Preferences, file: Path) -> str:
    return str(data) if isinstance(data, str | Path) else str(file)


def _holds_another_run(config: TrainConfig) -> bool:
    """Whether training will refuse the folder: then nothing in it may be overwritten before."""
    return not config.resume and (Path(config.output) / "metrics.jsonl").exists()


def generate(
    model: str | Path,
    prompts: Preferences,
    output: str | Path | None = None,
    *,
    num_completions: int = 4,
    adapter: str | Path | None = None,
    server: str | None = None,
    key: str | None = None,
    prompt_format: PromptFormat = "as_is",
    dtype: DType = "auto",
    progress: Progress | None = None,
    **sampling: Any,
) -> list[Group]:
    """Samples completions for prompts: groups without judgments.

    Args:
        model: a local folder or hub id of a model, or a folder with an adapter; with ``server``, the server's name of
            it.
        prompts: a file or groups, of which the prompts are taken.
        output: a file for the groups. What it holds already isn't written again, so that a run that was killed goes on.
        num_completions: of each prompt.
        adapter: a folder with an adapter for ``model``, or a run's that trained one.
        server: the URL of an OpenAI-compatible server, up to its version: ``http://127.0.0.1:8000/v1``.
        key: the *name* of the environment variable that holds the server's key.
        prompt_format: ``"chat"`` makes plain prompts a user's message.
        dtype: of a local model's weights.
        progress: is told of every completion.
        sampling: any field of ``policy.sampling.Sampling``, such as ``temperature=0.8, top_p=0.95, seed=1``.

    Raises:
        ConfigError, DataError, JudgeError: see ``dipole.errors``.
    """
    from dipole.data.formats import load_groups
    from dipole.generating import as_chat, generate_groups, local_sampler
    from dipole.policy.sampling import Sampling

    progress = progress or Silent()
    settings = Sampling(**sampling)
    groups = load_groups(prompts) if isinstance(prompts, str | Path) else list(prompts)
    if server is not None:
        from dipole.feedback.client import ChatClient
        from dipole.feedback.remote import RemoteSampler

        _refuse_local_options(adapter, dtype)
        sampler: Sampler = RemoteSampler(ChatClient(server, str(model), key_variable=key), settings)
        groups = as_chat(groups) if prompt_format == "chat" else groups
    elif key is not None:
        raise ConfigError(
            "a key means something for a server alone", where="--key", remedy="Give --server, or leave it out"
        )
    else:
        progress.stage("Loading the model")
        sampler = local_sampler(str(model), settings, adapter=adapter, prompt_format=prompt_format, dtype=dtype)
    where = None if output is None else Path(output)
    return generate_groups(groups, sampler, where, num_completions=num_completions, progress=progress)


def _refuse_local_options(adapter: str | Path | None, dtype: DType) -> None:
    for name, is_given in {"adapter": adapter is not None, "dtype": dtype != "auto"}.items():
        if is_given:
            raise ConfigError("a server has its own", where=f"--{name}", remedy="Leave it out with --server")
