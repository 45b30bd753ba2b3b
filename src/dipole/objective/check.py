"""Values that no loss may be given, found before they reach a device. Every message names the offending entry."""

from __future__ import annotations

import torch
from torch import Tensor

from dipole.errors import ConfigError, DataError
from dipole.objective.apply import require
from dipole.objective.completions import Completions, ListIndex, PairIndex, Relations, UnaryIndex
from dipole.objective.row import INPUTS, Loss, Settings

INDICES = (torch.int64, torch.int32)  # torch takes uint8 for a mask, and no other integers as indices
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def check(row: Loss, settings: Settings, completions: Completions, relations: Relations) -> None:
    """Raises a ``DipoleError`` when the loss can't take these relations of these completions.

    It looks at values, so call it on the host: once for each batch, before that goes to a device.

    Raises:
        ConfigError: a wrong kind, shape or dtype, something missing, or labels that the loss doesn't define.
        DataError: an index out of range, a completion related to itself, a probability that isn't one.
    """
    require(row, completions, relations)
    check_completions(completions)
    count = completions.logps.numel()
    if isinstance(relations, PairIndex):
        check_pairs(relations, count)
        _check_labels(row, relations)
    elif isinstance(relations, UnaryIndex):
        check_index(relations.i, count, "i")
        check_shape(relations.desirable, relations.i.shape, "desirable")
        if relations.desirable.dtype != torch.bool:
            raise ConfigError(f"desirable has dtype {relations.desirable.dtype}, but has to be bool", where="relations")
    else:
        check_lists(relations, count)
    if row.check_values is not None:
        row.check_values(completions, relations, settings)


def check_completions(completions: Completions) -> None:
    """One-dimensional log-probabilities of a floating dtype, everything else of the same length, all of it finite."""
    logps = completions.logps
    if logps.dim() != 1:
        raise ConfigError(f"logps has shape {tuple(logps.shape)}, but has to be one-dimensional", where="completions")
    named = {"logps": logps, "ref_logps": completions.ref_logps, "lengths": completions.lengths, **completions.extras}
    for name, tensor in named.items():
        if tensor is None:
            continue
        dimensions = 2 if name in INPUTS and INPUTS[name].shape != "(C,)" else 1
        if tensor.shape[:1] != logps.shape or tensor.dim() != dimensions:
            problem = f"{name} has shape {tuple(tensor.shape)}, but there are {logps.numel()} completions"
            raise ConfigError(problem, where="completions")
        if name.endswith("logps") and not tensor.is_floating_point():
            raise ConfigError(f"{name} has dtype {tensor.dtype}, but has to be floating-point", where="completions")
        check_finite(name, tensor)
    if completions.lengths is not None:
        _check_lengths(completions.lengths, completions)


def check_finite(name: str, tensor: Tensor) -> None:
    """No NaN and no infinity, except among tokens, where there may be anything after the last."""
    if name.endswith("token_logps"):
        return
    at = first(~tensor.isfinite().reshape(len(tensor), -1).all(-1)) if tensor.numel() else None
    if at is not None:
        known = INPUTS.get(name.split()[-1])
        meaning = known.meaning if known else "log-probability in nats"
        remedy = f"Give it of every completion ({meaning}), or drop the completion."
        raise DataError(f"{name}[{at}] is {tensor[at].tolist()}, no finite number", where="completions", remedy=remedy)


def _check_lengths(lengths: Tensor, completions: Completions) -> None:
    if lengths.dtype not in INTEGERS:
        raise ConfigError(f"lengths has dtype {lengths.dtype}, but has to be an integer type", where="completions")
    at = first(lengths < 0)
    if at is not None:
        raise DataError(f"lengths[{at}] is {lengths[at]}, but counts tokens", where="completions")
    for name, tensor in completions.extras.items():
        at = first(lengths > tensor.shape[1]) if name.endswith("token_logps") else None
        if at is not None:
            problem = f"{name} has {tensor.shape[1]} places, but completion {at} has {lengths[at]} tokens"
            raise DataError(problem, where="completions", remedy="Give a log-probability of every token.")


def check_pairs(pairs: PairIndex, count: int, names: tuple[str, str] = ("i", "j")) -> None:
    """Both sides are completions, never the same one, and ``prob`` is a probability."""
    if pairs.i.shape != pairs.j.shape:
        problem = f"{names[0]} has {pairs.i.numel()} entries and {names[1]} has {pairs.j.numel()}"
        raise ConfigError(problem, where="relations")
    check_index(pairs.i, count, names[0])
    check_index(pairs.j, count, names[1])
    at = first(pairs.i == pairs.j)
    if at is not None:
        problem = f"{names[0]}[{at}] and {names[1]}[{at}] are the same completion, {pairs.i[at]}"
        raise DataError(problem, where="relations", remedy="A completion can't be preferred to itself: drop the pair.")
    if pairs.prob is not None:
        check_shape(pairs.prob, pairs.i.shape, "prob")
        at = first(~((pairs.prob >= 0) & (pairs.prob <= 1)))
        if at is not None:
            raise DataError(f"prob[{at}] is {pairs.prob[at]:g}, but a probability is in [0, 1]", where="relations")


def _check_labels(row: Loss, pairs: PairIndex) -> None:
    if row.soft != "refused" or pairs.prob is None:
        return
    at = first(pairs.prob != 1)
    if at is not None:
        problem = f"{row.name} takes certain labels only, and pair {at} has probability {pairs.prob[at]:g}"
        remedy = f"Reason: {row.why_not_soft}. Losses such as dpo, gdpo or ipo take probabilities."
        raise ConfigError(problem, where="loss", remedy=remedy)


def check_lists(lists: ListIndex, count: int) -> None:
    """Lists of two or more different completions, filled up with −1 at the end only."""
    order = lists.order
    if order.dim() != 2 or order.dtype not in INDICES:
        problem = f"order has shape {tuple(order.shape)} and dtype {order.dtype}, but has to be (R, K) integers"
        raise ConfigError(problem, where="relations")
    listed = order >= 0
    problems = {
        f"names a completion outside 0 to {count - 1}": ((order < -1) | (order >= count)).any(-1),
        "has an entry after its end": (listed[:, 1:] & ~listed[:, :-1]).any(-1),
        "has fewer than two completions": listed.sum(-1) < 2,
        "names a completion twice": _has_twins(order, listed),
    }
    if lists.num_ranked is not None:
        check_shape(lists.num_ranked, order.shape[:1], "num_ranked")
        outside = (lists.num_ranked < 1) | (lists.num_ranked > listed.sum(-1))
        problems["has a num_ranked outside 1 to its length"] = outside
    for problem, wrong in problems.items():
        at = first(wrong)
        if at is not None:
            raise DataError(f"order[{at}] = {order[at].tolist()} {problem}", where="relations")


def _has_twins(order: Tensor, listed: Tensor) -> Tensor:
    same = (order[:, :, None] == order[:, None, :]) & listed[:, :, None]
    return same.sum((1, 2)) > listed.sum(-1)


def check_index(index: Tensor, count: int, name: str) -> None:
    """One-dimensional integers from 0 to ``count`` − 1."""
    if index.dim() != 1 or index.dtype not in INDICES:
        problem = f"{name} has shape {tuple(index.shape)} and dtype {index.dtype}, but has to be (R,) int64 or int32"
        raise ConfigError(problem, where="relations")
    at = first((index < 0) | (index >= count))
    if at is not None:
        problem = f"{name}[{at}] is {index[at]}, but there are {count} completions (0 to {count - 1})"
        raise DataError(problem, where="relations")


def check_shape(tensor: Tensor, shape: torch.Size, name: str) -> None:
    """Exactly this shape."""
    if tensor.shape != shape:
        problem = f"{name} has shape {tuple(tensor.shape)}, but has to have {tuple(shape)}"
        raise ConfigError(problem, where="relations")


def first(wrong: Tensor) -> int | None:
    """Position of the first true entry of a one-dimensional mask."""
    positions = wrong.nonzero().flatten().tolist()
    return positions[0] if positions else None
