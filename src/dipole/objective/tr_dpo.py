"""TR-DPO: the reference follows the policy.

Gorbatovski et al. 2024, arXiv 2404.09656. It goes with any loss that has a reference, but not with reference
log-probabilities that were computed in advance. The reference and the step belong to the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dipole.errors import ConfigError


def sync_is_due(step: int, every: int) -> bool:
    """Whether the reference moves after optimizer step ``step``, the first step being 1. Never before it.

    Raises:
        ConfigError: ``every`` isn't positive.
    """
    if every < 1:
        raise ConfigError(f"the reference can't be updated every {every} steps", where="tr_dpo")
    return step > 0 and step % every == 0


@torch.no_grad()
def updated_reference(
    reference: Mapping[str, Tensor], policy: Mapping[str, Tensor], *, alpha: float
) -> dict[str, Tensor]:
    """θ_ref ← α θ + (1 − α) θ_ref, for every parameter: soft (the paper has α = 0.6), or hard with α = 1.

    Args:
        reference: parameters of the reference, by name.
        policy: parameters of the policy, by the same names.
        alpha: in (0, 1].

    Returns:
        New tensors; the given ones stay as they are.

    Raises:
        ConfigError: α out of range, or names that differ.
    """
    if not 0 < alpha <= 1:
        raise ConfigError(f"alpha is {alpha}, but has to be in (0, 1]", where="tr_dpo")
    odd = sorted(reference.keys() ^ policy.keys())
    if odd:
        raise ConfigError(f"policy and reference differ in their parameters, first in '{odd[0]}'", where="tr_dpo")
    return {name: torch.lerp(old, policy[name].to(old), alpha) for name, old in reference.items()}
