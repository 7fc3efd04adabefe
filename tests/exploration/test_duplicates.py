"""Duplicates: exact copies, near duplicates at a measured threshold, groups and their files."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

from selfvit.cli import app
from selfvit.exploration.collection import Collection
from selfvit.exploration.duplicates import duplicates
from selfvit.exploration.duplication import groups as groups_module
from selfvit.exploration.duplication import threshold as threshold_module
from selfvit.exploration.duplication.alignment import SIDE, agreement
from selfvit.exploration.duplication.density import measure_density
from selfvit.exploration.duplication.groups import group_within
from selfvit.exploration.duplication.outputs import check_link_names
from selfvit.exploration.duplication.pairs import Pairs
from selfvit.exploration.duplication.pictures import Pictures, is_alike_in_shape
from selfvit.exploration.duplication.threshold import Variants, choose_threshold
from selfvit.exploration.duplication.variants import VARIANTS

from .. import image_files
from .conftest import embed

NEAR = {"j.png": 0, "s.png": 1, "c.png": 2, "l.png": 3}  # variants, by number of their image


def detailed(seed, size=(44, 36)):
    """Return an image whose variants keep their details."""
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def selfvit(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


@pytest.fixture(scope="module", autouse=True)
def small_sample():
    """Measure thresholds on 30 images: enough for these, and fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threshold_module, "NUM_SAMPLED", 30)
        yield


@pytest.fixture(scope="module")
def planted_images(tmp_path_factory):
    """60 images; of four of them a variant, of two an exact copy."""
    folder = tmp_path_factory.mktemp("planted")
    for part in ("a", "b", "more"):
        (folder / part).mkdir()
    for index in range(60):
        detailed(index).save(folder / "ab"[index % 2] / f"{index:02d}.png")
    rng = np.random.default_rng(0)
    for make, (name, index) in zip(VARIANTS.values(), NEAR.items(), strict=True):
        make(detailed(index), rng).save(folder / "more" / name)
    detailed(4).save(folder / "more" / "copy.bmp")
    shutil.copy(folder / "b" / "05.png", folder / "more" / "copy.png")
    return folder


@pytest.fixture(scope="module")
def planted(tiny_checkpoint, planted_images, tmp_path_factory):
    return embed(tiny_checkpoint, planted_images, tmp_path_factory.mktemp("planted_vectors") / "v")


@pytest.fixture(scope="module")
def result(planted):
    return duplicates(planted, device="cpu")


class TestAlignment:
    def test_variants_agree_and_other_images_do_not(self):
        rng = np.random.default_rng(0)
        images = [detailed(seed, (120, 90)) for seed in range(12)]
        own = np.stack([np.asarray(image.resize((SIDE, SIDE))) for image in images])
        for make in VARIANTS.values():
            variants = [make(image, rng).resize((SIDE, SIDE)) for image in images]
            same = agreement(own, np.stack([np.asarray(image) for image in variants]))
            assert (same > 0.9).all()
        other = agreement(own, np.roll(own, 1, axis=0))
        assert (other < 0.5).all()

    def test_the_order_of_a_pair_does_not_matter(self):
        rng = np.random.default_rng(0)
        first, second = rng.integers(0, 256, (2, 5, SIDE, SIDE, 3), dtype=np.uint8)
        np.testing.assert_array_equal(agreement(first, second), agreement(second, first))

    def test_a_different_detail_counts(self):
        picture = np.array(detailed(0, (SIDE, SIDE)))
        changed = picture.copy()
        changed[30:38, 30:38] = 255 - changed[30:38, 30:38]
        assert agreement(picture[None], changed[None])[0] < 0.7

    def test_uniform_images(self):
        shades = [np.full((1, SIDE, SIDE, 3), value, np.uint8) for value in (0, 128, 130)]
        assert agreement(shades[1], shades[2])[0] > 0.99
        assert agreement(shades[0], shades[1])[0] == 0
        picture = np.array(detailed(0, (SIDE, SIDE)))[None]
        assert agreement(np.full_like(picture, int(picture.mean())), picture)[0] < 0.5

    def test_shapes_that_a_resize_and_a_crop_can_explain(self):
        whole, half, crop = np.array([[100, 80]]), np.array([[50, 40]]), np.array([[95, 80]])
        assert is_alike_in_shape(whole, half)[0] and is_alike_in_shape(whole, crop)[0]
        assert not is_alike_in_shape(whole, np.array([[80, 80]]))[0]


class TestThreshold:
    def choose(self, others, precision=0.99):
        agreements = 1 - np.exp(-np.linspace(2, 7, 400))
        variants = Variants(["cropped"] * 400, np.ones(400), agreements)
        return choose_threshold(variants, np.asarray(others)[:, None], precision)

    def test_it_finds_95_percent_if_other_images_are_far(self):
        others = np.random.default_rng(0).uniform(0, 0.3, 1000)
        found = self.choose(others)
        assert 0.94 <= found.recall <= 0.96 and found.precision >= 0.99

    def test_it_is_higher_if_other_images_are_near(self):
        far, near = (1 - np.exp(-np.random.default_rng(0).exponential(s, 1000)) for s in (0.2, 0.4))
        assert self.choose(near).agreement > self.choose(far).agreement

    def test_duplicates_of_the_collection_do_not_raise_it(self):
        others = np.random.default_rng(0).uniform(0, 0.3, 1000)
        with_duplicates = others.copy()
        with_duplicates[:200] = 0.999
        assert self.choose(with_duplicates).agreement == self.choose(others).agreement

    def test_a_lower_precision_finds_more(self):
        others = 1 - np.exp(-np.random.default_rng(0).exponential(0.6, 2000))
        assert self.choose(others, 0.9).recall > self.choose(others, 0.99).recall

    def test_there_may_be_none(self):
        others = 1 - np.exp(-7 * np.sqrt(np.random.default_rng(0).uniform(0, 1, 1000)))
        assert self.choose(others).agreement is None

    @pytest.mark.parametrize("seed", range(5))
    def test_it_is_above_others_that_end_at_once(self, seed):
        others = 1 - np.exp(-3.2 * np.sqrt(np.random.default_rng(seed).uniform(0, 1, 1000)))
        assert (self.choose(others, 0.999).agreement or 1) > others.max()


class TestOnPoints:
    """Images are points in a cube; 1 - agreement is their squared distance."""

    def agreements(self, points):
        squares = (points**2).sum(axis=1)
        distances = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0)
        np.fill_diagonal(distances, 1)
        return np.maximum(1 - distances, 0)

    def ranked(self, points):
        return np.sort(self.agreements(points), axis=1)[:, ::-1][:, :16]

    def points(self, num_copies=0):
        rng = np.random.default_rng(0)
        points = rng.uniform(0, 1, (1200, 6))
        copies = points[:num_copies] + rng.normal(0, 0.01, (num_copies, 6))
        return np.concatenate([points, copies])

    def test_density_tells_how_many_images_have_an_alike_one_by_chance(self):
        ranked = self.ranked(self.points())
        agreements = np.array([0.97, 0.98, 0.99])
        share = measure_density(ranked, 1.0).share(agreements)
        true = (ranked[:, :1] >= agreements).mean(axis=0)
        np.testing.assert_allclose(share, true, rtol=0.3, atol=0.003)

    def test_duplicates_raise_the_density_a_little(self):
        agreements = np.array([0.97, 0.98, 0.99])
        share = measure_density(self.ranked(self.points()), 0.9994).share(agreements)
        density = measure_density(self.ranked(self.points(300)), 0.9994)
        assert (density.share(agreements) < 3 * share + 0.01).all()

    @pytest.mark.parametrize(
        ("dimension", "noise", "recall"),
        [
            (6, 0.005, 0.85),  # other images are as close as some variants: the density tells
            (8, 0.02, 0.75),  # most images have others as close as the weakest variants
        ],
    )
    def test_weak_variants_do_not_let_other_images_pass(self, dimension, noise, recall):
        rng = np.random.default_rng(0)

        def change(points):
            scales = noise * np.exp(1.3 * rng.normal(size=(len(points), 1)))
            return points + scales * rng.normal(0, 1, points.shape)

        points = rng.uniform(0, 1, (1200, dimension))
        planted = np.concatenate([points, change(points[:120])])
        own = 1 - ((change(points[:400]) - points[:400]) ** 2).sum(axis=1)
        variants = Variants(["cropped"] * 400, np.ones(400), np.maximum(own, 0))
        threshold = choose_threshold(variants, self.ranked(planted), 0.99)
        found = np.argwhere(np.triu(self.agreements(planted) >= threshold.agreement))
        is_true = found[:, 1] - 1200 == found[:, 0]
        assert is_true.mean() > 0.95 and is_true.sum() > recall * 120
        assert abs(threshold.recall - is_true.sum() / 120) < 0.06


class TestGroups:
    def test_they_do_not_chain_and_keep_the_largest(self, monkeypatch):
        places = np.array([0.0, 1.0, 2.0, 3.0, 1.0])  # neighbors are 1 apart

        def compare(first, second, rows, other_rows):
            return np.where(np.abs(places[rows] - places[other_rows]) <= 1, 1.0, 0.0)

        monkeypatch.setattr(groups_module, "compare", compare)
        sizes = np.array([[5, 5], [9, 9], [5, 5], [5, 5], [9, 9]])
        pictures = Pictures([b""] * 5, sizes, np.zeros((5, 1)))
        first, second = np.nonzero(np.abs(places[:, None] - places) <= 1)
        ones = np.ones(len(first))
        is_pair = first != second
        pairs = Pairs(first[is_pair], second[is_pair], ones[is_pair], ones[is_pair])
        directions = np.ones((5, 1), dtype=np.float32)
        found = group_within(directions, pictures, pairs, 0.5, 0.5)
        rows = {keeper: sorted(m.row for m in members) for keeper, members in found.items()}
        assert rows == {1: [0, 2, 4]}  # 3 is a neighbor of 2 only

    def test_planted_duplicates_are_found(self, result):
        groups = {group.keep: group.members for group in result.groups}
        assert groups["a/04.png"] == ["more/copy.bmp"]
        assert groups["b/05.png"] == ["more/copy.png"]
        pairs = {frozenset([keep, *members]) for keep, members in groups.items()}
        for name, index in NEAR.items():
            assert frozenset([f"more/{name}", f"{'ab'[index % 2]}/{index:02d}.png"]) in pairs
        assert len(pairs) == 6

    def test_keepers_are_the_largest(self, result, planted_images):
        for group in result.groups:
            areas = [
                np.prod(Image.open(planted_images / name).size)
                for name in (group.keep, *group.members)
            ]
            assert areas[0] == max(areas)

    def test_copies_of_another_size_are_not_exact(self, result):
        exact = [m.is_exact for members in result.rows.values() for m in members]
        assert sum(exact) == 2


class TestAgainst:
    @pytest.fixture(scope="class")
    @classmethod
    def test_vectors(cls, tiny_checkpoint, tmp_path_factory):
        folder = tmp_path_factory.mktemp("test")
        for index in range(100, 160):
            detailed(index).save(folder / f"{index}.png")
        image_files.light_left().save(folder / "halves.png")
        detailed(20).save(folder / "exact.bmp")
        VARIANTS["re-encoded"](detailed(21), np.random.default_rng(0)).save(folder / "near.png")
        return embed(tiny_checkpoint, folder, tmp_path_factory.mktemp("test_vectors") / "v")

    def test_leaks_are_found(self, test_vectors, planted, tmp_path):
        sheet, table = tmp_path / "s.png", tmp_path / "g.csv"
        code, output = selfvit(
            *("duplicates", test_vectors, "--against", planted, "--sheet", sheet, "-o", table)
        )
        assert code == 0 and "2 of 63 images are duplicates" in output
        with table.open() as file:
            rows = list(csv.DictReader(file))
        assert sheet.is_file() and len(rows) == 4
        groups: dict[str, set[str]] = {}
        for row in rows:
            groups.setdefault(row["group"], set()).add(row["path"])
        assert sorted(map(sorted, groups.values())) == [
            ["a/20.png", "exact.bmp"],
            ["b/21.png", "near.png"],
        ]
        assert {row["path"] for row in rows if row["keep"] == "true"} == {"a/20.png", "b/21.png"}

    def test_another_checkpoint_is_refused(self, test_vectors, planted, tmp_path):
        other = shutil.copytree(test_vectors, tmp_path / "v")
        manifest = json.loads((other / "manifest.json").read_text())
        manifest["checkpoint"]["weights"] = "0" * 16
        (other / "manifest.json").write_text(json.dumps(manifest))
        code, output = selfvit("duplicates", other, "--against", planted)
        assert code == 2 and "must be of the same checkpoint" in output


class TestCommand:
    def test_json_is_all_that_is_printed_and_a_second_run_gives_the_same(self, planted, result):
        code, output = selfvit("duplicates", planted, "--json", "--device", "cpu")
        assert code == 0 and json.loads(output) == result.to_dict()
        assert {"threshold", "groups"} <= set(result.to_dict())

    def test_tables_pictures_and_links(self, planted, planted_images, tmp_path):
        names = ["g.parquet", "s.png", "p.png", "kept"]
        table, sheet, plot, kept = (tmp_path / name for name in names)
        before = sorted(planted_images.rglob("*"))
        words = ["-o", table, "--sheet", sheet, "--plot", plot, "--link-to", kept]
        code, output = selfvit("duplicates", planted, *words)
        assert code == 0, output
        rows = pyarrow.parquet.read_table(table).to_pylist()
        assert len(rows) == 12 and sum(row["keep"] for row in rows) == 6
        for path in (sheet, plot):
            Image.open(path).verify()
        linked = sorted(path for path in kept.rglob("*") if path.is_file())
        assert len(linked) == 60
        for path in linked:
            assert path.samefile(planted_images / path.relative_to(kept))
        assert sorted(planted_images.rglob("*")) == before
        code, output = selfvit("duplicates", planted, "--link-to", kept)
        assert code == 2 and "must be a new or an empty folder" in output

    def test_bad_arguments_are_one_line(self, planted, tmp_path):
        for words, message in [
            (["--precision", "1"], "must be above 0 and below 1"),
            (["-o", tmp_path / "g.txt"], "must end in .csv or .parquet"),
            (["--sheet", tmp_path / "s.jpg"], "must end in .png"),
            (["--data", tmp_path / "none"], "none"),
        ]:
            code, output = selfvit("duplicates", planted, *words)
            assert code == 2 and message in output and "Traceback" not in output


class TestSmallCollections:
    @pytest.mark.parametrize("num_images", [1, 2, 3])
    def test_only_exact_copies_are_searched(self, tiny_checkpoint, tmp_path, num_images):
        for index in range(num_images):
            path = tmp_path / f"{index}.{'bmp' if index else 'png'}"
            detailed(0).save(path)
        vectors = embed(tiny_checkpoint, tmp_path, tmp_path / "v")
        table = tmp_path / "g.csv"
        code, output = selfvit("duplicates", vectors, "--json", "-o", table)
        found = json.loads(output)
        members = [f"{index}.bmp" for index in range(1, num_images)]
        expected = [{"keep": "0.png", "members": members}] if members else []
        assert code == 0 and found["threshold"] is None and found["groups"] == expected
        with table.open() as file:
            rows = list(csv.DictReader(file))
        assert [row["path"] for row in rows] == (["0.png", *members] if members else [])
        assert "needs 50 different images" in selfvit("duplicates", vectors)[1]

    def test_a_line_break_in_a_name_is_printed_as_an_escape(self, tiny_checkpoint, tmp_path):
        for name in ("a\nkeep b.png", "copy\u202fof  a.png"):
            detailed(0).save(tmp_path / name)
        vectors = embed(tiny_checkpoint, tmp_path, tmp_path / "v")
        lines = selfvit("duplicates", vectors)[1].splitlines()
        assert [line.strip() for line in lines[-2:]] == [
            "keep a\\nkeep b.png",
            "copy\u202fof  a.png",
        ]

    def test_no_rows(self, planted, tmp_path):
        collection = Collection(planted)
        collection._table = collection._table.slice(0, 0)
        assert duplicates(collection).to_dict()["groups"] == []

    def test_identical_vectors_of_different_images(self, planted, result):
        collection = Collection(planted)
        collection.directions = np.tile(collection.directions[:1], (len(collection), 1))
        found = duplicates(collection, device="cpu")
        assert all(group.members for group in found.groups)
        assert {group.keep for group in found.groups} <= set(collection.ids)


def test_images_of_a_table_are_written_as_files(tiny_checkpoint, tmp_path):
    import io

    import pyarrow as pa

    contents = []
    for index in (0, 1, 1):
        buffer = io.BytesIO()
        detailed(index).save(buffer, "PNG")
        contents.append({"bytes": buffer.getvalue(), "path": None})
    pyarrow.parquet.write_table(pa.table({"image": contents}), tmp_path / "t.parquet")
    vectors = embed(tiny_checkpoint, tmp_path / "t.parquet", tmp_path / "v")
    code, output = selfvit("duplicates", vectors, "--link-to", tmp_path / "kept")
    files = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert code == 0 and len(files) == 2
    assert all(path.suffix == ".png" for path in files)
    # repeated names are found before the search: linking failed half way, after it
    table = pa.table({"image": contents, "id": ["a", "b", "a"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    vectors = embed(tiny_checkpoint, tmp_path / "t.parquet", tmp_path / "repeated")
    words = ["-o", tmp_path / "groups.csv", "--link-to", tmp_path / "one"]
    code, output = selfvit("duplicates", vectors, *words)
    assert code == 2 and "two are 'a'" in output
    assert not (tmp_path / "groups.csv").exists() and not (tmp_path / "one").exists()
    with pytest.raises(ValueError, match=r"two are 'c/d\.png'"):
        check_link_names(["c/d.png", "s3://c/d.png"])
    # and so are names outside of the folder
    table = pa.table({"image": contents, "id": ["a", "../b", "c"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    vectors = embed(tiny_checkpoint, tmp_path / "t.parquet", tmp_path / "outside")
    words = ["-o", tmp_path / "groups.csv", "--link-to", tmp_path / "other"]
    code, output = selfvit("duplicates", vectors, *words)
    assert code == 2 and not (tmp_path / "groups.csv").exists()
    assert "names of images must stay within --link-to, but '../b' does not" in output
    # and the groups are printed if linking fails for another reason
    table = pa.table({"image": contents, "id": ["b", "b.png", "c"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    vectors = embed(tiny_checkpoint, tmp_path / "t.parquet", tmp_path / "printed")
    code, output = selfvit("duplicates", vectors, "--link-to", tmp_path / "other")
    assert code == 2 and "keep b.png\n     c\n" in output
    assert "b.png'; give the images different names" in output
