"""A language model in this process, asked for the log-probabilities of short answers and of whole completions.

Everything goes through ``policy.logprobs``: a prompt is computed once for all of its answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from dipole.data.batch import PackedBatch, in_chunks, pack
from dipole.data.reduce import LabeledGroup, UnaryRelation
from dipole.data.tokenize import TokenizedGroup, TokenizeOptions, prompt_token_ids, tokenize_groups
from dipole.errors import DataError
from dipole.feedback.cache import content_key
from dipole.group import Group, Message, plain
from dipole.policy.generate import Sampling, sample
from dipole.policy.load import position_limit
from dipole.policy.logprobs import check_engine, sum_by_completion
from dipole.policy.reference import AdapterOff
from dipole.policy.saved import load_policy

PACKED_TOKENS = 8192
DEFAULT_LENGTH = 2048


class LocalModel:
    """A causal language model on the best device there is, with its tokenizer.

    Args:
        path: a local folder or a hub id, of a model or of an adapter.
        max_length: tokens of a prompt with one completion; by default 2048, or what the model takes if that is less.

    Raises:
        ConfigError: it can't be loaded, or the engine would compute it wrongly.
    """

    def __init__(self, path: str, *, max_length: int | None = None) -> None:
        self._saved = load_policy(path)
        self.policy, self.tokenizer = self._saved.policy, self._saved.tokenizer
        most = position_limit(self.policy.transformer.config)[0] or DEFAULT_LENGTH
        self.max_length = min(max_length or DEFAULT_LENGTH, most)
        tolerance = 1e-3 if self.policy.transformer.dtype == torch.float32 else 0.5
        check_engine(self.policy, _probe().to(self.policy.device), tolerance=tolerance)

    @property
    def has_adapter(self) -> bool:
        """Whether there is an adapter that can be switched off."""
        return hasattr(self.policy.model, "disable_adapter")

    def fingerprint(self) -> str:
        """A hash of what its answers depend on beside the question: weights, precision, template, length."""
        return content_key(
            {
                "weights": self._saved.fingerprint,
                "dtype": str(self.policy.transformer.dtype),
                "template": str(self.tokenizer.chat_template),
                "max_length": self.max_length,
            }
        )

    def chat_ids(self, chats: Sequence[Sequence[Message]], begin: str = "") -> list[tuple[int, ...]]:
        """Tokens of chats up to where the assistant speaks, and of the beginning of what it says.

        Without a chat template the messages are plain paragraphs.
        """
        has_template = bool(self.tokenizer.chat_template)
        prompts = [tuple(chat) if has_template else f"{plain(tuple(chat))}\n\n" for chat in chats]
        return [(*ids, *self.text_ids(begin)) for ids in prompt_token_ids(prompts, self.tokenizer, "as_is")]

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Tokens of a text that goes on."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    @torch.no_grad()
    def logps(self, groups: Sequence[TokenizedGroup], *, adapter: bool = True) -> dict[str, list[float]]:
        """The summed log-probability of each completion, in nats, by the group's id.

        Args:
            groups: each with an id of its own.
            adapter: with the adapter, if there is one; otherwise of the model without it.
        """
        sizes = {group.id: len(group.completion_ids) for group in groups}
        without = None if adapter else AdapterOff(self.policy)
        found: dict[str, list[float]] = {}
        for batch in in_chunks(groups, PACKED_TOKENS):
            moved = batch.to(self.policy.device)
            logps = self.policy(moved).logps if without is None else without.token_logps(moved)
            sums = iter(sum_by_completion(logps, moved).tolist())
            for id in batch.group_ids:
                found[id] = [next(sums) for _ in range(sizes[id])]
        return found

    def option_logps(
        self, prompts: Mapping[str, tuple[int, ...]], options: Sequence[tuple[int, ...]]
    ) -> dict[str, list[float]]:
        """The log-probability of each option as what follows each prompt, by the prompt's key."""
        groups = [
            TokenizedGroup(id=key, prompt_ids=ids, completion_ids=tuple(options), relations=())
            for key, ids in prompts.items()
        ]
        return self.logps(groups)

    def write(self, messages: Sequence[Message], sampling: Sampling) -> str | None:
        """What the model answers to a chat; ``None`` where the chat is too long for it."""
        (ids,) = self.chat_ids([messages])
        if len(ids) + sampling.max_new_tokens > self.max_length:
            return None
        (written,) = sample(self.policy, self.tokenizer, [ids], sampling)
        return written.text


def as_tokens(
    groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions
) -> list[TokenizedGroup]:
    """All completions of each group as training sees them, with the group's place in the list as id.

    ``facts["position"]`` says which completions are left after cuts. Groups of which nothing fits, or whose messages
    the chat template refuses, are left out.
    """
    labeled = []
    for number, group in enumerate(groups):
        positions = tuple(range(len(group.completions)))
        relations = tuple(UnaryRelation(i, desirable=True) for i in positions)
        labeled.append(LabeledGroup(replace(group, id=str(number)), relations, facts={"position": positions}))
    try:
        return tokenize_groups(labeled, tokenizer, options)[0]
    except DataError:  # said of one of them, or of all
        return [found for item in labeled for found in _alone(item, tokenizer, options)]


def _alone(labeled: LabeledGroup, tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions) -> list[TokenizedGroup]:
    try:
        return tokenize_groups([labeled], tokenizer, options)[0]
    except DataError:
        return []


def _probe() -> PackedBatch:
    group = TokenizedGroup(id="", prompt_ids=(1, 2, 3), completion_ids=((4, 5), (6,)), relations=())
    return pack([group])
