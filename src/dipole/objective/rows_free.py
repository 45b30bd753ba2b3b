"""The rows of losses without a reference, of losses on single completions and lists, and of mixes."""

from __future__ import annotations

import math

from dipole.objective import coupling, losses, terms
from dipole.objective import diagnostics as watch
from dipole.objective.mix import mix
from dipole.objective.row import HyperParameter, Loss
from dipole.objective.rows_anchored import ROWS as ANCHORED
from dipole.objective.rows_margin import ROWS as MARGIN

GAMMA_BETA_RATIO = HyperParameter("gamma_beta_ratio", 0.5, "margin γ divided by β", low_open=False)
SCALE = "scale of the length-averaged log-probability"
NO_LOSER = "it learns from the chosen completion alone, and a probable label doesn't say which one that is"
SCORE_SCALE = HyperParameter("score_scale", 1.0, "what scores are divided by before their softmax")
SCORES_ARE_LABELS = "The scores are the labels; the order of the list doesn't matter."


PAIR_ROWS = (
    Loss(
        name="simpo",
        formula=losses.simpo,
        hyper=(HyperParameter("beta", 2.0, SCALE), GAMMA_BETA_RATIO),
        reward=terms.BETA_MEAN_LOGPS,
        needs_reference=False,
        tokens="mean",
        needs_lengths=True,
        when="No memory for a reference, and answers shouldn't grow.",
        traps="Nothing ties it to the start: measure KL and stop early. Other code gives γ itself: γ = 0.5 at β = 0.1 "
        "is a ratio of 5. Published β are 2 to 10.",
    ),
    Loss(
        name="alphapo",
        formula=losses.alphapo,
        hyper=(
            HyperParameter("beta", 2.5, SCALE),
            HyperParameter("gamma_beta_ratio", 0.2, "margin γ divided by β", low_open=False),
            HyperParameter("alpha", 0.1, "shape of the reward; 0 is SimPO", low=-math.inf),
        ),
        reward=terms.ALPHA_MEAN_LOGPS,
        needs_reference=False,
        tokens="mean",
        needs_lengths=True,
        when="SimPO with a reward that falls faster, or slower, for unlikely completions.",
        traps="As simpo. Large α makes unlikely completions rule the batch.",
    ),
    Loss(
        name="orpo",
        formula=losses.orpo,
        hyper=(HyperParameter("odds_weight", 0.1, "λ of the odds-ratio term", low_open=False),),
        reward=terms.ODDS_MEAN_LOGPS,
        needs_reference=False,
        tokens="mean",
        needs_lengths=True,
        soft="refused",
        why_not_soft=terms.HAS_A_SIDE,
        watch=watch.watch_odds,
        when="From a base model in one stage, without supervised fine-tuning first.",
        traps="λ is 'beta' in TRL and 'alpha' in the official code. Both take the likelihood over prompt and "
        "completion; here it is the completion's.",
    ),
    Loss(
        name="cpo",
        formula=losses.cpo,
        hyper=(HyperParameter("beta", 0.1, "scale of the difference of log-probabilities"), terms.NLL_WEIGHT),
        reward=terms.BETA_LOGPS,
        needs_reference=False,
        soft="refused",
        why_not_soft=terms.HAS_A_SIDE,
        when="Translation, and wherever the reference costs too much.",
        traps="Sums favour short rejected completions. TRL averages the likelihood over tokens. The official code's "
        "present cpo_loss is another loss (ARPO).",
    ),
    Loss(
        name="slic",
        formula=losses.slic,
        hyper=(
            HyperParameter("gap", 1.0, "δ: by how many nats the chosen one should lead", low_open=False),
            HyperParameter("nll_weight", 0.1, "λ: weight of the likelihood of the chosen completion", low_open=False),
        ),
        reward=terms.LOGPS,
        needs_reference=False,
        soft="refused",
        why_not_soft=terms.HAS_A_SIDE,
        when="A calibration of ranks that stops once the lead is there.",
        traps="With a reference it is hinge. The paper may regularise towards another text; here it is the chosen one.",
        aliases=("slic_hf",),
    ),
    Loss(
        name="sft",
        formula=losses.sft,
        reward=terms.LOGPS,
        needs_reference=False,
        soft="refused",
        why_not_soft=NO_LOSER,
        when="The baseline: imitate what was chosen.",
        traps="Summed over tokens, so long completions have large gradients; sft_avg averages.",
        aliases=("sft_sum", "preferred_ft"),
    ),
    Loss(
        name="sft_avg",
        formula=losses.sft_avg,
        reward=terms.MEAN_LOGPS,
        needs_reference=False,
        tokens="mean",
        needs_lengths=True,
        soft="refused",
        why_not_soft=NO_LOSER,
        when="The baseline, every completion with the same weight whatever its length.",
        traps="TRL averages over all tokens of the batch instead, where long completions weigh more.",
    ),
    Loss(
        name="unlikelihood",
        formula=losses.unlikelihood,
        hyper=(
            HyperParameter(
                "alpha", 0.5, "weight of the rejected completion", low_open=False, high=1.0, high_open=False
            ),
        ),
        reward=terms.LOGPS,
        needs_reference=False,
        soft="refused",
        why_not_soft=terms.HAS_A_SIDE,
        when="The DPO paper's baseline.",
        traps="Unbounded below: it degenerates on open-ended text.",
        aliases=("unlikelihood_dpo_paper",),
    ),
    Loss(
        name="unlikelihood_welleck",
        formula=losses.unlikelihood_welleck,
        hyper=(HyperParameter("alpha", 0.5, "weight of the rejected completion", low_open=False),),
        reward=terms.LOGPS,
        needs_reference=False,
        needs_lengths=True,
        inputs=("token_logps",),
        soft="refused",
        why_not_soft=terms.HAS_A_SIDE,
        when="Rejected tokens should become unlikely, with a bound.",
        traps="Punishes every token of the rejected completion, those that both share included.",
    ),
)

UNARY_ROWS = (
    Loss(
        name="kto",
        formula=losses.kto,
        relation="unary",
        hyper=(
            terms.BETA,
            HyperParameter("desirable_weight", 1.0, "λ_D"),
            HyperParameter("undesirable_weight", 1.0, "λ_U"),
        ),
        reward=terms.LOGRATIO,
        inputs=("mismatched_logratio",),
        soft="refused",
        why_not_soft="an approval has no probability",
        coupling=coupling.KTO,
        when="Thumbs up and down, without pairs.",
        traps="Choose the weights so that λ_D n_D / (λ_U n_U) is between 1 and 1.5. z₀ is biased upwards, not a KL. "
        "Pairs taken apart have to be mismatched with prompts of other groups.",
    ),
    Loss(
        name="apo_zero_unary",
        formula=losses.apo_zero_unary,
        relation="unary",
        hyper=(terms.BETA,),
        reward=terms.LOGRATIO,
        soft="refused",
        why_not_soft="an approval has no probability",
        when="KTO without its extra forward pass.",
        traps="Without z₀ a policy that has drifted far saturates.",
        aliases=("apo_zero_unpaired", "kto_no_kl"),
    ),
    Loss(
        name="bco",
        formula=losses.bco,
        relation="unary",
        hyper=(terms.beta(0.01),),
        reward=terms.LOGRATIO,
        soft="refused",
        why_not_soft="an approval has no probability",
        coupling=coupling.BCO,
        when="Thumbs up and down, as a classifier.",
        traps="The shift belongs to the checkpoint. The paper's density-ratio weights go into the relations' weights.",
    ),
)

LIST_ROWS = (
    Loss(
        name="plackett_luce",
        formula=losses.plackett_luce,
        relation="list",
        hyper=(terms.BETA,),
        reward=terms.LOGRATIO,
        soft="refused",
        why_not_soft="a ranking has no probability; give several rankings with weights",
        when="Whole rankings, in one piece. Two places are DPO.",
        traps="Ties have no place in it: split such a ranking into pairs.",
    ),
    Loss(
        name="best_vs_rest",
        formula=losses.best_vs_rest,
        relation="list",
        hyper=(terms.BETA,),
        reward=terms.LOGRATIO,
        soft="refused",
        why_not_soft="a ranking has no probability; give several rankings with weights",
        when="Only the best of K is known, or to be trusted.",
        traps="The order among the others is ignored: they are pushed down together.",
        aliases=("best_vs_rest_softmax",),
    ),
    Loss(
        name="infonca",
        aliases=("dpo_kwise", "dpo_rw"),
        formula=losses.infonca,
        relation="list",
        hyper=(terms.beta(0.01), SCORE_SCALE),
        reward=terms.LOGRATIO,
        inputs=("scores",),
        soft="refused",
        why_not_soft="its labels are the scores",
        when="K scored completions.",
        traps=SCORES_ARE_LABELS + " The official code adds 0.01 to the top score, which breaks ties.",
    ),
    Loss(
        name="nca_kwise",
        formula=losses.nca_kwise,
        relation="list",
        hyper=(terms.beta(0.01), SCORE_SCALE),
        reward=terms.LOGRATIO,
        inputs=("scores",),
        soft="refused",
        why_not_soft="its labels are the scores",
        when="K scored completions, and the best one's likelihood must not fall.",
        traps=SCORES_ARE_LABELS,
    ),
    Loss(
        name="exo_kwise",
        formula=losses.exo_kwise,
        relation="list",
        hyper=(terms.BETA, HyperParameter("score_scale", 0.1, "what scores are divided by before their softmax")),
        reward=terms.LOGRATIO,
        inputs=("scores",),
        soft="refused",
        why_not_soft="its labels are the scores",
        when="K scored completions, reverse KL.",
        traps=SCORES_ARE_LABELS + " Cross-entropy the other way round (dpo-rw in the official code) is infonca.",
        aliases=("exo_rw",),
    ),
)

_PARTS = {row.name: row for row in (*MARGIN, *ANCHORED, *PAIR_ROWS)}

MIX_ROWS = (
    mix(
        "mpo",
        ((0.8, _PARTS["dpo"]), (0.2, _PARTS["bco_pair_unshifted"]), (1.0, _PARTS["sft_avg"])),
        source="Wang et al. 2024 (Mixed Preference Optimization), arXiv 2411.10442",
        when="Reasoning of models with images: preference, absolute quality and likelihood at once.",
        traps="TRL's mix averages the likelihood over the batch's tokens; here it is every completion's own average.",
    ),
)

ROWS = PAIR_ROWS + UNARY_ROWS + LIST_ROWS + MIX_ROWS
