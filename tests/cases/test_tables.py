"""Tables are read as they are named: Parquet files, lists of paths, metadata, saved data sets."""

import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfvit.data.sources import open_images

from .inputs import IMAGE_TYPE, encoded, images, write_table

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

    def test_base64_is_named(self, data, embed):
        path = write_table(data / "a.parquet", image=pa.array(["iVBORw0KGgo" * 100] * 2))
        result = embed(path)
        assert "a text of 1100 characters" in result.text and len(result.text) < 1000

    def test_a_path_in_an_image_that_is_not_utf8(self, data, embed):
        column = pa.StructArray.from_arrays([pa.array(ENCODED), UNREADABLE_TEXT], ["bytes", "path"])
        result = embed(write_table(data / "a.parquet", image=column.cast(IMAGE_TYPE)))
        assert result.code == 0 and len(result.rows) == 2
