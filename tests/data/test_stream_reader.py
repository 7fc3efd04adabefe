import itertools
import pickle
from contextlib import closing

import pyarrow as pa
import pyarrow.parquet as pq
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


def read_epoch(stream, epoch=0, **options):
    """Return the ids of the records in an epoch of a reader, and the position after each record."""
    records = [*StreamReader(stream, seed=0, **options).read_epoch(StreamPosition(epoch))]
    return [record.id for record, _ in records], [position for _, position in records]


def all_ids(stream):
    return sorted(read_epoch(stream, shuffle_buffer=0)[0])


def test_without_shuffling_records_come_in_their_stored_order(stream):
    ids, _ = read_epoch(stream, shuffle_buffer=0)
    assert ids == [str(number) for number in range(sum(SIZES))]


@pytest.mark.parametrize("num_readers", [1, 2, 4, 6, 7, 13])  # above 6: readers share each shard
def test_readers_together_read_every_record_once_per_epoch(stream, num_readers):
    for epoch in (0, 1, 5):
        parts = [
            read_epoch(stream, epoch, reader=reader, num_readers=num_readers, shuffle_buffer=4)[0]
            for reader in range(num_readers)
        ]
        assert sorted(sum(parts, [])) == all_ids(stream)


def test_the_order_depends_on_the_seed_and_the_epoch(stream):
    first, _ = read_epoch(stream)
    assert read_epoch(stream)[0] == first != read_epoch(stream, 1)[0]
    other_seed = StreamReader(stream, seed=1).read_epoch(StreamPosition())
    assert [record.id for record, _ in other_seed] != first


def test_a_reader_gets_different_shards_in_each_epoch(stream):
    lengths = {
        epoch: len(read_epoch(stream, epoch, num_readers=5, shuffle_buffer=3)[0])
        for epoch in range(20)
    }
    assert len(set(lengths.values())) > 3


@pytest.mark.parametrize("shuffle_buffer", [1, 3, 8])
def test_records_are_shuffled_only_within_blocks_of_the_buffer_size(stream, shuffle_buffer):
    shuffled, _ = read_epoch(stream, shuffle_buffer=shuffle_buffer)
    # A buffer of one leaves only the order of the shards and the turns of the open shards.
    turns, _ = read_epoch(stream, shuffle_buffer=1)
    blocks = [
        (shuffled[first : first + shuffle_buffer], turns[first : first + shuffle_buffer])
        for first in range(0, len(turns), shuffle_buffer)
    ]
    assert all(sorted(block) == sorted(unshuffled) for block, unshuffled in blocks)
    moved = sum(block != unshuffled for block, unshuffled in blocks)
    assert moved >= (len(blocks) - 1) // 2 if shuffle_buffer > 1 else moved == 0


def test_neighbors_come_from_several_shards(tmp_path):
    # Otherwise, data that is sorted by class would give batches of one class.
    stream = open_images(write_parquet_shards(tmp_path, [20] * 6), streaming=True)
    ids, _ = read_epoch(stream, shuffle_buffer=1)
    assert len({int(number) // 20 for number in ids[:OPEN_SHARDS]}) == OPEN_SHARDS


@pytest.mark.parametrize(("reader", "num_readers"), [(0, 1), (1, 2), (7, 9)])
def test_a_reader_resumes_exactly_from_any_position(stream, reader, num_readers):
    options = {"seed": 3, "reader": reader, "num_readers": num_readers, "shuffle_buffer": 5}
    with closing(iter(StreamReader(stream, **options))) as records:
        unbroken = [*itertools.islice(records, 80)]  # several epochs
    assert len({position.epoch for _, position in unbroken}) > 1
    for done in range(0, 70, 3):
        position = unbroken[done][1]
        position = StreamPosition.from_dict(pickle.loads(pickle.dumps(position.to_dict())))
        with closing(iter(StreamReader(stream, position=position, **options))) as records:
            assert [*itertools.islice(records, 10)] == unbroken[done + 1 : done + 11]


def test_resuming_reads_no_shard_that_ended_before_the_block(tmp_path):
    folder = write_parquet_shards(tmp_path, [4] * 12)
    stream = open_images(folder, streaming=True)
    _, positions = read_epoch(stream, shuffle_buffer=4)
    read = set()

    class RecordShard:
        def __init__(self, shard):
            read.add(shard)

        __enter__ = __exit__ = lambda self, *_: None

    reader = StreamReader(stream, seed=0, shuffle_buffer=4, reading=RecordShard)
    left = [record.id for record, _ in reader.read_epoch(positions[-8])]
    assert len(left) == 7
    assert len(read) <= OPEN_SHARDS  # of 12


def test_a_reader_without_records_is_an_error(tmp_path):
    stream = open_images(write_parquet_shards(tmp_path, [1, 0]), streaming=True)
    reader = StreamReader(stream, seed=0, reader=1, num_readers=2, shuffle_buffer=0)
    with pytest.raises(ValueError, match=r"reader 1 of 2 found none.*use fewer processes"):
        next(iter(reader))


def test_parquet_files_are_resharded_into_row_groups(tmp_path):
    folder = write_parquet_shards(tmp_path, [10, 5], row_group_size=3)
    stream = open_images(folder, streaming=True)
    resharded = stream.resharded
    assert (stream.num_shards, resharded.num_shards) == (2, 6)
    assert all_ids(resharded) == all_ids(stream)
    parts = [read_epoch(resharded, reader=reader, num_readers=4)[0] for reader in range(4)]
    assert all(parts) and sorted(sum(parts, [])) == all_ids(stream)


def test_rows_of_parquet_files_without_ids_have_the_names_that_they_have_by_position(tmp_path):
    # A stream named them "shard 0 row 0", so that the images of vectors were not found.
    for place, size in enumerate((4, 0, 3)):
        table = pa.table({"image": [encoded(seed) for seed in range(size)]})
        pq.write_table(table, tmp_path / f"{place}.parquet", row_group_size=2)
    names = open_images(tmp_path).names()
    stream = open_images(tmp_path, streaming=True)
    assert stream.num_shards == 2 and stream.resharded.num_shards == 4
    for source in (stream, stream.resharded):
        assert read_epoch(source, shuffle_buffer=0)[0] == names
    shared = stream.read_shard(1, start=1, part=0, num_parts=2)
    assert [record.id for record in shared] == ["6"]


def test_tars_cannot_be_resharded(tmp_path):
    stream = open_images(write_tar_shards(tmp_path, [3, 3]), streaming=True)
    assert stream.resharded.num_shards == 2


def test_a_stream_keeps_class_names_and_pixels(tmp_path):
    rows = {"image": [noise(9, 9, seed) for seed in range(4)], "label": [0, 1, 1, 0]}
    features = Features({"image": Image(), "label": ClassLabel(names=["ant", "bee"])})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    stream = open_images(tmp_path, streaming=True)
    assert isinstance(stream, StreamingImageSource) and stream.label_names == ["ant", "bee"]
    records = [*stream.read_shard(0)]
    assert [record.label for record in records] == [0, 1, 1, 0]
    assert [record.id for record in records] == ["0", "1", "2", "3"]
    assert decode_image(records[2].image).tobytes() == noise(9, 9, 2).tobytes()
    kept = [record.id for record in stream.read_shard(0, start=1, part=1, num_parts=2)]
    assert kept == ["3"]


def test_streams_have_no_labels_of_other_types_than_class_label(tmp_path):
    stream = open_images(write_tar_shards(tmp_path, [2]), streaming=True)
    assert stream.label_names is None
    assert next(stream.read_shard(0)).label is None
    with pytest.raises(ValueError, match="without streaming"):
        open_images(tmp_path, streaming=True, label_column="cls")


def test_the_error_for_a_truncated_tar_names_the_shard(tmp_path):
    write_tar_shards(tmp_path, [6, 6])
    stream = open_images(tmp_path, streaming=True)
    content = (tmp_path / "shard-001.tar").read_bytes()
    (tmp_path / "shard-001.tar").write_bytes(content[: content.index(encoded(8, "JPEG")) + 99])
    with pytest.raises(ValueError, match=r"shard 1 .* cannot be read: .*repair or replace"):
        read_epoch(stream)
    with pytest.raises(ValueError, match=r"shard-001.tar' cannot be read .*repair or replace"):
        open_images(tmp_path, streaming=True)


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
        with pytest.raises(ValueError, match="has a field 'json.height'; the fields are jpg, json"):
            open_images(folder, label_column="json.height")

    @pytest.mark.parametrize("streaming", [True, False])
    def test_the_error_for_another_tar_explains_the_format(self, streaming, tmp_path):
        path = write_tar(tmp_path / "a.tar", {"notes.txt": b"x"})
        with pytest.raises(ValueError, match=r"a.tar.* the fields are txt.*0001.jpg and 0001.cls"):
            open_images(path, streaming=streaming)

    def test_a_label_that_belongs_to_no_image_is_named(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", {"a.jpg": encoded(0, "JPEG"), "b.cls": b"1"})
        source = open_images(path)
        assert len(source) == 1 and source.labels() is None
        assert source.inventory.notes == ["1 labels in a.tar belong to no image, for example b.cls"]

    def test_a_file_that_is_not_a_tar_is_an_error(self, tmp_path):
        (tmp_path / "a.tar").write_text("This is not a tar.")
        with pytest.raises(ValueError, match="a.tar' cannot be read as a tar file"):
            open_images(tmp_path / "a.tar", streaming=True)
