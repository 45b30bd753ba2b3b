"""Weighted sums of losses."""

from __future__ import annotations

import pytest
import torch
from objective_cases import random_completions, run

from dipole.errors import ConfigError, DataError
from dipole.objective import LOSSES, PairIndex, check, mix, preference_loss, resolve

PAIRS = PairIndex(i=torch.tensor([0, 1]), j=torch.tensor([4, 5]), prob=torch.tensor([0.7, 1.0], dtype=torch.float64))


def test_a_mix_is_the_sum_of_its_parts():
    row = mix("two", [(0.5, resolve("dpo")), (2.0, resolve("gdpo")), (0.25, resolve("simpo"))], when="Here.")
    completions = random_completions()
    settings = row.settings(beta=0.3)
    expected = sum(
        weight * run(resolve(name), resolve(name).settings(beta=0.3), completions, PAIRS).losses
        for weight, name in ((0.5, "dpo"), (2.0, "gdpo"), (0.25, "simpo"))
    )
    outcome = run(row, settings, completions, PAIRS)
    torch.testing.assert_close(outcome.losses, expected)
    torch.testing.assert_close(outcome.rewards, 0.3 * completions.logratio)
    assert row.formula_text == "0.5 · dpo + 2 · gdpo + 0.25 · simpo"
    assert (row.needs_reference, row.needs_lengths) == (True, True)


def test_a_sum_is_written_as_a_name():
    row = resolve(" 0.8*dpo+ 2 * SFT-avg + gdpo")
    assert row.name == "0.8*dpo + 2*sft_avg + 1*gdpo"
    assert row.settings()["weights"] == (0.8, 2.0, 1.0)
    assert resolve(row.name).name == row.name
    pairs = PairIndex(i=PAIRS.i, j=PAIRS.j)
    by_hand = mix("m", [(0.8, resolve("dpo")), (2.0, resolve("sft_avg")), (1.0, resolve("gdpo"))], when="x")
    found, expected = (run(it, it.settings(), random_completions(), pairs).losses for it in (row, by_hand))
    assert torch.equal(found, expected)


def test_a_shared_hyper_parameter_has_no_default_where_the_parts_differ():
    row = resolve("dpo + 0.5*simpo")
    with pytest.raises(ConfigError, match=r"one beta, whose default is 0\.1 in dpo, 2\.0 in simpo"):
        row.settings()
    assert row.settings(beta=0.3)["beta"] == 0.3


def test_a_mix_watches_what_its_parts_watch():
    row = resolve("ipo + cdpo")
    assert row.watch is not None
    assert {"ipo/target_distance", "implied_prob"} <= run(
        row, row.settings(), random_completions(), PAIRS
    ).logged.keys()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.8*dpo + ", "there is no loss"),
        ("a*dpo", "'a\\*dpo' isn't a weight and a name"),
        ("dpo + 0.2*kto", "kto can't be mixed"),
        ("dpo + rpo", "several losses"),
    ],
)
def test_a_sum_that_makes_no_sense_is_refused(text: str, says: str):
    with pytest.raises(ConfigError, match=says):
        resolve(text)


def test_weights_can_be_set_but_not_miscounted():
    row, completions, pairs = resolve("mpo"), random_completions(), PairIndex(i=PAIRS.i, j=PAIRS.j)
    dpo_alone = run(row, row.settings(beta=0.1, weights=(1.0, 0.0, 0.0)), completions, pairs).losses
    dpo = resolve("dpo")
    torch.testing.assert_close(dpo_alone, run(dpo, dpo.settings(beta=0.1), completions, pairs).losses)
    with pytest.raises(ConfigError, match="3 weights"):
        row.settings(weights=(1.0, 1.0))


def test_the_first_part_s_default_counts():
    assert mix("m", [(1.0, resolve("nca")), (1.0, resolve("dpo"))], when="x").settings()["beta"] == 0.01
    assert mix("m", [(1.0, resolve("dpo")), (1.0, resolve("nca"))], when="x").settings()["beta"] == 0.1


def test_a_mix_keeps_its_part_s_coupling():
    row = mix("m", [(1.0, resolve("dpo")), (0.5, resolve("bco_pair"))], when="x")
    completions, settings = random_completions(), row.settings(beta=0.1)
    expected = sum(
        weight * run(resolve(name), resolve(name).settings(beta=0.1), completions, PAIRS).losses
        for weight, name in ((1.0, "dpo"), (0.5, "bco_pair"))
    )
    torch.testing.assert_close(run(row, settings, completions, PAIRS).losses, expected)


def test_what_a_part_refuses_the_mix_refuses():
    with pytest.raises(ConfigError, match="sft_avg: it learns from the chosen completion alone"):
        check(resolve("mpo"), resolve("mpo").settings(), random_completions(), PAIRS)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "no parts"),
        (["dpo", "kto"], "kto can't be mixed"),
        (["dpo", "aot"], "aot can't be mixed"),
        (["mpo", "sft"], "mpo can't be mixed: it has weights of its own"),
        (["sft", "modpo"], "modpo can't be mixed: it has weights of its own"),
        (["bco_pair", "beta_dpo"], "bco_pair and beta_dpo depend on the rest of the batch"),
    ],
)
def test_what_can_t_be_mixed(names: list[str], says: str):
    with pytest.raises(ConfigError, match=says):
        mix("m", [(1.0, LOSSES[name]) for name in names], when="x")


def test_a_shared_value_has_to_suit_every_part():
    row = resolve("odpo + unlikelihood")
    certain = PairIndex(i=PAIRS.i, j=PAIRS.j)
    with pytest.raises(ConfigError, match=r"loss unlikelihood: alpha is 5\.0"):
        check(row, row.settings(alpha=5.0), random_completions(), certain)


def test_a_mix_refuses_the_values_that_its_parts_refuse():
    row, pair = resolve("odpo + 0.1*sft"), (torch.tensor([-3.0]), torch.tensor([-4.0]))
    with pytest.raises(DataError, match="the rejected completion of pair 0 has the higher score"):
        preference_loss(row.name, *pair, *pair, chosen_scores=torch.zeros(1), rejected_scores=torch.ones(1))


def test_a_sum_s_name_says_its_weights_to_the_last_digit():
    row = resolve("0.123456789*dpo + sft")
    assert row.name == "0.123456789*dpo + 1*sft"
    assert resolve(row.name).settings()["weights"] == (0.123456789, 1.0)
