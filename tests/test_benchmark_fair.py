"""Promise: the fair table ranks what was measured, says how sure it is, and forgets no cell."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts import script

from advprune.method import get, names
from deploy.packing import pack, unpack

fair_table = script("fair_table")
fair = script("fair")

IMAGES = 40


def cell(row: str, seed: int = 0, right: int = 20, **changes: Any) -> dict[str, Any]:
    """`right` of the images, the first ones, hold out."""
    flags = [i < right for i in range(IMAGES)]
    line = {
        "key": f"{row}-{seed}",
        "row": row,
        "sparsity": 0.9,
        "seed": seed,
        "source": "now",
        "images": IMAGES,
        "clean": 0.95,
        "worst": right / IMAGES,
        "float_worst": right / IMAGES,
        "flags": {"clean": pack([True] * IMAGES), "worst": pack(flags)},
        "distances": [0.1] * right + [None] * (IMAGES - right),
        "autoattack": None,
        "status": "PASS",
    }
    return line | changes


def flags(*counts: int) -> np.ndarray:
    return np.array([[i < count for i in range(IMAGES)] for count in counts])


# Ranks ------------------------------------------------------------------------------------------


def test_a_clear_order_has_no_doubt_and_a_tie_is_shared() -> None:
    found = fair_table.ranks({"best": flags(40), "same": flags(20), "twin": flags(20)})
    assert (found["best"]["rank"], found["best"]["rank_low"], found["best"]["rank_high"]) == (
        1,
        1.0,
        1.0,
    )
    for name in ("same", "twin"):
        # The same images in every draw: they stay equal, on places two and three.
        assert found[name]["rank"] == 2
        assert found[name]["rank_low"] == found[name]["rank_high"] == 2.5


def test_the_order_of_a_few_images_is_not_settled() -> None:
    other = flags(20)[:, ::-1]
    found = fair_table.ranks({"a": flags(21), "b": other})
    assert found["a"]["rank"] == 1 and found["b"]["rank"] == 2
    assert (found["a"]["rank_low"], found["a"]["rank_high"]) == (1.0, 2.0)


def test_an_interval_is_about_that_of_a_share_and_wider_where_seeds_differ() -> None:
    found = fair_table.ranks({"one": flags(20), "alike": flags(20, 20), "apart": flags(5, 35)})
    half = 1.96 * np.sqrt(0.25 / IMAGES)
    one = found["one"]
    assert one["mean"] == found["apart"]["mean"] == 0.5
    assert (one["high"] - one["low"]) / 2 == pytest.approx(half, rel=0.15)
    alike, apart = (found[name]["high"] - found[name]["low"] for name in ("alike", "apart"))
    assert alike == pytest.approx(one["high"] - one["low"], abs=0.03)
    assert apart > 2 * alike


def test_the_same_cells_make_the_same_table() -> None:
    cells = [cell("harp US", right=30), cell("random US", right=10)]
    current = {one["key"]: "now" for one in cells}
    assert fair_table.render(cells, current) == fair_table.render(cells, current)


# The table --------------------------------------------------------------------------------------


def lines(*cells: dict[str, Any], **current: str) -> list[str]:
    known = {one["key"]: "now" for one in cells} | current
    return fair_table.render(cells, known).splitlines()


def test_the_rows_stand_in_the_order_of_their_ranks_and_refusals_last() -> None:
    refused = {"refused": "too few", **{k: cell("x US")[k] for k in ("sparsity", "seed", "source")}}
    found = lines(
        cell("random US", right=10),
        cell("harp US", right=30),
        {**refused, "row": "gap US", "key": "g"},
    )
    rows = [line.split("|")[1].strip() for line in found if line.startswith("| ")]
    assert rows[:4] == ["method", "harp", "random", "gap"]
    assert [line for line in found if line.startswith("| gap")] == ["| gap | refused |"]


def test_a_cell_says_what_was_measured() -> None:
    held = {"images": 8, "flags": pack([True] * 6 + [False] * 2)}
    (row,) = [
        line
        for line in lines(
            cell("harp US", right=30, float_worst=0.8, autoattack=held, status="INCONCLUSIVE")
        )
        if line.startswith("| harp |") and "/" in line
    ]
    assert "95.0 / **75.0** [" in row and "]†, AA 75.0 [35, 97], int8 -5.0, rank 1 [1, 1]" in row


def test_a_method_that_changed_since_is_marked() -> None:
    old = cell("harp US", source="then")
    assert "‡" in "".join(lines(old)) and "‡" not in "".join(lines(cell("harp US")))


def test_channels_have_a_table_of_their_own() -> None:
    found = lines(cell("harp US"), cell("harp S", right=10))
    assert found.index("### Single weights") < found.index("### Whole channels")


def test_the_curve_counts_what_lies_farther() -> None:
    (row,) = [line for line in lines(cell("harp US", right=30)) if line.startswith("| harp | 90")]
    # Three quarters at 0.1, which is not farther than 0.1; where nothing was met, any radius holds.
    assert row == "| harp | 90 % | 100.0 | 25.0 | 25.0 | 25.0 | 25.0 | 0.100 |"


# The budget -------------------------------------------------------------------------------------


def test_every_method_in_all_its_forms_has_the_same_epochs() -> None:
    todo = fair.jobs(range(2))
    assert {job.settings["method"] for job in todo} == set(names())
    for job in todo:
        spent = [job.settings[f"{stage}.epochs"] for stage in ("adversarial", "prune", "finetune")]
        assert sum(spent) == 20 and min(spent) >= 0
        assert job.settings["standard.epochs"] == 0
        assert (spent[1] > 0) == get(job.settings["method"])().searches
    assert len({fair.key(job) for job in todo}) == len(todo)
    assert {(job.row.split()[1], job.sparsity) for job in todo} == {
        *(("US", sparsity) for sparsity in (0.9, 0.95, 0.99)),
        *(("S", sparsity) for sparsity in (0.5, 0.75, 0.9)),
    }


def test_who_trains_from_scratch_gets_no_dense_network() -> None:
    assert fair.epochs("rst") == {
        "adversarial.epochs": 0,
        "prune.epochs": 20,
        "finetune.epochs": 0,
    }
    assert fair.epochs("harp")["adversarial.epochs"] == 8
    assert fair.epochs("magnitude") == {
        "adversarial.epochs": 8,
        "prune.epochs": 0,
        "finetune.epochs": 12,
    }


def test_channels_are_taken_where_a_method_has_them() -> None:
    assert set(fair.forms("hydra")) == {"US"} and set(fair.forms("anp_vs")) == {"S"}
    assert fair.forms("harp")["S"]["options.granularity"] == "channel"
    assert fair.forms("sr_gkp") == {"S": {}}


# Cells ------------------------------------------------------------------------------------------


def test_cells_are_kept_line_by_line_and_the_later_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    assert fair.read_cells(path) == {}
    cells = {c["key"]: c for c in (cell("harp US", right=3), cell("gap US"))}
    fair.write_cells(path, cells)
    assert fair.read_cells(path) == cells
    path.write_text(path.read_text() + json.dumps(cell("harp US", right=9)) + "\n")
    assert fair.read_cells(path)["harp US-0"]["worst"] == 9 / IMAGES


@pytest.mark.slow
def test_a_run_becomes_a_cell_and_a_refusal_one_too(tmp_path: Path) -> None:
    settings = {
        "method": "magnitude",
        "limit_train": 1024,
        "limit_test": 24,
        **fair.SHARED,
        **{f"{stage}.epochs": 1 for stage in ("adversarial", "finetune")},
        "prune.epochs": 0,
    }
    job = fair.Job("magnitude US", 0.9, 0, settings)
    found = fair.measure(job, tmp_path, autoattack=2).line
    assert json.loads(json.dumps(found)) == found
    assert found["images"] == len(found["distances"]) == 24
    right = unpack(found["flags"]["worst"], 24)
    assert sum(right) / 24 == pytest.approx(found["worst"])
    assert len(unpack(found["autoattack"]["flags"], 2)) == 2
    assert "rank 1" in fair_table.render([found], {found["key"]: found["source"]})
    impossible = fair.measure(fair.Job("magnitude US", 0.99999, 0, settings), tmp_path, 0)
    assert "lower" in impossible.refused and impossible.line["refused"] == impossible.refused
