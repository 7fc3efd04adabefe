"""Outliers: scores, copies, the sheet, and small collections."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from selfvit.exploration import sheets
from selfvit.exploration.collection import Collection
from selfvit.exploration.outliers import outliers
from selfvit.exploration.sheets import SheetRow, draw_sheet

from .. import image_files
from .conftest import selfvit, write_vectors


def test_the_odd_image_is_first_and_its_score_is_the_mean_distance(grouped):
    collection = Collection(grouped)
    result = outliers(collection, n=None)
    assert result.rows[0].path == "gray.png" and len(result.rows) == 41
    scores = [row.score for row in result.rows]
    assert scores == sorted(scores, reverse=True)
    directions = collection.directions.astype(np.float64)
    for row in (result.rows[0], result.rows[20]):
        distances = np.delete(1 - directions @ directions[row.row], row.row)
        assert row.score == pytest.approx(np.sort(distances)[:10].mean(), abs=1e-5)
        similarities = [match.similarity for match in row.neighbors]
        assert similarities == sorted(similarities, reverse=True) and len(similarities) == 10


def test_copies_are_no_outliers_and_are_counted(embedded_copies):
    result = outliers(embedded_copies[12], num_neighbors=3)
    assert [row.score for row in result.rows] == [0] * 12 and result.num_copies == 12
    assert [row.row for row in result.rows] == list(range(12))


def test_small_collections(embedded_copies, empty_vectors):
    assert [row.score for row in outliers(embedded_copies[2]).rows] == [0, 0]
    assert outliers(embedded_copies[2]).num_neighbors == 1
    for folder in (embedded_copies[1], empty_vectors):
        code, output = selfvit("outliers", folder)
        assert code == 2 and "needs at least 2 vectors" in output


def test_the_command(grouped, tmp_path):
    code, output = selfvit("outliers", grouped, "-n", 3, "--json")
    found = json.loads(output)["rows"]
    assert code == 0 and len(found) == 3 and set(found[0]) == {"path", "score"}
    sheet = tmp_path / "sheet.png"
    code, output = selfvit("outliers", grouped, "-n", 3, "--sheet", sheet)
    assert code == 0 and "gray.png  (nearest: " in output, output
    with Image.open(sheet) as image:
        assert image.height > 3 * 144
    assert selfvit("outliers", grouped, "--sheet", sheet)[0] == 2


def test_a_sheet_that_does_not_show_all_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sheets, "MAX_ROWS", 20)
    vectors = np.random.default_rng(0).normal(size=(25, 8))
    folder = write_vectors(tmp_path / "v", vectors, [f"{row}.png" for row in range(25)])
    image_files.noise(8, 8).save(tmp_path / "0.png")
    words = ["outliers", folder, "-n", 25, "--sheet", tmp_path / "sheet.png"]
    code, output = selfvit(*words, "--data", tmp_path / "0.png")
    assert code == 0 and "sheet.png (first 20 of 25 images)" in output, output


def test_thumbnails_of_rows_that_are_not_shown_are_not_read(tmp_path):
    asked = []

    def rows():
        for number in range(sheets.MAX_ROWS + 5):
            asked.append(number)
            yield SheetRow([])

    draw_sheet(rows(), tmp_path / "sheet.png")
    assert len(asked) == sheets.MAX_ROWS
