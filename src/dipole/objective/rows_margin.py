"""The rows of pairwise losses that are functions of the margin h between policy and reference."""

from __future__ import annotations

from dipole.errors import ConfigError, DataError
from dipole.objective import coupling, losses, terms
from dipole.objective import diagnostics as watch
from dipole.objective.completions import Completions, PairIndex
from dipole.objective.row import HyperParameter, Loss, Settings


def refuse_negative_gaps(completions: Completions, relations: PairIndex, settings: Settings) -> None:
    """ODPO takes the logarithm of the score gap."""
    gap = completions["scores"][relations.i] - completions["scores"][relations.j]
    for position in (~(gap >= 0)).nonzero().flatten().tolist()[:1]:
        raise DataError(
            f"the rejected completion of pair {position} has the higher score",
            where="odpo",
            remedy="Order every pair by its scores, or drop it.",
        )


def refuse_vague_safety(completions: Completions, relations: PairIndex, settings: Settings) -> None:
    """SafeDPO takes a fact, not a probability."""
    unsafe = completions["unsafe"]
    for position in ((unsafe != 0) & (unsafe != 1)).nonzero().flatten().tolist()[:1]:
        raise DataError(
            f"unsafe[{position}] is {unsafe[position]:g}, but has to be 0 or 1",
            where="safedpo",
            remedy="Decide from where on a completion is unsafe, and write 1 or true there.",
        )


def refuse_wrong_margins(completions: Completions, relations: PairIndex, settings: Settings) -> None:
    """MODPO needs a margin reward for every weight but the first."""
    shape, others = tuple(completions["margin_rewards"].shape), len(settings["weights"]) - 1
    if len(shape) != 2 or shape[1] != others:
        raise ConfigError(
            f"there are {others} weights besides the first, but margin_rewards has shape {shape}",
            where="loss modpo",
            remedy="Give (C, M−1) rewards and M weights, that of the trained objective first.",
        )


ROWS = (
    Loss(
        name="dpo",
        formula=losses.dpo,
        hyper=(terms.BETA,),
        reward=terms.LOGRATIO,
        when="The first choice for pairs. With probable labels it is binary cross-entropy: its optimum is σ(β h) = p.",
        traps="Both completions may lose likelihood while the margin grows: watch logps/displacement. β → 0 makes it "
        "flat, not free of the reference.",
        aliases=("sigmoid", "soft_label_bce"),
    ),
    Loss(
        name="cdpo",
        formula=losses.cdpo,
        hyper=(
            terms.BETA,
            HyperParameter("label_smoothing", 0.1, terms.FLIP, low_open=False, high=0.5, high_open=False),
        ),
        reward=terms.LOGRATIO,
        watch=watch.watch_implied_prob,
        when="Labels are wrong at a roughly known rate; it stops pushing at σ(β h) = 1 − ε.",
        traps="TRL from 0.29 on ignores label_smoothing for its 'sigmoid' loss, so old recipes train plain DPO there.",
    ),
    Loss(
        name="rdpo",
        formula=losses.rdpo,
        hyper=(terms.BETA, HyperParameter("flip_prob", 0.1, terms.FLIP, low_open=False, high=0.5)),
        reward=terms.LOGRATIO,
        watch=watch.watch_implied_prob,
        when="Labels are flipped uniformly at a known rate and the loss has to be unbiased for the clean ones.",
        traps="Not cDPO: negative, unbounded below, variance grows as 1/(1−2ε)². Clip gradients.",
        aliases=("robust", "rdpo_robust", "robust_dpo"),
    ),
    Loss(
        name="gdpo",
        formula=losses.gdpo,
        hyper=(terms.BETA,),
        reward=terms.LOGRATIO,
        soft="own",
        when="Probable labels, where an undecided pair should be ignored rather than pull the margin to 0.",
        traps="At p = ½ the loss stays ln 2; only its gradient vanishes. Certain labels give DPO.",
        aliases=("gdpo_geometric",),
    ),
    Loss(
        name="ipo",
        formula=losses.ipo,
        hyper=(terms.BETA,),
        reward=terms.LOGRATIO,
        watch=watch.watch_target_distance,
        when="Nearly deterministic preferences, where DPO would drive margins without end: h goes to 1/(2β) and stays.",
        traps="This is the paper's form on sums over tokens; TRL's 'ipo' averages over tokens, which is ipo_avg here. "
        "Overshoot is punished. The loss has units of nats², so weights don't carry over from logistic losses.",
        aliases=("ipo_sum",),
    ),
    Loss(
        name="ipo_avg",
        formula=losses.ipo_avg,
        hyper=(terms.BETA,),
        reward=terms.LOGRATIO,
        tokens="mean",
        needs_lengths=True,
        watch=watch.watch_mean_target_distance,
        when="As ipo, to reproduce runs of TRL, HALOs or LLaMA-Factory.",
        traps="The target 1/(2β) is nats a token: β = 0.1 asks for 5 nats a token, and with sums for 5 a sequence.",
    ),
    Loss(
        name="hinge",
        formula=losses.hinge,
        hyper=(terms.beta(0.05),),
        reward=terms.LOGRATIO,
        when="Pairs from rejection sampling (RSO); a pair that is right by 1/β nats no longer counts.",
        traps="TRL files it under SLiC, which has no reference and is slic here. The paper's β, 0.5, belongs to its "
        "sampling; this β is its γ.",
        aliases=("hinge_rso", "rso"),
    ),
    Loss(
        name="exo",
        formula=losses.exo,
        hyper=(
            terms.BETA,
            HyperParameter(
                "target_smoothing", 1e-3, "ε of the target [1−ε, ε]; without it the loss is infinite", high=0.5
            ),
        ),
        reward=terms.LOGRATIO,
        soft="own",
        when="Reverse KL to the label's distribution, which seeks a mode instead of covering all.",
        traps="The gradient vanishes at both ends, so a badly wrong pair teaches nothing. The official code's target "
        "(log-odds 10) is ε = 4.5e-5 and its values differ by about 1.4.",
        aliases=("exo_pair",),
    ),
    Loss(
        name="discopop",
        formula=losses.discopop,
        hyper=(
            terms.beta(0.05),
            HyperParameter("tau", 0.05, "temperature of the modulation", high=1.0, high_open=False),
        ),
        reward=terms.LOGRATIO,
        when="To study a loss that was found by search.",
        traps="Not convex: with the defaults a local minimum at h = −2.37 holds pairs that start slightly wrong.",
    ),
    Loss(
        name="adpo",
        formula=losses.adpo,
        hyper=(terms.BETA, HyperParameter("gamma", 1.3, "β h up to which a label is asked for", low_open=False)),
        reward=terms.LOGRATIO,
        soft="refused",
        why_not_soft="it replaces labels by the policy's own where that one is sure",
        watch=watch.watch_queries,
        when="Active learning that asks for labels only where the policy is unsure.",
        traps="Count queries, not pairs. The released code has three different γ: 0.9, 1.3 and 2.0.",
    ),
    Loss(
        name="beta_dpo",
        formula=losses.beta_dpo,
        hyper=(terms.BETA,),
        reward=terms.LOGRATIO,
        soft="refused",
        why_not_soft="β follows the mean margin of the batch, and a probable label gives the margin no sign",
        coupling=coupling.BETA_DPO,
        when="Batches that differ in quality: β rises with the batch's mean margin.",
        traps="The running mean starts at 0, so the first steps are biased. The paper also drops a fifth of the pairs "
        "by sampling, which this row doesn't. Rewards are logged with the given β.",
        aliases=("beta_dpo_batch",),
    ),
    Loss(
        name="odpo",
        formula=losses.odpo,
        hyper=(terms.BETA, HyperParameter("alpha", 1.0, "weight of the offset", low_open=False)),
        reward=terms.LOGRATIO,
        inputs=("scores",),
        soft="refused",
        why_not_soft=terms.HAS_A_TARGET,
        check_values=refuse_negative_gaps,
        when="Scores say how much better the chosen one is, and the margin should grow with it.",
        traps="Equal scores have an offset of −∞: loss 0, no gradient. Drop them.",
    ),
    Loss(
        name="modpo",
        formula=losses.modpo,
        hyper=(
            terms.BETA,
            HyperParameter("weights", (0.5, 0.5), "of the objectives, the trained one first", high=1.0, simplex=True),
        ),
        reward=terms.MODPO,
        inputs=("margin_rewards",),
        check_values=refuse_wrong_margins,
        when="Several objectives, all but one given as frozen reward models.",
        traps="A small first weight blows the logit up.",
    ),
    Loss(
        name="safedpo",
        formula=losses.safedpo,
        hyper=(terms.BETA, HyperParameter("offset", 10.0, "extra margin Δ of safe over unsafe", low_open=False)),
        reward=terms.LOGRATIO,
        inputs=("unsafe",),
        soft="refused",
        why_not_soft="safety overrules the label, and a pair of which both are unsafe has none",
        check_values=refuse_vague_safety,
        watch=watch.watch_safety,
        when="Every completion has a safety label and safety comes before preference.",
        traps="A pair of two unsafe completions has loss 0 but still counts in the mean: filter it from the data.",
    ),
    Loss(
        name="rpo_nvidia_bwd_kl",
        formula=losses.rpo_nvidia_bwd_kl,
        hyper=(terms.beta(0.2), HyperParameter("eta", 1.0, "scale of the scores")),
        reward=terms.LOGRATIO,
        inputs=("scores",),
        soft="refused",
        why_not_soft=terms.HAS_A_TARGET,
        when="A reward model's gap should be matched, not just its sign.",
        traps="The authors call it backward although the target comes first. Scores have to be on a logit's scale.",
        aliases=("rpo_bwd_kl",),
    ),
    Loss(
        name="rpo_nvidia_fwd_kl",
        formula=losses.rpo_nvidia_fwd_kl,
        hyper=(terms.beta(0.2), HyperParameter("eta", 1.0, "scale of the scores")),
        reward=terms.LOGRATIO,
        inputs=("scores",),
        soft="refused",
        why_not_soft=terms.HAS_A_TARGET,
        when="As rpo_nvidia_bwd_kl, seeking a mode.",
        traps="The authors call it forward although the policy comes first. No gradient on badly wrong pairs.",
        aliases=("rpo_fwd_kl",),
    ),
    Loss(
        name="rpo_nvidia_sq",
        formula=losses.rpo_nvidia_sq,
        hyper=(terms.beta(0.2), HyperParameter("eta", 1.0, "scale of the scores")),
        reward=terms.LOGRATIO,
        inputs=("scores",),
        soft="refused",
        why_not_soft=terms.HAS_A_TARGET,
        when="As rpo_nvidia_bwd_kl, with a gradient that never saturates.",
        traps="An outlier among the scores rules the batch.",
        aliases=("rpo_sq",),
    ),
    Loss(
        name="fdpo_forward_kl",
        formula=losses.fdpo_forward_kl,
        hyper=(terms.BETA,),
        reward=terms.FORWARD_KL,
        when="Mass-covering regularisation.",
        traps="1/t grows without end for a completion that the policy has left; past e^72 the exponential goes on as "
        "its tangent in float32. Gradients can be huge: clip them.",
    ),
    Loss(
        name="fdpo_jsd",
        formula=losses.fdpo_jsd,
        hyper=(terms.BETA,),
        reward=terms.JSD,
        when="Between forward and reverse KL; safe numerically.",
        traps="The reward is at most β ln 2.",
        aliases=("fdpo_js",),
    ),
    Loss(
        name="fdpo_alpha",
        formula=losses.fdpo_alpha,
        hyper=(
            terms.BETA,
            HyperParameter("alpha", 0.5, "divergence: 0 is reverse KL, 1 forward KL", low_open=False, high=1.0),
        ),
        reward=terms.ALPHA,
        when="A dial between reverse and forward KL.",
        traps="TRL from 0.29 on has the other convention, α there = 1 − α here.",
        aliases=("fdpo_alpha_divergence",),
    ),
    Loss(
        name="chi_po",
        formula=losses.chi_po,
        hyper=(terms.BETA, HyperParameter("r_max", 1.0, "bound of the rewards; the logit is clipped at twice that")),
        reward=terms.LOGRATIO,
        when="Guards against overoptimisation by a χ² term.",
        traps="No gradient where the logit is clipped. The formula wasn't checked against the paper itself.",
    ),
)
