"""Tables are read as they are named: Parquet files, lists of paths, metadata, saved data sets."""

import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfvit.data.sources import open_images

from .inputs import HEIC, IMAGE_TYPE, encoded, images, write_table

ENCODED = [encoded(i) for i in range(2)]
UNREADABLE_TEXT = pa.array([b"\xe9", b"b"], pa.binary()).cast(pa.string(), safe=False)


class TestParquet:
    @pytest.mark.parametrize("name", ["x[1]", "**", "a*", "d::e", "q?", "p%20", "#1", b"caf\xe9"])
    @pytest.mark.parametrize("streaming", [False, True])
    def test_names_that_look_like_patterns(self, name, streaming, data):
        folder = data / os.fsdecode(name)
        columns = {"image": images(2), "id": pa.array(["right", "right too"])}
        write_table(data / "new/t.parquet", **columns).parent.rename(folder)
        write_table(data / "x1/t.parquet", image=images(3))
        source = open_images(folder / "t.parquet", streaming=streaming)
        if streaming:
            source = source.resharded
            assert [r.id for r in source.read_shard(0)] == ["right", "right too"]
        else:
            assert [source[i].id for i in range(len(source))] == ["right", "right too"]
        assert source.description.encode() and source.fingerprint

    def test_names_that_are_not_utf8(self, data, embed):
        folder = data / os.fsdecode(b"caf\xe9")
        path = write_table(data / "new/t.parquet", image=images(2), label=UNREADABLE_TEXT)
        path.parent.rename(folder)
        result = embed(folder)
        assert result.code == 0 and result.labels == ["\\xe9", "b"]
        write_images(data, "picture.png")
        result = embed(data)
        assert result.code == 2 and "1 Parquet files" in result.text

    def test_a_file_without_rows_beside_others(self, data, embed):
        empty = pa.table({"image": images(0), "other": pa.array([], pa.null())})
        pq.write_table(empty, data / "a.parquet")
        write_table(data / "b.parquet", image=images(2), label=pa.array(["x", "y"]))
        assert embed(data).labels == ["x", "y"]

    @pytest.mark.parametrize(
        "column",
        [
            pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
            pa.array([{"m": [("a", 1)]}] * 2, pa.struct([("m", pa.map_(pa.string(), pa.int8()))])),
        ],
        ids=["map", "struct of map"],
    )
    def test_types_of_columns_that_nobody_asked_for(self, column, data, embed):
        path = write_table(data / "a.parquet", image=images(2), other=column)
        assert len(embed(path).rows) == 2
        for option in ("--label-column", "--image-column"):
            result = embed(path, option, "other")
            assert result.code == 2 and "a.parquet: " in result.text
            assert "column 'other' contains" in result.text

    @pytest.mark.parametrize("kind", ["int", "float", "bool", "list", "date"])
    def test_columns_that_hold_no_images(self, kind, data, embed):
        values = {"int": [3, 4], "float": [0.5, 1], "bool": [True, False], "list": [[1], [2]]}
        dates = pa.array([1, 2], pa.date32())
        column = pa.array(values[kind]) if kind in values else dates
        path = write_table(data / "a.parquet", image=images(2), other=column)
        result = embed(path, "--image-column", "other")
        assert result.code == 2 and len(result.text.splitlines()) == 1
        assert "column 'other' contains" in result.text

    def test_several_columns_of_images(self, data, embed):
        path = write_table(data / "a.parquet", mask=images(2), image=images(2))
        result = embed(path)
        assert "the images are column 'image'; not taken: mask" in result.text
        assert "note" not in embed(path, "--image-column", "mask").text
        path = write_table(data / "a.parquet", mask=images(2), photo=images(2))
        result = embed(path)
        assert result.code == 2 and "mask, photo" in result.text and "--image-column" in result.text

    @pytest.mark.parametrize("where", ["label.name", "json.label", "meta.label"])
    def test_labels_in_structs(self, where, data, embed):
        column, field = where.split(".")
        path = data / "a.parquet"
        write_table(path, image=images(2), **{column: pa.array([{field: "x"}, {field: "y"}])})
        assert embed(path, "--label-column", where).labels == ["x", "y"]
        assert (embed(path).rows[0].get("label") == "x") == (column == "json")

    @pytest.mark.parametrize("name", ["label", "image"])
    def test_two_columns_of_one_name(self, name, data, embed):
        table = pa.table(
            [images(2), images(2), pa.array([1, 2])], names=["image", "image", "label"]
        )
        if name == "label":
            table = pa.table(
                [images(2), *[pa.array([1, 2])] * 2], names=["image", "label", "label"]
            )
        pq.write_table(table, data / "a.parquet")
        result = embed(data / "a.parquet")
        assert result.code == 2 and f"2 columns are called '{name}'; rename" in result.text

    @pytest.mark.parametrize("value", [3, -5])
    def test_an_index_without_a_class_name(self, value, data, embed):
        kind = datasets.ClassLabel(names=["cat", "dog"])
        features = datasets.Features({"image": datasets.Image(), "label": kind})
        table = pa.table({"image": images(2), "label": pa.array([0, value])})
        schema = features.arrow_schema
        path = data / "a.parquet"
        pq.write_table(table.cast(schema), path)
        result = embed(path)
        assert result.code == 2 and "a.parquet" in result.text
        assert f"of column 'label', from 0 to 1, but it contains {value}" in result.text
        with pytest.raises(ValueError, match=rf"row 1 of .*a.parquet.*contains {value}"):
            list(open_images(path, streaming=True).read_shard(0))

    def test_rows_without_an_image_or_an_id(self, data, embed):
        rows = [
            *({"bytes": content, "path": "a.png"} for content in ENCODED),
            None,
            {"bytes": None, "path": None},
            {"bytes": None, "path": ""},
        ]
        ids = pa.array(["a", None, "c", "d", None])
        path = write_table(data / "a.parquet", image=pa.array(rows, IMAGE_TYPE), id=ids)
        result = embed(path)
        assert [row["id"] for row in result.rows] == ["a", "1"]
        assert set(result.skipped) == {"c", "d", "4"}
        assert all("neither the content nor the path" in r for r in result.skipped.values())

    def test_base64_is_named(self, data, embed):
        path = write_table(data / "a.parquet", image=pa.array(["iVBORw0KGgo" * 100] * 2))
        result = embed(path)
        assert "a text of 1100 characters" in result.text and len(result.text) < 1000

    def test_a_path_in_an_image_that_is_not_utf8(self, data, embed):
        column = pa.StructArray.from_arrays([pa.array(ENCODED), UNREADABLE_TEXT], ["bytes", "path"])
        result = embed(write_table(data / "a.parquet", image=column.cast(IMAGE_TYPE)))
        assert result.code == 0 and len(result.rows) == 2


def write_images(folder, *names):
    for i, name in enumerate(names):
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(i))


class TestLists:
    @pytest.mark.parametrize(
        "labels, names",
        [
            (["01", "1", "007"], ["01", "1", "007"]),
            (["1e5", "100000", "x"], ["1e5", "100000", "x"]),
            (["2020-01-01", "2020-01-02", ""], ["2020-01-01", "2020-01-02", None]),
            (["10:30", "11:30", "-1"], ["10:30", "11:30", None]),
            (["18446744073709551615", "18446744073709551614", "NA"], None),
        ],
    )
    @pytest.mark.parametrize("kind", ["csv", "jsonl", "metadata"])
    def test_cells_are_texts(self, kind, labels, names, data, embed):
        files = ["0001", "1", "2e3"]
        write_images(data, *files)
        rows = list(zip(files, labels, strict=True))
        if kind == "jsonl":
            lines = [f'{{"path": "{file}", "label": "{label}"}}' for file, label in rows]
        else:
            lines = ["file_name,label", *(f"{file},{label}" for file, label in rows)]
        path = data / {"metadata": "metadata.csv"}.get(kind, f"list.{kind}")
        path.write_text("\n".join(lines))
        result = embed(data if kind == "metadata" else path)
        assert [row["path"] for row in result.rows] == files
        last = labels[2] if kind == "jsonl" else None
        assert result.labels == (names or [*labels[:2], last])

    @pytest.mark.parametrize("content", ["cat,dog", "1,2", "true,false", "cat,"])
    def test_a_file_with_two_labels(self, content, data, embed):
        write_images(data, "a.png", "b.png")
        first, second = content.split(",")
        text = f"file_name,label\na.png,{first}\nb.png,{second}\na.png,{second}\n"
        (data / "list.csv").write_text(text)
        result = embed(data / "list.csv")
        assert result.code == 2 and "list.csv names 'a.png' twice" in result.text
        (data / "metadata.csv").write_text(text)
        result = embed(data)
        assert result.code == 2 and "metadata.csv names 'a.png' twice" in result.text
        assert "column 'label'" in result.text

    @pytest.mark.parametrize(
        "name, content",
        [
            ("list.csv", "file_name,target\na.png,0.3\nb.png,1e-5\n"),
            ("list.tsv", "path\tlabel\na.png\t0.5\nb.png\t1\n"),
            ("list.jsonl", '{"path":"a.png","label":[1]}\n{"path":"b.png","label":[2]}'),
            ("list.jsonl", '{"path":"a.png","label":{"x":1}}\n{"path":"b.png"}'),
            ("metadata.csv", "file_name,target\na.png,0.3\nb.png,0.7\n"),
            ("metadata.jsonl", '{"file_name":"a.png","class":0.5}\n{"file_name":"b.png"}'),
        ],
    )
    def test_values_that_are_no_labels(self, name, content, data, embed):
        write_images(data, "a.png", "b.png")
        (data / name).write_text(content)
        where = data if name.startswith("metadata") else data / name
        result = embed(where)
        assert result.rows[0].get("label") is None and "there are no labels" in result.text
        column = next(c for c in ("target", "label", "class") if c in content)
        result = embed(where, "--label-column", column)
        assert result.code == 2 and f"column '{column}' contains" in result.text

    @pytest.mark.parametrize("column", ["species", " label", "my_class"])
    def test_unusual_label_columns_are_named(self, column, data, embed):
        write_images(data, "a.png")
        (data / "list.csv").write_text(f"file_name,{column}\na.png,x\n")
        result = embed(data / "list.csv")
        assert "not taken" in result.text and column in result.text
        assert embed(data / "list.csv", "--label-column", column).labels == ["x"]

    @pytest.mark.parametrize("name", ["list.csv", "metadata.csv"])
    @pytest.mark.parametrize("header", ["file_name,label,label", "file_name,file_name,label"])
    def test_two_columns_of_one_name(self, name, header, data, embed):
        write_images(data, "a.png")
        (data / name).write_text(f"{header}\na.png,a.png,x\n")
        result = embed(data / name if name == "list.csv" else data)
        assert result.code == 2 and f"{name} has 2 columns" in result.text

    @pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x1c", "\x0b"])
    def test_names_with_line_separators(self, separator, data, embed):
        write_images(data, f"l{separator}x.png", "b.png")
        (data / "list.txt").write_text(f"l{separator}x.png\r\nb.png\r", newline="")
        assert len(embed(data / "list.txt").rows) == 2

    @pytest.mark.parametrize("name", ["list.csv", "list.txt", "list.jsonl"])
    def test_lists_that_are_no_utf8(self, name, data, embed):
        (data / name).write_text("path\na.png\n", encoding="utf-16")
        result = embed(data / name)
        assert result.code == 2 and f"{name}' must be UTF-8, but is UTF-16" in result.text

    @pytest.mark.parametrize(
        "text, hint",
        [
            ("file_name;label\na.png;x\n", "separated by semicolons"),
            ("file_name\tlabel\na.png\tx\n", "separated by tabs"),
            ("a.png,x\nb.png,y\n", "add a line of column names"),
        ],
    )
    @pytest.mark.parametrize("name", ["list.csv", "metadata.csv"])
    def test_another_separator_or_no_header(self, name, text, hint, data, embed):
        write_images(data, "a.png")
        (data / name).write_text(text)
        result = embed(data / name if name == "list.csv" else data)
        assert result.code == 2 and hint in result.text

    def test_rows_without_a_path_and_urls(self, data, embed):
        write_images(data, "a.png")
        (data / "list.csv").write_text("path,label\na.png,x\n,\nhttps://example.com/b.png,y\n")
        result = embed(data / "list.csv")
        assert len(result.rows) == 1
        assert set(result.skipped) == {"row 2 of list.csv", "https://example.com/b.png"}
        assert "download it" in result.skipped["https://example.com/b.png"]

    def test_deep_json(self, data, embed):
        (data / "list.jsonl").write_text('{"path": ' + "[" * 10**5 + "]" * 10**5 + "}\n")
        result = embed(data / "list.jsonl")
        assert result.code == 2 and "line 1 of" in result.text and "too deeply" in result.text


class TestMetadata:
    def test_texts_that_are_not_utf8(self, data, embed):
        write_images(data, b"caf\xe9.png", "b.png")
        (data / "metadata.csv").write_bytes(b"file_name,label\ncaf\xe9.png,th\xe9\nb.png,b\n")
        result = embed(data)
        assert result.labels == ["b", "th\\xe9"] and not result.skipped

    def test_images_that_are_listed_already_are_counted_once(self, data, embed):
        write_images(data, "a.png")
        (data / "b.heic").write_bytes(HEIC)
        (data / "metadata.csv").write_text("file_name,label\na.png,x\nb.heic,y\nc.png,y\nc.png,y\n")
        result = embed(data)
        assert "3 found, 1 taken, 2 left out" in result.text
        assert "HEIC" in result.skipped["b.heic"] and "no such" in result.skipped["c.png"]

    def test_absolute_paths_links_and_rows_without_a_name(self, data, embed):
        write_images(data, "a.png", "b.png")
        (data / "link.png").symlink_to("b.png")
        (data / "notes.md").write_text("no image")
        names = [f'"{data}/a.png"', '"link.png"', '"notes.md"', "null"]
        rows = [f'{{"file_name": {name}, "label": {i}}}\n' for i, name in enumerate(names)]
        (data / "metadata.jsonl").write_text("".join(rows))
        result = embed(data)
        assert result.labels == ["0", "1"]
        assert set(result.skipped) == {"notes.md", "row 4 of metadata.jsonl"}

    def test_labels_that_are_all_missing_are_a_note(self, data, embed):
        write_images(data, "cat/a.png", "dog/b.png")
        (data / "metadata.csv").write_text("file_name,label\ncat/a.png,-1\ndog/b.png,\n")
        result = embed(data)
        assert result.labels == ["cat", "dog"]
        assert "no row has a label in column 'label'" in result.text

    def test_two_metadata_files(self, data, embed):
        write_images(data, "a.png")
        (data / "metadata.jsonl").write_text('{"file_name": "a.png", "label": 1}\n')
        (data / "metadata.csv").write_text("file_name,label\na.png,1\n")
        assert embed(data).labels == ["1"]
        (data / "metadata.csv").write_text("file_name,label\na.png,2\n")
        result = embed(data)
        assert result.code == 2 and "with 2 and 1 in column 'label'" in result.text


class TestSavedDatasets:
    @pytest.fixture
    def saved(self, data):
        columns = {"image": images(2), "label": pa.array(["x", "y"])}
        part = datasets.Dataset(pa.table(columns))
        datasets.DatasetDict({"train": part, "test": part}).save_to_disk(data / "saved")
        return data / "saved"

    def test_splits_that_are_not_read_are_named(self, saved, embed):
        result = embed(saved)
        assert len(result.rows) == 2 and "split train; test are not read" in result.text
        result = embed(saved, "--split", "all")
        assert len(result.rows) == 4 and "note: split" not in result.text
        result = embed(saved, "--split", "dev")
        assert result.code == 2 and "train, test" in result.text

    @pytest.mark.parametrize(
        "file, content",
        [
            ("dataset_dict.json", "{}"),
            ("dataset_dict.json", "no json"),
            ("train/state.json", "{}"),
            ("train/state.json", "[1]"),
            ("train/dataset_info.json", "[]"),
            ("train/dataset_info.json", '{"features": {"image": 3}}'),
            ("train/data-00000-of-00001.arrow", "no table"),
        ],
    )
    def test_damaged_files_are_one_line(self, file, content, saved, embed):
        (saved / file).write_text(content)
        result = embed(saved)
        assert result.code == 2 and len(result.text.splitlines()) == 1
        assert "is no complete saved dataset" in result.text
