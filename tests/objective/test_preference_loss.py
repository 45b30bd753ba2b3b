"""Losses called with plain tensors: what they return, and every way to call them wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from objective_cases import random_completions, relations_of, run, settings_of
from torch import Tensor

from dipole.errors import ConfigError, DataError
from dipole.objective import (
    INPUTS,
    LOSSES,
    Completions,
    ListIndex,
    PairIndex,
    UnaryIndex,
    check,
    indexed_preference_loss,
    preference_loss,
    resolve,
)

TOKENS = ("token_logps", "ref_token_logps")
PAIRWISE = [row for row in LOSSES.values() if row.relation == "pair"]
W, L = torch.tensor([-3.2, -5.0]), torch.tensor([-7.5, -1.5])
RW, RL = torch.tensor([-4.5, -3.0]), torch.tensor([-6.5, -3.0])
DPO = (W, L, RW, RL)


@pytest.mark.parametrize("row", PAIRWISE, ids=lambda row: row.name)
def test_every_pairwise_loss_is_the_same_by_each_way_to_call_it(row):
    completions, settings = random_completions(), settings_of(row)
    pairs = PairIndex(i=torch.tensor([0, 1, 2]), j=torch.tensor([4, 5, 6]))
    direct = run(row, settings, completions, pairs)

    chosen, rejected = completions.take(pairs.i), completions.take(pairs.j)
    sides: dict[str, Any] = {}
    if row.needs_lengths:
        sides |= {"chosen_lengths": chosen.lengths, "rejected_lengths": rejected.lengths}
    for name in row.inputs:
        sides |= {f"chosen_{name}": chosen.extras[name], f"rejected_{name}": rejected.extras[name]}
    references = (chosen.ref_logps, rejected.ref_logps) if row.needs_reference else ()
    by_sides = preference_loss(row.name, chosen.logps, rejected.logps, *references, **sides, **settings)
    assert by_sides.name == row.name
    torch.testing.assert_close(by_sides.losses, direct.losses, rtol=0, atol=0)
    torch.testing.assert_close(by_sides.chosen_rewards, direct.rewards[pairs.i], rtol=0, atol=0)
    torch.testing.assert_close(by_sides.rejected_rewards, direct.rewards[pairs.j], rtol=0, atol=0)

    by_index = indexed_preference_loss(
        completions.logps,
        completions.ref_logps if row.needs_reference else None,
        pairs.i.tolist(),
        pairs.j,
        loss=row.name,
        lengths=completions.lengths if row.needs_lengths else None,
        **{name: completions.extras[name] for name in row.inputs},
        **settings,
    )
    torch.testing.assert_close(by_index.losses, direct.losses, rtol=0, atol=0)
    torch.testing.assert_close(by_index.rewards, direct.rewards, rtol=0, atol=0)


def test_names_of_other_libraries_are_echoed_as_ours():
    for theirs, ours in {
        "sigmoid": "dpo",
        "robust": "rdpo",
        "nca_pair": "nca",
        "exo_pair": "exo",
        "sigmoid_norm": "dpo_norm",
        "exo_rw": "exo_kwise",
        "soft_label_bce": "dpo",
        "Sigmoid": "dpo",
    }.items():
        assert resolve(theirs).name == ours
    assert preference_loss("sigmoid", *DPO).name == "dpo"
    assert indexed_preference_loss(W, RW, [0], [1], loss="robust").name == "rdpo"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dpoo", "Did you mean 'dpo'"),
        ("rpo", "rpo_pang"),
        ("sppo", "sppo_hard"),
        ("aot_pair", "aot_unpaired"),
        ("f-dpo", "fdpo_jsd"),
        ("", "no loss ''"),
    ],
)
def test_names_that_mean_nothing_or_several_things(name: str, says: str):
    with pytest.raises(ConfigError, match=says):
        resolve(name)


@pytest.mark.parametrize(
    ("arguments", "keywords", "says"),
    [
        (("dpo", *DPO), {"label_smoothing": 0.1}, "dpo doesn't use 'label_smoothing'. cdpo does"),
        (("dpo", *DPO), {"bta": 0.1}, "Did you mean 'beta'"),
        (("dpo", *DPO), {"beta": 0.0}, "beta is 0.0"),
        (("dpo", *DPO), {"beta": "0.1"}, "beta is '0.1'"),
        (("rdpo", *DPO), {"flip_prob": 0.5}, r"\[0, 0.5\)"),
        (("dpo", W, L), {}, "needs log-probabilities of the reference"),
        (("dpo", W, L, RW), {}, "ref_logps is given of one side only"),
        (("simpo", *DPO), {}, "simpo has no reference"),
        (("simpo", W, L), {}, "needs the lengths"),
        (("simpo", W, L), {"chosen_lengths": torch.ones(2), "rejected_lengths": torch.ones(2)}, "lengths has dtype"),
        (("dpo", *DPO), {"chosen_lengths": torch.ones(2), "rejected_lengths": torch.ones(2)}, "doesn't use lengths"),
        (("dpo", *DPO), {"chosen_scores": W}, "doesn't use 'chosen_scores'"),
        (("odpo", *DPO), {"chosen_scores": W}, "scores is given of one side only"),
        (("odpo", *DPO), {}, "odpo needs 'scores'"),
        (("dpo", W, L[:1], RW, RL[:1]), {}, "have shapes"),
        (("dpo", W, L, RW[:1], RL[:1]), {}, r"ref_logps has shape \(2,\), but there are 4"),
        (("dpo", W[:, None], L[:, None], RW, RL), {}, "has to be one-dimensional"),
        (("dpo", W.long(), L.long(), RW, RL), {}, "logps has dtype torch.int64"),
        (("dpo", W, L, RW.long(), RL.long()), {}, "ref_logps has dtype torch.int64"),
        (("dpo", *DPO), {"pair_prob": torch.ones(3)}, r"prob has shape \(3,\)"),
        (("rpo_liu", *DPO), {"pair_prob": torch.tensor([1.0, 0.9])}, "pair 1 has probability 0.9. Reason: its likeli"),
        (("modpo", *DPO), {"chosen_margin_rewards": W, "rejected_margin_rewards": L}, "margin_rewards has shape"),
        (("modpo", *DPO), {"weights": (0.5, 0.6)}, "sum to 1"),
        (("kto", *DPO), {}, "UnaryIndex"),
        (("plackett_luce", *DPO), {}, "ListIndex"),
    ],
)
def test_wrong_calls_are_refused(arguments: tuple[Any, ...], keywords: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        preference_loss(*arguments, **keywords)


@pytest.mark.parametrize("wrong", [1.25, -0.1, float("nan")])
def test_probabilities_have_to_be_some(wrong: float):
    with pytest.raises(DataError, match=r"prob\[1\] is"):
        preference_loss("dpo", *DPO, pair_prob=torch.tensor([0.5, wrong]))


def test_odpo_refuses_a_rejected_completion_with_the_higher_score():
    with pytest.raises(DataError, match="pair 1 has the higher score"):
        preference_loss("odpo", *DPO, chosen_scores=torch.tensor([1.0, 0.0]), rejected_scores=torch.zeros(2) + 0.5)


def test_modpo_wants_a_margin_for_every_other_objective():
    margins = {"chosen_margin_rewards": W[:, None], "rejected_margin_rewards": L[:, None]}
    with pytest.raises(ConfigError, match=r"2 weights besides the first, but margin_rewards has shape \(4, 1\)"):
        preference_loss("modpo", *DPO, weights=(0.5, 0.25, 0.25), **margins)


def test_constants_can_be_given():
    given = preference_loss("bco_pair", *DPO, shift=0.0)
    torch.testing.assert_close(given.losses, preference_loss("bco_pair_unshifted", *DPO).losses)
    assert (given.losses - preference_loss("bco_pair", *DPO).losses).abs().min() > 0
    with pytest.raises(ConfigError, match="shift"):
        preference_loss("dpo", *DPO, shift=0.0)


def test_gradients_flow_to_the_policy_alone():
    tensors = [tensor.clone().requires_grad_() for tensor in DPO[:2]]
    outcome = preference_loss("dpo", *tensors, RW, RL, beta=0.1)
    gradient = torch.autograd.grad(outcome.losses.sum(), tensors)
    torch.testing.assert_close(gradient[0], -gradient[1])
    assert not outcome.chosen_rewards.requires_grad


@pytest.mark.parametrize("row", [row for row in PAIRWISE if row.needs_reference], ids=lambda row: row.name)
def test_no_gradient_reaches_the_reference_or_the_data(row):
    completions, settings = random_completions(), settings_of(row)
    assert completions.ref_logps is not None
    given = [
        completions.ref_logps,
        *(completions.extras[name] for name in row.inputs if not INPUTS[name].differentiable),
    ]
    given = [tensor.requires_grad_() for tensor in given if tensor.is_floating_point()]
    completions.logps.requires_grad_()
    tokens = [completions.extras[name].requires_grad_() for name in row.inputs if INPUTS[name].differentiable]
    pairs = PairIndex(i=torch.tensor([0, 1, 2]), j=torch.tensor([4, 5, 6]))
    run(row, settings, completions, pairs).losses.sum().backward()
    assert all(tensor.grad is None for tensor in given)
    assert any(tensor.grad is not None for tensor in (completions.logps, *tokens))


@pytest.mark.parametrize("wrong", [float("nan"), float("-inf"), float("inf")])
def test_log_probabilities_that_are_no_numbers_are_named(wrong: float):
    with pytest.raises(DataError, match=r"chosen logps\[1\] is -?(nan|inf)"):
        preference_loss("dpo", torch.tensor([-1.0, wrong]), *DPO[1:])
    with pytest.raises(DataError, match=r"rejected ref_logps\[0\] is -?(nan|inf)"):
        preference_loss("dpo", *DPO[:3], torch.tensor([wrong, -1.0]))
    with pytest.raises(DataError, match=r"logps\[2\] is -?(nan|inf)"):
        indexed_preference_loss(torch.tensor([-1.0, -2.0, wrong]), torch.zeros(3), [0], [1])


def test_lengths_are_counts_of_the_tokens_that_are_there():
    sides = {"chosen_lengths": torch.tensor([5, -3]), "rejected_lengths": torch.tensor([7, 3])}
    with pytest.raises(DataError, match=r"lengths\[1\] is -3"):
        preference_loss("dpo_norm", *DPO, **sides)
    tokens = {f"{side}_{name}": torch.zeros(2, 4) for side in ("chosen", "rejected") for name in TOKENS}
    sides = {"chosen_lengths": torch.tensor([4, 4]), "rejected_lengths": torch.tensor([4, 6])}
    with pytest.raises(DataError, match="token_logps has 4 places, but completion 3 has 6 tokens"):
        preference_loss("ld_dpo", *DPO, **sides, **tokens)


def test_tensors_are_asked_for_by_name():
    with pytest.raises(ConfigError, match="pair_prob is a float, but has to be a tensor"):
        preference_loss("dpo", *DPO, pair_prob=0.8)
    with pytest.raises(ConfigError, match="chosen logps is a list, but has to be a tensor"):
        preference_loss("dpo", [-3.2, -5.0], *DPO[1:])
    with pytest.raises(ConfigError, match="logps is a list, but has to be a tensor"):
        indexed_preference_loss([-3.2, -5.0], RW, [0], [1])


@pytest.mark.parametrize("wrong", ["a", float("nan"), torch.ones(2)])
def test_a_constant_is_one_finite_number(wrong: Any):
    with pytest.raises(ConfigError, match=r"shift is .*, but has to be a finite number"):
        preference_loss("bco_pair", *DPO, shift=wrong)


def test_equal_scores_without_an_offset_are_dpo():
    scores = {"chosen_scores": torch.ones(2), "rejected_scores": torch.ones(2)}
    torch.testing.assert_close(
        preference_loss("odpo", *DPO, alpha=0.0, **scores).losses, preference_loss("dpo", *DPO).losses
    )


def test_xpo_wants_one_sample_of_each_model_and_safedpo_a_fact():
    both = {"chosen_from_policy": torch.ones(2), "rejected_from_policy": torch.tensor([0, 1])}
    with pytest.raises(DataError, match="both completions of pair 1 are the policy's"):
        preference_loss("xpo", *DPO, **both)
    with pytest.raises(DataError, match=r"unsafe\[1\] is 0.3, but has to be 0 or 1"):
        preference_loss("safedpo", *DPO, chosen_unsafe=torch.tensor([1, 0.3]), rejected_unsafe=torch.zeros(2))


# ---------------------------------------------------------------------------------------------------------------------
# Index lists
# ---------------------------------------------------------------------------------------------------------------------

LOGPS, REFERENCE = torch.tensor([-3.2, -7.5, -5.0]), torch.tensor([-4.5, -6.5, -3.0])


@pytest.mark.parametrize(
    ("yw", "yl", "says"),
    [
        ([0, 1], [1], "yw_idxs has 2 entries and yl_idxs has 1"),
        ([0, 3], [1, 2], r"yw_idxs\[1\] is 3, but there are 3 completions"),
        ([0, 1], [-1, 2], r"yl_idxs\[0\] is -1"),
        ([0, 1], [2, 1], r"yw_idxs\[1\] and yl_idxs\[1\] are the same completion, 1"),
        ([0.0, 1.0], [1, 2], "yw_idxs has shape .* torch.float32"),
        ([0, 1], torch.tensor([True, False]), "yl_idxs has shape .* torch.bool"),
        ([[0, 1]], [[1, 2]], r"yw_idxs has shape \(1, 2\)"),
        ([[0], [1, 2]], [1, 2], "yw_idxs is no list of integers"),
        ([0, 1], None, "yl_idxs is no list of integers"),
        (["a"], [1], "yw_idxs is no list of integers"),
    ],
)
def test_wrong_index_lists_name_the_entry(yw: Any, yl: Any, says: str):
    with pytest.raises((ConfigError, DataError), match=says):
        indexed_preference_loss(LOGPS, REFERENCE, yw, yl)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_indices_may_be_any_integers(dtype: torch.dtype):
    yw, yl = torch.tensor([0, 0], dtype=dtype), torch.tensor([1, 2], dtype=dtype)
    expected = indexed_preference_loss(LOGPS, REFERENCE, [0, 0], [1, 2]).losses
    torch.testing.assert_close(indexed_preference_loss(LOGPS, REFERENCE, yw, yl).losses, expected)


def test_wrong_calls_with_indices_are_refused():
    with pytest.raises(ConfigError, match="beta"):
        indexed_preference_loss(LOGPS, None, [0], [1], loss="sft", beta=0.1)
    with pytest.raises(ConfigError, match="simpo has no reference"):
        indexed_preference_loss(LOGPS, REFERENCE, [0], [1], loss="simpo")
    with pytest.raises(ConfigError, match="'gamma'"):
        indexed_preference_loss(LOGPS, REFERENCE, [0], [1], gamma=1.0)
    with pytest.raises(ConfigError, match="one-dimensional"):
        indexed_preference_loss(LOGPS[:, None], REFERENCE, [0], [1])


@pytest.mark.parametrize("empty", [[], torch.empty(0, dtype=torch.int64)])
def test_no_pairs_give_a_zero_with_a_graph(empty: Any):
    logps = LOGPS.clone().requires_grad_()
    outcome = indexed_preference_loss(logps, REFERENCE, empty, empty)
    assert outcome.losses.shape == (0,)
    assert outcome.rewards.shape == (3,)
    for zero in (outcome.mean(), outcome.losses.sum()):
        assert zero.item() == 0
        assert torch.autograd.grad(zero, logps, retain_graph=True)[0].tolist() == [0, 0, 0]


def test_default_beta_is_the_row_s():
    def losses(**keywords: Any) -> Tensor:
        return indexed_preference_loss(LOGPS, REFERENCE, [0], [1], **keywords).losses

    torch.testing.assert_close(losses(), losses(beta=0.1))
    torch.testing.assert_close(losses(loss="nca"), losses(loss="nca", beta=0.01))


# ---------------------------------------------------------------------------------------------------------------------
# Relations of the other kinds
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "num_ranked", "says"),
    [
        ([[0, 8]], None, r"order\[0\] = \[0, 8\] names a completion outside 0 to 7"),
        ([[0, 1], [0, -2]], None, r"order\[1\] = \[0, -2\] names"),
        ([[0, -1, 1]], None, "an entry after its end"),
        ([[0, -1]], None, "fewer than two"),
        ([[0, 1, 0]], None, "names a completion twice"),
        ([[0, 1, -1]], [3], "num_ranked outside 1 to its length"),
        ([[0, 1, -1]], [0], "num_ranked"),
        ([[0, 1, -1]], [1, 1], "num_ranked has shape"),
        ([0, 1], None, "has to be"),
        ([[0.0, 1.0]], None, "has to be"),
    ],
)
def test_wrong_lists_are_refused(order: Any, num_ranked: list[int] | None, says: str):
    lists = ListIndex(order=torch.tensor(order), num_ranked=None if num_ranked is None else torch.tensor(num_ranked))
    row = resolve("plackett_luce")
    with pytest.raises((ConfigError, DataError), match=says):
        check(row, row.settings(), random_completions(), lists)


@pytest.mark.parametrize(
    ("index", "desirable", "says"),
    [
        ([0, 8], [True, False], r"i\[1\] is 8"),
        ([0], [1], "has to be bool"),
        ([0, 1], [True], "desirable has shape"),
        ([0.5], [True], "has to be"),
    ],
)
def test_wrong_approvals_are_refused(index: list[Any], desirable: list[Any], says: str):
    row = resolve("bco")
    relations = UnaryIndex(i=torch.tensor(index), desirable=torch.tensor(desirable))
    with pytest.raises((ConfigError, DataError), match=says):
        check(row, row.settings(), random_completions(), relations)


def test_two_places_of_plackett_luce_are_dpo():
    completions = random_completions()
    pairs = PairIndex(i=torch.tensor([0, 3]), j=torch.tensor([4, 1]))
    lists = ListIndex(order=torch.tensor([[0, 4, -1], [3, 1, -1]]))
    dpo, plackett_luce = resolve("dpo"), resolve("plackett_luce")
    expected = run(dpo, dpo.settings(), completions, pairs).losses
    torch.testing.assert_close(run(plackett_luce, plackett_luce.settings(), completions, lists).losses, expected)


@pytest.mark.parametrize("name", [row.name for row in LOSSES.values() if row.relation == "list"])
def test_filling_up_a_list_changes_nothing(name: str):
    row, completions = resolve(name), random_completions()
    short = ListIndex(order=torch.tensor([[0, 2, 5]]))
    long = ListIndex(order=torch.tensor([[0, 2, 5, -1, -1]]))
    expected = run(row, row.settings(), completions, short).losses
    torch.testing.assert_close(run(row, row.settings(), completions, long).losses, expected)


def test_ranking_stops_after_the_known_places():
    completions, row, best = random_completions(), resolve("plackett_luce"), resolve("best_vs_rest")
    lists = ListIndex(order=torch.tensor([[0, 2, 5, 1]]), num_ranked=torch.tensor([1]))
    expected = run(best, best.settings(), completions, lists).losses
    torch.testing.assert_close(run(row, row.settings(), completions, lists).losses, expected)


def test_kinds_of_relations_are_told_apart():
    assert {row.relation: type(relations_of(row)).__name__ for row in LOSSES.values()} == {
        "pair": "PairIndex",
        "unary": "UnaryIndex",
        "list": "ListIndex",
    }


def test_completions_of_different_number_are_refused():
    row = resolve("simpo")
    wrong = Completions(logps=LOGPS, lengths=torch.tensor([1, 2]))
    with pytest.raises(ConfigError, match="lengths has shape"):
        check(row, row.settings(), wrong, PairIndex(i=torch.tensor([0]), j=torch.tensor([1])))
