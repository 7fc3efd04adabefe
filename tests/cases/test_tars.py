"""Tars of all kinds: no image is lost without a word, and a stream reads the same images."""

import gzip
import io
import itertools
import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfvit.data.files.tars import survey_positions
from selfvit.data.sources import open_images
from selfvit.data.stream_reader import first_images
from selfvit.training.train import main

from ..data.shards import write_tar
from .inputs import HEIC, encoded

PNG = encoded(0)


def write_members(path, members, kind=tarfile.PAX_FORMAT):
    """Write a tar of (name, content) or (name, type, link); names may occur twice."""
    with tarfile.open(path, "w", format=kind) as archive:
        for name, *what in members:
            entry = tarfile.TarInfo(name)
            if len(what) == 2:
                entry.type, entry.linkname = what
                archive.addfile(entry)
            else:
                content = what[0] if what else PNG
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return path


def three(path, stem="a"):
    return write_members(path, [(f"{stem}{i}.png",) for i in range(3)])


def offsets(path):
    with tarfile.open(path) as archive:
        return [entry.offset for entry in archive.getmembers()]


def numbered(field, values):
    """Return samples with an image and a field each."""
    pairs = [((f"{i}.png",), (f"{i}.{field}", value)) for i, value in enumerate(values)]
    return list(itertools.chain.from_iterable(pairs))


def damaged(content, at, damage):
    """Return the content of a tar with its second header damaged, or the tar cut off."""
    second, third = at[1], at[2]
    return {
        "name of the second header": content[: second + 9] + b"X" * 9 + content[second + 18 :],
        "second header of zeros": content[:second] + bytes(512) + content[second + 512 :],
        "cut off in a header": content[: third + 200],
        "cut off in a file": content[: third + 700],
        "something behind the end": content + b"x" * 700,
        "negative size": with_size(content, second, b"\xff" * 11 + b"\x00"),
        "huge size": with_size(content, second, b"\x80" + b"\x00" * 3 + b"\x7f" * 8),
    }[damage]


def with_size(content, at, size):
    header = bytearray(content[at : at + 512])
    header[124:136], header[148:156] = size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:at] + bytes(header) + content[at + 512 :]


class TestDamage:
    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize(
        "damage",
        [
            *("name of the second header", "second header of zeros", "cut off in a header"),
            *("cut off in a file", "something behind the end", "negative size", "huge size"),
        ],
    )
    def test_a_damaged_tar_is_an_error_that_names_it(self, damage, streaming, data):
        path = three(data / "a.tar")
        path.write_bytes(damaged(path.read_bytes(), offsets(path), damage))
        with pytest.raises(ValueError, match=r"a.tar' cannot be read as a tar file: .*; repair or"):
            open_images(path, streaming=streaming)

    @pytest.mark.parametrize("gap", [0, 512, 3072, 1 << 20])
    def test_joined_tars_are_read_to_the_end(self, gap, data):
        one, two = three(data / "1.tar").read_bytes(), three(data / "2.tar", "b").read_bytes()
        (data / "both.tar").write_bytes(one + bytes(gap) + two)
        source = open_images(data / "both.tar")
        assert [source[i].id for i in range(6)] == ["a0", "a1", "a2", "b0", "b1", "b2"]
        assert {source[i].image for i in range(6)} == {PNG} and not source.inventory.notes

    def test_a_tar_without_an_end_mark_is_read_with_a_note(self, data, embed):
        path = three(data / "a.tar")
        path.write_bytes(path.read_bytes()[: offsets(path)[2]])
        result = embed(path)
        assert len(result.rows) == 2 and "a.tar: the tar has no end mark" in result.text

    @pytest.mark.parametrize(
        ("file", "data_name", "reason"),
        [
            ("a.tar", "a.tar", "decompress it, for example with gunzip"),
            ("a.tar.gz", "a.tar.gz", "an archive, which is not read; unpack it"),
            ("a.tgz", "a.tgz", "an archive, which is not read; unpack it"),
            ("a.tar.gz", "", "there are no images in"),
        ],
    )
    def test_a_compressed_tar_is_refused_in_one_line(self, file, data_name, reason, data, embed):
        content = gzip.compress(three(data / "x.tar").read_bytes())
        (data / "x.tar").unlink()
        (data / file).write_bytes(content)
        result = embed(data / data_name)
        assert result.code == 2 and len(result.text.splitlines()) == 1
        assert file in result.text and reason in result.text

    def test_a_pipe_is_refused(self, data):
        os.mkfifo(data / "a.tar")
        with pytest.raises(ValueError, match=r"a\.tar.* (no|not a) regular file"):
            open_images(data / "a.tar")


class TestMembers:
    @pytest.mark.parametrize(
        ("members", "left_out"),
        [
            ([("1.jpg",), ("1.JPG",), ("2.JPG",)], {"1.JPG": "1.jpg is the same field"}),
            ([("1.png",), ("1.png",), ("2.png",)], {"1.png": "a later file of the tar"}),
            ([("1.png",), ("./1.png",), ("2.png",)], {"1.png": "a later file of the tar"}),
            ([("1.png",), ("2.png", tarfile.SYMTYPE, "1.png")], {"2.png": "link to 1.png"}),
            ([("1.png",), ("2.heic", tarfile.SYMTYPE, "x")], {"2.heic": "link to x"}),
            ([("1.png",), ("2.png", tarfile.FIFOTYPE, "")], {"2.png": "a device or a pipe"}),
            ([("1.png",), ("2.NEF", b"II*\0" + bytes(60))], {"2.NEF": "camera raw"}),
            ([("1.png",), ("2", HEIC)], {"2": "pillow-heif"}),
            ([("1.png",), ("png", b"no image")], {}),
            ([("1.png",), ("2.png", tarfile.LNKTYPE, "1.png")], {}),
        ],
    )
    def test_images_that_are_not_taken_are_listed(self, members, left_out, data):
        source = open_images(write_members(data / "a.tar", members))
        inventory = source.inventory
        assert {entry.name for entry in inventory.left_out} == set(left_out)
        assert all(left_out[entry.name] in entry.reason for entry in inventory.left_out)
        assert inventory.found == inventory.taken + len(left_out) == len(source) + len(left_out)

    def test_the_last_file_of_a_name_counts(self, data):
        members = [("1.png",), ("1.cls", b"a"), ("1.png", encoded(1)), ("1.cls", b"b")]
        source = open_images(write_members(data / "a.tar", members))
        assert source[0].image == encoded(1) and source.label_names == ["b"]
        assert any("1.cls" in note and "not read" in note for note in source.inventory.notes)

    def test_a_sparse_image_is_listed(self, data):
        path = three(data / "a.tar")
        content, at = path.read_bytes(), offsets(path)[1]
        header = bytearray(content[at : at + 512])
        header[156:157], header[257:265] = b"S", b"ustar  \0"
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        path.write_bytes(content[:at] + bytes(header) + content[at + 512 :])
        source = open_images(path)
        assert [source[i].id for i in range(2)] == ["a0", "a2"]
        assert "--sparse" in source.inventory.left_out[0].reason

    def test_files_that_are_not_read_are_noted(self, data):
        members = [("1.png",), ("metadata.csv", b"file_name,label\n1.png,a\n"), ("in.tar", b"")]
        notes = open_images(write_members(data / "a.tar", members)).inventory.notes
        assert notes == ["files in a.tar that are not read: metadata.csv, in.tar"]

    @pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    def test_names_that_are_not_utf8_are_printable(self, kind, data, embed):
        name = os.fsdecode(b"caf\xe9")
        members = [
            (f"{name}.png",),
            (f"{name}.cls", b"1"),
            (f"{name}.m.png",),
            (f"{name}.heic", HEIC),
        ]
        result = embed(write_members(data / "a.tar", members, kind))
        assert [row["id"] for row in result.rows] == ["caf\\xe9"] and result.labels == ["1"]
        assert set(result.skipped) == {"caf\\xe9.m.png", "caf\\xe9.heic"}


class TestFields:
    def masks(self, number, *more):
        return [(f"{i}.{field}",) for i in range(number) for field in ("png", "m.png")] + [*more]

    @pytest.mark.parametrize(
        ("members", "taken"),
        [
            (masks(None, 6, ("3.thumb.webp", encoded(0, "WEBP"))), 6),
            (masks(None, 1), 1),
            ([(f"{i}.{n}.png",) for i in range(3) for n in range(2)], 6),
            (
                [
                    x
                    for i in range(3)
                    for x in ((f"{i}.0.png",), (f"{i}.1.png",), (f"{i}.cls", b"1"))
                ],
                3,
            ),
            ([("i.png",), *((f"i.{n}.png",) for n in range(5))], 6),
            ([(f"v{video}.{n}.png",) for video in range(6) for n in range(4 * (video + 1))], 84),
        ],
        ids=[
            "one odd sample",
            "one sample",
            "numbered",
            "numbered with labels",
            "a plain name among numbered",
            "frames of videos",
        ],
    )
    def test_an_odd_sample_does_not_change_how_names_are_split(self, members, taken, data):
        source = open_images(write_members(data / "a.tar", members))
        assert len(source) == taken
        assert source.inventory.found == sum(not name.endswith("cls") for name, *_ in members)

    def test_the_fields_of_all_tars_decide(self, data):
        for number in range(3):
            write_members(data / f"{number}.tar", self.masks(5 if number == 0 else 1))
        source = open_images(data)
        assert len(source) == 7
        assert {e.name for e in source.inventory.left_out} >= {"0.tar/0.m.png", "1.tar/0.m.png"}
        assert len(open_images(data, image_column="m.png")) == 7

    def test_a_field_that_is_asked_for_is_one(self, data):
        members = [("1.png",), ("1.mask.png",), ("1.depth.png",)]
        path = write_members(data / "a.tar", members)
        source = open_images(path, image_column="MASK.png")
        assert len(source) == 1 and len(source.inventory.left_out) == 2


class TestLabels:
    @pytest.mark.parametrize(
        ("field", "values", "labels"),
        [
            ("cls", [b"007", b"7", b"8"], ["007", "7", "8"]),
            ("cls", [b"10", b"9", b"9\n"], ["10", "9", "9"]),
            ("cls", [b"", b"1", b"0"], [None, "1", "0"]),
            ("cls", [b"-1", b"7", b""], [None, "7", None]),
            ("cls", [b"--5", b"1", b"x"], ["--5", "1", "x"]),
            ("cls", [b"1", b"NaN", b"2"], ["1", None, "2"]),
            ("cls", [b"9" * 40, b"1", b"2"], ["9" * 40, "1", "2"]),
            ("CLS", [b"\xef\xbb\xbfa", b"caf\xe9", b"b"], ["a", "caf\\xe9", "b"]),
            ("json", [b"3", b"4", b"4"], ["3", "4", "4"]),
            ("json", [b'{"label": 1}', b'{"label": 2}', b"{}"], ["1", "2", None]),
            ("json", [b'{"label": 1}', b'{"label": NaN}', b'{"label": null}'], ["1", None, None]),
            ("json", [b'{"label": "\\ud800"}', b'{"label": "a"}', b"{}"], ["\\ud800", "a", None]),
        ],
    )
    def test_values(self, field, values, labels, data, embed):
        path = write_members(data / "a.tar", numbered(field, values))
        result = embed(path)
        assert result.code == 0 and result.labels == labels

    @pytest.mark.parametrize(
        ("values", "note"),
        [
            ([b'[{"bbox": [1, 2]}]', b"[]"], None),
            ([b'{"labels": ["a", "b"]}', b'{"labels": ["a"]}'], "json.labels is no label"),
            ([b'{"target": 0.73}', b'{"target": 0.5}'], "json.target is no label"),
            ([b'{"label": {"id": 1}}', b'{"label": {"id": 2}}'], "a.tar is {'id': 1}"),
            ([b'{"species": "a"}', b'{"species": "b"}'], "not taken: json.species"),
            ([b'{"label": 1e400}', b'{"label": 1}'], "json.label is no label"),
        ],
    )
    def test_what_is_no_label_is_noted(self, values, note, data, embed):
        result = embed(write_members(data / "a.tar", numbered("json", values)))
        assert result.code == 0 and set(result.labels) == {None}
        assert ("note:" in result.text) == (note is not None) and (note or "") in result.text

    @pytest.mark.parametrize(
        ("values", "column", "message"),
        [
            ([b'{"label": ', b"{}"], None, "0.json"),
            ([b"[" * 200_000, b"{}"], None, "nested too deeply"),
            ([b"9" * 5000, b"{}"], None, "0.json"),
            ([b'{"x": [1]}', b'{"x": [2]}'], "json.x", r"'json.x' of 0 in .*a.tar is \[1\]"),
            ([b'{"x": 0.5}', b'{"x": 1.5}'], "json.x", "a.tar is 0.5"),
            ([b'{"label": 1}', b'{"label": "1"}'], None, "'json.label' of 0 in .*a.tar is 1"),
            ([b'{"label": 1}', b'{"label": true}'], None, "a.tar is True"),
            ([b'{"x": 1}', b'{"x": 2}'], "json.y", "no sample of .*a.tar has a field 'json.y'"),
        ],
    )
    def test_an_error_names_the_tar_and_the_field(self, values, column, message, data):
        path = write_members(data / "a.tar", numbered("json", values))
        with pytest.raises(ValueError, match=message):
            open_images(path, label_column=column)

    @pytest.mark.parametrize(
        ("members", "column", "labels"),
        [
            (numbered("json", [b'{"a": {"id": 1}}', b'{"a": {"id": 2}}']), "json.a.id", ["1", "2"]),
            (numbered("m.json", [b'{"a": 1}', b'{"a": 2}']), "m.json.a", ["1", "2"]),
            (numbered("class.txt", [b"a", b"b"]), "class.txt", ["a", "b"]),
            (numbered("species", [b"a", b"b"]), "SPECIES", ["a", "b"]),
        ],
    )
    def test_a_field_or_a_key_can_be_named(self, members, column, labels, data):
        path = write_members(data / "a.tar", members)
        source = open_images(path, label_column=column)
        assert source.label_names == labels
        assert open_images(path).labels() is None

    @pytest.mark.parametrize(
        ("members", "note"),
        [
            ([(f"{c}/{i}.png",) for c in ("cat", "dog") for i in range(2)], "cat, dog"),
            (numbered("class.txt", [b"a", b"b"]), "not taken: class.txt"),
            (numbered("1.cls", [b"a", b"b"]), "not taken: 1.cls"),
            ([("1.png",), ("1.cls", b"3"), ("1.json", b'{"label": 4}')], "not taken: json.label"),
        ],
    )
    def test_what_looks_like_labels_is_noted(self, members, note, data):
        source = open_images(write_members(data / "a.tar", members))
        assert any(note in text for text in source.inventory.notes)


NAMES = ["0.png", "0.PNG", "0.m.png", "1.png", "1.m.png", "1.cls", "i.1.png", "i.2.png", "i.3.png"]
NAMES += ["2.heic", "2", "a/0.png", "../0.png", ".0.png", "__MACOSX/0.png", "3.json", "in.zip"]
tars_of_names = st.lists(st.lists(st.sampled_from(NAMES), max_size=9), min_size=1, max_size=3)


def opened(path, streaming, **columns):
    """Return the ids and contents that are taken, and what is left out, or the error."""
    try:
        source = open_images(path, streaming=streaming, **columns)
    except ValueError as error:
        return str(error).split(" of ")[0]
    if streaming:
        shards = range(source.num_shards)
        records = [record for shard in shards for record in source.read_shard(shard)]
    else:
        records = [source[i] for i in range(len(source))]
    inventory = source.inventory
    taken = [(record.id, record.image) for record in records]
    assert inventory.taken == len(taken) == inventory.found - len(inventory.left_out)
    return taken, inventory.left_out


class TestStreams:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(tars_of_names, st.sampled_from([None, "m.png", "png"]))
    def test_a_stream_takes_and_leaves_out_the_same_images(self, workplace, names, image_column):
        for number, members in enumerate(names):
            known = {"2.heic": HEIC, "3.json": b"{}"}
            contents = [(n, known.get(n, encoded(i))) for i, n in enumerate(members)]
            write_members(workplace / f"{number}.tar", contents)
        for number in range(len(names), 3):
            (workplace / f"{number}.tar").unlink(missing_ok=True)
        by_position = opened(workplace, False, image_column=image_column)
        assert opened(workplace, True, image_column=image_column) == by_position
        if not isinstance(by_position, str):
            images = sum("png" in n.lower() or n in ("2", "2.heic") for tar in names for n in tar)
            hidden = sum(n in (".0.png", "__MACOSX/0.png") for tar in names for n in tar)
            assert len(by_position[0]) + len(by_position[1]) == images - hidden

    def test_training_lists_what_any_tar_leaves_out(self, data, tmp_path, capsys):
        write_members(data / "a.tar", [(f"{i}.png",) for i in range(4)])
        write_members(data / "b.tar", [("5.png",), ("5.m.png",), ("6.heic", HEIC)])
        words = ["dino_demo", "--data", data, "--output", tmp_path / "run", "--streaming", "true"]
        words += ["--batch-size", 4, "--max-steps", 1, "--num-workers", 0]
        main([str(word) for word in words])
        assert "images: 7 found, 5 taken, 2 left out" in capsys.readouterr().out
        listed = (tmp_path / "run/skipped.csv").read_text()
        assert "b.tar/5.m.png" in listed and "b.tar/6.heic" in listed

    def test_of_many_tars_each_one_tells_what_it_leaves_out_when_it_is_read(self, data):
        for number in range(20):
            more = {"h.heic": HEIC} if number % 2 else {}
            write_tar(data / f"{number:02}.tar", {f"{number}.png": PNG, **more})
        cut = data / "12.tar"
        cut.write_bytes(cut.read_bytes()[: -(-len(PNG) // 512) * 512 + 512])
        stream = open_images(data, streaming=True)
        (note,) = stream.inventory.notes
        places = survey_positions(20)
        assert len(places) == 8 and (places[0], places[-1]) == (0, 19)
        assert note.startswith(f"{sum(p % 2 for p in places)} images in 8 of 20 tars are left out")
        records = [record for shard in range(20) for record in stream.read_shard(shard)]
        told = [record for record in records if not isinstance(record.image, bytes)]
        odd = [n for n in range(20) if n % 2]
        assert [record.id for record in told] == [f"{n:02}.tar" for n in sorted([*odd, 12])]
        reasons = [record.image.reason for record in told]
        assert "no end mark" in reasons.pop(6)
        assert all("1 of its images are left out, for example h.heic" in text for text in reasons)

    def test_the_first_images_of_a_stream_come_with_what_it_leaves_out(self, data):
        path = write_members(data / "a.tar", [("5.png",), ("6.heic", HEIC)])
        inventory = first_images(open_images(path, streaming=True), 10).inventory
        assert (inventory.found, inventory.taken, len(inventory.left_out)) == (2, 1, 1)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return tmp_path_factory.mktemp("tars")
