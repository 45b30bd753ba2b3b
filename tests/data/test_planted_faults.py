"""A fault that was planted is named; clean data raise no alarm. ``benchmarks/audit_alarms.py`` does it fifty times."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planted import clean_groups, with_flipped_labels, with_leak, with_length_shortcut

from dipole.data.audit import AuditReport, Finding, audit
from dipole.data.audit.annotators import check_annotators
from dipole.data.audit.columns import Collector
from dipole.group import Completion, Group

GROUPS = clean_groups(1500, seed=1)
TRAIN, HELD_OUT = GROUPS[:500], GROUPS[500:600]


def full(groups: list[Group]) -> AuditReport:
    return audit(groups, eval_groups=HELD_OUT, depth="full")


def alarms(report: AuditReport) -> set[str]:
    return {item.name for item in (*report.errors, *report.findings) if item.severity != "info"}


def test_clean_data_raise_no_alarm() -> None:
    assert alarms(full(TRAIN)) == set()


def test_a_length_shortcut_is_named() -> None:
    assert {"longer_preferred", "length_only"} <= alarms(full(with_length_shortcut(TRAIN, seed=0)))


def test_the_annotator_who_flips_labels_is_named() -> None:
    collected = Collector()
    for group in with_flipped_labels(GROUPS, "cleo", seed=0):
        collected.add(group)
    found = [item for item in check_annotators(collected.columns()) if isinstance(item, Finding)]
    (finding,) = [finding for finding in found if finding.severity != "info"]
    assert finding.name == "annotator_apart"
    assert [example.partition(":")[0] for example in finding.examples] == ["cleo"]


def test_a_leak_is_an_error() -> None:
    report = full(with_leak(TRAIN, HELD_OUT, 20))
    assert alarms(report) == {"leak"}
    assert report.errors[0].value == 20


def test_near_duplicates_of_evaluation_prompts_are_named() -> None:
    near = [replace(group, prompt=f"{other.prompt} Hm?") for group, other in zip(TRAIN, HELD_OUT[:20], strict=False)]
    report = full([*near, *TRAIN[20:]])
    assert alarms(report) == {"near_leak"}


@pytest.mark.parametrize(
    ("name", "mark"),
    [("style_only", "- a point\n- another\n- a third\n"), ("prompt_repeated", None)],
)
def test_other_faults(name: str, mark: str | None) -> None:
    def marked(group: Group) -> Group:
        first, second = group.completions
        votes = sum(judgment.p for judgment in group.judgments) / 3
        win = first.text if votes > 0.5 else second.text
        begin = group.prompt if mark is None else mark
        texts = (f"{begin} {text}" if text == win else text for text in (first.text, second.text))
        return replace(group, completions=tuple(Completion(text=text) for text in texts))

    assert name in alarms(full([marked(group) for group in TRAIN]))


def test_the_source_that_always_wins_is_named() -> None:
    def sourced(group: Group) -> Group:
        first_wins = sum(judgment.p for judgment in group.judgments) > 1.5
        names = ("large", "small") if first_wins else ("small", "large")
        pairs = zip(group.completions, names, strict=True)
        return replace(group, completions=tuple(replace(item, source=name) for item, name in pairs))

    assert alarms(full([sourced(group) for group in TRAIN])) == {"sources"}


def test_secrets_are_named_and_never_shown() -> None:
    key = "AKIA" + "ABCDEFGHIJKLMNOP"
    group = replace(TRAIN[0], prompt=f"Use {key} or write to someone@firm.org")
    report = full([group, *TRAIN[1:]])
    assert alarms(report) == {"secrets", "personal_data"} or alarms(report) == {"secrets"}
    assert key not in str(report)
    assert "someone@firm.org" not in str(report)


def test_the_same_data_give_the_same_report() -> None:
    assert full(TRAIN[:100]).to_json() == full(TRAIN[:100]).to_json()
