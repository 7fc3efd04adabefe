import io
import os
import pickle
import tarfile
import zipfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfvit.data.decoding import UnreadableImageError, decode_image
from selfvit.data.files.image_formats import image_extensions
from selfvit.data.image_source import ChosenSource, ImageSource, RecordSource
from selfvit.data.sources import open_images

from ..image_files import noise


def png(seed):
    buffer = io.BytesIO()
    noise(12, 12, seed).save(buffer, "PNG")
    return buffer.getvalue()


def class_dataset(count=10, **columns):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])}
    )
    rows = {
        "image": [{"bytes": png(i), "path": None} for i in range(count)],
        "label": [i % 2 for i in range(count)],
    }
    dataset = datasets.Dataset.from_dict(rows, features=features)
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    return dataset


def write_parquet(path, count=10, **columns):
    table = {"image": [png(i) for i in range(count)], **columns}
    pq.write_table(pa.table(table), path)
    return path


def labels_of(source):
    labels = source.labels()
    assert labels is not None and labels.dtype == np.int64
    return labels.tolist()


def assert_same_pixels(record, seed):
    np.testing.assert_array_equal(decode_image(record.image), noise(12, 12, seed))


class TestFolder:
    def test_images_are_sorted_and_labeled_by_first_level_folder(self, image_folder):
        source = open_images(image_folder)
        ids = [source[i].id for i in range(len(source))]
        assert ids == [
            "cat/1.png", "cat/2.JPG", "cat/more/3.png", "dog/1.png", "dog/2.png", "owl/1.png",
            "owl/2.webp",
        ]  # fmt: skip
        assert source.label_names == ["cat", "dog", "owl"]
        assert labels_of(source) == [0, 0, 0, 1, 1, 2, 2]
        assert [source[i].label for i in range(len(source))] == labels_of(source)
        assert source.id_column == "path"

    def test_a_flat_folder_is_unlabeled(self, image_folder):
        source = open_images(image_folder / "dog")
        assert source.label_names is None and source.labels() is None
        assert source[0].label is None and source[0].id == "1.png"

    def test_a_single_sub_folder_is_not_a_class(self, tmp_path):
        (tmp_path / "all").mkdir()
        noise(8, 8).save(tmp_path / "all" / "a.png")
        assert open_images(tmp_path).label_names is None

    def test_an_image_beside_the_class_folders_is_named_and_has_no_label(self, tmp_path):
        for path in ("a/1.png", "b/1.png", "1.png"):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            noise(8, 8).save(tmp_path / path)
        source = open_images(tmp_path)
        assert labels_of(source) == [-1, 0, 1] and source[0].label is None
        assert source.label_rule == "folder names, 2 classes"
        assert source.inventory.notes == ["1.png lies beside the class folders and has no label"]

    def test_folders_are_no_classes_beside_as_many_images(self, tmp_path):
        for path in ("a/1.png", "b/1.png", "1.png", "2.png"):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            noise(8, 8).save(tmp_path / path)
        source = open_images(tmp_path)
        assert source.label_names is None and source.label_rule is None

    def test_hidden_files_and_files_of_other_types_are_ignored(self, tmp_path):
        for name in ("a.png", ".hidden.png", ".cache/b.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            noise(8, 8).save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("x")
        (tmp_path / "film.mpg").write_bytes(b"x")
        source = open_images(tmp_path)
        assert [source[i].id for i in range(len(source))] == ["a.png"]

    def test_common_extensions_are_known(self):
        assert {
            ".jpg",
            ".jpeg",
            ".png",
            ".webp",
            ".bmp",
            ".tif",
            ".tiff",
            ".gif",
        } <= image_extensions()

    def test_linked_folders_are_followed_and_loops_end(self, tmp_path, image_folder):
        data = tmp_path / "data"
        data.mkdir()
        (data / "pets").symlink_to(image_folder / "dog")
        (data / "loop").symlink_to(data)
        source = open_images(data)
        assert [source[i].id for i in range(len(source))] == ["pets/1.png", "pets/2.png"]

    def test_a_file_name_that_is_not_utf8_has_a_printable_id(self, tmp_path):
        name = os.fsdecode(b"caf\xe9.png")
        try:
            noise(8, 8).save(tmp_path / name)
        except OSError:
            pytest.skip("this file system accepts only UTF-8 names")
        record = open_images(tmp_path)[0]
        record.id.encode("utf-8")
        assert decode_image(record.image).size == (8, 8)

    def test_split_is_a_sub_folder(self, image_folder):
        assert len(open_images(image_folder, split="dog")) == 2
        with pytest.raises(ValueError, match="without a subfolder 'validation'"):
            open_images(image_folder, split="validation")

    def test_streaming_a_folder_opens_it_by_position(self, image_folder):
        source = open_images(image_folder, streaming=True)
        assert isinstance(source, ImageSource) and len(source) == 7

    def test_the_error_for_a_folder_without_images_lists_its_contents(self, tmp_path):
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(ValueError, match=r"contains notes.txt.*\.jpg"):
            open_images(tmp_path)

    def test_an_empty_folder_is_an_error(self, tmp_path):
        with pytest.raises(ValueError, match="contains nothing"):
            open_images(tmp_path)


@pytest.mark.parametrize(
    "name", ["./photos", "/nowhere/photos", "~/no/such", "a/b/c", "no spaces here"]
)
def test_the_error_for_a_missing_folder_names_it(name):
    with pytest.raises(FileNotFoundError, match="there is no folder or file"):
        open_images(name)


def test_the_error_for_a_possible_hub_id_mentions_the_hub():
    with pytest.raises(FileNotFoundError, match="'me/photos' is not a local folder or file.*Hub"):
        open_images("me/photos")


def test_a_name_without_a_user_is_not_asked_for_on_the_hub_and_similar_names_are_told(tmp_path):
    (tmp_path / "labeled").mkdir()
    with pytest.raises(FileNotFoundError, match=r"USER/NAME\. Did you mean '.*/labeled'\?"):
        open_images(tmp_path / "labled")


def test_a_checkpoint_is_no_folder_of_images(tiny_checkpoint):
    with pytest.raises(ValueError, match="is a checkpoint, not a folder of images; name"):
        open_images(tiny_checkpoint)


def test_a_file_that_holds_no_images_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("no image")
    with pytest.raises(ValueError, match=r"data must be image files.*notes.md' is none of these"):
        open_images(tmp_path / "notes.md")


class TestParquet:
    def test_class_labels_keep_their_names(self, tmp_path):
        class_dataset().to_parquet(tmp_path / "a.parquet")
        source = open_images(tmp_path / "a.parquet")
        assert len(source) == 10 and source.label_names == ["ant", "bee"]
        assert labels_of(source) == [0, 1] * 5
        assert source[3].id == "3" and source[3].label == 1 and source.id_column == "id"
        assert_same_pixels(source[3], 3)

    def test_a_folder_of_files_is_one_source(self, tmp_path):
        for part in range(2):
            write_parquet(tmp_path / f"part-{part}.parquet", 4)
        assert len(open_images(tmp_path)) == 8

    def test_splits_of_a_folder_come_from_the_file_names(self, tmp_path):
        write_parquet(tmp_path / "train-00000-of-00001.parquet", 4)
        write_parquet(tmp_path / "test-00000-of-00001.parquet", 3)
        assert len(open_images(tmp_path)) == 4
        assert len(open_images(tmp_path, split="test")) == 3
        with pytest.raises(ValueError, match="validation"):
            open_images(tmp_path, split="validation")

    def test_text_labels_are_numbered_in_order(self, tmp_path):
        write_parquet(tmp_path / "a.parquet", 4, label=["owl", "cat", "owl", "dog"])
        source = open_images(tmp_path / "a.parquet")
        assert source.label_names == ["cat", "dog", "owl"]
        assert labels_of(source) == [2, 0, 2, 1]

    def test_integer_labels_are_numbered_from_zero(self, tmp_path):
        write_parquet(tmp_path / "a.parquet", 4, labels=[7, 5, 7, None])
        source = open_images(tmp_path / "a.parquet")
        assert source.label_names == ["5", "7"]
        assert labels_of(source) == [1, 0, 1, -1]
        assert source[3].label is None

    def test_a_split_with_hidden_labels_is_unlabeled(self, tmp_path):
        dataset = class_dataset(3).map(lambda row: {"label": -1})
        dataset.to_parquet(tmp_path / "a.parquet")
        assert open_images(tmp_path / "a.parquet").label_names is None

    def test_ids_come_from_an_id_column(self, tmp_path):
        write_parquet(tmp_path / "a.parquet", 3, file_name=["a.png", "b.png", "c.png"])
        assert open_images(tmp_path / "a.parquet")[1].id == "b.png"

    def test_columns_can_be_named(self, tmp_path):
        table = {"photo": [png(0)], "thumbnail": [png(1)], "kind": ["x"], "size": [0.5]}
        pq.write_table(pa.table(table), tmp_path / "a.parquet")
        path = tmp_path / "a.parquet"
        source = open_images(path, image_column="thumbnail", label_column="kind")
        assert source.label_names == ["x"]
        assert_same_pixels(source[0], 1)
        with pytest.raises(ValueError, match="the columns are photo, thumbnail"):
            open_images(path)
        with pytest.raises(ValueError, match="no column 'picture'; .* columns photo"):
            open_images(path, image_column="picture")
        with pytest.raises(ValueError, match="labels must be classes, .* 'size' contains 0.5"):
            open_images(path, image_column="photo", label_column="size")

    @pytest.mark.parametrize("name", ["image", "IMG"])
    @pytest.mark.parametrize("value", [[[[1, 2, 3]]], [0.5, None], [[], [7]], 3])
    def test_a_column_of_numbers_is_named_as_such(self, name, value, tmp_path):
        pq.write_table(pa.table({"x": ["a", "b"], name: [value, None]}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=f"Column '{name}' holds numbers, not image files"):
            open_images(tmp_path / "a.parquet")

    def test_an_array_of_datasets_is_named_as_such(self, tmp_path):
        features = datasets.Features({"image": datasets.Array3D((2, 2, 3), "uint8")})
        rows = {"image": [np.zeros((2, 2, 3), np.uint8)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
        with pytest.raises(ValueError, match="Column 'image' holds numbers"):
            open_images(tmp_path / "a.parquet")

    def test_a_row_without_an_image_is_unreadable(self, tmp_path):
        pq.write_table(pa.table({"image": [png(0), None]}), tmp_path / "a.parquet")
        source = open_images(tmp_path / "a.parquet")
        with pytest.raises(UnreadableImageError, match="neither the content nor the path"):
            decode_image(source[1].image)


class TestSavedDataset:
    def test_a_dataset_opens(self, tmp_path):
        class_dataset(4).save_to_disk(tmp_path / "saved")
        source = open_images(tmp_path / "saved")
        assert labels_of(source) == [0, 1, 0, 1]
        assert_same_pixels(source[2], 2)
        with pytest.raises(ValueError, match="no splits"):
            open_images(tmp_path / "saved", split="train")

    def test_selected_rows_keep_their_labels(self, tmp_path):
        class_dataset(6).select([5, 2, 3]).save_to_disk(tmp_path / "saved")
        source = open_images(tmp_path / "saved")
        assert labels_of(source) == [1, 0, 1]
        assert_same_pixels(source[1], 2)

    def test_a_dataset_dict_opens_one_split(self, tmp_path):
        splits = datasets.DatasetDict(train=class_dataset(4), test=class_dataset(3))
        splits.save_to_disk(tmp_path / "saved")
        assert len(open_images(tmp_path / "saved")) == 4
        assert len(open_images(tmp_path / "saved", split="test")) == 3
        with pytest.raises(ValueError, match="choose one of train, test"):
            open_images(tmp_path / "saved", split="validation")


class TestAnySource:
    @pytest.fixture(params=["folder", "parquet"])
    def source(self, request, image_folder, tmp_path):
        if request.param == "folder":
            return open_images(image_folder)
        return open_images(write_parquet(tmp_path / "a.parquet", 7, label=list("aabbcca")))

    def test_a_source_can_be_pickled(self, source):
        copy = pickle.loads(pickle.dumps(source))
        assert len(copy) == 7 and copy[4] == source[4] and copy.fingerprint == source.fingerprint

    def test_a_position_past_the_end_is_an_error(self, source):
        with pytest.raises(IndexError):
            source[7]

    def test_a_name_is_known_without_the_image(self, source):
        assert [source.name_of(i) for i in range(7)] == [source[i].id for i in range(7)]
        assert source.sample(3).name_of(1) == source.sample(3)[1].id
        assert source.names() == [source[i].id for i in range(7)]
        assert source.sample(3).names() == [record.id for record in source.sample(3)]

    def test_chosen_images_are_in_order_and_keep_their_labels(self, source):
        chosen = ChosenSource(source, np.array([3, 1]))
        assert [chosen[i] for i in range(len(chosen))] == [source[1], source[3]]
        assert labels_of(chosen) == [source[1].label, source[3].label]
        others = ChosenSource(source, np.array([1, 2]))
        assert len({chosen.fingerprint, others.fingerprint, source.fingerprint}) == 3

    def test_records_in_memory_equal_the_source_they_come_from(self, source):
        records = RecordSource(
            [source[i] for i in range(len(source))], "in memory", source.label_names
        )
        assert [records[i] for i in range(len(records))] == [source[i] for i in range(len(source))]
        assert np.array_equal(records.labels(), source.labels())
        fewer = RecordSource([source[0]], "in memory", source.label_names)
        assert fewer.fingerprint != records.fingerprint

    def test_a_sample_is_the_same_each_time_and_keeps_labels(self, source):
        sample = source.sample(4)
        assert len(sample) == 4 and sample.label_names == source.label_names
        assert [sample[i] for i in range(4)] == [source.sample(4)[i] for i in range(4)]
        assert [sample[i].label for i in range(4)] == labels_of(sample)
        assert source.sample(100) is source

    def test_fingerprints_of_different_sizes_differ(self, source):
        assert (
            len({source.fingerprint, source.sample(4).fingerprint, source.sample(5).fingerprint})
            == 3
        )


def write_data(folder, seed):
    """Write the same image as a file, in lists and tables, in archives and as a dataset."""
    (folder / "photos").mkdir(parents=True)
    content = png(seed)
    (folder / "photos" / "a.png").write_bytes(content)
    (folder / "list.txt").write_text("photos/a.png\n")
    (folder / "tables").mkdir()
    pq.write_table(pa.table({"image": ["../photos/a.png"]}), folder / "tables" / "a.parquet")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a.png", content)
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(folder / "photos" / "a.png", "a.png")
    rows = {"image": [{"bytes": content, "path": None}]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "saved")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["photos", "list.txt", "tables", "a.zip", "a.tar", "saved"])
def test_a_source_of_a_relative_path_reads_the_same_images_in_another_folder(
    name, streaming, tmp_path, monkeypatch
):
    # A worker of Ray read the images of the folder in which the node was started.
    write_data(tmp_path / "here", seed=1)
    write_data(tmp_path / "there", seed=2)
    monkeypatch.chdir(tmp_path / "here")
    source = open_images(name, streaming=streaming)
    assert str(tmp_path) not in source.description
    stored = pickle.dumps(source)
    monkeypatch.chdir(tmp_path / "there")
    source = pickle.loads(stored)
    record = source[0] if isinstance(source, ImageSource) else next(source.read_shard(0))
    assert_same_pixels(record, 1)


def test_the_fingerprint_changes_when_a_file_is_renamed(tmp_path):
    noise(8, 8).save(tmp_path / "a.png")
    before = open_images(tmp_path).fingerprint
    assert open_images(tmp_path).fingerprint == before
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    assert open_images(tmp_path).fingerprint != before
