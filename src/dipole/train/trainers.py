"""DPO as objects with the parts in the open: ``compute_loss`` over index pairs, ``train_step``, ``fit``.

For writing and trying out losses of one's own, on a model that is in memory. Runs that have to survive, be resumed,
measured and reported are ``dipole.train``'s, over the same engine.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dipole.config import PeftConfig
from dipole.data.batch import Order, PackedBatch, Pairs, pack
from dipole.data.reduce import reduce_groups
from dipole.data.tokenize import TokenizedGroup, TokenizeOptions, tokenize_groups
from dipole.errors import ConfigError, DataError, TrainingFault
from dipole.group import Group
from dipole.objective import IndexedLosses, Loss, indexed_preference_loss, resolve
from dipole.objective.check import first
from dipole.objective.constraints import (
    Constrained,
    Constraint,
    ConstraintFunction,
    ascend,
    constrain,
    initial_multipliers,
    named_constraints,
)
from dipole.policy.adapters import add_adapter
from dipole.policy.load import disable_dropout, load_tokenizer
from dipole.policy.logprobs import Policy, sum_by_completion
from dipole.policy.reference import FrozenCopy, Reference, make_reference
from dipole.train.padded import check_fits, unpadded

Index = Tensor | Sequence[int]
Batch = tuple[Any, ...]
"""``(x, yw_idxs, yl_idxs)``, and whatever else ``compute_loss`` takes after these."""


class DPOTrainer:
    """Direct Preference Optimization of a model in memory (Rafailov et al. 2023, arXiv 2305.18290).

    Args:
        model: a transformers causal language model, trained in place; with a PEFT adapter, that alone is trained.
        ref_model: the reference, on the same device; by default the model as it is now (without its adapter).
        beta: the loss's strength; its own default when left out, 0.1 for DPO.
        lr: learning rate of AdamW.
        loss: a pairwise loss of ``dipole.LOSSES`` that is a function of sequence log-probabilities alone.
        tokenizer: for ``fit``; by default the one in the folder that the model came from.
        max_grad_norm: the gradient is scaled down to this norm.
        hyperparameters: further ones of the loss.

    Attributes:
        metrics: of the last step, by name.

    Raises:
        ConfigError: a loss that needs more than ``compute_loss`` is given, or options that it doesn't take.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        beta: float | None = None,
        lr: float = 1e-5,
        *,
        loss: str = "dpo",
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_grad_norm: float = 1.0,
        **hyperparameters: Any,
    ) -> None:
        models: dict[str, Any] = {"model": model, "ref_model": ref_model}
        for name, given in models.items():
            if given is not None and not isinstance(given, torch.nn.Module):
                problem = f"it is a {type(given).__name__}, but a trainer takes a model in memory"
                raise ConfigError(problem, where=name, remedy="Load it first; dipole.train takes a name")
        self.row = _simple_pairwise(loss)
        self.hyperparameters = hyperparameters if beta is None else {"beta": beta, **hyperparameters}
        self.row.settings(**self.hyperparameters)
        disable_dropout(model)
        self.model = model
        self.policy = Policy(model).eval()
        self.reference = _reference(self.row, self.policy, ref_model)
        self.tokenizer = tokenizer
        self.max_grad_norm = max_grad_norm
        self.metrics: dict[str, float] = {}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise ConfigError("none of its parameters requires a gradient", where="model", remedy="Unfreeze some")
        self.optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)

    def compute_loss(
        self,
        pi_logps: Tensor,
        ref_logps: Tensor | None,
        yw_idxs: Index,
        yl_idxs: Index,
        *,
        weight: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The mean loss of T pairs among B completions.

        Args:
            pi_logps: (B,) summed log-probabilities of the completions, prompt excluded, under the policy.
            ref_logps: (B,) under the reference, ``None`` for a loss without one.
            yw_idxs: (T,) the chosen completion of each pair.
            yl_idxs: (T,) the rejected one.
            weight: (T,) of the pairs; all alike by default.
            lengths: (B,) tokens, for losses that use them.

        Returns:
            The mean, a scalar with graph (of no pairs, a zero with graph), and rewards (B,), detached.
        """
        return _mean(self.row, self.losses(pi_logps, ref_logps, yw_idxs, yl_idxs, lengths=lengths), weight)

    def losses(
        self, pi_logps: Tensor, ref_logps: Tensor | None, yw_idxs: Index, yl_idxs: Index, **known: Any
    ) -> IndexedLosses:
        """The loss of every pair, (T,), and the reward of every completion, (B,)."""
        known = {name: value for name, value in known.items() if value is not None}
        return indexed_preference_loss(
            pi_logps, ref_logps, yw_idxs, yl_idxs, loss=self.row.name, **known, **self.hyperparameters
        )

    def train_step(self, batch: Batch) -> float:
        """One optimizer step.

        Args:
            batch: ``(x, yw_idxs, yl_idxs)``. x has ``input_ids``, ``attention_mask`` and ``completion_mask`` of shape
                (B, L): prompts with their completions, padded on either side. A subclass's ``compute_loss`` may take
                more after the indices.

        Returns:
            The loss before the step.

        Raises:
            ConfigError: x isn't as described; the message names the row.
            TrainingFault: the loss or its gradient isn't finite.
        """
        if not isinstance(batch, tuple | list) or len(batch) < 3:
            raise ConfigError("it isn't (x, yw_idxs, yl_idxs)", where="batch")
        x, *relations = batch
        packed = unpadded(x)
        check_fits(packed, self.policy.transformer)
        return self._step(packed.to(self.policy.device), *relations)

    def fit(
        self,
        groups: Sequence[Group],
        *,
        num_epochs: int = 1,
        global_batch_size: int = 32,
        max_length: int = 1024,
        seed: int = 0,
    ) -> list[float]:
        """Trains on groups. Probable labels become the majority's; ``ProbabilisticDPOTrainer`` keeps them.

        Args:
            groups: from ``dipole.load_groups``.
            num_epochs: passes over them.
            global_batch_size: groups a step, all in memory at once.
            max_length: most tokens of a prompt with one completion.
            seed: of the order.

        Returns:
            The loss of every step.

        Raises:
            ConfigError: no tokenizer can be found, or an option is out of range.
            DataError: the groups have no pairs.
        """
        if isinstance(groups, str | Path):
            raise ConfigError(f"it is a path, {groups}", where="groups", remedy="Give dipole.load_groups(path)")
        for name, number in (("num_epochs", num_epochs), ("global_batch_size", global_batch_size)):
            if number < 1:
                raise ConfigError(f"has to be at least 1, not {number}", where=name)
        data = self._tokenized(groups, max_length)
        order = Order(len(data), global_batch_size, seed)
        losses = []
        for step in range(num_epochs * order.steps_per_epoch):
            batch = pack([data[index] for index in order.step(step)]).to(self.policy.device)
            assert isinstance(batch.relations, Pairs)
            losses.append(self._step(batch, *self._relations(batch.relations), weight=batch.relations.weight))
        return losses

    soft_labels = False
    """Whether ``fit`` keeps labels that are probabilities."""

    def _relations(self, pairs: Pairs) -> tuple[Tensor, ...]:
        """What ``compute_loss`` takes after the log-probabilities."""
        return pairs.chosen, pairs.rejected

    def _step(self, batch: PackedBatch, *relations: Any, **known: Any) -> float:
        pi_logps = sum_by_completion(self.policy(batch).logps, batch)
        ref_logps = None
        if self.reference is not None:
            ref_logps = sum_by_completion(self.reference.token_logps(batch), batch)
        if self.row.needs_lengths:
            known["lengths"] = batch.num_targets
        loss, rewards = self.compute_loss(pi_logps, ref_logps, *relations, **known)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        if not (loss.isfinite() and norm.isfinite()):
            raise TrainingFault(
                f"the loss is {float(loss.detach()):g} and the gradient's norm {float(norm):g};"
                " the model was left as it was before the step",
                remedy="Lower lr, or keep the weights in float32",
            )
        self.optimizer.step()
        chosen, rejected = (rewards[torch.as_tensor(index, dtype=torch.int64)] for index in relations[:2])
        self.metrics = {"loss": float(loss.detach()), "grad_norm": float(norm)}
        if chosen.numel():
            self.metrics["rewards/margins"] = float((chosen - rejected).mean())
            self.metrics["rewards/accuracies"] = float((chosen > rejected).float().mean())
        return self.metrics["loss"]

    def _tokenized(self, groups: Sequence[Group], max_length: int) -> list[TokenizedGroup]:
        tokenizer = self.tokenizer
        if tokenizer is None:
            name = getattr(self.policy.transformer.config, "name_or_path", "")
            if not name:
                raise ConfigError("the model came from no folder", where="fit", remedy="Give the trainer a tokenizer")
            tokenizer = load_tokenizer(name)
        labeled, _ = reduce_groups(groups, "pair", soft=self.soft_labels)
        return tokenize_groups(labeled, tokenizer, TokenizeOptions(max_length=max_length))[0]


class DPOTrainerWithLoRA(DPOTrainer):
    """DPO of a low-rank adapter (Hu et al. 2021, arXiv 2106.09685); the reference is the model without it.

    Args:
        model: gets the adapter.
        ref_model: another reference.
        beta: see ``DPOTrainer``.
        lr: learning rate. An adapter takes more than all weights do: 1e-4 is known to work.
        lora_rank: of the updates.
        seed: of the adapter's first weights.
        options: see ``DPOTrainer``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        beta: float | None = None,
        lr: float = 1e-5,
        lora_rank: int = 8,
        *,
        seed: int = 0,
        **options: Any,
    ) -> None:
        adapted = add_adapter(model, PeftConfig(method="lora", rank=lora_rank), seed=seed)
        super().__init__(cast(PreTrainedModel, adapted), ref_model, beta, lr, **options)


class ProbabilisticDPOTrainer(DPOTrainer):
    """DPO on labels that are probabilities: p · loss(w, l) + (1 − p) · loss(l, w).

    A batch is ``(x, yw_idxs, yl_idxs, preference_prob)``.
    """

    soft_labels = True

    def compute_loss(
        self,
        pi_logps: Tensor,
        ref_logps: Tensor | None,
        yw_idxs: Index,
        yl_idxs: Index,
        preference_prob: float | Tensor | Sequence[float] = 1.0,
        *,
        weight: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As ``DPOTrainer.compute_loss``; ``preference_prob`` is P(yw ≻ yl), a number or one a pair (T,)."""
        prob = torch.as_tensor(preference_prob, dtype=pi_logps.dtype, device=pi_logps.device)
        prob = prob.expand(len(yw_idxs)) if prob.dim() == 0 else prob
        found = self.losses(pi_logps, ref_logps, yw_idxs, yl_idxs, pair_prob=prob, lengths=lengths)
        return _mean(self.row, found, weight)

    def _relations(self, pairs: Pairs) -> tuple[Tensor, ...]:
        return pairs.chosen, pairs.rejected, pairs.prob


class ConstitutionalDPOTrainer(DPOTrainer):
    """DPO with constraints in the loss; ``dipole.objective.constraints`` says which of them have a gradient.

    Each constraint's value, and its multiplier where it has one, are in ``metrics`` after a step.

    Args:
        model: see ``DPOTrainer``.
        ref_model: see ``DPOTrainer``.
        beta: see ``DPOTrainer``.
        lr: learning rate.
        constraints: functions ``f(model, pi_logps, ref_logps, yw_idxs, yl_idxs)`` → scalar tensor, added to the loss as
            they are; or ``Term``, ``Penalty`` and ``Lagrangian`` around such functions.
        options: see ``DPOTrainer``.

    Attributes:
        multipliers: λ of each ``Lagrangian`` by name; belongs to whatever saves the training.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        beta: float | None = None,
        lr: float = 1e-5,
        *,
        constraints: Sequence[Constraint | ConstraintFunction],
        **options: Any,
    ) -> None:
        super().__init__(model, ref_model, beta, lr, **options)
        self.constraints = named_constraints(constraints)
        self.multipliers = initial_multipliers(self.constraints, self.policy.device)
        self._found: Constrained | None = None

    def compute_loss(
        self, pi_logps: Tensor, ref_logps: Tensor | None, yw_idxs: Index, yl_idxs: Index, **known: Any
    ) -> tuple[Tensor, Tensor]:
        """As ``DPOTrainer.compute_loss``, plus what the constraints add at the present multipliers."""
        loss, rewards = super().compute_loss(pi_logps, ref_logps, yw_idxs, yl_idxs, **known)
        index = [torch.as_tensor(side, dtype=torch.int64, device=pi_logps.device) for side in (yw_idxs, yl_idxs)]
        self._found = constrain(self.constraints, self.multipliers, self.model, pi_logps, ref_logps, *index)
        return loss + self._found.total, rewards

    def _step(self, batch: PackedBatch, *relations: Any, **known: Any) -> float:
        loss = super()._step(batch, *relations, **known)
        assert self._found is not None
        self.metrics |= {name: float(value) for name, value in self._found.logged.items()}
        self.multipliers = ascend(self.constraints, self.multipliers, self._found.costs)
        return loss


def _mean(row: Loss, found: IndexedLosses, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    if weight is None:
        return found.mean(), found.rewards
    if weight.shape != found.losses.shape:
        problem = f"it has shape {tuple(weight.shape)}, but there are {found.losses.numel()} pairs"
        raise ConfigError(problem, where="weight")
    at = first(~(weight >= 0))
    if at is not None:
        raise DataError(f"weight[{at}] is {weight[at]:g}, but has to be at least 0", where="weight")
    if row.whole_batch and (weight != weight[:1]).any():
        problem = f"{row.name} compares ranks within the batch, where a pair can't weigh more than another"
        raise ConfigError(problem, where="weight", remedy="Leave weights out, or use another loss")
    return (found.losses * weight).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny), found.rewards


def _simple_pairwise(name: str) -> Loss:
    """The row of a loss that ``compute_loss`` can be given everything for."""
    row = resolve(name)
    reasons: dict[str, bool] = {
        f"it takes {row.relation} relations": row.relation != "pair",
        f"it needs {', '.join(row.inputs)} of every completion": bool(row.inputs),
        "it has a state that moves from step to step": row.coupling is not None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(
                f"a trainer's compute_loss can't be given what {row.name} needs: {reason}",
                where="loss",
                remedy=f'dipole.train(loss="{row.name}") trains it',
            )
    return row


def _reference(row: Loss, policy: Policy, ref_model: PreTrainedModel | None) -> Reference | None:
    if ref_model is None:
        return make_reference("auto", policy, needed=row.needs_reference)
    if not row.needs_reference:
        raise ConfigError(f"{row.name} has no reference, and one is given", where="ref_model", remedy="Leave it out")
    models: list[Any] = [policy.transformer, ref_model]
    size, of_reference = (model.get_input_embeddings().weight.shape[0] for model in models)
    if size != of_reference:
        raise ConfigError(
            f"it embeds {of_reference} tokens and the model {size}, so their tokens aren't the same",
            where="ref_model",
            remedy="Use a reference with the model's tokenizer (where padding alone differs: resize_token_embeddings)",
        )
    own = copy.deepcopy(ref_model) if ref_model is policy.transformer else ref_model
    disable_dropout(own)
    return FrozenCopy(Policy(own))
