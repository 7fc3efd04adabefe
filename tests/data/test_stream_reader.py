import itertools
import pickle
from contextlib import closing

import pytest
from datasets import ClassLabel, Dataset, Features, Image

from selfvit.data.dataset_source import StreamingImageSource
from selfvit.data.decoding import decode_image
from selfvit.data.sources import open_images
from selfvit.data.stream_reader import OPEN_SHARDS, StreamPosition, StreamReader

from ..image_files import noise
from .shards import encoded, write_parquet_shards, write_tar, write_tar_shards

SIZES = [7, 0, 5, 9, 4, 6]  # shards of unequal size, one of them empty


@pytest.fixture(scope="module", params=["parquet", "tar"])
def stream(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "parquet":
        write_parquet_shards(folder, SIZES)
    else:
        write_tar_shards(folder, SIZES)
    return open_images(folder, streaming=True)


def pass_of(stream, epoch=0, **options):
    """Return the ids of a pass of a reader, and the positions behind each record."""
    records = [*StreamReader(stream, seed=0, **options).rest_of_pass(StreamPosition(epoch))]
    return [record.id for record, _ in records], [position for _, position in records]


def everything(stream):
    return sorted(pass_of(stream, shuffle_buffer=0)[0])


def test_tars_and_parquet_give_their_records_in_their_stored_order_if_asked(stream):
    ids, _ = pass_of(stream, shuffle_buffer=0)
    assert ids == [str(number) for number in range(sum(SIZES))]


@pytest.mark.parametrize("num_readers", [1, 2, 4, 6, 7, 13])  # above 6: shared record by record
def test_readers_have_every_record_of_a_pass_once(stream, num_readers):
    for epoch in (0, 1, 5):
        parts = [
            pass_of(stream, epoch, reader=reader, num_readers=num_readers, shuffle_buffer=4)[0]
            for reader in range(num_readers)
        ]
        assert sorted(sum(parts, [])) == everything(stream)


def test_the_order_is_of_the_seed_and_the_pass(stream):
    first, _ = pass_of(stream)
    assert pass_of(stream)[0] == first != pass_of(stream, 1)[0]
    other_seed = StreamReader(stream, seed=1).rest_of_pass(StreamPosition())
    assert [record.id for record, _ in other_seed] != first


def test_readers_of_unequal_parts_have_other_shards_in_the_next_pass(stream):
    lengths = {
        epoch: len(pass_of(stream, epoch, num_readers=5, shuffle_buffer=3)[0])
        for epoch in range(20)
    }
    assert len(set(lengths.values())) > 3


@pytest.mark.parametrize("shuffle_buffer", [1, 3, 8])
def test_records_are_shuffled_within_blocks_of_the_buffer_and_no_further(stream, shuffle_buffer):
    shuffled, _ = pass_of(stream, shuffle_buffer=shuffle_buffer)
    # with a buffer of one: the order of shards, and turns among those that are open
    turns, _ = pass_of(stream, shuffle_buffer=1)
    blocks = [
        (shuffled[first : first + shuffle_buffer], turns[first : first + shuffle_buffer])
        for first in range(0, len(turns), shuffle_buffer)
    ]
    assert all(sorted(block) == sorted(unshuffled) for block, unshuffled in blocks)
    moved = sum(block != unshuffled for block, unshuffled in blocks)
    assert moved >= (len(blocks) - 1) // 2 if shuffle_buffer > 1 else moved == 0


def test_neighbors_come_from_several_shards(tmp_path):
    # data that is stored class by class would otherwise give batches of one class
    stream = open_images(write_parquet_shards(tmp_path, [20] * 6), streaming=True)
    ids, _ = pass_of(stream, shuffle_buffer=1)
    assert len({int(number) // 20 for number in ids[:OPEN_SHARDS]}) == OPEN_SHARDS


@pytest.mark.parametrize(("reader", "num_readers"), [(0, 1), (1, 2), (7, 9)])
def test_a_reader_goes_on_from_any_position_as_if_nothing_had_happened(stream, reader, num_readers):
    options = {"seed": 3, "reader": reader, "num_readers": num_readers, "shuffle_buffer": 5}
    with closing(iter(StreamReader(stream, **options))) as records:
        unbroken = [*itertools.islice(records, 80)]  # over several passes
    assert len({position.epoch for _, position in unbroken}) > 1
    for done in range(0, 70, 3):
        position = unbroken[done][1]
        position = StreamPosition.from_dict(pickle.loads(pickle.dumps(position.to_dict())))
        with closing(iter(StreamReader(stream, position=position, **options))) as records:
            assert [*itertools.islice(records, 10)] == unbroken[done + 1 : done + 11]


def test_a_position_reads_no_shard_again_that_was_behind_its_block(tmp_path):
    folder = write_parquet_shards(tmp_path, [4] * 12)
    stream = open_images(folder, streaming=True)
    _, positions = pass_of(stream, shuffle_buffer=4)
    read = set()

    class Noting:
        def __init__(self, shard):
            read.add(shard)

        __enter__ = __exit__ = lambda self, *_: None

    reader = StreamReader(stream, seed=0, shuffle_buffer=4, reading=Noting)
    left = [record.id for record, _ in reader.rest_of_pass(positions[-8])]
    assert len(left) == 7
    assert len(read) <= OPEN_SHARDS  # of 12


def test_readers_without_records_say_so(tmp_path):
    stream = open_images(write_parquet_shards(tmp_path, [0, 0]), streaming=True)
    with pytest.raises(ValueError, match=r"reader 1 of 2 found no record.*use fewer processes"):
        next(iter(StreamReader(stream, seed=0, reader=1, num_readers=2)))


def test_row_groups_are_shards_where_there_are_too_few_files(tmp_path):
    folder = write_parquet_shards(tmp_path, [10, 5], row_group_size=3)
    stream = open_images(folder, streaming=True)
    smaller = stream.in_smaller_shards
    assert (stream.num_shards, smaller.num_shards) == (2, 6)
    assert everything(smaller) == everything(stream)
    parts = [pass_of(smaller, reader=reader, num_readers=4)[0] for reader in range(4)]
    assert all(parts) and sorted(sum(parts, [])) == everything(stream)


def test_tars_have_no_smaller_shards(tmp_path):
    stream = open_images(write_tar_shards(tmp_path, [3, 3]), streaming=True)
    assert stream.in_smaller_shards.num_shards == 2


def test_a_stream_keeps_class_names_and_pixels(tmp_path):
    rows = {"image": [noise(9, 9, seed) for seed in range(4)], "label": [0, 1, 1, 0]}
    features = Features({"image": Image(), "label": ClassLabel(names=["ant", "bee"])})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    stream = open_images(tmp_path, streaming=True)
    assert isinstance(stream, StreamingImageSource) and stream.label_names == ["ant", "bee"]
    records = [*stream.read_shard(0)]
    assert [record.label for record in records] == [0, 1, 1, 0]
    assert [record.id for record in records] == [f"shard 0 row {row}" for row in range(4)]
    assert decode_image(records[2].image).tobytes() == noise(9, 9, 2).tobytes()
    kept = [record.id for record in stream.read_shard(0, start=1, part=1, num_parts=2)]
    assert kept == ["shard 0 row 3"]


def test_plain_labels_are_not_streamed(tmp_path):
    stream = open_images(write_tar_shards(tmp_path, [2]), streaming=True)
    assert stream.label_names is None
    assert next(stream.read_shard(0)).label is None
    with pytest.raises(ValueError, match="without streaming"):
        open_images(tmp_path, streaming=True, label_column="cls")


def test_a_truncated_tar_is_named(tmp_path):
    write_tar_shards(tmp_path, [6, 6])
    content = (tmp_path / "shard-001.tar").read_bytes()
    (tmp_path / "shard-001.tar").write_bytes(content[: content.index(encoded(8, "JPEG")) + 99])
    stream = open_images(tmp_path, streaming=True)
    with pytest.raises(ValueError, match=r"shard 1 .* cannot be read: .*mend it"):
        pass_of(stream)


class TestTarsByPosition:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    @pytest.mark.parametrize(
        ("labels", "names"), [("cls", ["0", "1", "2"]), ("json", ["class 0", "class 1", "class 2"])]
    )
    def test_a_folder_of_tars_opens_with_labels(self, labels, names, tmp_path):
        source = open_images(write_tar_shards(tmp_path / "tars", [4, 3], labels))
        assert len(source) == 7 and source.label_names == names
        assert source.labels().tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert source[5].id == "5" and decode_image(source[5].image).size == (36, 36)

    def test_a_tar_without_labels_is_unlabeled(self, tmp_path):
        write_tar_shards(tmp_path / "tars", [4], labels=None)
        source = open_images(tmp_path / "tars" / "shard-000.tar")
        assert len(source) == 4 and source.labels() is None

    def test_a_field_of_the_json_can_be_named(self, tmp_path):
        folder = write_tar_shards(tmp_path / "tars", [4], "json")
        assert open_images(folder, label_column="json.width").label_names == ["36"]
        with pytest.raises(ValueError, match="no column 'json.height'"):
            open_images(folder, label_column="json.height")

    @pytest.mark.parametrize("streaming", [True, False])
    @pytest.mark.parametrize(
        "members", [{}, {"a.jpg": b"x", "b.cls": b"1"}], ids=["empty", "no groups"]
    )
    def test_what_is_no_webdataset_says_what_it_should_be(self, streaming, members, tmp_path):
        path = write_tar(tmp_path / "a.tar", members)
        with pytest.raises(ValueError, match=r"a.tar .*WebDataset shards.*0001.jpg and 0001.cls: "):
            open_images(path, streaming=streaming)

    def test_what_is_no_tar_says_so(self, tmp_path):
        (tmp_path / "a.tar").write_text("This is no tar.")
        with pytest.raises(ValueError, match="a.tar cannot be read as WebDataset shards"):
            open_images(tmp_path / "a.tar", streaming=True)
