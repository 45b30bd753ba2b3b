"""A language model in this process, asked for the log-probabilities of short answers and of whole completions.

Everything goes through ``policy.logprobs``: a prompt is computed once for all of its answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from dipole.data.batch import in_chunks, pack
from dipole.data.reduce import LabeledGroup, PairRelation, UnaryRelation
from dipole.data.tokenize import PromptFormat, TokenizedGroup, TokenizeOptions, prompt_token_ids, tokenize_groups
from dipole.errors import DataError
from dipole.group import Group, Message, plain
from dipole.policy.load import fingerprint, load_model, load_tokenizer, max_positions, weights_dtype
from dipole.policy.logprobs import Policy, check_engine, sum_by_completion

PACKED_TOKENS = 8192
DEFAULT_LENGTH = 2048


class LocalModel:
    """A causal language model on the best device there is, with its tokenizer.

    Args:
        path: a local folder or a hub id.
        max_length: tokens of a prompt with one completion; by default 2048, or what the model takes if that is less.

    Raises:
        ConfigError: it can't be loaded, or the engine would compute it wrongly.
    """

    def __init__(self, path: str, *, max_length: int | None = None) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = weights_dtype("auto", device)
        self.tokenizer = load_tokenizer(path)
        self.policy = Policy(load_model(path, dtype=dtype).to(device)).eval()
        self.max_length = min(max_length or DEFAULT_LENGTH, max_positions(path) or DEFAULT_LENGTH)
        probe = TokenizedGroup(id="", prompt_ids=(1, 2, 3), completion_ids=((4, 5), (6,)), relations=(PairRelation(0, 1),))
        tolerance = 1e-3 if dtype == torch.float32 else 0.5
        check_engine(self.policy, pack([probe]).to(device), tolerance=tolerance)

    def fingerprint(self) -> str:
        """A hash of its weights and its template: what its answers depend on beside the question."""
        return f"{fingerprint(self.policy)}:{self.max_length}:{hash_of(str(self.tokenizer.chat_template))}"

    def chat_ids(self, messages: Sequence[Message], begin: str = "") -> tuple[int, ...]:
        """Tokens of a chat up to where the assistant speaks, and of the beginning of what it says.

        Without a chat template the messages are plain paragraphs.
        """
        if self.tokenizer.chat_template:
            (ids,) = prompt_token_ids([tuple(messages)], self.tokenizer, "as_is")
        else:
            (ids,) = prompt_token_ids([f"{plain(tuple(messages))}\n\n"], self.tokenizer, "as_is")
        return (*ids, *self.text_ids(begin))

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Tokens of a text that goes on."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    @torch.no_grad()
    def logps(self, groups: Sequence[TokenizedGroup]) -> dict[str, list[float]]:
        """The summed log-probability of each completion, in nats, by the group's id."""
        found: dict[str, list[float]] = {}
        for batch in in_chunks(groups, PACKED_TOKENS):
            moved = batch.to(self.policy.device)
            sums = iter(sum_by_completion(self.policy(moved).logps, moved).tolist())
            sizes = {group.id: len(group.completion_ids) for group in groups}
            for id in batch.group_ids:
                found[id] = [next(sums) for _ in range(sizes[id])]
        return found

    def tokenize(self, groups: Iterable[Group], prompt_format: PromptFormat) -> Iterator[TokenizedGroup]:
        """All completions of each group as training sees them; ``facts["position"]`` says which are left after cuts.

        Groups of which nothing fits are left out.
        """
        options = TokenizeOptions(max_length=self.max_length, prompt_format=prompt_format)
        for group in groups:
            positions = tuple(range(len(group.completions)))
            labeled = LabeledGroup(
                group, tuple(UnaryRelation(i, desirable=True) for i in positions), facts={"position": positions}
            )
            try:
                (tokenized,), _ = tokenize_groups([labeled], self.tokenizer, options)
            except DataError:
                continue
            yield tokenized
