from selfvit.data.image_source import ImageRecord, RecordSource
from selfvit.data.inventory import (
    Inventory,
    LeftOut,
    SkippedImage,
    group_reasons,
    read_left_out,
    write_left_out,
)


def test_by_default_every_image_found_is_taken():
    source = RecordSource([ImageRecord(str(i), b"") for i in range(12)], "records", None)
    assert source.inventory == Inventory(12, 12) and source.inventory.summary() is None
    assert source.label_rule is None
    source.inventory = Inventory(14, 12, [LeftOut("a", "x"), LeftOut("b", "x")], ["a note"])
    sample = source.sample(5).inventory
    assert (sample.found, sample.taken, sample.notes) == (7, 5, ["a note"])
    assert sample.left_out == source.inventory.left_out


def test_taken_and_left_out_add_up_with_images_that_cannot_be_read():
    inventory = Inventory(23, 21, [LeftOut("a.heic", "HEIC"), LeftOut("b.heic", "HEIC")])
    skipped = [SkippedImage("c.png", "empty")]
    assert inventory.summary(skipped) == (
        "images: 23 found, 20 taken, 3 left out (2 x HEIC; 1 x empty)"
    )
    assert [entry.name for entry in inventory.all_left_out(skipped)] == [
        "a.heic",
        "b.heic",
        "c.png",
    ]


def test_reasons_that_differ_in_numbers_are_one_group():
    assert group_reasons(["45 bytes", "7 bytes", "empty"]) == "2 x ... bytes; 1 x empty"
    reasons = ["a", "b", "b", "c", "d", "e", "f"]
    assert group_reasons(reasons) == "2 x b; 1 x a; 1 x c; 1 x d; 2 for other reasons"


def test_a_list_is_appended_to_and_read_back(tmp_path):
    path = tmp_path / "skipped.csv"
    assert read_left_out(path) == []
    entries = [LeftOut('a,"b".png', "empty"), LeftOut("c\n.png", "two\nlines"), LeftOut("d", "é")]
    write_left_out(path, [])
    assert path.read_text() == "path,reason\n"
    write_left_out(path, entries[:2])
    write_left_out(path, entries[2:])
    assert read_left_out(path) == entries
    write_left_out(tmp_path / "bytes.csv", [LeftOut("caf\udce9", "empty")])
    assert read_left_out(tmp_path / "bytes.csv") == [LeftOut("caf\\xe9", "empty")]
