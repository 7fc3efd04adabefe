"""What is read is what lies there: taken and left out together are what was found."""

import itertools
import os
import zipfile

import pytest
from PIL import Image

from benchmarks.listing import ratios_to_walk, write_folder
from selfvit.data.sources import open_images

from ..data.shards import write_tar
from .inputs import (
    HEIC,
    JXL,
    encoded,
    images,
    picture,
    write_classes,
    write_pictures,
    write_table,
)


def jpeg(seed):
    return encoded(seed, "JPEG")


class TestTars:
    @pytest.mark.parametrize(
        "names",
        [
            [f"img.{i:04d}.jpg" for i in range(12)],
            [f"a/b.c/x.{i}.v2.jpg" for i in range(12)],
            [f"IMG_{i}.1.5.JPG" for i in range(12)],
        ],
    )
    def test_dots_in_names_lose_no_image(self, names, data, embed):
        path = write_tar(data / "dots.tar", {name: jpeg(i) for i, name in enumerate(names)})
        result = embed(path)
        assert result.code == 0 and len(result.rows) == 12 and not result.skipped
        records = list(open_images(path, streaming=True).read_shard(0))
        assert len({record.id for record in records}) == 12

    def test_names_split_at_the_last_dot_keep_their_labels(self, data, embed):
        members: dict[str, bytes] = {}
        for i in range(6):
            members |= {f"img.{i}.jpg": jpeg(i), f"img.{i}.cls": str(i % 2).encode()}
        result = embed(write_tar(data / "a.tar", members))
        assert result.labels == ["0", "1"] * 3
        assert "split at the last dot" in result.text

    def test_other_images_of_a_sample_are_listed(self, data, embed):
        members: dict[str, bytes] = {}
        for i in range(4):
            members |= {f"{i}.jpg": jpeg(i), f"{i}.mask.png": encoded(i)}
        path = write_tar(data / "masks.tar", members)
        result = embed(path)
        assert [row["id"] for row in result.rows] == ["0", "1", "2", "3"]
        assert set(result.skipped) == {f"{i}.mask.png" for i in range(4)}
        assert "8 found, 4 taken, 4 left out" in result.text
        masks = embed(path, "--image-column", "mask.png")
        assert set(masks.skipped) == {f"{i}.jpg" for i in range(4)}
        assert embed(path, "--strict").code == 1

    def test_samples_of_several_formats_are_all_read(self, data, embed):
        members = {"0.png": encoded(0), "1.jpg": jpeg(1), "2.webp": encoded(2, "WEBP")}
        assert len(embed(write_tar(data / "mixed.tar", members)).rows) == 3

    def test_hidden_files_and_unsupported_formats_in_a_tar(self, data, embed):
        members = {"0.jpg": jpeg(0), "._0.jpg": b"AppleDouble", "1.heic": HEIC, "2.dat": jpeg(2)}
        result = embed(write_tar(data / "a.tar", members))
        assert [row["id"] for row in result.rows] == ["0", "2"]
        assert list(result.skipped) == ["1.heic"] and "pillow-heif" in result.skipped["1.heic"]


class TestFolders:
    def test_files_of_no_split_are_an_error_beside_others(self, data, embed):
        for name in ("train-0", "train-1", "extra", "validation-0"):
            write_table(data / f"{name}.parquet", image=images())
        result = embed(data)
        assert result.code == 2 and "extra.parquet name none" in result.text
        assert len(embed(data, "--split", "all").rows) == 24
        (data / "extra.parquet").unlink()
        result = embed(data)
        assert len(result.rows) == 12 and "the files of validation are not read" in result.text
        assert len(embed(data, "--split", "valid").rows) == 6

    def test_tars_have_splits_as_well(self, data, embed):
        for name in ("train", "test"):
            write_tar(data / f"{name}-000.tar", {f"{i}.jpg": jpeg(i) for i in range(3)})
        result = embed(data)
        assert len(result.rows) == 3 and "the files of test are not read" in result.text

    @pytest.mark.parametrize("kind", ["parquet", "tar", "zip"])
    def test_a_picture_beside_containers_is_an_error_that_names_both(self, kind, data, embed):
        (data / "shards").mkdir()
        path = data / "shards" / f"a.{kind}"
        if kind == "parquet":
            write_table(path, image=images())
        elif kind == "tar":
            write_tar(path, {"0.jpg": jpeg(0)})
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("0.jpg", jpeg(0))
        write_pictures(data / "assets", 1, "banner")
        result = embed(data)
        assert result.code == 2
        assert "banner0.jpg" in result.text and f"a.{kind}" in result.text
        assert embed(data / "shards").code == 0

    def test_a_table_without_images_does_not_hide_the_pictures(self, data, embed):
        write_pictures(data, 3)
        write_table(data / "vectors.parquet", vector=[[0.5, 1.0]])
        result = embed(data)
        assert len(result.rows) == 3 and "vectors.parquet" in result.text

    def test_formats_that_need_a_package_are_listed(self, data, embed):
        write_pictures(data, 3)
        (data / "a.HEIC").write_bytes(HEIC)
        (data / "b.jxl").write_bytes(JXL)
        (data / "c.CR2").write_bytes(b"II*\0raw")
        (data / "d").write_bytes(HEIC)  # no extension: its content counts
        result = embed(data)
        assert len(result.rows) == 3 and set(result.skipped) == {"a.HEIC", "b.jxl", "c.CR2", "d"}
        assert "pip install pillow-heif" in result.text and "7 found, 3 taken" in result.text
        assert embed(data, "--strict").code == 1
        for name in ("x0.jpg", "x1.jpg", "x2.jpg"):
            (data / name).unlink()
        result = embed(data)
        assert result.code == 2 and "pillow-heif" in result.text

    def test_what_an_unknown_file_is_stands_in_its_reason(self, data, embed):
        write_pictures(data, 1)
        (data / "phone.jpg").write_bytes(HEIC)
        (data / "lfs.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 9\n")
        skipped = embed(data).skipped
        assert "pillow-heif" in skipped["phone.jpg"] and "git lfs pull" in skipped["lfs.png"]

    def test_any_bytes_in_names_are_one_line(self, data, embed, caplog):
        write_pictures(data, 1)
        picture(0).convert("RGBA").save(data / "line\nbreak.png")
        Image.new("RGBA", (8, 8)).save(data / "a\nb.png")
        for name in (b"caf\xe9.heic", b"caf\xe9.7z", b"line\nbreak.7z"):
            (data / os.fsdecode(name)).write_bytes(HEIC)
        result = embed(data)
        assert len(result.rows) == 3 and list(result.skipped) == ["caf\\xe9.heic"]
        assert "caf\\xe9.7z" in result.text and "line break.7z" in result.text
        (warning,) = [line for line in caplog.messages if "transparent" in line]
        assert warning.startswith("a b.png has transparent pixels. ") and "\n" not in warning

    def test_files_with_no_or_an_odd_extension_are_taken_by_their_content(self, data, embed):
        for name in ("photo", "photo.jpg_large", "photo.JPG.bak", "photo.dat"):
            (data / name).write_bytes(jpeg(0))
        for name in ("notes", "x.dat2", "labels.txt"):
            (data / name).write_bytes(b"no image")
        assert [row["path"] for row in embed(data).rows] == [
            "photo",
            "photo.JPG.bak",
            "photo.dat",
            "photo.jpg_large",
        ]

    def test_links_in_a_circle_count_each_file_once(self, data, embed):
        write_pictures(data / "a", 2, "x")
        write_pictures(data / "b", 2, "y")
        os.symlink("../b", data / "a/to_b")
        os.symlink("../a", data / "b/to_a")
        assert [row["path"] for row in embed(data).rows] == [
            "a/x0.jpg",
            "a/x1.jpg",
            "b/y0.jpg",
            "b/y1.jpg",
        ]

    def test_links_to_elsewhere_are_followed_once(self, data, tmp_path, embed):
        write_pictures(tmp_path / "store", 3)
        write_pictures(data / ".objects", 1, "hidden")
        os.symlink(tmp_path / "store", data / "one")
        os.symlink(tmp_path / "store", data / "two")
        os.symlink(tmp_path / "store/x0.jpg", data / "again.jpg")
        os.symlink(".objects/hidden0.jpg", data / "annex.jpg")
        os.symlink("nowhere.jpg", data / "broken.jpg")
        result = embed(data)
        assert len(result.rows) == 4
        assert result.skipped == {"broken.jpg": "link to a file that does not exist"}
        assert "links lead to files that are counted already" in result.text

    @pytest.mark.skipif(os.geteuid() == 0, reason="root opens every folder")
    def test_a_folder_that_cannot_be_opened_is_listed(self, data, embed):
        write_pictures(data / "open", 2)
        write_pictures(data / "closed", 2)
        (data / "closed").chmod(0)
        try:
            result = embed(data)
            assert len(result.rows) == 2 and "closed/" in result.skipped
        finally:
            (data / "closed").chmod(0o700)

    @pytest.mark.parametrize(
        "folder", ["@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", ".thumbs"]
    )
    def test_thumbnails_of_the_system_are_no_images(self, folder, data, embed):
        write_classes(data, 2, ("cat", "dog"))
        write_pictures(data / "cat" / folder / "x0.jpg", 1, "SYNOPHOTO_THUMB_")
        result = embed(data, "--strict")
        assert result.code == 0 and len(result.rows) == 4

    def test_a_large_folder_is_listed_in_three_times_the_time_of_os_walk(self, tmp_path):
        write_folder(tmp_path, 20_000)
        assert min(ratios_to_walk(tmp_path, 5)) < 3  # 200,000 files in benchmarks/listing.py


class TestSeveralFilesListsAndZips:
    def test_one_file_and_several(self, data, embed):
        write_pictures(data / "a", 2)
        write_pictures(data / "b", 1, "y")
        assert len(embed(data / "a/x0.jpg").rows) == 1
        several = embed([data / "a/x0.jpg", data / "b/y0.jpg", data / "a/x0.jpg"])
        assert [row["path"] for row in several.rows] == ["a/x0.jpg", "b/y0.jpg"]
        (data / "a/z.heic").write_bytes(HEIC)
        result = embed([data / "a/x0.jpg", data / "a/z.heic"])
        assert len(result.rows) == 1 and len(result.skipped) == 1
        result = embed([data / "a/x0.jpg", data / "b"])
        assert result.code == 2 and "is a folder" in result.text
        result = embed([data / "a/x0.jpg", data / "missing.jpg"])
        assert result.code == 2 and "missing.jpg" in result.text

    def test_a_list_of_paths_is_relative_to_itself(self, data, embed, monkeypatch):
        write_pictures(data / "files", 3)
        lines = ["files/x0.jpg", "", str(data / "files/x1.jpg"), "files/gone.jpg", "files/x0.jpg"]
        (data / "list.txt").write_text("\n".join(lines))
        monkeypatch.chdir("/")
        result = embed(data / "list.txt")
        assert len(result.rows) == 2
        assert result.skipped == {"files/gone.jpg": "there is no such file"}
        assert "repeat a file" in result.text and "3 found, 2 taken" in result.text

    @pytest.mark.parametrize("name", ["table.csv", "table.jsonl"])
    def test_a_table_of_paths_has_labels(self, name, data, embed):
        write_pictures(data / "files", 3)
        if name.endswith("csv"):
            text = "file_name,label\n" + "".join(f"files/x{i}.jpg,c{i % 2}\n" for i in range(3))
        else:
            text = "".join(
                f'{{"file_name": "files/x{i}.jpg", "label": "c{i % 2}"}}\n' for i in range(3)
            )
        (data / name).write_text(text)
        result = embed(data / name)
        assert result.labels == ["c0", "c1", "c0"] and "labels: column 'label'" in result.text

    @pytest.mark.parametrize("top", ["", "dataset/"])
    def test_a_zip_is_read_like_a_folder(self, top, data, embed):
        with zipfile.ZipFile(data / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, i in itertools.product(("cat", "dog"), range(2)):
                archive.writestr(f"{top}{name}/{i}.jpg", jpeg(i))
            archive.writestr(f"{top}cat/phone.heic", HEIC)
            archive.writestr("__MACOSX/cat/._0.jpg", b"AppleDouble")
        result = embed(data / "a.zip")
        assert result.labels == ["cat", "cat", "dog", "dog"]
        assert list(result.skipped) == [f"{top}cat/phone.heic"]

    def test_a_damaged_member_of_a_zip_is_listed(self, data, embed):
        path = data / "a.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for i in range(3):
                archive.writestr(f"{i}.png", encoded(i))
        content = bytearray(path.read_bytes())
        content[content.index(encoded(1)) + 60] ^= 0xFF
        path.write_bytes(content)
        result = embed(path)
        assert len(result.rows) == 2 and "CRC" in result.skipped["1.png"]
        path.write_bytes(content[:300])
        result = embed(path)
        assert result.code == 2 and "a.zip" in result.text

    def test_images_that_a_table_names_are_relative_to_the_table(self, data, embed, monkeypatch):
        for part in ("one", "two"):
            write_pictures(data / part / "files", 2)
            names = [*(f"files/x{i}.jpg" for i in range(2)), "files/gone.jpg"]
            rows = [{"bytes": None, "path": name} for name in names]
            write_table(data / part / "paths.parquet", image=rows)
        monkeypatch.chdir("/")
        result = embed(data / "one/paths.parquet")
        assert len(result.rows) == 2
        assert str(data / "one/files/gone.jpg") in result.skipped["2"]
        with pytest.raises(ValueError, match="must be of one kind"):
            open_images(data)
        source = open_images([data / "one/paths.parquet", data / "two/paths.parquet"])
        assert source[0].image == str(data / "one/files/x0.jpg")
        assert source[3].image == str(data / "two/files/x0.jpg")


def test_a_replaced_table_is_read_again_whatever_its_time(data):
    path = write_table(data / "a.parquet", image=images(4), label=["a"] * 4)
    status = path.stat()
    assert open_images(path).label_names == ["a"]
    write_table(path, image=images(4), label=["b"] * 4)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert open_images(path).label_names == ["b"]
