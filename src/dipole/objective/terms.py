"""Hyper-parameters, rewards and reasons that rows share.

A reward has one definition a loss, and is a function of one completion, never of a pair. It is known up to a constant
of the prompt only. Compare it between completions of one prompt, never across prompts and never between losses.
"""

from __future__ import annotations

from dipole.objective.losses import alpha_reward, forward_kl_reward, jsd_reward, modpo_reward
from dipole.objective.row import HyperParameter, Reward

BETA = HyperParameter("beta", 0.1, "strength of the tie to the reference; higher stays closer")
NLL_WEIGHT = HyperParameter("nll_weight", 1.0, "weight of the likelihood of the chosen completion", low_open=False)
FLIP = "assumed rate of flipped labels, ε"

HAS_A_SIDE = "its likelihood term imitates the chosen completion, and a probable label doesn't say which one that is"
HAS_A_TARGET = "its target comes from the scores, which already say how much better one completion is"


def beta(default: float) -> HyperParameter:
    """β with another default."""
    return HyperParameter("beta", default, BETA.meaning)


LOGRATIO = Reward("β · logratio", lambda c, s: s["beta"] * c.logratio)
MEAN_LOGRATIO = Reward("β · logratio / |y|", lambda c, s: s["beta"] * c.mean_logratio)
LOGPS = Reward("log π(y|x)", lambda c, s: c.logps)
MEAN_LOGPS = Reward("log π(y|x) / |y|", lambda c, s: c.mean_logps)
BETA_LOGPS = Reward("β · log π(y|x)", lambda c, s: s["beta"] * c.logps)
BETA_MEAN_LOGPS = Reward("β · log π(y|x) / |y|", lambda c, s: s["beta"] * c.mean_logps)
ODDS_MEAN_LOGPS = Reward("λ · log π(y|x) / |y|", lambda c, s: s["odds_weight"] * c.mean_logps)
ALPHA_MEAN_LOGPS = Reward(
    "β · (1 − p^{−α})/α, log p = log π(y|x) / |y|", lambda c, s: s["beta"] * alpha_reward(c.mean_logps, s["alpha"])
)
FORWARD_KL = Reward("β · (1 − 1/t)", lambda c, s: s["beta"] * forward_kl_reward(c))
JSD = Reward("β · log(2t/(1+t))", lambda c, s: s["beta"] * jsd_reward(c))
ALPHA = Reward("β · (1 − t^{−α})/α", lambda c, s: s["beta"] * alpha_reward(c.logratio, s["alpha"]))
LOGRATIO_PLUS_KL = Reward("β · (logratio + K)", lambda c, s: s["beta"] * (c.logratio + c["seq_kl"]))
MODPO = Reward("(β · logratio − Σ_{k>1} w_k m_k) / w_1", lambda c, s: modpo_reward(c, s["beta"], s["weights"]))
