"""The rows of pairwise losses with a reference that look at more than h: anchors, lengths, tokens, weights, ranks."""

from __future__ import annotations

import math

from dipole.errors import DataError
from dipole.objective import coupling, losses, terms
from dipole.objective import diagnostics as watch
from dipole.objective.completions import Completions, PairIndex
from dipole.objective.row import HyperParameter, Loss, Settings


def refuse_one_source(completions: Completions, relations: PairIndex, settings: Settings) -> None:
    """XPO's bonus is on the reference's sample, so a pair needs exactly one."""
    from_policy = completions["from_policy"].bool()
    for position in (from_policy[relations.i] == from_policy[relations.j]).nonzero().flatten().tolist()[:1]:
        source = "policy" if from_policy[relations.i[position]] else "reference"
        raise DataError(
            f"both completions of pair {position} are the {source}'s",
            where="xpo",
            remedy="Pair a sample of the policy with one of the reference, and say by from_policy which is which.",
        )


ROWS = (
    Loss(
        name="nca",
        formula=losses.nca,
        hyper=(terms.beta(0.01),),
        reward=terms.LOGRATIO,
        when="The chosen completion's own likelihood must not fall.",
        traps="The chosen one's reward has its optimum at ln 2, 69 nats at the default β; the rejected one's has none.",
        aliases=("nca_pair",),
    ),
    Loss(
        name="bco_pair",
        formula=losses.bco_pair,
        hyper=(terms.beta(0.01),),
        reward=terms.LOGRATIO,
        coupling=coupling.BCO,
        when="A binary classifier of good and bad, for pairs, with the paper's running shift.",
        traps="TRL from 0.29 on has no shift: that is bco_pair_unshifted. The shift belongs to the checkpoint.",
    ),
    Loss(
        name="bco_pair_unshifted",
        formula=losses.bco_pair_unshifted,
        hyper=(terms.beta(0.01),),
        reward=terms.LOGRATIO,
        when="As bco_pair, to reproduce recent TRL, and as a part of MPO.",
        traps="Without a shift, a policy that has left the reference in one direction saturates one of the two terms.",
        aliases=("biased_nca",),
    ),
    Loss(
        name="sppo_hard",
        formula=losses.sppo_hard,
        hyper=(terms.beta(1e-3),),
        reward=terms.LOGRATIO,
        soft="refused",
        why_not_soft="it fixes the win probabilities to 1 and 0; sppo_soft takes them",
        when="Self-play rounds with a winner and a loser.",
        traps="Values near 5e5 at β = 0.001: keep learning rates small. The paper's code halves it, as sppo_soft does.",
    ),
    Loss(
        name="sppo_soft",
        formula=losses.sppo_soft,
        hyper=(terms.beta(1e-3),),
        reward=terms.LOGRATIO,
        soft="own",
        when="Self-play rounds with estimated win probabilities.",
        traps="Half of sppo_hard at p = 1, as in the paper's code. That code takes P̂ over all samples of a prompt; "
        "here it is the pair's own p.",
    ),
    Loss(
        name="apo_zero",
        formula=losses.apo_zero,
        hyper=(terms.BETA,),
        reward=terms.LOGRATIO,
        when="Chosen completions are better than what the policy writes.",
        traps="Gradients saturate: wrong extremes are ignored.",
    ),
    Loss(
        name="apo_down",
        formula=losses.apo_down,
        hyper=(terms.BETA,),
        reward=terms.LOGRATIO,
        when="Chosen completions are worse than what the policy writes: both go down, the rejected one further.",
        traps="The chosen completion loses likelihood by design.",
    ),
    Loss(
        name="dpop",
        formula=losses.dpop,
        hyper=(
            terms.BETA,
            HyperParameter("penalty_weight", 50.0, "λ of the chosen completion's lost likelihood", low_open=False),
        ),
        reward=terms.LOGRATIO,
        soft="refused",
        why_not_soft="its penalty protects the chosen completion, and a probable label doesn't say which one that is",
        when="Pairs that differ in few tokens, where DPO lowers both.",
        traps="The penalty belongs inside the logarithm and is multiplied by β; other code has it elsewhere.",
        aliases=("smaug",),
    ),
    Loss(
        name="xpo",
        formula=losses.xpo,
        hyper=(terms.BETA, HyperParameter("alpha", 1e-5, "exploration", low_open=False)),
        reward=terms.LOGRATIO,
        inputs=("from_policy",),
        check_values=refuse_one_source,
        when="Online: one completion of a pair is the policy's, the other the reference's.",
        traps="Unbounded below in the reference's sample when α is large.",
    ),
    Loss(
        name="mdpo",
        formula=losses.mdpo,
        hyper=(
            terms.BETA,
            HyperParameter("anchor", 0.0, "δ, reward that the chosen completion should exceed", low=-math.inf),
        ),
        reward=terms.LOGRATIO,
        inputs=("imageless_logps", "ref_imageless_logps"),
        soft="refused",
        why_not_soft="two of its terms are the chosen completion's, and a probable label doesn't say which one that is",
        when="Images are in the prompt and must not be ignored.",
        traps="Policy and reference have to see the same corrupted image.",
    ),
    Loss(
        name="dpo_norm",
        formula=losses.dpo_norm,
        hyper=(terms.beta(5.0),),
        reward=terms.MEAN_LOGRATIO,
        tokens="mean",
        needs_lengths=True,
        when="DPO makes answers longer than it should.",
        traps="β is larger by the order of a completion's length: 0.1 does next to nothing.",
        aliases=("sigmoid_norm", "dpo_length_normalised"),
    ),
    Loss(
        name="rdpo_length",
        formula=losses.rdpo_length,
        hyper=(terms.BETA, HyperParameter("alpha", 0.05, "credit for a token of length", low_open=False)),
        reward=terms.LOGRATIO,
        needs_lengths=True,
        when="Raters favour long answers: a longer chosen one gets credit for its length and teaches less.",
        traps="R-DPO, not the robust rdpo. The sign is plus. Lengths are tokens, not characters.",
        aliases=("r_dpo",),
    ),
    Loss(
        name="ld_dpo",
        formula=losses.ld_dpo,
        hyper=(
            terms.BETA,
            HyperParameter(
                "alpha", 0.5, "what a token past the shorter one counts", low_open=False, high=1.0, high_open=False
            ),
            HyperParameter("scale_reference", True, "whether the reference's tokens count so too"),
        ),
        reward=terms.LOGRATIO,
        needs_lengths=True,
        inputs=("token_logps", "ref_token_logps"),
        when="The longer completion wins by its tail.",
        traps="α = 1 is DPO, 0 cuts the tail. TRL scales policy and reference, LLaMA-Factory the policy alone.",
        aliases=("lddpo",),
    ),
    Loss(
        name="tdpo1",
        formula=losses.tdpo1,
        hyper=(terms.BETA,),
        reward=terms.LOGRATIO_PLUS_KL,
        inputs=("seq_kl",),
        watch=watch.watch_seq_kl,
        when="KL to the reference should be controlled token by token.",
        traps="The KL is forward, reference first, and needs both models' whole distributions.",
    ),
    Loss(
        name="tdpo2",
        formula=losses.tdpo2,
        hyper=(terms.BETA, HyperParameter("alpha", 0.5, "weight of the difference of KL", low_open=False)),
        reward=terms.LOGRATIO_PLUS_KL,
        inputs=("seq_kl",),
        watch=watch.watch_seq_kl,
        when="As tdpo1, which it improves on.",
        traps="Only the chosen side's KL is detached.",
    ),
    Loss(
        name="wpo",
        formula=losses.wpo,
        hyper=(terms.beta(0.01), HyperParameter("clamp_weight", True, "whether weights stop at 1")),
        reward=terms.LOGRATIO,
        needs_lengths=True,
        inputs=("log_sum_sq_probs",),
        watch=watch.watch_weight,
        when="Pairs written by other models, which count by how likely the policy is to write them.",
        traps="TRL from 0.29 on doesn't clamp.",
        aliases=("wpo_clamped",),
    ),
    Loss(
        name="aot",
        formula=losses.aot,
        hyper=(terms.beta(0.01),),
        reward=terms.LOGRATIO,
        soft="refused",
        why_not_soft="it compares sorted lists, in which pairs lose their labels",
        whole_batch=True,
        when="The distribution of margins should improve, not every pair.",
        traps="Values belong to ranks: no weights, and the batch of a step can't be cut.",
    ),
    Loss(
        name="aot_unpaired",
        formula=losses.aot_unpaired,
        hyper=(terms.beta(0.01),),
        reward=terms.LOGRATIO,
        soft="refused",
        why_not_soft="it compares sorted lists, in which pairs lose their labels",
        whole_batch=True,
        when="As aot, when chosen and rejected completions aren't of the same prompts.",
        traps="As many chosen as rejected. TRL up to 0.27 called it aot_pair.",
    ),
    Loss(
        name="rpo_pang",
        formula=losses.rpo_pang,
        hyper=(terms.BETA, terms.NLL_WEIGHT),
        reward=terms.LOGRATIO,
        needs_lengths=True,
        soft="refused",
        why_not_soft=terms.HAS_A_SIDE,
        when="Reasoning, where the correct answer has to stay likely.",
        traps="One of four losses called RPO; this one averages the likelihood over the completion's own tokens.",
    ),
    Loss(
        name="rpo_liu",
        formula=losses.rpo_liu,
        hyper=(
            terms.beta(0.01),
            HyperParameter("eta", 0.005, "weight η of the likelihood, which is also times β", low_open=False),
        ),
        reward=terms.LOGRATIO,
        soft="refused",
        why_not_soft=terms.HAS_A_SIDE,
        when="Against overoptimisation, with a guarantee.",
        traps="The likelihood is summed over tokens, so its weight is small.",
    ),
)
