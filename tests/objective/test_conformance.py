"""What every row of the table promises, run on every row: a new row is tested without a new test."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from typing import Any

import pytest
import torch
from objective_cases import (
    ROWS,
    count,
    every_row,
    gradients,
    random_completions,
    relations_of,
    renumbered,
    replaced,
    run,
    settings_of,
    take,
    with_graph,
)

from dipole.errors import ConfigError
from dipole.objective import (
    INPUTS,
    Completions,
    HyperParameter,
    Loss,
    PairIndex,
    Relations,
    batch_sums,
    check,
    evaluate,
    initial_state,
    resolve,
    settle,
)

soft_row = pytest.mark.parametrize("row", [r for r in ROWS if r.soft != "refused"], ids=lambda row: row.name)
separable_row = pytest.mark.parametrize("row", [r for r in ROWS if not r.whole_batch], ids=lambda row: row.name)

DETACHES_LOGPS = {"wpo": "its weight is detached; test_wpo_weight_has_no_gradient looks at that"}
"""Rows whose gradient is not the derivative of their value, and why."""


# ---------------------------------------------------------------------------------------------------------------------
# Facts
# ---------------------------------------------------------------------------------------------------------------------


@every_row
def test_row_says_what_it_is(row: Loss):
    assert row.formula_text
    assert row.source
    assert row.when.endswith(".")
    assert not row.traps or row.traps.endswith(".")
    assert row.reward.text
    assert (row.soft == "refused") == bool(row.why_not_soft)
    assert set(row.inputs) <= INPUTS.keys()
    assert all(parameter.meaning for parameter in row.all_hyper.values())


@every_row
def test_formula_takes_exactly_what_the_row_says(row: Loss):
    if row.formula.__module__.endswith(".mix"):
        pytest.skip("a mix hands on what its parts take")
    keywords = {
        name
        for name, p in inspect.signature(row.formula).parameters.items()
        if p.kind == inspect.Parameter.KEYWORD_ONLY
    }
    constants = set(row.coupling.constants) if row.coupling else set()
    label = {"prob"} if row.soft == "own" else set()
    assert keywords == {parameter.name for parameter in row.hyper} | constants | label


@every_row
def test_row_needs_exactly_what_it_reads(row: Loss):
    """Without any one thing that the row declares it fails; with nothing more than that it runs."""
    everything = random_completions()
    least = Completions(
        logps=everything.logps,
        ref_logps=everything.ref_logps if row.needs_reference else None,
        lengths=everything.lengths if row.needs_lengths else None,
        extras={name: everything.extras[name] for name in row.inputs},
    )
    run(row, settings_of(row), least, relations_of(row))
    removals = [
        {name: None} for name, needed in (("ref_logps", row.needs_reference), ("lengths", row.needs_lengths)) if needed
    ]
    removals += [{"extras": {k: v for k, v in least.extras.items() if k != name}} for name in row.inputs]
    for removal in removals:
        kept = {"logps": least.logps, "ref_logps": least.ref_logps, "lengths": least.lengths, "extras": least.extras}
        with pytest.raises(ConfigError, match=row.name):
            run(row, settings_of(row), Completions(**{**kept, **removal}), relations_of(row))


def test_names_are_unique():
    names = Counter(name for row in ROWS for name in (row.name, *row.aliases))
    assert [name for name, times in names.items() if times > 1] == []
    for row in ROWS:
        for name in (row.name, *row.aliases):
            assert resolve(name) is row
            assert resolve(name.upper().replace("_", "-")) is row


# ---------------------------------------------------------------------------------------------------------------------
# Hyper-parameters
# ---------------------------------------------------------------------------------------------------------------------


@every_row
def test_unknown_hyper_parameter_is_refused(row: Loss):
    with pytest.raises(ConfigError, match=rf"'bta' is no hyper-parameter of {row.name}"):
        row.settings(bta=0.1)
    for other in {name for r in ROWS for name in r.all_hyper} - row.all_hyper.keys():
        with pytest.raises(ConfigError, match=other):
            row.settings(**{other: 0.1})


def _wrong_values(parameter: HyperParameter) -> list[Any]:
    if isinstance(parameter.default, bool):
        return [1, "true", None]
    if isinstance(parameter.default, tuple):
        return [0.5, (), (-0.5, 1.5), (math.nan, 1.0), "ab"]
    wrong = [True, "0.1", None, math.nan, math.inf]
    if parameter.low > -math.inf:
        wrong += [parameter.low - 1e-6] + ([parameter.low] if parameter.low_open else [])
    if parameter.high < math.inf:
        wrong += [parameter.high + 1e-6] + ([parameter.high] if parameter.high_open else [])
    return wrong


@every_row
def test_hyper_parameter_out_of_range_is_refused(row: Loss):
    for parameter in row.all_hyper.values():
        assert parameter.check(parameter.default, row.name) == parameter.default
        for value in _wrong_values(parameter):
            with pytest.raises(ConfigError, match=parameter.name):
                row.settings(**{parameter.name: value})


def _other_value(parameter: HyperParameter) -> Any:
    if isinstance(parameter.default, bool):
        return not parameter.default
    if isinstance(parameter.default, tuple):
        return (0.2, 0.3, 0.5) if parameter.simplex else tuple(0.5 * weight for weight in parameter.default)
    return 0.5 * parameter.default if parameter.default else 0.25


@every_row
def test_every_hyper_parameter_has_an_effect(row: Loss):
    """On the losses of the first batch, or on the moving state that it leaves."""
    relations, settings = relations_of(row), settings_of(row)
    # Thresholds, clamps and bounds need large values to be reached, and small ones to be kept.
    batches = [random_completions(seed, scale=scale) for seed in range(3) for scale in (0.5, 3.0, 20.0)]

    def effects(chosen: dict[str, Any]) -> list[list[float]]:
        return [_losses_and_state(row, chosen, completions, relations) for completions in batches]

    before = effects(settings)
    for parameter in row.all_hyper.values():
        assert effects({**settings, parameter.name: _other_value(parameter)}) != before, parameter.name


def _losses_and_state(
    row: Loss, settings: dict[str, Any], completions: Completions, relations: Relations
) -> list[float]:
    constants, state = settle(row, settings, batch_sums(row, settings, completions, relations), initial_state(row))
    losses = evaluate(row, settings, completions, relations, constants).losses
    return losses.tolist() + [value.item() for value in state.values()]


# ---------------------------------------------------------------------------------------------------------------------
# Values and gradients
# ---------------------------------------------------------------------------------------------------------------------


@every_row
def test_one_value_a_relation_and_one_reward_a_completion(row: Loss):
    completions, relations = random_completions(), relations_of(row)
    completions.logps.requires_grad_()
    check(row, settings_of(row), completions, relations)
    outcome = run(row, settings_of(row), completions, relations)
    assert outcome.losses.shape == (count(relations),)
    assert outcome.rewards.shape == (8,)
    assert outcome.losses.dtype == outcome.rewards.dtype == torch.float64
    assert not outcome.rewards.requires_grad
    assert torch.isfinite(outcome.losses).all()
    assert torch.isfinite(outcome.rewards).all()
    for name, values in outcome.logged.items():
        assert values.shape == outcome.losses.shape, name
        assert not values.requires_grad, name


@every_row
def test_gradient_against_finite_differences(row: Loss):
    if row.name in DETACHES_LOGPS:
        pytest.skip(DETACHES_LOGPS[row.name])
    completions, relations, settings = random_completions(), relations_of(row), settings_of(row)
    differentiable = [name for name in row.inputs if INPUTS[name].differentiable and row.name != "tdpo2"]
    sums = batch_sums(row, settings, completions, relations)
    constants, _ = settle(row, settings, sums, initial_state(row))

    def losses(logps: torch.Tensor, *extras: torch.Tensor) -> torch.Tensor:
        changed = replaced(completions, logps=logps, **dict(zip(differentiable, extras, strict=True)))
        return evaluate(row, settings, changed, relations, constants).losses

    arguments = [completions.logps, *(completions.extras[name] for name in differentiable)]
    variables = [argument.clone().requires_grad_() for argument in arguments]
    assert torch.autograd.gradcheck(losses, variables, eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("clamp", [True, False])
def test_wpo_weight_has_no_gradient(clamp: bool):
    completions, pairs = random_completions(), PairIndex(i=torch.tensor([0, 1]), j=torch.tensor([4, 5]))
    completions.logps.requires_grad_()
    wpo, dpo = resolve("wpo"), resolve("dpo")
    weighted = run(wpo, wpo.settings(beta=0.1, clamp_weight=clamp), completions, pairs)
    plain = run(dpo, dpo.settings(beta=0.1), completions, pairs)
    (gradient,) = torch.autograd.grad(weighted.losses.sum(), completions.logps)
    (expected,) = torch.autograd.grad((weighted.logged["wpo/weight"] * plain.losses).sum(), completions.logps)
    torch.testing.assert_close(gradient, expected)


def test_tdpo2_detaches_the_chosen_side_alone():
    completions, pairs = random_completions(), PairIndex(i=torch.tensor([0]), j=torch.tensor([4]))
    kl = completions.extras["seq_kl"].requires_grad_()
    row = resolve("tdpo2")
    (gradient,) = torch.autograd.grad(run(row, row.settings(), completions, pairs).losses.sum(), kl)
    assert gradient.nonzero().flatten().tolist() == [4]


@every_row
def test_order_of_relations_does_not_matter(row: Loss):
    completions, relations, settings = random_completions(), relations_of(row), settings_of(row)
    order = torch.randperm(count(relations), generator=torch.Generator().manual_seed(1))
    plain = run(row, settings, completions, relations).losses
    permuted = run(row, settings, completions, take(relations, order)).losses
    torch.testing.assert_close(permuted, plain if row.whole_batch else plain[order], rtol=1e-12, atol=1e-12)


@every_row
def test_order_of_completions_does_not_matter(row: Loss):
    completions, relations, settings = random_completions(), relations_of(row), settings_of(row)
    moved_from = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    plain = run(row, settings, completions, relations)
    moved = run(row, settings, completions.take(moved_from), renumbered(relations, moved_from.argsort()))
    torch.testing.assert_close(moved.losses, plain.losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moved.rewards, plain.rewards[moved_from], rtol=1e-12, atol=1e-12)


@separable_row
def test_a_loss_does_not_depend_on_the_micro_batch(row: Loss):
    """However the batch is cut, with the sums added up first, losses and the next state are the same."""
    completions, relations, settings = random_completions(), relations_of(row), settings_of(row)
    state = {name: value + 0.25 for name, value in initial_state(row).items()}
    whole_constants, whole_state = settle(row, settings, batch_sums(row, settings, completions, relations), state)
    whole = evaluate(row, settings, completions, relations, whole_constants).losses

    nothing = torch.arange(0)
    cuts = [take(relations, rows) for rows in (torch.tensor([0]), nothing, torch.arange(1, count(relations)))]
    parts = [batch_sums(row, settings, completions, cut) for cut in cuts]
    sums = {name: sum(part[name] for part in parts) for name in parts[0]}
    constants, new_state = settle(row, settings, sums, state)
    cut = torch.cat([evaluate(row, settings, completions, cut, constants).losses for cut in cuts])
    torch.testing.assert_close(cut, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(new_state, whole_state)


@separable_row
def test_a_completion_in_several_relations_gets_the_sum_of_gradients(row: Loss):
    completions, relations, settings = random_completions(), relations_of(row), settings_of(row)
    leaves = with_graph(completions)
    constants, _ = settle(row, settings, batch_sums(row, settings, completions, relations), initial_state(row))

    def gradient(rows: torch.Tensor) -> torch.Tensor:
        losses = evaluate(row, settings, completions, take(relations, rows), constants).losses
        return gradients(losses, leaves)

    together = gradient(torch.arange(count(relations)))
    apart = sum(gradient(torch.tensor([r])) for r in range(count(relations)))
    assert together.any()
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)


@every_row
def test_no_relations_leave_a_graph(row: Loss):
    completions = random_completions()
    leaves = with_graph(completions)
    relations = take(relations_of(row), torch.arange(0))
    outcome = run(row, settings_of(row), completions, relations)
    assert outcome.losses.shape == (0,)
    assert outcome.rewards.shape == (8,)
    assert outcome.losses.sum().item() == 0
    assert not gradients(outcome.losses, leaves).any()


# ---------------------------------------------------------------------------------------------------------------------
# Labels
# ---------------------------------------------------------------------------------------------------------------------


@soft_row
def test_swapping_a_pair_turns_its_probability_round(row: Loss):
    completions, settings = random_completions(), settings_of(row)
    pairs = relations_of(row)
    assert isinstance(pairs, PairIndex)
    assert pairs.prob is not None
    swapped = PairIndex(i=pairs.j, j=pairs.i, prob=1 - pairs.prob)
    one, other = run(row, settings, completions, pairs).losses, run(row, settings, completions, swapped).losses
    if row.coupling is None:
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)
    else:
        sums = batch_sums(row, settings, completions, pairs)
        torch.testing.assert_close(batch_sums(row, settings, completions, swapped), sums)


@soft_row
def test_certain_labels_are_probabilities_of_one(row: Loss):
    completions, settings = random_completions(), settings_of(row)
    i, j = torch.tensor([0, 1]), torch.tensor([4, 5])
    certain = run(row, settings, completions, PairIndex(i=i, j=j)).losses
    ones = run(row, settings, completions, PairIndex(i=i, j=j, prob=torch.ones(2))).losses
    torch.testing.assert_close(ones, certain, rtol=0, atol=0)


@pytest.mark.parametrize("row", [r for r in ROWS if r.soft == "expected"], ids=lambda row: row.name)
def test_five_votes_are_one_probability(row: Loss):
    """Four votes for and one against a pair have the mean loss of the pair with p = 0.8."""
    completions, settings = random_completions(), settings_of(row)
    votes = PairIndex(i=torch.tensor([0, 0, 0, 0, 4]), j=torch.tensor([4, 4, 4, 4, 0]))
    label = PairIndex(i=torch.tensor([0]), j=torch.tensor([4]), prob=torch.tensor([0.8], dtype=torch.float64))
    constants, _ = settle(row, settings, batch_sums(row, settings, completions, label), initial_state(row))
    by_votes = evaluate(row, settings, completions, votes, constants).losses.mean()
    by_label = evaluate(row, settings, completions, label, constants).losses.mean()
    torch.testing.assert_close(by_label, by_votes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "row", [r for r in ROWS if r.soft == "refused" and r.relation == "pair"], ids=lambda row: row.name
)
def test_probable_labels_are_refused_with_the_reason(row: Loss):
    pairs = PairIndex(i=torch.tensor([0, 1]), j=torch.tensor([4, 5]), prob=torch.tensor([1.0, 0.75]))
    with pytest.raises(ConfigError, match=r"pair 1 has probability 0.75") as fault:
        check(row, settings_of(row), random_completions(), pairs)
    assert row.why_not_soft in str(fault.value)
    unchecked = run(row, settings_of(row), random_completions(), pairs).losses
    assert unchecked.isnan().tolist() == [False, True], "whoever doesn't check can't train on it either"


# ---------------------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------------------


@every_row
def test_other_kinds_of_relations_are_refused(row: Loss):
    other = "unary" if row.relation == "pair" else "pair"
    relations = relations_of(next(r for r in ROWS if r.relation == other))
    with pytest.raises(ConfigError, match=f"{row.name} takes {row.relation} relations"):
        evaluate(row, settings_of(row), random_completions(), relations)


@pytest.mark.parametrize("row", [r for r in ROWS if r.coupling], ids=lambda row: row.name)
def test_constants_have_to_be_settled_first(row: Loss):
    with pytest.raises(ConfigError, match="batch_sums"):
        evaluate(row, settings_of(row), random_completions(), relations_of(row))
