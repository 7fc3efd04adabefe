"""Labels are declared or derived by a rule that is printed."""

import os

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from selfvit.cli import app
from selfvit.data.labels import labels_of_texts, labels_of_values
from selfvit.data.sources import open_images

from ..data.shards import write_tar
from .inputs import encoded, images, write_classes, write_pictures, write_table

SPLITS = [
    ("train", "val", "test"),
    ("Train", "Validation"),
    ("training", "dev"),
    ("train", "valid"),
]


class TestSplitFolders:
    @pytest.mark.parametrize("splits", SPLITS)
    def test_split_folders_are_no_classes(self, splits, data, embed):
        for split in splits:
            write_classes(data / split, 2)
        result = embed(data)
        assert sorted(set(result.labels)) == ["cat", "dog", "owl"] and len(result.rows) == 6
        assert f"split {splits[0]}" in result.text and splits[1] in result.text
        assert "labels: folder names, 3 classes" in result.text
        everything = embed(data, "--split", "all")
        assert len(everything.rows) == 6 * len(splits)
        assert sorted(set(everything.labels)) == ["cat", "dog", "owl"]
        assert len(embed(data, "--split", splits[1]).rows) == 6

    def test_a_class_called_test_stays_a_class(self, data, embed):
        write_classes(data, 2, ("cat", "dog", "test"))
        assert sorted(set(embed(data).labels)) == ["cat", "dog", "test"]

    def test_split_folders_beside_others_are_named_as_classes(self, data, embed):
        for name in ("train", "test", "unlabeled"):
            write_pictures(data / name, 2)
        result = embed(data)
        assert set(result.labels) == {"train", "test", "unlabeled"}
        assert "note: test, train are classes and no splits here" in result.text
        assert len(embed(data, "--split", "train").rows) == 2

    def test_splits_or_classes_in_one_folder_are_named(self, data, embed):
        write_classes(data / "dataset", 1)
        result = embed(data)
        assert "label" not in result.rows[0] or result.labels == [None] * 3
        assert "all images lie in the folder dataset" in result.text and "cat, dog" in result.text

    def test_splits_without_train_are_named(self, data, embed):
        for split in ("val", "test"):
            write_classes(data / split, 1)
        result = embed(data)
        assert result.code == 2 and "test, val" in result.text and "--split" in result.text


class TestColumns:
    @pytest.mark.parametrize(
        "values, names",
        [
            (pa.array([0, -1, 1, -1, 2, None]), ["0", "1", "2"]),
            (pa.array([0.0, -1.0, 1.0, float("nan"), 2.0, None]), ["0", "1", "2"]),
            (pa.array([0, -1, 1, -1, 2, 0], pa.int8()), ["0", "1", "2"]),
            (pa.array(["0", "-1", "1", "", "2", None]), ["0", "1", "2"]),
        ],
        ids=["int64", "float", "int8", "text"],
    )
    def test_minus_one_and_null_are_no_label(self, values, names, data, embed):
        result = embed(write_table(data / "a.parquet", image=images(), label=values))
        assert len(result.rows) == 6 and result.labels[1] is None
        assert sorted({label for label in result.labels if label}) == names
        assert "of 6 images have no label" in result.text and "3 classes" in result.text

    @pytest.mark.parametrize(
        "values, names",
        [
            (pa.array([True, False, True, False, True, None]), ["false", "true"]),
            (pa.array(["a", "b"] * 3, pa.large_string()), ["a", "b"]),
            (pa.array(["a", "b"] * 3, pa.string_view()), ["a", "b"]),
            (pa.array(["a", "b"] * 3).dictionary_encode(), ["a", "b"]),
            (pa.array([1.0, 0.0] * 3, pa.float16()), ["0", "1"]),
            (pa.array([10, 9] * 3, pa.uint64()), ["9", "10"]),
        ],
        ids=["bool", "large_string", "string_view", "dictionary", "float16", "uint64"],
    )
    def test_types_of_labels(self, values, names, data):
        path = write_table(data / "a.parquet", image=images(), label=values)
        assert open_images(path).label_names == names

    @pytest.mark.parametrize("name", ["Label", "target", "class", "CATEGORY", "class_name"])
    def test_usual_names_are_taken(self, name, data, embed):
        path = write_table(data / "a.parquet", image=images(), **{name: pa.array([0, 1, 2] * 2)})
        result = embed(path)
        assert result.labels == ["0", "1", "2"] * 2 and f"labels: column '{name}'" in result.text

    def test_a_column_that_looks_like_labels_and_is_not_taken_is_named(self, data, embed):
        path = write_table(data / "a.parquet", image=images(), label=pa.array([[0]] * 6))
        result = embed(path)
        assert result.rows[0].get("label") is None
        assert "label (a type that holds no labels)" in result.text
        assert "--label-column" in result.text
        path = write_table(data / "a.parquet", image=images(), species=pa.array(["x", "y"] * 3))
        assert "not taken: species" in embed(path).text
        assert embed(path, "--label-column", "species").labels == ["x", "y"] * 3

    def test_fractions_are_no_labels(self, data, embed):
        path = write_table(data / "a.parquet", image=images(), label=pa.array([0.5] * 6))
        result = embed(path)
        assert result.rows[0].get("label") is None
        assert "no labels" in result.text and "'label' contains 0.5" in result.text
        result = embed(path, "--label-column", "label")
        assert result.code == 2 and "'label' contains 0.5" in result.text

    @pytest.mark.parametrize("kind", ["large_binary", "binary_view", "bytes", "bytes and more"])
    def test_types_of_image_columns(self, kind, data, embed):
        contents = [encoded(i) for i in range(6)]
        column = {
            "large_binary": pa.array(contents, pa.large_binary()),
            "binary_view": pa.array(contents, pa.binary_view()),
            "bytes": pa.array([{"bytes": content} for content in contents]),
            "bytes and more": pa.array([{"bytes": c, "path": "x", "height": 3} for c in contents]),
        }[kind]
        assert len(embed(write_table(data / "a.parquet", image=column)).rows) == 6

    def test_columns_that_do_not_fit_together_are_one_line(self, data, embed):
        write_table(data / "differ/a.parquet", image=images(), target=pa.array([0] * 6))
        write_table(data / "differ/b.parquet", image=images(), label=pa.array(["x"] * 6))
        result = embed(data / "differ")
        assert result.code == 2 and len(result.text.splitlines()) == 1
        assert all(word in result.text for word in ("a.parquet", "b.parquet", "target", "label"))
        result = embed(write_table(data / "empty.parquet", image=images(0)))
        assert result.code == 2 and "empty.parquet has no rows" in result.text
        (data / "text.parquet").write_text("no table")
        result = embed(data / "text.parquet")
        assert result.code == 2 and "text.parquet' cannot be read as Parquet" in result.text

    def test_json_labels_of_two_types_are_one_line(self, data, embed):
        members: dict[str, bytes] = {}
        for i in range(4):
            label = b'{"label": 1}' if i % 2 else b'{"label": "cat"}'
            members |= {f"{i}.jpg": encoded(i, "JPEG"), f"{i}.json": label}
        result = embed(write_tar(data / "a.tar", members))
        assert result.code == 2 and "a.tar" in result.text and "json" in result.text
        members["1.json"] = b"{no json"
        result = embed(write_tar(data / "a.tar", members))
        assert result.code == 2 and "1.json" in result.text and "JSON" in result.text


class TestTexts:
    @pytest.mark.parametrize(
        "texts, names",
        [
            (["1", "01", "10"], ["01", "1", "10"]),
            (["9", "10", "NA", ""], ["9", "10"]),
            (["1e5", "100000"], ["100000", "1e5"]),
            (["1.0", "2.0", "nan"], ["1", "2"]),
            (["1.0", "1"], ["1", "1.0"]),
            (["True", "False", ""], ["false", "true"]),
            (["cat", "NA", ""], ["NA", "cat"]),
            (["2020-01-02", "2020-01-03"], ["2020-01-02", "2020-01-03"]),
            (["18446744073709551615", "18446744073709551614"], None),
            (["+1", "1", "-0", "0"], ["+1", "-0", "0", "1"]),
        ],
    )
    def test_different_texts_are_different_classes(self, texts, names):
        found = labels_of_values(labels_of_texts(texts), "label").names
        assert found == (names or sorted(texts))

    def test_values_that_cannot_be_labels(self):
        for values in (labels_of_texts(["0.5", "1"]), [[1]], [2.0**60]):
            with pytest.raises(ValueError, match="column 'score' contains"):
                labels_of_values(values, "score")
            (note,) = labels_of_values(values, "score", is_required=False).notes
            assert note.startswith("there are no labels") and "column 'score'" in note

    @pytest.mark.parametrize("value", [3, -5, True])
    def test_an_index_without_a_class_name_is_an_error(self, value):
        with pytest.raises(ValueError, match=rf"from 0 to 0, but it contains {value}"):
            labels_of_values([0, value, -1, None], "label", ["cat"], is_required=False)


class TestFolderLabels:
    def test_a_stray_picture_is_named_and_the_others_keep_their_labels(self, data, embed):
        write_classes(data, 4)
        write_pictures(data, 1, "preview")
        result = embed(data)
        assert result.labels.count(None) == 1 and result.labels.count("cat") == 4
        assert "preview0.jpg lies beside the class folders and has no label" in result.text

    @pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
    def test_metadata_files_as_datasets_reads_them(self, name, data, embed):
        write_pictures(data, 4)
        if name.endswith("csv"):
            text = "file_name,label\nx0.jpg,a\nx1.jpg,b\nx2.jpg,a\ngone.jpg,b\n"
        else:
            rows = [("x0.jpg", "a"), ("x1.jpg", "b"), ("x2.jpg", "a"), ("gone.jpg", "b")]
            text = "".join(
                f'{{"file_name": "{path}", "label": "{label}"}}\n' for path, label in rows
            )
        (data / name).write_text(text)
        result = embed(data)
        assert result.labels == ["a", "b", "a", None]
        assert list(result.skipped) == ["gone.jpg"] and "x3.jpg" in result.text
        assert "labels: column 'label', 2 classes" in result.text

    def test_metadata_without_file_names_is_an_error(self, data, embed):
        write_pictures(data, 2)
        (data / "metadata.csv").write_text("image_id,label\n0,a\n")
        result = embed(data)
        assert result.code == 2 and "metadata.csv must have a column file_name" in result.text

    def test_names_that_are_not_utf8(self, data, embed):
        for name in (b"caf\xe9", b"th\xe9"):
            folder = os.fsencode(data) + b"/" + name
            os.mkdir(folder)
            for i in range(3):
                with open(folder + b"/%d.png" % i, "wb") as file:
                    file.write(encoded(i))
        result = embed(data)
        assert result.labels == ["caf\\xe9"] * 3 + ["th\\xe9"] * 3
        assert result.rows[0]["path"] == "caf\\xe9/0.png"


@pytest.mark.parametrize("command", ["embed", "evaluate", "stats", "visualize pca", "export"])
def test_every_command_takes_a_label_column(command, tiny_checkpoint, tmp_path):
    breeds = pa.array(["a", "b", "a", "b"])
    table = write_table(tmp_path / "t.parquet", image=images(4), breed=breeds)
    words = [*command.split(), *([] if command == "stats" else [str(tiny_checkpoint)])]
    words += ["--train" if command == "evaluate" else "--data", str(table)]
    if command == "export":
        words += ["--to", "onnx", "--int8"]
    if command not in ("evaluate", "stats"):
        words += ["--output", str(tmp_path / "out.png")]
    result = CliRunner().invoke(app, [*words, "--label-column", "species"])
    assert result.exit_code == 2 and "species" in result.output and "breed" in result.output
