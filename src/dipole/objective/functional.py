"""Losses called with plain tensors: of chosen and rejected completions, or of completions and index lists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dipole.errors import ConfigError, nearest
from dipole.objective.apply import Outcome, batch_sums, evaluate, initial_state, settle
from dipole.objective.check import check, check_finite, check_pairs
from dipole.objective.completions import Completions, PairIndex
from dipole.objective.row import INPUTS, Loss
from dipole.objective.table import LOSSES, resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLosses:
    """What ``preference_loss`` returns: three tensors of shape (R,).

    Args:
        losses: with graph, unreduced; average them yourself.
        chosen_rewards: detached.
        rejected_rewards: detached.
        name: canonical name of the loss.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedLosses:
    """What ``indexed_preference_loss`` returns.

    Args:
        losses: (T,) one a pair, with graph, unreduced.
        rewards: (B,) one a completion, detached.
        name: canonical name of the loss.
    """

    losses: Tensor
    rewards: Tensor
    name: str

    def mean(self) -> Tensor:
        """The mean over pairs; of no pairs a zero whose gradient is zero, not NaN."""
        return self.losses.sum() / max(self.losses.numel(), 1)


def preference_loss(
    name: str,
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor | None = None,
    reference_rejected_logps: Tensor | None = None,
    *,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    pair_prob: Tensor | None = None,
    **others: Any,
) -> PairLosses:
    """A pairwise loss of R pairs, by name.

    Args:
        name: a name of ``LOSSES``, or another library's for the same loss.
        policy_chosen_logps: (R,) summed log-probabilities of the chosen completions, prompt excluded.
        policy_rejected_logps: (R,) of the rejected ones.
        reference_chosen_logps: (R,) under the reference; none for a loss without one.
        reference_rejected_logps: (R,) likewise.
        chosen_lengths: (R,) numbers of tokens, for losses that use them.
        rejected_lengths: (R,) likewise.
        pair_prob: (R,) probability that the chosen one is better; 1 when left out.
        **others: hyper-parameters (``beta``); ``chosen_<input>`` and ``rejected_<input>`` for each of the row's inputs;
            constants of a loss that depends on its batch, which otherwise come from these pairs as a first batch.

    Raises:
        ConfigError: an unknown name, something missing, or something that the loss doesn't use.
        DataError: a value that can't be.
    """
    row = _pairwise(name)
    sides = {
        "logps": (policy_chosen_logps, policy_rejected_logps),
        "ref_logps": (reference_chosen_logps, reference_rejected_logps),
        "lengths": (chosen_lengths, rejected_lengths),
        **{item: (others.pop(f"chosen_{item}", None), others.pop(f"rejected_{item}", None)) for item in row.inputs},
    }
    if pair_prob is not None:
        _require_tensor("pair_prob", pair_prob)
    joined = {item: _join(item, *both) for item, both in sides.items()}
    keywords = [f"{side}_{item}" for item in row.inputs for side in ("chosen", "rejected")]
    rows = torch.arange(policy_chosen_logps.shape[0], device=policy_chosen_logps.device)
    pairs = PairIndex(i=rows, j=rows + rows.numel(), prob=pair_prob)
    outcome = _evaluate(row, joined, pairs, others, keywords)
    chosen_rewards, rejected_rewards = outcome.rewards[pairs.i], outcome.rewards[pairs.j]
    return PairLosses(
        losses=outcome.losses, chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards, name=row.name
    )


def indexed_preference_loss(
    pi_logps: Tensor,
    ref_logps: Tensor | None,
    yw_idxs: Tensor | Sequence[int],
    yl_idxs: Tensor | Sequence[int],
    *,
    loss: str = "dpo",
    beta: float | None = None,
    pair_prob: Tensor | None = None,
    lengths: Tensor | None = None,
    **others: Any,
) -> IndexedLosses:
    """A pairwise loss of T pairs among B completions, as in DPO's Appendix B.

    A completion may be in several pairs; its gradient adds up.

    Args:
        pi_logps: (B,) summed log-probabilities of the completions under the policy, prompt excluded.
        ref_logps: (B,) under the reference; ``None`` for a loss without one.
        yw_idxs: (T,) which completion is the chosen one of each pair.
        yl_idxs: (T,) which is the rejected one.
        loss: a name of ``LOSSES``.
        beta: when left out, the loss's own default, 0.1 for ``dpo``.
        pair_prob: (T,) probability that the chosen one is better; 1 when left out.
        lengths: (B,) numbers of tokens, for losses that use them.
        **others: further hyper-parameters, inputs of the row (B, …), and constants.

    Raises:
        ConfigError: an unknown name, something missing or unused, index lists of different lengths or of a wrong dtype.
        DataError: an index out of range, or ``yw == yl``.
    """
    row = _pairwise(loss)
    if beta is not None:
        others["beta"] = beta
    given = {"logps": pi_logps, "ref_logps": ref_logps, "lengths": lengths}
    given |= {item: others.pop(item, None) for item in row.inputs}
    for name, tensor in {**given, "pair_prob": pair_prob}.items():
        if tensor is not None or name == "logps":
            _require_tensor(name, tensor)
    index = {name: _index(name, side, pi_logps.device) for name, side in (("yw_idxs", yw_idxs), ("yl_idxs", yl_idxs))}
    pairs = PairIndex(i=index["yw_idxs"], j=index["yl_idxs"], prob=pair_prob)
    check_pairs(pairs, pi_logps.numel(), ("yw_idxs", "yl_idxs"))
    outcome = _evaluate(row, given, pairs, others, list(row.inputs))
    return IndexedLosses(losses=outcome.losses, rewards=outcome.rewards, name=row.name)


def _pairwise(name: str) -> Loss:
    row = resolve(name)
    if row.relation != "pair":
        remedy = "Call evaluate with UnaryIndex." if row.relation == "unary" else "Call evaluate with ListIndex."
        raise ConfigError(
            f"{row.name} is no loss of pairs: it takes {row.relation} relations", where="loss", remedy=remedy
        )
    return row


def _join(name: str, chosen: Tensor | None, rejected: Tensor | None) -> Tensor | None:
    """Both sides one after the other; tokens filled up to the longer side."""
    if chosen is None and rejected is None:
        return None
    if chosen is None or rejected is None:
        raise ConfigError(f"{name} is given of one side only", where="loss")
    for side, tensor in (("chosen", chosen), ("rejected", rejected)):
        _require_tensor(f"{side} {name}", tensor)
    if chosen.shape[:1] != rejected.shape[:1] or chosen.dim() != rejected.dim() or chosen.dim() == 0:
        problem = f"{name} of chosen and rejected have shapes {tuple(chosen.shape)} and {tuple(rejected.shape)}"
        raise ConfigError(problem, where="loss", remedy="Both have to have one entry a pair.")
    for side, tensor in (("chosen", chosen), ("rejected", rejected)):
        check_finite(f"{side} {name}", tensor)  # before they are joined, where a position says nothing to a person
    if name in INPUTS and INPUTS[name].shape == "(C, L)":
        width = max(chosen.shape[1], rejected.shape[1])
        chosen, rejected = (torch.nn.functional.pad(side, (0, width - side.shape[1])) for side in (chosen, rejected))
    return torch.cat([chosen, rejected])


def _require_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ConfigError(f"{name} is a {type(value).__name__}, but has to be a tensor", where="loss")


def _index(name: str, values: Tensor | Sequence[int], device: torch.device) -> Tensor:
    try:
        index = torch.as_tensor(values, device=device)
    except (TypeError, ValueError, RuntimeError) as fault:
        remedy = "Give one integer a pair, as a list or a tensor."
        raise ConfigError(f"{name} is no list of integers: {fault}", where="loss", remedy=remedy) from fault
    is_short_integer = index.dtype in (torch.uint8, torch.int8, torch.int16)
    is_empty_list = not isinstance(values, Tensor) and index.numel() == 0
    return index.to(torch.int64) if is_short_integer or is_empty_list else index


def _constant(name: str, value: Any, like: Tensor) -> Tensor:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(number, int | float) or not math.isfinite(number):
        raise ConfigError(f"{name} is {value!r}, but has to be a finite number", where="loss")
    return torch.tensor(number, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def _evaluate(
    row: Loss, given: dict[str, Tensor | None], pairs: PairIndex, others: dict[str, Any], inputs: list[str]
) -> Outcome:
    """Sorts the keywords into hyper-parameters and constants, checks everything, and evaluates."""
    if given["ref_logps"] is not None and not row.needs_reference:
        raise ConfigError(f"{row.name} has no reference, and one is given", where="loss", remedy="Leave it out.")
    if given["lengths"] is not None and not row.needs_lengths:
        raise ConfigError(f"{row.name} doesn't use lengths, and they are given", where="loss", remedy="Leave them out.")
    assert given["logps"] is not None
    names = tuple(row.coupling.constants) if row.coupling else ()
    constants = {name: _constant(name, others.pop(name), given["logps"]) for name in names if name in others}
    for name in others:
        if constants and row.coupling and name in {parameter.name for parameter in row.coupling.hyper}:
            problem = f"{name} says how {', '.join(constants)} comes from the batch, and that is given"
            raise ConfigError(problem, where="loss", remedy="Leave one of them out.")
        if name not in row.all_hyper:
            known = [*row.all_hyper, *inputs, *names]
            takers = [other.name for other in LOSSES.values() if name in other.all_hyper]
            remedy = nearest(name, known) if known else "It takes nothing else."
            if takers:
                remedy = f"{', '.join(takers)} {'do' if len(takers) > 1 else 'does'}."
            raise ConfigError(f"{row.name} doesn't use '{name}'", where="loss", remedy=remedy)
    settings = row.settings(**others)
    extras = {name: tensor for name in row.inputs if (tensor := given[name]) is not None}
    completions = Completions(
        logps=given["logps"], ref_logps=given["ref_logps"], lengths=given["lengths"], extras=extras
    )
    check(row, settings, completions, pairs)
    if not constants:
        sums = batch_sums(row, settings, completions, pairs)
        constants, _ = settle(row, settings, sums, initial_state(row, completions.logps.device))
    return evaluate(row, settings, completions, pairs, constants)
