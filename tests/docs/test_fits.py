# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The table of what fits is made of the planner's figures, and its hours follow from them."""

import re

import pytest
import tiny

DOCS = tiny.ROOT / "docs"


def numbers(row):
    return [float(cell.replace(",", "")) for cell in row if re.fullmatch(r"[\d,]+(\.\d+)?", cell)]


def planned():
    """Yield (GiB, seconds of a step) of every row of the planner's tables."""
    columns = ("arguments GiB", "temporaries GiB", "resident GiB", "bound ms")
    for header, *rows in tables("plan.md"):
        if set(columns) <= set(header):
            for row in rows:
                *parts, bound = (float(row[header.index(name)]) for name in columns)
                yield sum(parts), bound / 1000


def tables(page):
    """Yield the tables of a page, each a list of rows of cells without the line below its header."""
    table = []
    for line in [*(DOCS / page).read_text().splitlines(), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip("|").split("|")])
        elif table:
            yield [table[0], *table[2:]]
            table = []


def test_every_figure_is_of_the_planner():
    known = list(planned())
    _, *rows = next(table for table in tables("fits.md") if table[0][:2] == ["chip (usable GiB)", "base"])
    checked = 0
    for _, _, task, gib, bound, how in rows:
        amount = re.match(r"[\d.]+", gib)
        if how not in ("planned", "quick") or not amount:
            assert how == "measured" or gib in ("does not fit", "not planned"), task
            continue
        step = float(re.findall(r"(\d+\.\d+) s", bound)[0]) if bound else None
        assert any(abs(float(amount[0]) - g) < 0.03 and (step is None or abs(step - s) <= 0.051) for g, s in known), (
            task
        )
        checked += 1
    assert checked > 18


def test_hours_follow_from_the_bounds():
    table = next(table for table in tables("fits.md") if table[0][1:4] == ["v5e", "v5p", "v6e"])
    plain, reward, first, last, total, _ = (numbers(row[1:]) for row in table[1:])
    for each, cost, chip_hours, more, both in zip(plain, reward, first, last, total, strict=True):
        assert chip_hours == pytest.approx(18_000 * 64 * each / 3600, rel=0.02)
        assert more == pytest.approx(3_000 * 64 * cost / 3600, rel=0.02)
        assert both == pytest.approx(chip_hours + more, abs=1)
