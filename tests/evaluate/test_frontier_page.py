"""The page of the frontier says what the numbers say, most of all where DPO doesn't dominate."""

from __future__ import annotations

import json
from pathlib import Path

from test_frontier import point, record

from dipole.evaluate.frontier import point_of
from dipole.evaluate.frontier_page import page, write_frontier

SETTING = {"scorer": "vader", "seed": 0, "sizes": {"prompts": 3, "completions": 4, "epochs": 2, "imitated": 9}}
POINTS = [
    point("reference", 0.0, 0.1),
    point("dpo", 1.0, 0.5, strength="β = 0.1"),
    point("ppo_true", 2.0, 0.9, strength="KL → 2", seed=1),
    point("kto", 2.0, 0.3, seed=2),
    point("ipo", 0.5, 0.4),
    point("simpo", 1.5, 0.5001, noise=3.0, seed=5),
]


def test_the_page_says_plainly_where_dpo_does_not_dominate() -> None:
    text = page(POINTS, SETTING, figures="frontier")
    said = text[text.index("## Where DPO") : text.index("## How to read")]
    ppo = "**PPO, true reward KL → 2** (step 1, KL 2.00, reward 0.90)"
    assert f"{ppo} has more reward than DPO β = 0.1 at KL 1.00" in said
    assert "**IPO** (step 1, KL 0.50, reward 0.40): DPO has no point at so little KL" in said
    assert "**SimPO** (step 1, KL 1.50, reward 0.50) can't be told apart" in said
    assert "**KTO**" not in said
    assert "Of the 5 points on other methods' fronts, DPO has clearly more reward at no more KL than 1." in said
    assert "12 samples (4 for each of 3 prompts)" in " ".join(text.split())
    assert 'src="frontier/frontier-light.svg"' in text


def test_every_point_is_in_the_table_and_bounds_have_their_own(tmp_path: Path) -> None:
    best = record("best_of_n", 0.4, 0.6, strength="N = 4") | {"bound": 0.636}
    points = [*POINTS, point_of(best)]
    write_frontier(points, tmp_path, reward="mean reward", setting=SETTING)
    text = (tmp_path / "frontier.md").read_text(encoding="utf-8")
    table = text[text.index("## All points") : text.index("## Best of N")]
    assert table.count("\n| ") == 2 + len(points)
    assert "| best of N N = 4 | 0.636 | 0.40 | 0.60" in text
    facts = json.loads((tmp_path / "frontier.json").read_text(encoding="utf-8"))
    assert [fact["method"] for fact in facts] == [item.method for item in points]
    assert (tmp_path / "frontier-dark.png").stat().st_size > 10_000
