"""What is found below a folder or in a zip file is taken, listed with a reason, or in a note."""

import os
import zipfile
from typing import Any

import pytest

from selfvit.data.files.image_formats import SIGNATURE_BYTES, format_of, missing_support
from selfvit.data.files.listing import list_images
from selfvit.data.sources import open_images

from ..cases.inputs import (
    HEIC,
    encoded,
    images,
    write_classes,
    write_pictures,
    write_table,
)
from .shards import write_tar


def write_shard(path):
    if path.suffix == ".parquet":
        return write_table(path, image=images(2))
    path.parent.mkdir(exist_ok=True)
    return write_tar(path, {f"{i}.jpg": encoded(i, "JPEG") for i in range(2)})


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def left_out(source):
    inventory = source.inventory
    assert inventory.found == inventory.taken + len(inventory.left_out)
    return sorted(entry.name for entry in inventory.left_out)


def labels_of(source):
    numbers = [] if source.labels() is None else source.labels().tolist()
    return [None if number < 0 else source.label_names[number] for number in numbers]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", ["a.png.gz", "a.JPG.xz"])
def test_a_compressed_image_has_a_note(name, data):
    write_pictures(data, 1)
    (data / name).write_bytes(b"")
    source = open_images(data)
    assert len(source) == 1 and f"archives are not read: {name}" in source.inventory.notes[0]


class TestBesideShards:
    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("kind", ["parquet", "tar"])
    def test_left_out_images_are_listed(self, kind, streaming, data):
        write_shard(data / f"a.{kind}")
        (data / "b.heic").write_bytes(HEIC)
        os.symlink("nowhere.png", data / "c.png")
        source = open_images(data, streaming=streaming)
        assert left_out(source) == ["b.heic", "c.png"]
        summary = source.inventory.summary()
        assert "2 left out" in summary and " 0 taken" not in summary

    def test_left_out_images_beside_a_zip_are_listed(self, data):
        write_zip(data / "a.zip", {"0.png": encoded(0)})
        (data / "b.heic").write_bytes(HEIC)
        assert left_out(open_images(data)) == ["b.heic"]

    @pytest.mark.parametrize("kind", ["parquet", "tar"])
    def test_folders_above_shards_are_no_labels(self, kind, data):
        for name in ("cat", "dog"):
            write_shard(data / name / f"a.{kind}")
        assert any("cat, dog" in note for note in open_images(data).inventory.notes)

    def test_a_damaged_table_beside_images_is_listed(self, data):
        write_pictures(data, 1)
        (data / "a.parquet").write_bytes(b"PAR1")
        assert left_out(open_images(data)) == ["a.parquet"]

    @pytest.mark.parametrize("kind", ["parquet", "tar"])
    def test_a_linked_shard_is_read_once(self, kind, data, tmp_path):
        path = write_shard(data / f"a.{kind}")
        os.symlink(path.name, data / f"b.{kind}")
        write_shard(tmp_path / "store" / f"c.{kind}")
        for name in ("one", "two"):
            os.symlink(tmp_path / "store", data / name)
        source = open_images(data)
        assert len(source) == 4 and any(
            "counted already" in note for note in source.inventory.notes
        )
        given = open_images([path, data / f"b.{kind}", path])
        assert len(given) == 2 and "2 files are given twice" in given.inventory.notes[-1]

    @pytest.mark.parametrize("kind", ["parquet", "tar"])
    def test_a_split_of_several_given_files(self, kind, data):
        files = [write_shard(data / f"{name}.{kind}") for name in ("train", "test", "test-1")]
        assert len(open_images(files, split="test")) == 4 and len(open_images(files)) == 6
        with pytest.raises(ValueError, match="no split 'dev'"):
            open_images(files, split="dev")


class TestSplits:
    def test_images_left_out_beside_the_split_are_listed(self, data):
        write_classes(data / "train", 1)
        for name in ("extra/a.heic", "b.heic", "train/cat/c.heic"):
            (data / name).parent.mkdir(exist_ok=True)
            (data / name).write_bytes(HEIC)
        source = open_images(data)
        assert left_out(source) == ["b.heic", "extra/a.heic", "train/cat/c.heic"]
        assert labels_of(source) == ["cat", "dog", "owl"]
        write_classes(data / "val", 1)
        assert left_out(open_images(data)) == left_out(source)
        assert left_out(open_images(data, split="val")) == ["b.heic", "extra/a.heic"]

    def test_a_split_with_no_image_that_can_be_decoded_is_a_split(self, data):
        write_classes(data / "train", 1)
        (data / "val").mkdir()
        (data / "val/a.heic").write_bytes(HEIC)
        source = open_images(data)
        assert left_out(source) == [] and "val are not read" in source.inventory.notes[0]
        assert left_out(open_images(data, split="all")) == ["val/a.heic"]
        with pytest.raises(ValueError, match=r"val/a.heic: .*pillow-heif"):
            open_images(data, split="val")

    def test_a_subfolder_that_is_no_split_is_read_alone(self, data):
        write_classes(data, 1)
        for name in ("cat", "dog"):
            (data / name / "a.heic").write_bytes(HEIC)
        assert left_out(open_images(data, split="cat")) == ["cat/a.heic"]

    def test_all_splits_beside_a_stray_picture_keep_their_classes(self, data):
        for split in ("train", "val"):
            write_classes(data / split, 1, ("cat", "dog"))
        write_pictures(data, 1, "banner")
        source = open_images(data, split="all")
        assert labels_of(source) == [None, "cat", "dog", "cat", "dog"]
        assert source.inventory.notes == [
            "banner0.jpg lies beside the class folders and has no label"
        ]

    @pytest.mark.parametrize("split, labels", [(None, ["a", "b"]), ("val", ["c"])])
    def test_metadata_above_the_splits_is_read(self, split, labels, data):
        write_pictures(data / "train", 2)
        write_pictures(data / "val", 1)
        rows = "train/x0.jpg,a\ntrain/x1.jpg,b\nval/x0.jpg,c\n"
        (data / "metadata.csv").write_text(f"file_name,label\n{rows}")
        source = open_images(data, split=split)
        assert labels_of(source) == labels and left_out(source) == []

    def test_an_image_that_is_left_out_and_named_in_metadata_is_listed_once(self, data):
        write_pictures(data, 1)
        (data / "a.heic").write_bytes(HEIC)
        (data / "metadata.csv").write_text("file_name,label\nx0.jpg,a\na.heic,b\n")
        assert left_out(open_images(data)) == ["a.heic"]

    def test_half_of_the_images_beside_the_folders_is_told(self, data):
        write_classes(data, 1, ("cat", "dog"))
        write_pictures(data, 2)
        (note,) = open_images(data).inventory.notes
        assert "cat, dog are no classes, as 2 of 4 images lie beside them" in note


class TestOptionsWithoutMeaning:
    @pytest.mark.parametrize("kind", ["file", "files", "list", "folder", "zip"])
    @pytest.mark.parametrize("option", ["split", "image_column", "label_column"])
    def test_they_are_errors_or_notes(self, kind, option, data):
        write_pictures(data / "photos", 2)
        options: dict[str, Any] = {option: "nope"}
        inputs: dict[str, Any] = {
            "file": data / "photos/x0.jpg",
            "files": [data / "photos/x0.jpg", data / "photos/x1.jpg"],
            "list": data / "list.txt",
            "folder": data / "photos",
            "zip": write_zip(data / "a.zip", {"0.png": encoded(0)}),
        }
        inputs["list"].write_text("photos/x0.jpg\n")
        if option == "image_column" and kind != "list":  # other data of the command may have it
            assert "nope is not used" in open_images(inputs[kind], **options).inventory.notes[-1]
        else:
            with pytest.raises(ValueError, match="'nope'"):
                open_images(inputs[kind], **options)
        open_images(inputs[kind], split="all")


class TestZips:
    @pytest.mark.parametrize(
        "names, labels",
        [
            (["../a/1.png", "../b/2.png"], ["a", "b"]),
            (["../a/1.png", "b/2.png"], ["..", "b"]),
            (["/a/1.png", "/b/2.png"], ["a", "b"]),
            (["/a/1.png", "b/2.png"], []),
            (["a\\1.png", "b\\2.png"], ["a", "b"]),
            (["top\\a\\1.png", "top\\b\\2.png"], ["a", "b"]),
        ],
    )
    def test_odd_names(self, names, labels, data):
        members = {name: encoded(i) for i, name in enumerate(names)}
        source = open_images(write_zip(data / "a.zip", members))
        assert labels_of(source) == labels
        assert [source[i].image for i in range(2)] == list(members.values())

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_of_two_files_of_one_name_the_last_is_taken(self, data):
        path = write_zip(data / "a.zip", {"0.png": encoded(0)})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("0.png", encoded(1))
        source = open_images(path)
        assert left_out(source) == ["0.png"] and source[0].image == encoded(1)

    def test_images_left_out_outside_the_common_folder_are_listed(self, data):
        members = {"photos/0.png": encoded(0), "1.heic": HEIC, "other/2.heic": HEIC}
        assert left_out(open_images(write_zip(data / "a.zip", members))) == [
            "1.heic",
            "other/2.heic",
        ]

    @pytest.mark.parametrize("name", ["metadata.csv", "b.zip", "b.tar.gz", "b/b.tar", "b.parquet"])
    def test_other_files_that_matter_are_in_a_note(self, name, data):
        path = write_zip(data / "a.zip", {"0.png": encoded(0), name: b"content"})
        (note,) = open_images(path).inventory.notes
        assert name in note and "unpack" in note


class TestFolders:
    @pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.rar", "a.7z", "a.arrow", "a.tar.zst"])
    def test_archives_that_are_not_read_are_in_a_note(self, name, data):
        write_pictures(data, 1)
        (data / name).write_bytes(b"content")
        (data / "labels.csv.gz").write_bytes(b"no archive")
        (note,) = open_images(data).inventory.notes
        assert f"archives are not read: {name};" in note

    def test_a_link_to_a_folder_above_is_in_a_note(self, data):
        write_pictures(data / "a", 1)
        os.symlink("..", data / "a/up")
        (note,) = open_images(data / "a").inventory.notes
        assert "not followed: up" in note
        assert len(open_images(data)) == 1 and not open_images(data).inventory.notes

    def test_links_count_left_out_and_unnamed_files_once(self, data, tmp_path):
        write_pictures(data, 1)
        (data / "a.heic").write_bytes(HEIC)
        store = tmp_path / "store"
        store.mkdir()
        (store / "odd").write_bytes(encoded(0))
        (store / "b.heic").write_bytes(HEIC)
        os.symlink("a.heic", data / "c.heic")
        os.symlink(store / "odd", data / "link")
        os.symlink(store, data / "store")
        source = open_images(data)
        assert len(source) == 2 and left_out(source) == ["a.heic", "store/b.heic"]

    @pytest.mark.parametrize(
        "name", ["metadata.csv", "x.parquet", "x.tar", "x.zip", "x.jpg", "x", "x.txt"]
    )
    def test_a_pipe_is_not_opened(self, name, data):
        write_pictures(data, 1, "a")
        os.mkfifo(data / name)
        listing = list_images(data)
        assert listing.paths in (["a0.jpg"], ["a0.jpg", "x.jpg"])
        assert open_images(data)[0].id == "a0.jpg"
        with pytest.raises(ValueError, match="not a regular file"):
            open_images(data / name)
        (data / "list.lst").write_text(f"a0.jpg\n{name}\n")
        assert left_out(open_images(data / "list.lst")) == [name]

    def test_the_extension_of_a_link_counts_in_lists_as_in_folders(self, data, tmp_path):
        (tmp_path / "object.txt").write_bytes(encoded(0))
        os.symlink(tmp_path / "object.txt", data / "photo.png")
        (data / "list.lst").write_text("photo.png\n")
        for given in (data, data / "list.lst", data / "photo.png"):
            assert len(open_images(given)) == 1

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
    def test_a_list_in_another_encoding_is_one_line(self, encoding, data):
        write_pictures(data, 1)
        (data / "list.txt").write_text("x0.jpg\n", encoding=encoding)
        with pytest.raises(ValueError, match=r"list.txt.*UTF-8"):
            open_images(data / "list.txt")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root opens every file")
    @pytest.mark.parametrize("name", ["a.parquet", "a.tar", "a.zip", "a.txt", "a"])
    def test_a_file_that_cannot_be_opened_is_one_line(self, name, data):
        (data / name).touch(mode=0)
        with pytest.raises(ValueError, match=rf"{name}' cannot be opened: Permission denied"):
            open_images(data / name)


class TestFormats:
    @pytest.mark.parametrize("extension", [".iiq", ".KDC", ".mef", ".rwl", ".mrw", ".nii", ".ai"])
    def test_other_formats_are_listed(self, extension, data):
        write_pictures(data, 1)
        (data / f"a{extension}").write_bytes(encoded(0, "TIFF"))
        assert left_out(open_images(data)) == [f"a{extension}"]

    @pytest.mark.parametrize(
        "kind", ["PNG", "JPEG", "GIF", "TIFF", "PPM", "BMP", "ICO", "PCX", "DDS", "WEBP"]
    )
    def test_files_without_extension_are_known_by_their_content(self, kind, data):
        (data / "a").write_bytes(encoded(0, kind))
        assert len(open_images(data)) == 1

    @pytest.mark.parametrize(
        "content",
        [
            b'<svg xmlns="...">',
            b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg>',
            bytes(128) + b"DICM",
            b"gimp xcf v011",
            b"#?RADIANCE\n",
            b"\0\0\0\x18ftypheim",
            b"II\xbc\x01",
        ],
    )
    def test_contents_that_need_a_package(self, content):
        kind = format_of(content[:SIGNATURE_BYTES])
        assert kind is not None and "cannot be decoded here" in (missing_support(kind) or "")

    @pytest.mark.parametrize(
        "content",
        [b"P1 apples", b"P1 12 apples", b"<?xml?><note>", bytes(200), b"\n\1", b"BM", b"", b"P"],
    )
    def test_other_contents_are_no_images(self, content):
        assert format_of(content) is None
