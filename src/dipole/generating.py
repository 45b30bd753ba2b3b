"""Groups of new completions: prompts go to a sampler, and what it writes is kept as it comes, with where it is from.

Every completion says in its ``meta`` how it came about: the model's fingerprint, the sampling with its seed, and the
stream of random numbers (place of the prompt, number of the sample). So a run that was killed goes on with what is
missing, completions of another model or another temperature are never taken for these, and any one can be drawn again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dipole.data.formats import check_name, load_groups, save_groups
from dipole.data.growing import GrowingGroups
from dipole.data.tokenize import PromptFormat, prompt_token_ids
from dipole.errors import ConfigError, DataError
from dipole.group import Completion, Group
from dipole.progress import Progress, Silent

if TYPE_CHECKING:
    from dipole.policy.generate import Sample
    from dipole.policy.load import DType
    from dipole.policy.sampling import Sampling
    from dipole.policy.saved import SavedPolicy

PACKED_TOKENS = 4096
"""Tokens of a forward pass."""

PARTIAL = ".partial"
"""Ends the name of the file that grows beside the output until all is there."""

Prompt = tuple[int, Group]
"""A prompt with its place among all that are asked for."""


class Sampler(Protocol):
    """Writes completions: a model in this process, or one behind a server."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What the ``meta`` of each of its completions begins with; what another has else wasn't written this way."""

    def sample(
        self, prompts: Sequence[Prompt], count: int, done: Collection[str]
    ) -> Iterator[tuple[Prompt, tuple[Completion, ...]]]:
        """``count`` completions of each prompt whose id isn't ``done``, as soon as they are there, in any order."""


def generate_groups(
    prompts: Sequence[Group],
    sampler: Sampler,
    output: Path | None = None,
    *,
    num_completions: int,
    progress: Progress | None = None,
) -> list[Group]:
    """Groups of these prompts with new completions and no judgments.

    Args:
        prompts: groups, of which prompt, id, split and meta are kept.
        sampler: writes.
        output: a file for them. What it holds already, or the growing file beside it, isn't written again.
        num_completions: of each prompt.
        progress: is told of every completion.

    Raises:
        ConfigError: the output holds completions that were written otherwise.
        DataError: it holds groups of other prompts, two prompts have one id, or it can't be written.
    """
    progress = progress or Silent()
    if num_completions < 1:
        raise ConfigError(f"has to be at least 1, not {num_completions}", where="--num_completions")
    if output is not None:
        check_name(output)
    if len({group.id for group in prompts}) < len(prompts):
        raise DataError("two prompts have the same id", remedy="Make ids unique.")
    there, growing = _already_there(output)
    _check_same(there, prompts, sampler.provenance, num_completions, where=str(output))
    done = {group.id: group for group in there}
    missing = len(prompts) - len(done)
    progress.stage("Generating", total=num_completions * len(prompts))
    progress.advance(num_completions * len(done))
    for (_, prompt), completions in sampler.sample(list(enumerate(prompts)), num_completions, frozenset(done)):
        group = replace(prompt, completions=completions, judgments=())
        done[group.id] = group
        if growing is not None:
            growing.append([group])
        progress.advance(num_completions)
    groups = [done[prompt.id] for prompt in prompts]
    if output is not None and growing is not None and (missing or growing.groups):
        save_groups(groups, output)
        growing.remove()
    return groups


def _already_there(output: Path | None) -> tuple[list[Group], GrowingGroups | None]:
    if output is None:
        return [], None
    growing = GrowingGroups(output.with_name(output.name + PARTIAL))
    whole = load_groups(output) if output.exists() else []
    ids = {group.id for group in whole}
    return [*whole, *(group for group in growing.groups if group.id not in ids)], growing


def _check_same(
    there: Sequence[Group], prompts: Sequence[Group], provenance: Mapping[str, Any], count: int, *, where: str
) -> None:
    """Raises unless what is there is a part of what is asked for."""
    wanted = {group.id: group for group in prompts}
    remedy = "Give the same prompts and options to go on, or another --output"
    now = json.loads(json.dumps(dict(provenance)))
    for group in there:
        if group.id not in wanted or group.prompt != wanted[group.id].prompt:
            raise DataError(
                f"it holds the group '{group.id}', which isn't among the prompts", where=where, remedy=remedy
            )
        if len(group.completions) != count:
            problem = f"its groups have {len(group.completions)} completions, and {count} are asked for"
            raise ConfigError(problem, where=where, remedy=remedy)
        for completion in group.completions:
            if difference := _difference(completion.meta, now):
                raise ConfigError(f"its completions were written otherwise: {difference}", where=where, remedy=remedy)


def _difference(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first setting that differs, in words."""
    for name, value in now.items():
        old = then.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            if found := _difference(old, value, f"{prefix}{name}."):
                return found
        elif old != value:
            return f"{prefix}{name} was {old!r} and is now {value!r}"
    return None


def as_chat(groups: Sequence[Group]) -> list[Group]:
    """The groups with plain prompts made a user's message."""
    return [
        replace(group, prompt=({"role": "user", "content": group.prompt},)) if isinstance(group.prompt, str) else group
        for group in groups
    ]


def local_sampler(
    model: str,
    sampling: Sampling,
    *,
    adapter: str | Path | None = None,
    prompt_format: PromptFormat = "as_is",
    dtype: DType = "auto",
) -> LocalSampler:
    """Loads a model, with or without an adapter, for sampling; see ``policy.saved.load_policy``."""
    from dipole.policy.saved import load_policy

    saved = load_policy(model, adapter=None if adapter is None else str(adapter), dtype=dtype)
    return LocalSampler(saved, sampling, prompt_format=prompt_format)


class LocalSampler:
    """A sampler over a policy in this process.

    Args:
        saved: the policy.
        sampling: how it draws.
        prompt_format: ``"chat"`` makes a plain prompt a user's message; then white space around an answer is cut.
        keep_ids: every completion's ``meta`` has its tokens, which text that is tokenized again may not give.
    """

    def __init__(
        self,
        saved: SavedPolicy,
        sampling: Sampling,
        *,
        prompt_format: PromptFormat = "as_is",
        keep_ids: bool = False,
    ) -> None:
        self._saved = saved
        self._sampling = sampling
        self._prompt_format: PromptFormat = prompt_format
        self._keep_ids = keep_ids

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Fingerprint, prompt format and sampling; not how many are drawn at a time, which changes nothing."""
        sampling = {name: value for name, value in asdict(self._sampling).items() if name != "batch_size"}
        return {"model": self._saved.fingerprint, "prompt_format": self._prompt_format, "sampling": sampling}

    def sample(
        self, prompts: Sequence[Prompt], count: int, done: Collection[str] = ()
    ) -> Iterator[tuple[Prompt, tuple[Completion, ...]]]:
        """Completions of each prompt that isn't done, the shortest prompts first, a batch at a time.

        Batches are cut over all prompts, and one that was half done is done again: then it doesn't show in a single bit
        where a run was killed.

        Raises:
            DataError: a prompt is empty, or leaves no room for a completion.
            ConfigError: the model is one that sampling would compute wrongly.
        """
        from dipole.policy.generate import check_sampling, sample

        texts = [group.prompt for _, group in prompts]
        ids = prompt_token_ids(texts, self._saved.tokenizer, self._prompt_format)
        for (_, group), tokens in zip(prompts, ids, strict=True):
            self._check_room(group, len(tokens))
        order = sorted(range(len(prompts)), key=lambda index: len(ids[index]))
        if len(done) < len(prompts):
            check_sampling(self._saved.policy, self._saved.tokenizer, ids[order[0]], tolerance=self._tolerance)
        at_once = max(1, self._sampling.batch_size // count)
        for start in range(0, len(order), at_once):
            part = order[start : start + at_once]
            if all(prompts[index][1].id in done for index in part):
                continue
            drawn = sample(
                self._saved.policy,
                self._saved.tokenizer,
                [ids[index] for index in part for _ in range(count)],
                self._sampling,
                streams=[(prompts[index][0], number) for index in part for number in range(count)],
            )
            for place, index in enumerate(part):
                number, group = prompts[index]
                if group.id in done:
                    continue
                own = enumerate(drawn[place * count : (place + 1) * count])
                yield (number, group), tuple(self._completion(group, item, (number, k)) for k, item in own)

    @property
    def _tolerance(self) -> float:
        """Of log-probabilities in nats, as training allows."""
        return 0.5 if self._saved.policy.transformer.dtype.itemsize < 4 else 1e-3

    def _completion(self, group: Group, item: Sample, stream: tuple[int, int]) -> Completion:
        is_chat = self._prompt_format == "chat" or not isinstance(group.prompt, str)
        facts: dict[str, Any] = {"tokens": len(item.ids), "finished": item.finished, "logps": sum(item.logps)}
        if self._keep_ids:
            facts["ids"] = list(item.ids)
        return Completion(
            text=item.text if is_chat else item.verbatim,
            source=Path(self._saved.name).name or self._saved.name,
            meta={**self.provenance, "stream": list(stream), **facts},
        )

    def _check_room(self, group: Group, tokens: int) -> None:
        from dipole.policy.load import position_limit

        room, why = position_limit(self._saved.policy.transformer.config)
        wanted = tokens + self._sampling.max_new_tokens
        if tokens and (room is None or wanted <= room):
            return
        raise DataError(
            f"its prompt has {tokens} tokens, which with {self._sampling.max_new_tokens} new ones are more than the"
            f" {room} that the model takes{why and f' ({why})'}"
            if tokens
            else "its prompt is empty",
            where=f"group '{group.id}'",
            remedy="Lower --max_new_tokens, or leave the prompt out" if tokens else "Leave it out",
        )


def logps_under(
    saved: SavedPolicy, groups: Sequence[Group], *, prompt_format: PromptFormat = "as_is"
) -> list[list[float]]:
    """The log-probability of every completion under a policy, summed over the tokens that were drawn.

    Args:
        saved: the policy.
        groups: sampled with ``keep_ids``, from a model with the same tokenizer.
        prompt_format: as they were sampled.
    """
    from dipole.data.batch import in_chunks
    from dipole.data.tokenize import TokenizedGroup
    from dipole.policy.logprobs import sum_by_completion

    prompts = prompt_token_ids([group.prompt for group in groups], saved.tokenizer, prompt_format)
    tokenized = [
        TokenizedGroup(
            id=str(number),
            prompt_ids=tuple(prompt),
            completion_ids=tuple(tuple(completion.meta["ids"]) for completion in group.completions),
            relations=(),
        )
        for number, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
    ]
    found: dict[int, list[float]] = {}
    for batch in in_chunks(tokenized, PACKED_TOKENS):
        moved = batch.to(saved.policy.device)
        sums = iter(sum_by_completion(saved.policy(moved).logps, moved).tolist())
        for id in batch.group_ids:
            found[int(id)] = [next(sums) for _ in groups[int(id)].completions]
    return [found[number] for number in range(len(groups))]
