"""Frames of videos, sampled at a fixed rate: real files of several codecs and containers."""

from __future__ import annotations

import os
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest

from selfvit.data.files.image_formats import VIDEOS
from selfvit.data.image_source import UnreadableContent
from selfvit.data.sources import open_images
from selfvit.data.videos.frames import TimedFrame, UnreadableVideoError, sample_frames

from ..image_files import noise
from .videos import number_of, turn_video, write_video

RATES = [0.5, 1, 3, 10, 25, 29.97, 60]


def frames_of(data, fps, shard=0, **options):
    """Return the frames of a video as (number, seconds), and the reasons of other records."""
    records = list(open_images(data, video_fps=fps).read_shard(shard, **options))
    frames = [record for record in records if record.seconds is not None]
    reasons = [r.image.reason for r in records if isinstance(r.image, UnreadableContent)]
    assert len(frames) + len(reasons) == len(records)
    return [(number_of(frame.image), frame.seconds) for frame in frames], reasons


def expected(times, duration, fps):
    """Return what the rule says, computed time by time: (number, seconds) of the frames."""
    numbers, k = [], 0
    while (time := k / Fraction(str(fps))) < times[-1] + duration:
        numbers.append(max(n for n, start in enumerate(times) if start <= time))
        k += 1
    return [(n, float(times[n])) for n in dict.fromkeys(numbers)]


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("v.mp4", "libx264"),
        ("v.mov", "mpeg4"),
        ("v.ts", "libx264"),
        ("v.mpg", "mpeg2video"),
        ("v.webm", "libvpx-vp9"),
        ("v.avi", "mpeg4"),
        ("v.mkv", "ffv1"),
    ],
)
def test_the_frame_that_is_shown_at_each_time_is_taken(tmp_path_factory, name, codec, fps):
    path = tmp_path_factory.getbasetemp() / "codecs" / name
    if not path.exists():
        write_video(path, 40, codec=codec)
    with av.open(str(path)) as container:
        stamps = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    times = [stamp - stamps[0] for stamp in stamps]
    assert len(times) == 40
    found, reasons = frames_of(path, fps)
    wanted = expected(times, Fraction(1, 25), fps)
    assert reasons == []
    assert found == wanted


@pytest.mark.parametrize("fps", [0.5, 1, 2, 7, 100])
def test_frame_rates_may_vary(tmp_path, fps):
    times = [0, 40, 80, 1500, 1510, 1520, 1990, 2000, 2010, 6000]
    unit = Fraction(1, 1000)
    path = write_video(tmp_path / "v.mkv", len(times), times=times, unit=unit, options={"bf": "0"})
    seconds = [Fraction(time, 1000) for time in times]
    found, reasons = frames_of(path, fps)
    wanted = expected(seconds, Fraction(1, 100), fps)
    assert found == wanted and reasons == []


def test_times_rounded_to_milliseconds_lose_no_frame(tmp_path):
    path = write_video(tmp_path / "v.mkv", 60, fps=30)  # 33, 67, 100 ms
    assert [n for n, _ in frames_of(path, 30)[0]] == list(range(60))
    assert [n for n, _ in frames_of(path, 15)[0]] == list(range(0, 60, 2))
    path = write_video(tmp_path / "ntsc.mp4", 60, fps=Fraction(30000, 1001))
    assert [n for n, _ in frames_of(path, 29.97)[0]] == list(range(60))


def test_times_count_from_the_first_frame(tmp_path):
    late = [number + 90 for number in range(25)]
    path = write_video(tmp_path / "v.ts", 25, times=late, unit=Fraction(1, 25))
    with av.open(str(path)) as container:
        assert container.streams.video[0].start_time > 0
    assert frames_of(path, 5)[0] == [(n, n / 25) for n in range(0, 25, 5)]


def test_sampling_is_exact():
    def frames(*starts, duration=1):
        return [TimedFrame(Fraction(s), Fraction(duration), s) for s in starts]

    def taken(frames, fps, tolerance=Fraction(0)):
        return [frame.picture for frame in sample_frames(frames, Fraction(fps), tolerance)]

    assert taken(frames(0, 1, 2, 3), 1) == [0, 1, 2, 3]
    assert taken(frames(0, 1, 2, 3), Fraction(1, 2)) == [0, 2]
    assert taken(frames(0, 1, 2, 3), Fraction(1, 3)) == [0, 3]
    assert taken(frames(0, 1, 2, 3), Fraction(2, 7)) == [0, 3]  # 0 and 3.5, in the last frame
    assert taken(frames(0, 1, 2, 3, duration=0), Fraction(2, 7)) == [0]
    assert taken(frames(0, 1, 1, 2), 1)[1:] == [1, 2] and taken([], 1) == []
    assert taken(frames(0, "1.001"), 1) == [0, "1.001"][:1] + ["1.001"]
    assert taken(frames(0, "1.001", 2), 1, Fraction(1, 1000)) == [0, "1.001", 2]
    assert taken(frames(0, "1.001", 2), 1) == [0, 2]


def test_the_frames_before_damage_are_taken():
    def broken():
        yield TimedFrame(Fraction(0), Fraction(1), 0)
        yield TimedFrame(Fraction(1), Fraction(1), 1)
        raise UnreadableVideoError("damaged")

    taken = []
    with pytest.raises(UnreadableVideoError, match="damaged"):
        for frame in sample_frames(broken(), Fraction(2), Fraction(0)):
            taken.append(frame.picture)
    assert taken == [0, 1]


@pytest.mark.parametrize("fps", [10, 60])
@pytest.mark.parametrize("name", ["whole.mp4", "damaged.mkv"])
def test_a_video_is_resumed_at_every_frame(tmp_path, name, fps):
    path = write_video(tmp_path / name, 60)
    if name.startswith("damaged"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    stream = open_images(path, video_fps=fps)
    whole = list(stream.read_shard(0))
    assert isinstance(whole[-1].image, UnreadableContent) == name.startswith("damaged")

    def assert_same(records, wanted):
        assert [(r.name, r.label) for r in records] == [(r.name, r.label) for r in wanted]
        for a, b in zip(records, wanted, strict=True):
            same = np.array_equal if isinstance(a.image, np.ndarray) else lambda x, y: x == y
            assert same(a.image, b.image)

    stream = pickle.loads(pickle.dumps(stream))
    for start in range(len(whole) + 2):
        assert_same(list(stream.read_shard(0, start=start)), whole[start:])
    for part in range(3):
        assert_same(list(stream.read_shard(0, part=part, num_parts=3, start=1)), whole[part::3][1:])


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.avi", "hole.mp4", "hole.ts"])
def test_a_damaged_video_keeps_the_frames_before(tmp_path, name):
    options = {"movflags": "faststart"} if name.endswith(".mp4") else {}
    codec = "mpeg4" if name.endswith(".avi") else "libx264"
    path = write_video(
        tmp_path / name, 100, codec=codec, container_options=options, options={"g": "50"}
    )
    whole, reasons = frames_of(path, 25)
    assert len(whole) == 100 and reasons == []
    content = path.read_bytes()
    middle = int(len(content) * (0.5 if name == "hole.ts" else 0.7))
    rest = b"" if name.startswith("cut") else bytes(1500) + content[middle + 1500 :]
    path.write_bytes(content[:middle] + rest)
    found, reasons = frames_of(path, 25)
    assert 10 < len(found) < 90 and set(found) <= set(whole)
    assert found[:-3] == whole[: len(found) - 3]  # a lost packet may be that of a B-frame
    assert len(reasons) == 1 and ("damaged after" in reasons[0] or "cut off" in reasons[0])


def test_what_is_no_video_is_left_out_with_a_reason(tmp_path):
    folder = tmp_path / "data"
    write_video(folder / "b.mp4", 10)
    (folder / "a.mp4").write_bytes(b"no video")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "playlist.ts").write_text("#EXTM3U\n#EXTINF:1\nhttp://127.0.0.1:9/x.ts\n")
    os.mkfifo(folder / "pipe.mp4")
    os.symlink("nothing.mp4", folder / "link.mp4")
    with av.open(str(folder / "sound.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    stream = open_images(folder, video_fps=1)
    records = [r for shard in range(stream.num_shards) for r in stream.read_shard(shard)]
    reasons = {r.id: r.image.reason for r in records if isinstance(r.image, UnreadableContent)}
    assert [r.id for r in records if r.seconds is not None] == ["b.mp4"]
    assert reasons["sound.mp4"] == "no video in the file"
    assert reasons["pipe.mp4"].startswith("not a regular file")
    assert "No such file" in reasons["link.mp4"]
    for name in ("a.mp4", "empty.mp4", "playlist.ts"):
        assert reasons[name].startswith(("cannot be opened as a video", "no video")), reasons[name]


def test_a_cover_is_no_video(tmp_path):
    from io import BytesIO

    image = BytesIO()
    noise(32, 32).save(image, "PNG")
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(cover.encode(frame))
        container.mux(cover.encode(None))
    assert frames_of(tmp_path / "v.mp4", 1) == ([], ["only an attached picture in the file"])


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((1, 0, 0, 1), lambda pixels: pixels),
        ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),  # a phone held upright
        ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2)),
        ((0, -1, 1, 0), lambda pixels: np.rot90(pixels)),
        ((-1, 0, 0, 1), lambda pixels: pixels[:, ::-1]),
        ((0, 1, 1, 0), lambda pixels: pixels.swapaxes(0, 1)),
    ],
)
def test_frames_are_turned_as_the_metadata_says(tmp_path, matrix, turned):
    path = write_video(tmp_path / "v.mp4", 3)
    [flat, *_] = open_images(path, video_fps=25).read_shard(0)
    path = turn_video(path, tmp_path / "turned.mp4", list(matrix))
    [record, *_] = open_images(path, video_fps=25).read_shard(0)
    assert np.array_equal(record.image, turned(flat.image))
    with av.open(str(path)) as container:
        angle = next(container.decode(video=0)).rotation
    assert matrix[0] or matrix[1] * matrix[2] > 0 or angle == -90 * matrix[1]


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv444p", "yuv420p10le"])
def test_pixels_become_eight_bit_rgb(tmp_path, pixel_format):
    path = write_video(tmp_path / "v.mp4", 20, pixel_format=pixel_format, options={"crf": "4"})
    records = list(open_images(path, video_fps=25).read_shard(0))
    assert all(r.image.dtype == np.uint8 and r.image.shape == (48, 64, 3) for r in records)
    assert [number_of(record.image) for record in records] == list(range(20))


def test_sizes_may_be_odd(tmp_path):
    path = write_video(tmp_path / "v.mkv", 5, codec="ffv1", size=(51, 37))
    [record, *_] = open_images(path, video_fps=25).read_shard(0)
    assert record.image.shape == (37, 51, 3) and record.image.flags.c_contiguous


def test_of_several_streams_the_best_one_is_read(tmp_path, caplog):
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        streams = [container.add_stream("mpeg4", rate=25) for _ in range(2)]
        for stream, width in zip(streams, (32, 64), strict=True):
            stream.width, stream.height, stream.pix_fmt = width, 32, "yuv420p"
        for number in range(5):
            for stream in streams:
                frame = av.VideoFrame(stream.width, 32, "yuv420p")
                frame.pts = number
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    with av.open(str(tmp_path / "v.mkv")) as container:
        best = container.streams.best("video")
        index, width = best.index, best.width
    [record, *_] = open_images(tmp_path / "v.mkv", video_fps=25).read_shard(0)
    assert record.image.shape == (32, width, 3)
    assert f"v.mkv has 2 video streams; stream {index} ({width} x 32) is read" in caplog.text


class TestOpening:
    def test_folders_are_labels_and_splits(self, tmp_path):
        for name in ("cat/1.mp4", "cat/2.MP4", "dog/1.mkv", ".hidden/x.mp4", "@eaDir/x.mp4"):
            for split in ("train", "test"):
                write_video(tmp_path / split / name, 2, codec="mpeg4")
        noise(8, 8).save(tmp_path / "train" / "cat" / "photo.png")
        stream = open_images(tmp_path, video_fps=1)
        assert stream.num_shards == 3 and stream.label_names == ["cat", "dog"]
        records = [r for shard in range(3) for r in stream.read_shard(shard)]
        assert [(r.id, r.label) for r in records] == [
            ("cat/1.mp4", 0), ("cat/2.MP4", 0), ("dog/1.mkv", 1),
        ]  # fmt: skip
        notes = " ".join(stream.inventory.notes)
        assert "1 image files beside the videos are not read" in notes and "split train" in notes
        assert open_images(tmp_path, split="all", video_fps=1).num_shards == 6
        with pytest.raises(ValueError, match="choose one with --split"):
            open_images(tmp_path, split="dev", video_fps=1)

    def test_files_are_given_one_by_one(self, tmp_path):
        paths = [write_video(tmp_path / f"{n}.mp4", n, codec="mpeg4") for n in (3, 2)]
        stream = open_images([*paths, paths[0]], video_fps=25)
        records = [r.name for shard in range(2) for r in stream.read_shard(shard)]
        assert records == ["3.mp4 at 0 s", "3.mp4 at 0.04 s", "3.mp4 at 0.08 s"] + [
            "2.mp4 at 0 s", "2.mp4 at 0.04 s",
        ]  # fmt: skip
        assert stream.inventory.notes == ["1 files are given twice, and taken once"]

    def test_the_fingerprint_has_rate_names_and_sizes(self, tmp_path):
        path = write_video(tmp_path / "v.mp4", 5)
        first = open_images(path, video_fps=1).fingerprint
        assert first == open_images(path, video_fps=1.0).fingerprint
        assert first != open_images(path, video_fps=1.0000001).fingerprint
        write_video(path, 9)
        assert first != open_images(path, video_fps=1).fingerprint

    @pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
    def test_a_rate_is_a_positive_number(self, tmp_path, fps):
        write_video(tmp_path / "v.mp4", 2, codec="mpeg4")
        with pytest.raises(ValueError, match=r"video_fps \(.*\) must be a positive number"):
            open_images(tmp_path, video_fps=fps)

    def test_errors_say_what_is_there(self, tmp_path):
        with pytest.raises(ValueError, match="there are no videos in .*; the extension"):
            open_images(tmp_path, video_fps=1)
        noise(8, 8).save(tmp_path / "photo.png")
        with pytest.raises(ValueError, match="no videos in .*, but 1 image files; .* leave out"):
            open_images(tmp_path, video_fps=1)
        with pytest.raises(ValueError, match=r"photo.png' is another file; leave out"):
            open_images(tmp_path / "photo.png", video_fps=1)
        with pytest.raises(FileNotFoundError, match="there is no file"):
            open_images(tmp_path / "none.mp4", video_fps=1)
        with pytest.raises(ValueError, match="videos have no columns.*omit --label-column"):
            open_images(tmp_path, video_fps=1, label_column="label")
        with pytest.raises(ValueError, match="video files have no splits.*omit --split"):
            open_images(write_video(tmp_path / "v.mp4", 2), video_fps=1, split="train")

    def test_without_a_rate_videos_are_named(self, tmp_path):
        path = write_video(tmp_path / "clips" / "v.mp4", 2, codec="mpeg4")
        note = r"1 video file is not read \(clips/v.mp4\); selfvit embed --video-fps reads it"
        with pytest.raises(ValueError, match=rf"there are no images in .*; {note}\.$"):
            open_images(tmp_path)
        with pytest.raises(ValueError, match="a video, which selfvit embed --video-fps reads"):
            open_images(path)
        noise(8, 8).save(tmp_path / "photo.png")
        assert any("1 video file is not read" in n for n in open_images(tmp_path).inventory.notes)

    def test_without_pyav_the_error_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r'pip install "selfvit\[video\]"'):
            open_images(tmp_path, video_fps=1)

    def test_no_extension_is_that_of_an_image(self):
        from selfvit.data.files.image_formats import image_extensions

        assert not VIDEOS & image_extensions()
