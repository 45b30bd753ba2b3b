"""Values, gradients and rewards of every loss against numbers that the reference implementations' own code returned."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from objective_cases import INPUT, VECTORS, run, vector_completions

from dipole.objective import Completions, ListIndex, PairIndex, Relations, UnaryIndex, indexed_preference_loss, resolve
from dipole.objective.coupling import KTO
from dipole.objective.losses import odds_ratio
from dipole.objective.tr_dpo import sync_is_due, updated_reference


@dataclass(frozen=True)
class Case:
    """Which row, with which settings, gives the numbers of an entry."""

    row: str
    settings: dict[str, Any] = field(default_factory=dict)
    soft: bool = False
    gradient: bool = True
    add: float = 0.0


B = {"beta": 0.1}
CASES = {
    "dpo_beta0.1": Case("dpo", B),
    "dpo_beta0.5": Case("dpo", {"beta": 0.5}),
    "cdpo": Case("cdpo", {**B, "label_smoothing": 0.1}),
    "rdpo_robust": Case("rdpo", {**B, "flip_prob": 0.1}),
    "soft_label_bce": Case("dpo", B, soft=True),
    "gdpo_geometric": Case("gdpo", B, soft=True),
    "dpo_length_normalised": Case("dpo_norm", {"beta": 5.0}),
    "hinge_rso": Case("hinge", B),
    "slic_calibration": Case("slic", {"gap": 1.0, "nll_weight": 0.0}),
    "slic_hf": Case("slic", {"gap": 1.0, "nll_weight": 0.1}),
    "ipo_sum": Case("ipo", B),
    "ipo_avg": Case("ipo_avg", B),
    "ipo_soft_sum": Case("ipo", B, soft=True),
    "kto": Case("kto", B),
    "kto_no_kl_apo_zero_unpaired": Case("apo_zero_unary", B),
    "bco_first_step": Case("bco", B),
    "bco_pair_with_delta": Case("bco_pair", B),
    "bco_pair_no_delta": Case("bco_pair_unshifted", B),
    "simpo": Case("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.5}),
    "orpo": Case("orpo", {"odds_weight": 0.1}),
    "cpo_prefer": Case("cpo", {**B, "nll_weight": 0.0}),
    "cpo": Case("cpo", {**B, "nll_weight": 1.0}),
    "alphapo": Case("alphapo", {"beta": 2.5, "gamma_beta_ratio": 0.2, "alpha": 0.1}),
    "exo_pair": Case("exo", {**B, "target_smoothing": 1e-3}),
    # The official target isn't normalised: [0, −10] is [log(1−ε), log ε] + log(1 + e^−10), ε = σ(−10).
    "exo_pair_repo_logeps10": Case(
        "exo", {**B, "target_smoothing": 1 / (1 + math.exp(10))}, add=-math.log1p(math.exp(-10))
    ),
    "nca_pair": Case("nca", B),
    "sppo_hard_beta0.001": Case("sppo_hard", {"beta": 0.001}),
    "sppo_hard_beta0.1": Case("sppo_hard", B),
    "sppo_soft": Case("sppo_soft", B, soft=True),
    "aot_paired": Case("aot", B),
    "aot_unpaired": Case("aot_unpaired", B),
    "apo_zero": Case("apo_zero", B),
    "apo_down": Case("apo_down", B),
    "discopop": Case("discopop", {"beta": 0.05, "tau": 0.05}),
    "fdpo_forward_kl": Case("fdpo_forward_kl", B),
    "fdpo_jsd": Case("fdpo_jsd", B),
    "fdpo_alpha_0.5": Case("fdpo_alpha", {**B, "alpha": 0.5}),
    "fdpo_alpha_0.3": Case("fdpo_alpha", {**B, "alpha": 0.3}),
    "rdpo_length": Case("rdpo_length", {**B, "alpha": 0.05}),
    "lddpo": Case("ld_dpo", {**B, "alpha": 0.5}, gradient=False),
    "lddpo_policy_only": Case("ld_dpo", {**B, "alpha": 0.5, "scale_reference": False}, gradient=False),
    "tdpo1": Case("tdpo1", B),
    "tdpo2": Case("tdpo2", {**B, "alpha": 0.5}),
    "odpo": Case("odpo", {"beta": 0.5, "alpha": 1.0}),
    "rpo_nvidia_bwd_kl": Case("rpo_nvidia_bwd_kl", {**B, "eta": 1.0}),
    "rpo_nvidia_fwd_kl": Case("rpo_nvidia_fwd_kl", {**B, "eta": 1.0}),
    "rpo_nvidia_sq": Case("rpo_nvidia_sq", {**B, "eta": 1.0}),
    "rpo_pang": Case("rpo_pang", {**B, "nll_weight": 1.0}),
    "rpo_liu": Case("rpo_liu", {**B, "eta": 0.005}),
    "dpop": Case("dpop", {**B, "penalty_weight": 50.0}),
    "wpo_clamped": Case("wpo", {**B, "clamp_weight": True}),
    "wpo_unclamped": Case("wpo", {**B, "clamp_weight": False}),
    "beta_dpo_batch": Case("beta_dpo", {**B, "sensitivity": 0.6}),
    "modpo": Case("modpo", {**B, "weights": (0.7, 0.3)}),
    "mdpo": Case("mdpo", {**B, "anchor": 0.0}),
    "safedpo": Case("safedpo", {**B, "offset": 2.0}),
    "xpo": Case("xpo", {**B, "alpha": 1e-5}),
    "sft_sum": Case("sft"),
    "sft_avg": Case("sft_avg"),
    "unlikelihood_dpo_paper": Case("unlikelihood", {"alpha": 0.5}),
    "unlikelihood_welleck": Case("unlikelihood_welleck", {"alpha": 0.5}, gradient=False),
    "adpo": Case("adpo", {**B, "gamma": 0.2}),
    "chi_po": Case("chi_po", {**B, "r_max": 1.0}),
    "plackett_luce": Case("plackett_luce", B),
    "best_vs_rest_softmax": Case("best_vs_rest", B),
    "infonca": Case("infonca", {**B, "score_scale": 1.0}),
    "nca_kwise": Case("nca_kwise", {**B, "score_scale": 1.0}),
    "exo_rw": Case("exo_kwise", {**B, "score_scale": 0.5}),
    "dpo_rw": Case("infonca", {**B, "score_scale": 0.5}),
}

ELSEWHERE = {
    "orpo_or_term": "test_odds_ratio_term",
    "mpo_mix": "test_mpo",
    "dpo_index_pair": "test_index_pairs",
    "tr_dpo_soft_update": "test_reference_update",
    "reward_model_bt": "test_bradley_terry",
    "nash_md_trl_surrogate": "a policy gradient of online samples, which is no preference loss",
}


def test_every_entry_is_covered():
    assert CASES.keys() | ELSEWHERE.keys() == VECTORS["losses"].keys()
    assert not CASES.keys() & ELSEWHERE.keys()


def _relations(case: Case, dtype: torch.dtype) -> Relations:
    if resolve(case.row).relation == "unary":
        return UnaryIndex(i=torch.arange(8), desirable=torch.arange(8) < 4)
    if resolve(case.row).relation == "list":
        return ListIndex(order=torch.tensor([INPUT["kwise"]["ranking_best_first"]]))
    prob = torch.tensor(INPUT["soft_label_p_chosen"], dtype=dtype) if case.soft else None
    return PairIndex(i=torch.arange(4), j=torch.arange(4, 8), prob=prob)


def _completions(case: Case, dtype: torch.dtype) -> Completions:
    if resolve(case.row).relation != "list":
        return vector_completions(dtype)
    kwise = {name: torch.tensor(INPUT["kwise"][name], dtype=dtype) for name in ("policy_logps", "reference_logps")}
    scores = torch.tensor(INPUT["kwise"]["scores"], dtype=dtype)
    return Completions(logps=kwise["policy_logps"], ref_logps=kwise["reference_logps"], extras={"scores": scores})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_vector(name: str, dtype: torch.dtype):
    case, expected = CASES[name], VECTORS["losses"][name]
    row = resolve(case.row)
    completions = _completions(case, dtype)
    completions.logps.requires_grad_()
    outcome = run(row, row.settings(**case.settings), completions, _relations(case, dtype))
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    assert outcome.losses.dtype == dtype
    _close(outcome.losses.detach() + case.add, expected["loss_per_example"], tolerance)
    if case.gradient and "grad_policy_chosen" in expected:
        (gradient,) = torch.autograd.grad(outcome.losses.sum(), completions.logps)
        rejected = expected.get("grad_policy_rejected", [0.0] * 4)
        _close(gradient, expected["grad_policy_chosen"] + rejected, tolerance)
    if "chosen_rewards" in expected:
        _close(outcome.rewards, expected["chosen_rewards"] + expected.get("rejected_rewards", []), tolerance)


def _close(actual: torch.Tensor, expected: list[float], tolerance: dict[str, float]) -> None:
    torch.testing.assert_close(actual.double(), torch.tensor(expected, dtype=torch.float64), **tolerance)


EXACT = {"rtol": 1e-9, "atol": 1e-9}


def _sides() -> tuple[Completions, Completions]:
    completions = vector_completions()
    return completions.take(torch.arange(4)), completions.take(torch.arange(4, 8))


def test_odds_ratio_term():
    expected = VECTORS["losses"]["orpo_or_term"]
    chosen, rejected = _sides()
    _close(odds_ratio(chosen, rejected), expected["loss_per_example"], EXACT)


def test_mpo():
    """The entry averages the likelihood over the batch's 20 chosen tokens, 1.06; the row over each completion's own."""
    row = resolve("mpo")
    outcome = run(row, row.settings(beta=0.1), vector_completions(), _relations(Case("mpo"), torch.float64))
    own = torch.tensor(VECTORS["losses"]["sft_avg"]["loss_per_example"], dtype=torch.float64)
    _close(outcome.losses - own + 1.06, VECTORS["losses"]["mpo_mix"]["loss_per_example"], EXACT)
    _close(outcome.rewards[:4], VECTORS["losses"]["mpo_mix"]["chosen_rewards"], EXACT)


def test_index_pairs():
    given, expected = INPUT["index_pair"], VECTORS["losses"]["dpo_index_pair"]
    logps = torch.tensor(given["pi_logps"], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor(given["ref_logps"], dtype=torch.float64)
    outcome = indexed_preference_loss(logps, reference, given["yw_idxs"], given["yl_idxs"], beta=0.1)
    _close(outcome.losses.detach(), expected["loss_per_example"], EXACT)
    _close(outcome.rewards, expected["rewards"], EXACT)
    assert outcome.mean().item() == pytest.approx(expected["loss_mean"], abs=1e-12)
    (gradient,) = torch.autograd.grad(outcome.losses.sum(), logps)
    assert gradient.sum().abs() < 1e-12, "what a pair gives to one side it takes from the other"
    assert gradient[0] < 0 < gradient[4], "the first completion is chosen twice, the last rejected twice"


def test_bradley_terry():
    """The loss of a reward model is DPO of its scores, without a reference and with β = 1."""
    scores = torch.tensor(INPUT["chosen_scores"] + INPUT["rejected_scores"], dtype=torch.float64)
    outcome = indexed_preference_loss(scores, torch.zeros_like(scores), range(4), range(4, 8), beta=1.0)
    _close(outcome.losses, VECTORS["losses"]["reward_model_bt"]["loss_per_example"], EXACT)


def test_reference_update():
    example = VECTORS["updates"]["tr_dpo"]
    reference = {"w": torch.tensor(example["theta_ref"])}
    new = updated_reference(reference, {"w": torch.tensor(example["theta"])}, alpha=example["alpha"])
    torch.testing.assert_close(new["w"], torch.tensor(example["new_ref"]))
    assert reference["w"].tolist() == example["theta_ref"], "the old reference stays as it is"
    hard = updated_reference(reference, {"w": torch.tensor(example["theta"])}, alpha=1.0)
    assert hard["w"].tolist() == example["theta"]
    assert [step for step in range(10) if sync_is_due(step, 4)] == [4, 8]


@pytest.mark.parametrize("arguments", [{"alpha": 0.0}, {"alpha": 1.5}])
def test_reference_update_refuses(arguments: dict[str, float]):
    with pytest.raises(ValueError, match="alpha"):
        updated_reference({}, {}, **arguments)
    with pytest.raises(ValueError, match="'b'"):
        updated_reference({"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)}, alpha=0.5)
    with pytest.raises(ValueError, match="every 0"):
        sync_is_due(3, 0)


def test_kto_clamps_after_averaging_over_ranks():
    ranks = VECTORS["distributed"]["kto_z0"]
    sums = {"logratio": torch.tensor(ranks["rank_means"]).sum(), "count": torch.tensor(2.0)}
    constants, _ = KTO.settle(sums, {}, {})
    assert constants["z0"].item() == pytest.approx(ranks["clamp_after_average"])


NUMERICS = {
    "dpo": Case("dpo"),
    "rdpo_robust eps=0.1": Case("rdpo", {"flip_prob": 0.1}),
    "exo_pair eps=1e-3": Case("exo", {"target_smoothing": 1e-3}),
    "discopop tau=0.05": Case("discopop", {"tau": 0.05}),
    "fdpo_forward_kl": Case("fdpo_forward_kl"),
    "fdpo_alpha 0.5": Case("fdpo_alpha", {"alpha": 0.5}),
    "ipo (sum, tau=0.1)": Case("ipo"),
    "sppo_hard": Case("sppo_hard"),
}


@pytest.mark.parametrize("entry", VECTORS["numerics"], ids=lambda entry: f"{entry['loss']} {entry['log_ratio_chosen']}")
def test_numerics_in_float32(entry: dict[str, Any]):
    case = NUMERICS[entry["loss"]]
    row = resolve(case.row)
    logps = torch.tensor([entry["log_ratio_chosen"], entry["log_ratio_rejected"]], dtype=torch.float32).requires_grad_()
    completions = Completions(logps=logps, ref_logps=torch.zeros(2))
    pair = PairIndex(i=torch.tensor([0]), j=torch.tensor([1]))
    outcome = run(row, row.settings(beta=entry["beta"], **case.settings), completions, pair)
    (gradient,) = torch.autograd.grad(outcome.losses.sum(), logps)
    assert torch.isfinite(outcome.losses).all()
    assert torch.isfinite(gradient).all()
    if entry["should_be"] in (None, "inf"):
        assert outcome.losses.item() > 1e25, "the true value is beyond float32: it goes on as a straight line"
        assert gradient[0] < 0, "and pushes the right way"
    else:
        assert outcome.losses.item() == pytest.approx(float(entry["should_be"]), rel=1e-5, abs=1e-6)
