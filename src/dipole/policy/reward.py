"""Reward models: a transformer with one number for a head, read at a completion's last token.

They run on the same engine as policies, a prompt once and its completions once. What is saved loads with
``AutoModelForSequenceClassification`` and gives the same scores there.

Shape letters: N tokens of the row · T completion tokens · C completions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from dipole.data.batch import PackedBatch, pack
from dipole.data.tokenize import TokenizedGroup
from dipole.errors import ConfigError
from dipole.policy.attention import plain_attention, plan_attention
from dipole.policy.head import HeadInput
from dipole.policy.load import disable_dropout, load_tokenizer, quietly
from dipole.policy.locate import NOTHING, Allowed, check_weights
from dipole.policy.logprobs import Policy, TokenValues


class RewardModel(Policy):
    """A model that gives every completion of a packed batch a score, where a policy gives a log-probability.

    Args:
        model: a transformers model for sequence classification with one label, or a PEFT model around one.

    Raises:
        ConfigError: it has no head of one number.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        transformer: Any = self.transformer
        if not hasattr(transformer, "score") or transformer.config.num_labels != 1:
            raise ConfigError(
                f"{type(transformer).__name__} has no head of one number called 'score'",
                where="--model",
                remedy="Use a decoder whose class for sequence classification has one",
            )

    def forward(
        self, batch: PackedBatch, byproducts: Sequence[str] = (), reference: HeadInput | None = None
    ) -> TokenValues:
        """The score of each completion at its last token and 0 before it, so that a completion's sum is its score.

        Args:
            batch: on the model's device.
            byproducts: none; a score comes from no distribution.
            reference: none, likewise.
        """
        assert not byproducts
        assert reference is None
        return TokenValues(_at_last_token(self.scores(batch), batch), {})

    def slow_twin(self, batch: PackedBatch) -> Tensor:
        """(T,) what ``forward`` has to give, by the model's own forward pass."""
        return plain_scores(self, batch)

    def for_saving(self) -> nn.Module:
        """The model, with an adapter's update in the weights of a copy: nobody looks for adapters in a scorer."""
        model: Any = self.model
        return copy.deepcopy(model).merge_and_unload() if hasattr(model, "merge_and_unload") else model  # type: ignore[no-any-return]

    def scores(self, batch: PackedBatch) -> Tensor:
        """(C,) scores with graph, float32."""
        transformer: Any = self.transformer
        row = _with_last_tokens(batch, transformer.config.get_text_config().pad_token_id).to(batch.input_ids.device)
        hidden = self.hidden(row.input_ids, row.position_ids, plan_attention(row))
        last = row.predictor[row.num_targets.cumsum(0) - 1]
        with torch.autocast(hidden.device.type, enabled=False):  # scores in half precision would tie
            scores: Tensor = transformer.score(hidden.index_select(0, last).float()).squeeze(-1)
        return scores


def _with_last_tokens(batch: PackedBatch, pad_id: int | None) -> PackedBatch:
    """The same row with the completions' last tokens in it, which a policy's row leaves out: nothing follows them.

    A token after the end asks for the state there. Transformers reads a score at the last token that isn't padding;
    where a tokenizer pads with its end-of-sequence token, that is the one before it.
    """

    def kept(ids: tuple[int, ...]) -> tuple[int, ...]:
        end = len(ids)
        while end and ids[end - 1] == pad_id:
            end -= 1
        return ids[:end]

    return pack(
        [
            TokenizedGroup(id="", prompt_ids=prompt, completion_ids=((*kept(ids), ids[-1]),), relations=())
            for prompt, ids in batch.sequences
        ]
    )


def _at_last_token(scores: Tensor, batch: PackedBatch) -> Tensor:
    ends = batch.num_targets.cumsum(0) - 1
    return scores.new_zeros(batch.target.numel()).index_put((ends,), scores)


@torch.no_grad()
def plain_scores(model: RewardModel, batch: PackedBatch) -> Tensor:
    """(T,) the slow twin of ``RewardModel.forward``: the transformers model itself, one completion at a time."""
    whole: Any = model.model
    with plain_attention(model.transformer):
        rows = [torch.tensor([[*prompt, *ids]], device=batch.input_ids.device) for prompt, ids in batch.sequences]
        scores = torch.cat([whole(input_ids=row, use_cache=False).logits[0] for row in rows])
    return _at_last_token(scores, batch)


def load_scorer(name: str, *, pad_id: int, seed: int = 0, allowed: Allowed = NOTHING) -> PreTrainedModel:
    """A model for sequence classification with one label, in float32, dropout switched off.

    Args:
        name: a local folder or a hub id; of a language model, whose head is left out, or of a reward model.
        pad_id: what shorter sequences are padded with when the saved model is used elsewhere.
        seed: of the new head's weights, where the model has none.
        allowed: what of the model may be used although it can do harm.

    Raises:
        ConfigError: there is no such model, it can't be loaded safely, or transformers has no class for it.
    """
    place = check_weights(name, allowed)
    with quietly(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                place.source,
                num_labels=1,
                dtype=torch.float32,
                use_safetensors=None if allowed.pickle_weights else True,
                weights_only=True,
                trust_remote_code=allowed.remote_code,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as fault:
            reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0][:300]
            raise ConfigError(f"can't load it as a reward model: {reason}", where=f"--model {name}") from fault
    model.config._name_or_path = model.name_or_path = name  # not where the hub's cache has it
    model.config.get_text_config().pad_token_id = pad_id
    disable_dropout(model)
    loaded: PreTrainedModel = model
    return loaded


def separate_padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Makes the tokenizer pad with another token than the one that ends an answer, where it has any, and returns it.

    Else a reward model in transformers would take an answer's end for padding, and not see whether it ended.
    """
    known = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *tokenizer.all_special_ids)
    others = (token for token in known if token is not None and token != tokenizer.eos_token_id)
    pad_id: int = next(others, tokenizer.eos_token_id)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
    return pad_id


def load_reward_model(folder: str | Path, *, device: torch.device) -> tuple[RewardModel, PreTrainedTokenizerBase]:
    """A trained reward model and its tokenizer, for scoring.

    Raises:
        ConfigError: the folder holds none.
    """
    tokenizer = load_tokenizer(str(folder))
    model = RewardModel(load_scorer(str(folder), pad_id=separate_padding(tokenizer)))
    return model.to(device).eval().requires_grad_(False), tokenizer


@torch.no_grad()
def reward_scores(
    model: RewardModel,
    prompts: Sequence[tuple[int, ...]],
    completions: Sequence[tuple[int, ...]],
    *,
    batch_size: int = 64,
) -> list[float]:
    """The scores of completions, one a prompt, both as tokens of the model's own tokenizer."""
    groups = [
        TokenizedGroup(id="", prompt_ids=prompt, completion_ids=(ids,), relations=())
        for prompt, ids in zip(prompts, completions, strict=True)
    ]
    scores: list[float] = []
    for start in range(0, len(groups), batch_size):
        scores += model.scores(pack(groups[start : start + batch_size]).to(model.device)).tolist()
    return scores
