"""The stages after training: what the policy writes on prompts that are never trained on, and what judges say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dipole.data.formats import load_groups
from dipole.evaluate.rounds import measure_round
from dipole.generating import LocalSampler, generate_groups, logps_under
from dipole.group import Group
from dipole.iterate.folder import Round
from dipole.iterate.stages import Work, judged_groups, open_named, open_policy
from dipole.policy.sampling import Sampling
from dipole.train.track import write_json


def sample(work: Work, round: Round) -> dict[str, Any]:
    """Samples at temperature 1 and with the same random numbers in every round, so that rounds can be compared."""
    config = work.config
    prompts = [group for group in load_groups(work.all_prompts) if group.split == "eval"][: config.max_eval_prompts]
    sampling = Sampling(
        max_new_tokens=config.sampler.max_new_tokens,
        stop=config.sampler.stop,
        batch_size=config.sampler.batch_size,
        seed=work.seed(0),
    )
    saved = open_policy(work, round.number)
    sampler = LocalSampler(saved, sampling, prompt_format=config.prompt_format, keep_ids=True)
    count = config.eval_completions
    generate_groups(prompts, sampler, round.samples, num_completions=count, progress=work.progress)
    return {"policy": saved.fingerprint, "prompts": len(prompts)}


def compare(part: str) -> Callable[[Work, Round], dict[str, Any]]:
    """The stage in which the ``training`` or the ``held_out`` judge sees the round's samples beside round 0's."""

    def run(work: Work, round: Round) -> dict[str, Any]:
        spelling = work.config.judge if part == "training" else work.config.held_out_judge
        assert spelling is not None
        judge = open_named(work, spelling, 0)  # the same judge in every round, also where it is the policy itself
        first = {group.id: group for group in load_groups(work.round(0).samples)}
        groups = [_beside(group, first[group.id]) for group in load_groups(round.samples)]
        judged_groups(work, judge, groups, round.compared(part), _side_by_side)
        return {"judge": judge.name}

    return run


def measure(work: Work, round: Round) -> dict[str, Any]:
    """Writes the round's numbers."""
    config = work.config
    samples = load_groups(round.samples)
    judged, ref_logps = {}, None
    if round.number:
        parts = ("training", *(("held_out",) if config.held_out_judge is not None else ()))
        judged = {part: load_groups(round.compared(part)) for part in parts}
        ref_logps = logps_under(open_policy(work, 0), samples, prompt_format=config.prompt_format)
    numbers = measure_round(samples, judged, ref_logps)
    write_json(round.evaluation, {"round": round.number, **numbers})
    return {}


def _beside(group: Group, first: Group) -> Group:
    return replace(group, completions=(*group.completions, *first.completions))


def _side_by_side(group: Group) -> list[tuple[int, int]]:
    """Each sample against that of round 0 with the same random numbers."""
    half = len(group.completions) // 2
    return [(number, number + half) for number in range(half)]
