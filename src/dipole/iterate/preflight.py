"""What would be wrong in hours is said before anything is made: options, judges, prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dipole.data.tokenize import prompt_token_ids
from dipole.data.validate import is_blank
from dipole.errors import ConfigError, DataError
from dipole.group import Group
from dipole.iterate import stages
from dipole.iterate.settings import PairingSettings, SamplerSettings, TrainingSettings
from dipole.iterate.stages import Work, located, open_named
from dipole.objective import resolve
from dipole.policy.load import load_tokenizer, max_positions


def check_options(work: Work) -> None:
    """Builds what every stage will build of the options.

    Raises:
        ConfigError: one is out of its range, or means nothing beside the others.
    """
    config = work.config
    stages.judge_options(work)
    with _named_after("pairing", config.pairing):
        stages.pairing_of(config, 0)
    with _named_after("sampler", config.sampler):
        stages.sampling_of(config, 0)
    with _named_after("training", config.training):
        training = stages.train_config(work, work.round(1))
    resolve(training.loss.name).settings(**training.loss.hyperparameters())


@contextmanager
def _named_after(part: str, settings: PairingSettings | SamplerSettings | TrainingSettings) -> Iterator[None]:
    """Faults of the part's options name them as a person has written them: ``--sampler.top_p``."""
    try:
        yield
    except ConfigError as fault:
        name = (fault.where or "").removeprefix("--")
        if not hasattr(settings, name):
            raise
        raise ConfigError(fault.problem, where=f"--{part}.{name}", remedy=fault.remedy) from fault


def check_judges(work: Work) -> None:
    """Opens both judges as the stages will; a model behind one is loaded, and dropped again.

    Raises:
        ConfigError: there is no such judge, or it can't be opened.
    """
    config = work.config
    for spelling in (config.judge, config.held_out_judge):
        if spelling is not None:
            work.progress.stage("Opening the judges")
            open_named(work, spelling, 0, keep=False)


def check_prompts(work: Work, prompts: Sequence[Group]) -> None:
    """Looks for prompts that nothing can be written to.

    Raises:
        DataError: one is empty, or leaves no room for a completion.
    """
    config, where = work.config, work.config.prompts
    for group in prompts:
        if is_blank(group.prompt):
            raise DataError(f"the prompt of '{group.id}' is empty", where=where, remedy="Leave it out")
    model = located(config.model, work.progress)
    room = max_positions(model)
    if room is None:
        return
    ids = prompt_token_ids([group.prompt for group in prompts], load_tokenizer(model), config.prompt_format)
    for group, tokens in zip(prompts, ids, strict=True):
        if len(tokens) + config.sampler.max_new_tokens > room:
            raise DataError(
                f"the prompt of '{group.id}' has {len(tokens):,} tokens, which with"
                f" {config.sampler.max_new_tokens:,} new ones are more than the {room:,} that the model takes",
                where=where,
                remedy="Lower --sampler.max_new_tokens, or leave the prompt out",
            )
