"""docs/losses.md says what the table of losses says, and its figures draw what the losses compute."""

from __future__ import annotations

import importlib
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import dipole.objective.constraints as constraints
import dipole.objective.tr_dpo as tr_dpo
from dipole import load_groups
from dipole.objective import INPUTS, LOSSES, Loss, mix, resolve
from dipole.train.inputs import FACTS

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "losses.md").read_text(encoding="utf-8")
every_loss = pytest.mark.parametrize("row", LOSSES.values(), ids=lambda row: row.name)


@pytest.fixture(scope="module")
def generators() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The scripts that write the page and its figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        yield importlib.import_module("losses"), importlib.import_module("loss_figures")


@pytest.fixture(scope="module")
def page(generators: tuple[ModuleType, ModuleType]) -> ModuleType:
    return generators[0]


@pytest.fixture(scope="module")
def figures(generators: tuple[ModuleType, ModuleType]) -> ModuleType:
    return generators[1]


def test_the_page_is_what_the_table_says(page: ModuleType) -> None:
    assert page.written(PAGE) == PAGE, "run `make docs`"


def test_a_page_without_a_place_is_refused(page: ModuleType) -> None:
    with pytest.raises(ValueError, match="no place for 'inputs'"):
        page.written(PAGE.replace("<!-- end: inputs -->", ""))


def test_one_section_and_one_figure_each() -> None:
    headings = re.findall(r"^### ([a-z0-9_]+)$", PAGE, re.M)
    assert sorted(headings) == sorted(LOSSES)
    assert {path.name for path in (DOCS / "images" / "losses").iterdir()} == {f"{name}.svg" for name in LOSSES}


@every_loss
def test_a_section_has_what_its_row_knows(row: Loss) -> None:
    section = PAGE.partition(f"\n### {row.name}\n")[2].partition("\n### ")[0]
    assert f"```text\n{row.formula_text}\n```" in section
    assert f"`{row.reward.text}`" in section
    assert f"(images/losses/{row.name}.svg)" in section
    for parameter in row.all_hyper.values():
        assert re.search(rf"^\| `{parameter.name}` \| .+ \| {re.escape(parameter.range)} \|", section, re.M)
    for alias in row.aliases:
        assert f"`{alias}`" in section
    for state in row.coupling.initial if row.coupling else ():
        assert f"`{state}`" in section


def anchors() -> set[str]:
    """Of all headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", PAGE, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert len(targets) > 200
    for target in set(targets):
        if target.startswith("#"):
            assert target[1:] in anchors(), target
        elif target.startswith("https:"):
            assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", target), target
        else:
            assert (DOCS / target).is_file(), target


def test_names_in_the_prose_exist() -> None:
    """Of functions and classes that the hand-written part speaks of."""
    prose = re.sub(r"<!-- begin: (\w+) -->.*?<!-- end: \1 -->", "", PAGE, flags=re.S)
    for name in ("Term", "Penalty", "Lagrangian", "banned_span_cost", "flagged_mean_cost", "reward_bounds"):
        assert f"`{name}`" in prose
        assert hasattr(constraints, name)
    assert hasattr(constraints, "penalised_scores")
    for name in ("sync_is_due", "updated_reference"):
        assert f"`{name}`" in prose
        assert hasattr(tr_dpo, name)


def test_the_mix_of_the_page_can_be_made() -> None:
    (name,) = re.findall(r'--loss.name "(.*)"', PAGE)
    assert resolve(name).formula_text == "1 · dpo + 0.2 · sft_avg"


def test_where_inputs_come_from(page: ModuleType) -> None:
    """Ratings and ``meta``, as training reads them."""
    from_data = {name for name, item in INPUTS.items() if item.maker == "data"}
    assert from_data - page.FROM_RATINGS == set(FACTS)
    for name in FACTS:
        assert re.search(rf"^\| `{name}` \| .+ \| `meta` of each completion \|", PAGE, re.M)


def test_the_group_of_the_page_can_be_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.M | re.S)
    path = tmp_path / "group.jsonl"
    path.write_text(example.replace("\n", " "), encoding="utf-8")
    (group,) = load_groups(path)
    assert [completion.meta for completion in group.completions] == [{"unsafe": True}, {"unsafe": False}]


def test_what_a_loss_logs_is_said() -> None:
    watched = [row for row in LOSSES.values() if row.watch]
    assert watched
    assert PAGE.count("- Logged as well: ") == len(watched)
    assert "- Logged as well: `orpo/nll`, `orpo/log_odds_ratio`." in PAGE


def test_every_input_is_explained() -> None:
    for row in LOSSES.values():
        for name in row.inputs:
            assert f"| `{name}` | {INPUTS[name].meaning} |" in PAGE


def at(figures: ModuleType, name: str, x: float, **changes: object) -> tuple[float, float]:
    """Loss and slope at one place of the x axis."""
    values, slopes = figures.curve(LOSSES[name], torch.tensor([x], dtype=torch.float64), changes)
    return values.item(), slopes.item()


def test_known_values(figures: ModuleType) -> None:
    assert at(figures, "dpo", 0) == pytest.approx((math.log(2), -0.05))
    assert at(figures, "dpo", 20, beta=0.2)[0] == pytest.approx(math.log1p(math.exp(-4)))
    assert at(figures, "ipo", 7) == pytest.approx((4, 4))
    assert at(figures, "dpo_norm", 1) == pytest.approx((math.log1p(math.exp(-5)), -5 / (1 + math.exp(5))))
    assert at(figures, "cpo", 0, way="only chosen moves") == pytest.approx((math.log(2) + 75, -0.05 - 1))
    assert at(figures, "sft", 3, way="only rejected moves") == pytest.approx((75, 0))
    assert at(figures, "kto", 20, desirable=False, z0=20.0) == pytest.approx((0.5, 0.025))
    assert at(figures, "best_vs_rest", 0) == pytest.approx((math.log(4), -0.1 * 3 / 4))
    assert at(figures, "wpo", 0, log_weight=(math.log(0.5), 0.0)) == pytest.approx((0.5 * math.log(2), -0.0025))


def test_a_pair_takes_its_turn_among_ranks(figures: ModuleType) -> None:
    """AOT beyond its neighbour at 50 is compared with that one's place, not with its own."""
    between, beyond = (at(figures, "aot", x, neighbours=(-50.0, 50.0))[1] for x in (20, 90))
    assert between == pytest.approx(-0.01 / (1 + math.exp(0.2)))
    assert beyond == pytest.approx(-0.01 / (1 + math.exp(0.4)))


@every_loss
def test_curves_are_finite_and_slopes_are_theirs(row: Loss, figures: ModuleType) -> None:
    shown = figures.picture(row)
    assert 1 < len(shown.curves) <= len(figures.LINES)
    x = torch.linspace(-0.93, 0.89, 9, dtype=torch.float64) * shown.width
    step = 1e-6 * shown.width
    for changes in shown.curves.values():
        values, slopes = figures.curve(row, x, changes)
        assert torch.isfinite(values).all()
        low, high = (figures.curve(row, x + move, changes)[0] for move in (-step, step))
        scale = float(values.abs().max() / shown.width)
        torch.testing.assert_close(slopes, (high - low) / (2 * step), rtol=1e-4, atol=1e-5 * scale)


def test_whether_the_margin_alone_counts(figures: ModuleType) -> None:
    alone = {name for name, row in LOSSES.items() if row.relation == "pair" and figures.single_margin(row)}
    assert {"dpo", "ipo", "hinge", "simpo", "odpo", "dpo_norm"} <= alone
    assert not alone & {"nca", "sppo_hard", "apo_zero", "dpop", "fdpo_jsd", "chi_po", "rpo_pang", "cpo", "orpo", "sft"}


def test_figures_are_the_same_each_time_and_well_formed(figures: ModuleType) -> None:
    first = figures.draw(LOSSES["gdpo"])
    assert first == figures.draw(LOSSES["gdpo"])
    assert "<dc:date>" not in first
    root = ElementTree.fromstring(first)
    words = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"p = 1", "p = 0.5", "loss", "slope", "margin h, nats"} <= set(words)


def test_a_new_loss_gets_a_figure(figures: ModuleType) -> None:
    row = mix("mine", ((1.0, LOSSES["dpo"]), (0.2, LOSSES["sft_avg"])), when="always")
    assert list(figures.picture(row).curves) == list(figures.WAYS)
    assert figures.draw(row)
