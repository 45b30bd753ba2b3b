"""Losses that depend on the rest of the batch: their sums, their moving state, and KTO's mismatched prompts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_cases import random_completions, replaced, run, settings_of

from dipole.errors import DataError
from dipole.objective import PairIndex, UnaryIndex, batch_sums, evaluate, initial_state, resolve, settle
from dipole.objective.coupling import mismatched_prompts

PAIRS = PairIndex(i=torch.tensor([0, 1, 2]), j=torch.tensor([4, 5, 6]))


def test_bco_shift_is_the_mean_of_every_reward_so_far():
    row = resolve("bco")
    settings, state, seen = row.settings(beta=0.1), initial_state(row), []
    for seed in range(4):
        completions = random_completions(seed)
        index = UnaryIndex(i=torch.arange(seed, 8), desirable=torch.arange(seed, 8) < 4)
        constants, state = settle(row, settings, batch_sums(row, settings, completions, index), state)
        seen.append(0.1 * completions.logratio[seed:])
        assert constants["shift"].item() == pytest.approx(torch.cat(seen).mean().item(), rel=1e-6)
    assert state["reward_count"].item() == 8 + 7 + 6 + 5


def test_beta_dpo_uses_the_running_mean_of_the_steps_before():
    row = resolve("beta_dpo")
    settings, completions = row.settings(beta=0.1, sensitivity=0.6, momentum=0.9), random_completions()
    h = (completions.logratio[PAIRS.i] - completions.logratio[PAIRS.j]).mean().item()
    state = {"h_mean": torch.tensor(0.5)}
    constants, new_state = settle(row, settings, batch_sums(row, settings, completions, PAIRS), state)
    assert constants["beta_scale"].item() == pytest.approx(1 + 0.6 * (h - 0.5))
    assert new_state["h_mean"].item() == pytest.approx(0.9 * 0.5 + 0.1 * h)
    assert state["h_mean"].item() == 0.5, "the state that came in stays as it is"


def test_beta_dpo_never_turns_beta_round():
    row = resolve("beta_dpo")
    completions = random_completions()
    scale = {"beta_scale": torch.tensor(-5.0)}
    losses = evaluate(row, row.settings(), completions, PAIRS, scale).losses
    dpo = resolve("dpo")
    torch.testing.assert_close(losses, evaluate(dpo, dpo.settings(beta=1e-3), completions, PAIRS).losses)


def test_kto_z0_is_the_mean_of_mismatched_log_ratios_and_never_negative():
    row, completions = resolve("kto"), random_completions()
    index = UnaryIndex(i=torch.tensor([1, 2, 5]), desirable=torch.tensor([True, False, True]))
    for shift, expected in ((0.0, None), (-5.0, 0.0)):
        mismatched = completions.extras["mismatched_logratio"] + shift
        moved = replaced(completions, mismatched_logratio=mismatched)
        constants, state = settle(row, {}, batch_sums(row, settings_of(row), moved, index), {})
        assert constants["z0"].item() == pytest.approx(
            mismatched[index.i].mean().item() if expected is None else expected
        )
        assert state == {}


def test_a_rank_without_relations_adds_zeros():
    for name in ("kto", "bco"):
        row, nothing = resolve(name), UnaryIndex(i=torch.arange(0), desirable=torch.arange(0) > 0)
        sums = batch_sums(row, settings_of(row), random_completions(), nothing)
        assert not any(value.item() for value in sums.values())
        constants, _ = settle(row, settings_of(row), sums, initial_state(row))
        assert all(value.item() == 0 for value in constants.values()), "and a batch without any is defined"


def test_sums_have_no_graph():
    completions = random_completions()
    completions.logps.requires_grad_()
    row = resolve("bco_pair")
    sums = batch_sums(row, settings_of(row), completions, PAIRS)
    constants, state = settle(row, settings_of(row), sums, initial_state(row))
    assert not any(value.requires_grad for value in (*sums.values(), *constants.values(), *state.values()))


def test_a_loss_without_coupling_has_nothing_to_sum():
    row = resolve("dpo")
    sums = batch_sums(row, row.settings(), random_completions(), PAIRS)
    assert sums == initial_state(row) == {}
    assert settle(row, row.settings(), sums, {}) == ({}, {})


def test_sorted_losses_have_no_pairs():
    """AOT's values belong to ranks: in its unpaired form pairs may exchange their rejected completions."""
    row, completions = resolve("aot_unpaired"), random_completions()
    exchanged = PairIndex(i=PAIRS.i, j=PAIRS.j.flip(0))
    one, other = run(row, row.settings(), completions, PAIRS), run(row, row.settings(), completions, exchanged)
    torch.testing.assert_close(one.losses, other.losses)
    assert row.whole_batch


@given(st.lists(st.integers(0, 5), max_size=30))
def test_mismatched_prompts_differ(prompts: list[int]):
    largest = max((prompts.count(prompt) for prompt in prompts), default=0)
    if 2 * largest > len(prompts):
        with pytest.raises(DataError, match=f"{largest} of {len(prompts)}"):
            mismatched_prompts(prompts)
        return
    partner = mismatched_prompts(prompts)
    assert sorted(partner) == list(range(len(prompts))), "every completion's prompt is used once"
    assert all(prompts[place] != prompts[other] for place, other in enumerate(partner))


def test_mismatched_prompts_are_the_same_in_every_process():
    assert mismatched_prompts(["b", "a", "b", "c", "a", "c"]) == mismatched_prompts(["b", "a", "b", "c", "a", "c"])
    assert mismatched_prompts(["b", "a", "b", "a"]) == [1, 0, 3, 2]
