"""Every preference loss as a pure function of log-probabilities: one value a relation, nothing reduced over the batch.

How to read it. ``chosen`` (y_w) and ``rejected`` (y_l) are the two sides of R pairs, each a ``Completions`` of (R,)
tensors; ``items`` are the completions of a list, (R, K).

    logps         log π(y|x), summed over the completion's tokens, the prompt excluded
    logratio      log π(y|x) − log π_ref(y|x); its exponential is t in the formulas
    mean_*        the same divided by the number of tokens |y|
    h             logratio of chosen − logratio of rejected, in nats: ``delta``
    beta, β       the strength of the tie to the reference, higher stays closer; IPO's τ is called ``beta`` too
    sg[·]         no gradient

The first paragraph of a docstring is the formula, the second its source; the documentation is made from them. What a
loss takes, its defaults and its traps are in its row: ``rows_margin.py``, ``rows_anchored.py``, ``rows_free.py``. A
label that is only probable is no concern of most formulas: see ``Loss.pair_losses``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from dipole.objective.completions import Completions
from dipole.objective.numerics import exp_linear, log1mexp, log_odds


def delta(chosen: Completions, rejected: Completions) -> Tensor:
    """The margin h: how much more the policy prefers chosen to rejected than the reference does, in nats."""
    return chosen.logratio - rejected.logratio


# --------------------------------------------------------------------------------------------------------------------
# Pairs, with a reference: functions of the margin h
# --------------------------------------------------------------------------------------------------------------------


def dpo(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """−log σ(β h).

    Rafailov, Sharma, Mitchell, Ermon, Manning, Finn 2023, arXiv 2305.18290, Eq. 7.
    """
    return -logsigmoid(beta * delta(chosen, rejected))


def cdpo(chosen: Completions, rejected: Completions, *, beta: float, label_smoothing: float) -> Tensor:
    """−(1−ε) log σ(β h) − ε log σ(−β h).

    Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO", version 1.1.
    """
    kept, flipped = dpo(chosen, rejected, beta=beta), dpo(rejected, chosen, beta=beta)
    return (1 - label_smoothing) * kept + label_smoothing * flipped


def rdpo(chosen: Completions, rejected: Completions, *, beta: float, flip_prob: float) -> Tensor:
    """[−(1−ε) log σ(β h) + ε log σ(−β h)] / (1−2ε).

    Ray Chowdhury, Kini, Natarajan 2024, arXiv 2403.00409.
    """
    kept, flipped = dpo(chosen, rejected, beta=beta), dpo(rejected, chosen, beta=beta)
    return ((1 - flip_prob) * kept - flip_prob * flipped) / (1 - 2 * flip_prob)


def gdpo(chosen: Completions, rejected: Completions, *, prob: Tensor, beta: float) -> Tensor:
    """−log σ(β (2p−1) h).

    Furuta, Lee, Gu, Matsuo, Faust, Zen, Gur 2024, arXiv 2409.06691.
    """
    return -logsigmoid(beta * (2 * prob - 1) * delta(chosen, rejected))


def ipo(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """(h − 1/(2β))², β being the paper's τ.

    Azar, Rowland, Piot, Guo, Calandriello, Valko, Munos 2023, arXiv 2310.12036, Eq. 17.
    """
    return (delta(chosen, rejected) - 1 / (2 * beta)).square()


def ipo_avg(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """(logratio_w/|y_w| − logratio_l/|y_l| − 1/(2β))².

    Azar et al. 2023, arXiv 2310.12036, with the average over tokens that TRL introduced; it isn't in the paper.
    """
    return (chosen.mean_logratio - rejected.mean_logratio - 1 / (2 * beta)).square()


def hinge(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """max(0, 1 − β h).

    Liu, Zhao, Joshi, Khalman, Saleh, P. Liu, J. Liu 2023 (RSO, hinge-norm), arXiv 2309.06657; β is the paper's γ.
    """
    return relu(1 - beta * delta(chosen, rejected))


def exo(chosen: Completions, rejected: Completions, *, prob: Tensor, beta: float, target_smoothing: float) -> Tensor:
    """KL(q ‖ p), q = [σ(β h), σ(−β h)], p = [1−ε, ε].

    Ji, Lu, Niu, Ke, Wang, Zhu, Tang, Huang 2024, arXiv 2402.00856, Eq. 16.
    """
    target = prob * (1 - target_smoothing) + (1 - prob) * target_smoothing
    complement = prob * target_smoothing + (1 - prob) * (1 - target_smoothing)  # 1 − target would lose digits
    return bernoulli_kl(beta * delta(chosen, rejected), target.log() - complement.log())


def discopop(chosen: Completions, rejected: Completions, *, beta: float, tau: float) -> Tensor:
    """−(1−m) log σ(z) + m e^{−z}, z = β h, m = σ(z/τ).

    Lu, Holt, Fanconi, Chan, Foerster, van der Schaar, Lange 2024, arXiv 2406.08414, Eq. 5.
    """
    z = beta * delta(chosen, rejected)
    # m and e^{−z} are multiplied as logarithms: one vanishes where the other overflows, and 0 · ∞ is NaN.
    return -torch.sigmoid(-z / tau) * logsigmoid(z) + exp_linear(logsigmoid(z / tau) - z)


def adpo(chosen: Completions, rejected: Completions, *, beta: float, gamma: float) -> Tensor:
    """−log σ(β f h), f = −1 where β h < −γ, else 1: the label is the policy's own where it is that sure of it.

    Ji, He, Gu 2024 (Active DPO), arXiv 2402.09401.
    """
    z = beta * delta(chosen, rejected)
    return -logsigmoid(torch.where(z < -gamma, -z, z))


def beta_dpo(chosen: Completions, rejected: Completions, *, beta: float, beta_scale: Tensor) -> Tensor:
    """−log σ(β_b h), β_b = max(0.001, β s), s = 1 + a (mean of h over the batch − its running mean).

    Wu, Xie, Yang, Wu, Gao, Ding, Wang, He 2024, arXiv 2407.08639.
    """
    return -logsigmoid((beta * beta_scale).clamp(min=1e-3) * delta(chosen, rejected))


def odpo(chosen: Completions, rejected: Completions, *, beta: float, alpha: float) -> Tensor:
    """−log σ(β h − α log(s_w − s_l)), s the scores.

    Amini, Vieira, Cotterell 2024, arXiv 2402.10571.
    """
    return -logsigmoid(beta * delta(chosen, rejected) - torch.xlogy(alpha, chosen["scores"] - rejected["scores"]))


def modpo(chosen: Completions, rejected: Completions, *, beta: float, weights: tuple[float, ...]) -> Tensor:
    """−log σ((β h − w_2 Δm_2 − w_3 Δm_3 − …) / w_1), m the rewards of the other objectives.

    Zhou, Liu, Shao, Yue, Yang, Ouyang, Qiao 2023, arXiv 2310.03708.
    """
    return -logsigmoid(modpo_reward(chosen, beta, weights) - modpo_reward(rejected, beta, weights))


def modpo_reward(completions: Completions, beta: float, weights: tuple[float, ...]) -> Tensor:
    """(β logratio − Σ_{k>1} w_k m_k) / w_1."""
    own, *others = weights
    margins = completions["margin_rewards"]
    return (beta * completions.logratio - (margins * margins.new_tensor(others)).sum(-1)) / own


def safedpo(chosen: Completions, rejected: Completions, *, beta: float, offset: float) -> Tensor:
    """−log σ(±β h − Δ |u_w − u_l|), minus where only the chosen one is unsafe (u = 1); 0 where both are.

    Kim, Jang, Kim, Kim, Lee, Bae, Lee 2025, arXiv 2505.20065.
    """
    unsafe_w, unsafe_l = chosen["unsafe"].bool(), rejected["unsafe"].bool()
    h = delta(chosen, rejected)
    z = beta * torch.where(unsafe_w & ~unsafe_l, -h, h) - offset * (unsafe_w ^ unsafe_l).to(h.dtype)
    return torch.where(unsafe_w & unsafe_l, 0 * h, -logsigmoid(z))


def rpo_nvidia_bwd_kl(chosen: Completions, rejected: Completions, *, beta: float, eta: float) -> Tensor:
    """KL(Bern(σ(η Δs)) ‖ Bern(σ(β h))), Δs the difference of scores: the target comes first.

    Nvidia 2024 (reward-aware preference optimization), arXiv 2406.11704.
    """
    return bernoulli_kl(eta * (chosen["scores"] - rejected["scores"]), beta * delta(chosen, rejected))


def rpo_nvidia_fwd_kl(chosen: Completions, rejected: Completions, *, beta: float, eta: float) -> Tensor:
    """KL(Bern(σ(β h)) ‖ Bern(σ(η Δs))), Δs the difference of scores: the policy comes first.

    Nvidia 2024 (reward-aware preference optimization), arXiv 2406.11704.
    """
    return bernoulli_kl(beta * delta(chosen, rejected), eta * (chosen["scores"] - rejected["scores"]))


def rpo_nvidia_sq(chosen: Completions, rejected: Completions, *, beta: float, eta: float) -> Tensor:
    """(β h − η Δs)², Δs the difference of scores.

    Nvidia 2024 (reward-aware preference optimization), arXiv 2406.11704.
    """
    return (beta * delta(chosen, rejected) - eta * (chosen["scores"] - rejected["scores"])).square()


def bernoulli_kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(Bern(σ(first)) ‖ Bern(σ(second))) of two logits."""
    yes = first.sigmoid() * (logsigmoid(first) - logsigmoid(second))
    no = (-first).sigmoid() * (logsigmoid(-first) - logsigmoid(-second))
    return yes + no


# --------------------------------------------------------------------------------------------------------------------
# Pairs, with a reference: each completion's reward against an anchor of its own
# --------------------------------------------------------------------------------------------------------------------


def nca(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """−log σ(r_w) − ½ log σ(−r_w) − ½ log σ(−r_l), r = β logratio.

    Chen, He, Yuan, Cui, Su, Zhu 2024, arXiv 2402.05369.
    """
    r_w, r_l = beta * chosen.logratio, beta * rejected.logratio
    return -logsigmoid(r_w) - 0.5 * logsigmoid(-r_w) - 0.5 * logsigmoid(-r_l)


def bco_pair(chosen: Completions, rejected: Completions, *, beta: float, shift: Tensor) -> Tensor:
    """−log σ(r_w − δ) − log σ(−(r_l − δ)), r = β logratio, δ the running mean of rewards.

    Jung, Han, Nam, On 2024, arXiv 2404.04656.
    """
    return -logsigmoid(beta * chosen.logratio - shift) - logsigmoid(shift - beta * rejected.logratio)


def bco_pair_unshifted(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """−log σ(r_w) − log σ(−r_l), r = β logratio.

    Jung, Han, Nam, On 2024, arXiv 2404.04656, with δ = 0; the "biased NCA" of Chen et al. 2024, arXiv 2402.05369.
    """
    return -logsigmoid(beta * chosen.logratio) - logsigmoid(-beta * rejected.logratio)


def sppo_hard(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """(logratio_w − η/2)² + (logratio_l + η/2)², η = 1/β.

    Wu, Sun, Yuan, Ji, Yang, Gu 2024, arXiv 2405.00675, with P̂ = 1 for the chosen and 0 for the rejected one.
    """
    return (chosen.logratio - 0.5 / beta).square() + (rejected.logratio + 0.5 / beta).square()


def sppo_soft(chosen: Completions, rejected: Completions, *, prob: Tensor, beta: float) -> Tensor:
    """½ (logratio_w − η (p−½))² + ½ (logratio_l − η (½−p))², η = 1/β.

    Wu, Sun, Yuan, Ji, Yang, Gu 2024, arXiv 2405.00675, with P̂ = p and 1−p.
    """
    target = (prob - 0.5) / beta
    return 0.5 * (chosen.logratio - target).square() + 0.5 * (rejected.logratio + target).square()


def apo_zero(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """1 − σ(r_w) + σ(r_l), r = β logratio.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, Eq. 7.
    """
    return torch.sigmoid(-beta * chosen.logratio) + torch.sigmoid(beta * rejected.logratio)


def apo_down(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """σ(r_w) + 1 − σ(r_w − r_l), r = β logratio.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, Eq. 8.
    """
    return torch.sigmoid(beta * chosen.logratio) + torch.sigmoid(-beta * delta(chosen, rejected))


def dpop(chosen: Completions, rejected: Completions, *, beta: float, penalty_weight: float) -> Tensor:
    """−log σ(β [h − λ max(0, −logratio_w)]).

    Pal, Karkhanis, Dooley, Roberts, Naidu, White 2024 (Smaug), arXiv 2402.13228.
    """
    return -logsigmoid(beta * (delta(chosen, rejected) - penalty_weight * relu(-chosen.logratio)))


def xpo(chosen: Completions, rejected: Completions, *, beta: float, alpha: float) -> Tensor:
    """−log σ(β h) + α log π(ỹ), ỹ the one of the two that the reference sampled.

    Xie, Foster, Krishnamurthy, Rosset, Awadallah, Rakhlin 2024, arXiv 2405.21046.
    """
    sampled_by_reference = torch.where(chosen["from_policy"].bool(), rejected.logps, chosen.logps)
    return dpo(chosen, rejected, beta=beta) + alpha * sampled_by_reference


def mdpo(chosen: Completions, rejected: Completions, *, beta: float, anchor: float) -> Tensor:
    """−log σ(β h) − log σ(β (logratio_w − logratio_w without the image)) − log σ(β logratio_w − δ).

    Wang, Zhou, Huang, Xu, Zhang, Poon, Chen 2024, arXiv 2406.11839.
    """
    imageless = chosen["imageless_logps"] - chosen["ref_imageless_logps"]
    conditional = -logsigmoid(beta * (chosen.logratio - imageless))
    return dpo(chosen, rejected, beta=beta) + conditional - logsigmoid(beta * chosen.logratio - anchor)


# --------------------------------------------------------------------------------------------------------------------
# Pairs, with a reference: other divergences. reward = β f'(t) up to a constant, loss = −log σ of its difference
# --------------------------------------------------------------------------------------------------------------------


def fdpo_forward_kl(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """−log σ(β [1/t_l − 1/t_w]), t = π/π_ref.

    Wang, Jiang, Yang, Liu, Chen 2023, arXiv 2309.16240; f'(t) = −1/t.
    """
    return -logsigmoid(beta * (forward_kl_reward(chosen) - forward_kl_reward(rejected)))


def forward_kl_reward(completions: Completions) -> Tensor:
    """1 − 1/t, which is 0 at t = 1."""
    return 1 - exp_linear(-completions.logratio)


def fdpo_jsd(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """−log σ(β [log(2 t_w/(1+t_w)) − log(2 t_l/(1+t_l))]), t = π/π_ref.

    Wang, Jiang, Yang, Liu, Chen 2023, arXiv 2309.16240; f'(t) = log(2t/(1+t)).
    """
    return -logsigmoid(beta * (jsd_reward(chosen) - jsd_reward(rejected)))


def jsd_reward(completions: Completions) -> Tensor:
    """log(2t/(1+t)) = ln 2 + log σ(logratio), which is 0 at t = 1."""
    logratio = completions.logratio
    return logsigmoid(logratio) - logsigmoid(torch.zeros_like(logratio))


def fdpo_alpha(chosen: Completions, rejected: Completions, *, beta: float, alpha: float) -> Tensor:
    """−log σ(β [f'(t_w) − f'(t_l)]), f'(t) = (1 − t^{−α})/α, t = π/π_ref.

    Wang, Jiang, Yang, Liu, Chen 2023, arXiv 2309.16240.
    """
    return -logsigmoid(beta * (alpha_reward(chosen.logratio, alpha) - alpha_reward(rejected.logratio, alpha)))


def alpha_reward(log_t: Tensor, alpha: float) -> Tensor:
    """(1 − t^{−α})/α, which is 0 at t = 1 and log t in the limit α → 0."""
    return (1 - exp_linear(-alpha * log_t)) / alpha if alpha else log_t


def chi_po(chosen: Completions, rejected: Completions, *, beta: float, r_max: float) -> Tensor:
    """−log σ(clip(β [φ(t_w) − φ(t_l)], ±2 r_max)), φ(t) = t + log t, t = π/π_ref.

    Huang et al. 2024 (χPO), arXiv 2407.13399.
    """
    phi_w = exp_linear(chosen.logratio) + chosen.logratio
    phi_l = exp_linear(rejected.logratio) + rejected.logratio
    return -logsigmoid((beta * (phi_w - phi_l)).clamp(-2 * r_max, 2 * r_max))


# --------------------------------------------------------------------------------------------------------------------
# Pairs, with a reference: lengths, tokens and weights
# --------------------------------------------------------------------------------------------------------------------


def dpo_norm(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """−log σ(β [logratio_w/|y_w| − logratio_l/|y_l|]).

    Lambert et al. 2024 (Tülu 3), arXiv 2411.15124, Eq. 6.
    """
    return -logsigmoid(beta * (chosen.mean_logratio - rejected.mean_logratio))


def rdpo_length(chosen: Completions, rejected: Completions, *, beta: float, alpha: float) -> Tensor:
    """−log σ(β h + α (|y_w| − |y_l|)).

    Park, Rafailov, Ermon, Finn 2024 (R-DPO), arXiv 2403.19159.
    """
    return -logsigmoid(beta * delta(chosen, rejected) + alpha * (chosen.num_tokens - rejected.num_tokens))


def ld_dpo(chosen: Completions, rejected: Completions, *, beta: float, alpha: float, scale_reference: bool) -> Tensor:
    """−log σ(β h′), h′ with the tokens after the first min(|y_w|, |y_l|) counted α times.

    Liu et al. 2024, arXiv 2409.06411.
    """
    shared = torch.minimum(chosen.num_tokens, rejected.num_tokens)

    def logratio(side: Completions) -> Tensor:
        policy = sum_discounting_tail(side, "token_logps", shared, alpha)
        return policy - sum_discounting_tail(side, "ref_token_logps", shared, alpha if scale_reference else 1.0)

    return -logsigmoid(beta * (logratio(chosen) - logratio(rejected)))


def sum_discounting_tail(side: Completions, name: str, shared: Tensor, alpha: float) -> Tensor:
    """Sum over tokens, where those after the first ``shared`` (R,) count ``alpha`` times."""
    tokens, is_token = side.tokens(name)
    is_shared = torch.arange(tokens.shape[-1], device=tokens.device) < shared[:, None]
    return torch.where(is_token, torch.where(is_shared, tokens, alpha * tokens), 0.0).sum(-1)


def tdpo1(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """−log σ(β [h − (K_l − K_w)]), K = Σ_t KL(π_ref,t ‖ π_t).

    Zeng, Liu, Ma, Yang, Zhang, Wang 2024, arXiv 2404.11999.
    """
    return -logsigmoid(beta * (delta(chosen, rejected) - (rejected["seq_kl"] - chosen["seq_kl"])))


def tdpo2(chosen: Completions, rejected: Completions, *, beta: float, alpha: float) -> Tensor:
    """−log σ(β [h − α (K_l − sg[K_w])]), K = Σ_t KL(π_ref,t ‖ π_t).

    Zeng, Liu, Ma, Yang, Zhang, Wang 2024, arXiv 2404.11999.
    """
    return -logsigmoid(beta * (delta(chosen, rejected) - alpha * (rejected["seq_kl"] - chosen["seq_kl"].detach())))


def wpo(chosen: Completions, rejected: Completions, *, beta: float, clamp_weight: bool) -> Tensor:
    """−sg[min(1, w_w w_l)] log σ(β h), w = exp(mean_t [log π_t − log Σ_v π_t(v)²]).

    Zhou, Agrawal, Zhang, Indurthi, Zhao, Song, Xu, Zhu 2024, arXiv 2406.11827, the weights Eq. 2.
    """
    return wpo_weight(chosen, rejected, clamp_weight) * dpo(chosen, rejected, beta=beta)


def wpo_weight(chosen: Completions, rejected: Completions, clamp_weight: bool) -> Tensor:
    """How likely the pair is to come from the policy, detached: a multiplier for any pairwise loss."""
    log_w_chosen = (chosen.logps - chosen["log_sum_sq_probs"]) / chosen.num_tokens
    log_w_rejected = (rejected.logps - rejected["log_sum_sq_probs"]) / rejected.num_tokens
    weight = exp_linear((log_w_chosen + log_w_rejected).detach())
    return weight.clamp(max=1.0) if clamp_weight else weight


# --------------------------------------------------------------------------------------------------------------------
# Pairs, with a reference: rank against rank within the batch. The values belong to ranks, not to pairs
# --------------------------------------------------------------------------------------------------------------------


def aot(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """−log σ(β [sorted(log π_w − log π_l) − sorted(log π_ref,w − log π_ref,l)]), sorted over the batch.

    Melnyk, Mroueh, Belgodere, Rigotti, Nitsure, Yurochkin, Greenewald, Navratil, Ross 2024, arXiv 2406.05882.
    """
    policy = chosen.logps - rejected.logps
    reference = policy - delta(chosen, rejected)
    return -logsigmoid(beta * (policy.sort().values - reference.sort().values))


def aot_unpaired(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """−log σ(β [sorted(logratio_w) − sorted(logratio_l)]), sorted over the batch.

    Melnyk, Mroueh, Belgodere, Rigotti, Nitsure, Yurochkin, Greenewald, Navratil, Ross 2024, arXiv 2406.05882.
    """
    return -logsigmoid(beta * (chosen.logratio.sort().values - rejected.logratio.sort().values))


# --------------------------------------------------------------------------------------------------------------------
# Pairs: DPO with a likelihood term on the chosen completion
# --------------------------------------------------------------------------------------------------------------------


def rpo_pang(chosen: Completions, rejected: Completions, *, beta: float, nll_weight: float) -> Tensor:
    """−log σ(β h) − α log π(y_w)/|y_w|, α = nll_weight.

    Pang, Yuan, Cho, He, Sukhbaatar, Weston 2024 (iterative reasoning preference optimization), arXiv 2404.19733.
    """
    return dpo(chosen, rejected, beta=beta) + nll_weight * sft_avg(chosen, rejected)


def rpo_liu(chosen: Completions, rejected: Completions, *, beta: float, eta: float) -> Tensor:
    """−log σ(β h) − η β log π(y_w).

    Liu, Lu, Zhang, Liu, Guo, Yang, Blanchet, Wang 2024 (regularized preference optimization), arXiv 2405.16436.
    """
    return dpo(chosen, rejected, beta=beta) + eta * beta * sft(chosen, rejected)


# --------------------------------------------------------------------------------------------------------------------
# Pairs, without a reference
# --------------------------------------------------------------------------------------------------------------------


def simpo(chosen: Completions, rejected: Completions, *, beta: float, gamma_beta_ratio: float) -> Tensor:
    """−log σ(β [log π(y_w)/|y_w| − log π(y_l)/|y_l|] − γ), γ = β · gamma_beta_ratio.

    Meng, Xia, Chen 2024, arXiv 2405.14734, Eq. 6.
    """
    return -logsigmoid(beta * (chosen.mean_logps - rejected.mean_logps - gamma_beta_ratio))


def alphapo(
    chosen: Completions, rejected: Completions, *, beta: float, gamma_beta_ratio: float, alpha: float
) -> Tensor:
    """−log σ(β [f(p_w) − f(p_l)] − γ), f(p) = (1 − p^{−α})/α, log p = log π(y)/|y|, γ = β · gamma_beta_ratio.

    Gupta et al. 2025, arXiv 2501.03884; SimPO where α = 0.
    """
    difference = alpha_reward(chosen.mean_logps, alpha) - alpha_reward(rejected.mean_logps, alpha)
    return -logsigmoid(beta * (difference - gamma_beta_ratio))


def orpo(chosen: Completions, rejected: Completions, *, odds_weight: float) -> Tensor:
    """−log p_w − λ log σ(log odds(p_w) − log odds(p_l)), log p = log π(y)/|y|, odds(p) = p/(1−p).

    Hong, Lee, Thorne 2024, arXiv 2403.07691, Eq. 6 and 7.
    """
    return sft_avg(chosen, rejected) + odds_weight * odds_ratio(chosen, rejected)


def odds_ratio(chosen: Completions, rejected: Completions) -> Tensor:
    """ORPO's second term: −log σ(log odds(p_w) − log odds(p_l))."""
    return -logsigmoid(log_odds(chosen.mean_logps) - log_odds(rejected.mean_logps))


def cpo(chosen: Completions, rejected: Completions, *, beta: float, nll_weight: float) -> Tensor:
    """−log σ(β [log π(y_w) − log π(y_l)]) − α log π(y_w), α = nll_weight.

    Xu, Sharaf, Chen, Tan, Shen, Van Durme, Murray, Kim 2024, arXiv 2401.08417; the paper has α = 1.
    """
    return -logsigmoid(beta * (chosen.logps - rejected.logps)) + nll_weight * sft(chosen, rejected)


def slic(chosen: Completions, rejected: Completions, *, gap: float, nll_weight: float) -> Tensor:
    """max(0, δ − log π(y_w) + log π(y_l)) − λ log π(y_w).

    Zhao, Joshi, Liu, Khalman, Saleh, P. Liu 2023 (SLiC-HF), arXiv 2305.10425; the target is the chosen one.
    """
    return relu(gap - chosen.logps + rejected.logps) + nll_weight * sft(chosen, rejected)


def sft(chosen: Completions, rejected: Completions) -> Tensor:
    """−log π(y_w).

    Maximum likelihood of the chosen completion, summed over its tokens (Preferred-FT of arXiv 2305.18290).
    """
    return -chosen.logps


def sft_avg(chosen: Completions, rejected: Completions) -> Tensor:
    """−log π(y_w)/|y_w|.

    Maximum likelihood of the chosen completion, averaged over its tokens.
    """
    return -chosen.mean_logps


def unlikelihood(chosen: Completions, rejected: Completions, *, alpha: float) -> Tensor:
    """−log π(y_w) + α log π(y_l).

    Rafailov et al. 2023, arXiv 2305.18290, the baseline of Section 6.
    """
    return -chosen.logps + alpha * rejected.logps


def unlikelihood_welleck(chosen: Completions, rejected: Completions, *, alpha: float) -> Tensor:
    """−log π(y_w) − α Σ_t log(1 − π(y_l,t)).

    Welleck, Kulikov, Roller, Dinan, Cho, Weston 2019, arXiv 1908.04319.
    """
    tokens, is_token = rejected.tokens("token_logps")
    return -chosen.logps - alpha * torch.where(is_token, log1mexp(tokens), 0.0).sum(-1)


# --------------------------------------------------------------------------------------------------------------------
# Single completions, approved of or not
# --------------------------------------------------------------------------------------------------------------------


def kto(
    item: Completions,
    desirable: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
    z0: Tensor | float,
) -> Tensor:
    """λ_D [1 − σ(β (logratio − z₀))] if desirable, else λ_U [1 − σ(β (z₀ − logratio))].

    Ethayarajh, Xu, Muennighoff, Jurafsky, Kiela 2024, arXiv 2402.01306, Eq. 8; z₀ = max(0, mean mismatched logratio).
    """
    z = beta * (item.logratio - z0)
    # 1 − σ(z) is written σ(−z), which keeps its digits when it is small.
    return torch.where(desirable, desirable_weight * torch.sigmoid(-z), undesirable_weight * torch.sigmoid(z))


def apo_zero_unary(item: Completions, desirable: Tensor, *, beta: float) -> Tensor:
    """1 − σ(β logratio) if desirable, else σ(β logratio).

    Ethayarajh et al. 2024, arXiv 2402.01306, with z₀ = 0; APO-zero of arXiv 2408.06266 taken apart.
    """
    return kto(item, desirable, beta=beta, desirable_weight=1.0, undesirable_weight=1.0, z0=0.0)


def bco(item: Completions, desirable: Tensor, *, beta: float, shift: Tensor) -> Tensor:
    """−log σ(β logratio − δ) if desirable, else −log σ(−(β logratio − δ)), δ the running mean of rewards.

    Jung, Han, Nam, On 2024, arXiv 2404.04656.
    """
    z = beta * item.logratio - shift
    return -logsigmoid(torch.where(desirable, z, -z))


# --------------------------------------------------------------------------------------------------------------------
# Lists. ``listed`` (R, K) is False where a shorter list was filled up, ``ranked`` where the order isn't known
# --------------------------------------------------------------------------------------------------------------------


def plackett_luce(items: Completions, listed: Tensor, ranked: Tensor, *, beta: float) -> Tensor:
    """−Σ_k [r_k − log Σ_{j ≥ k} exp r_j], r = β logratio, best first; k over the places whose order is known.

    Rafailov et al. 2023, arXiv 2305.18290, Appendix A.3, Eq. 20.
    """
    r = beta * items.logratio
    places = r.shape[-1]
    not_before = torch.ones(places, places, dtype=torch.bool, device=r.device).triu()
    tail = hide(r[:, None, :].expand(-1, places, -1), not_before & listed[:, None, :]).logsumexp(-1)
    return torch.where(ranked & listed, tail - r, 0.0).sum(-1)


def best_vs_rest(items: Completions, listed: Tensor, ranked: Tensor, *, beta: float) -> Tensor:
    """−log softmax(r)_best, r = β logratio.

    Rafailov et al. 2023, arXiv 2305.18290, Eq. 20, the first factor alone.
    """
    return -hide(beta * items.logratio, listed).log_softmax(-1)[:, 0]


def infonca(items: Completions, listed: Tensor, ranked: Tensor, *, beta: float, score_scale: float) -> Tensor:
    """−Σ_i softmax(s/α)_i log softmax(r)_i, r = β logratio, s the scores.

    Chen, He, Yuan, Cui, Su, Zhu 2024, arXiv 2402.05369; α is ``score_scale``, the inverse of the paper's.
    """
    target = hide(items["scores"] / score_scale, listed).softmax(-1)
    return -(target * hide(beta * items.logratio, listed).log_softmax(-1)).sum(-1)


def nca_kwise(items: Completions, listed: Tensor, ranked: Tensor, *, beta: float, score_scale: float) -> Tensor:
    """−Σ_i [softmax(s/α)_i log σ(r_i) + (1/K) log σ(−r_i)], r = β logratio, s the scores.

    Chen, He, Yuan, Cui, Su, Zhu 2024, arXiv 2402.05369; α is ``score_scale``, the inverse of the paper's.
    """
    r = beta * items.logratio
    target = hide(items["scores"] / score_scale, listed).softmax(-1)
    anchor = listed.to(r.dtype) / listed.sum(-1, keepdim=True)
    return -(target * logsigmoid(r) + anchor * logsigmoid(-r)).sum(-1)


def exo_kwise(items: Completions, listed: Tensor, ranked: Tensor, *, beta: float, score_scale: float) -> Tensor:
    """KL(softmax(r) ‖ softmax(s/β_r)), r = β logratio, s the scores, β_r = score_scale.

    Ji, Lu, Niu, Ke, Wang, Zhu, Tang, Huang 2024 (EXO-rw), arXiv 2402.00856.
    """
    policy = hide(beta * items.logratio, listed).log_softmax(-1)
    target = hide(items["scores"] / score_scale, listed).log_softmax(-1)
    return torch.where(listed, policy.exp() * (policy - target), 0.0).sum(-1)


def hide(values: Tensor, shown: Tensor) -> Tensor:
    """``values`` with the lowest number of their dtype where not ``shown``: their softmax is 0, their gradient too.

    −∞ would do for the value, but an all-hidden row would have a gradient of NaN.
    """
    return values.masked_fill(~shown, torch.finfo(values.dtype).min)
