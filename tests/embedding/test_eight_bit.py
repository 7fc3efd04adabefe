"""Preprocessing of eight-bit images, beside the stock processors and through every kind of file."""

from __future__ import annotations

import io
import tarfile
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, CLIPImageProcessor, ViTImageProcessor
from transformers.image_utils import load_image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from benchmarks.photos import synthesize_photo
from selfvit import SelfViTConfig, SelfViTModel
from selfvit.data.decoding import UnreadableImageError, decode_image, decode_pixels
from selfvit.data.sources import open_images
from selfvit.embedding.eight_bit import EightBitPreprocessing
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.preparation import Preparation
from selfvit.embedding.preprocessing import build_processor, needed_size, pixel_format_of

CONFIG = SelfViTConfig(
    hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=64, patch_size=8
)
SHAPES = [(75, 100), (100, 75), (73, 73), (40, 60), (64, 64), (300, 90), (210, 640)]


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory):
    """Three photos of 1200 x 900 pixels, which libjpeg decodes at a quarter of each side."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        photo = synthesize_photo((1200, 900), np.random.default_rng(seed))
        photo.save(folder / f"{seed}.jpg", quality=90)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    SelfViTModel(CONFIG).save_pretrained(folder)
    build_processor(CONFIG).save_pretrained(folder)
    return folder


def preparation_of(processor):
    return Preparation(processor, pixel_format_of(processor))


def pixels_of(shape, seed=0):
    generator = np.random.default_rng(seed)
    return np.array(synthesize_photo((shape[1], shape[0]), generator))


class TestStockProcessors:
    @pytest.mark.parametrize("resize", ["shortest_edge", "square"])
    @pytest.mark.parametrize("resample", [2, 3])
    def test_pixels_have_the_bits_of_the_processor(self, resize, resample):
        processor = build_processor(CONFIG, resize=resize)
        processor.resample = resample
        preprocessing = EightBitPreprocessing.of(processor)
        for shape in SHAPES:
            pixels = pixels_of(shape)
            expected = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
            cropped = preprocessing.resize_and_crop(pixels)
            assert cropped.dtype == torch.uint8
            assert torch.equal(preprocessing.normalize(cropped[None]), expected), shape

    def test_the_class_without_torchvision_differs_by_one_level_at_most(self):
        processor = BitImageProcessorPil(size={"shortest_edge": 73}, crop_size=64)
        preprocessing = EightBitPreprocessing.of(processor)
        level = 1 / (255 * min(processor.image_std))
        for shape in SHAPES:
            pixels = pixels_of(shape)
            expected = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
            found = preprocessing.normalize(preprocessing.resize_and_crop(pixels)[None])
            assert (found - expected).abs().max() < 1.001 * level

    @pytest.mark.parametrize(
        "processor",
        [
            CLIPImageProcessor(),
            type("OwnProcessor", (ViTImageProcessor,), {})(),
            ViTImageProcessor(do_rescale=False),
            ViTImageProcessor(do_normalize=False),
            ViTImageProcessor(resample=1),
            ViTImageProcessor(do_pad=True, pad_size={"height": 300, "width": 300}),
            BitImageProcessor(size={"shortest_edge": 30, "longest_edge": 50}),
            build_processor(SelfViTConfig(num_channels=1)),
        ],
        ids=lambda processor: type(processor).__name__,
    )
    def test_any_other_processor_is_called_itself(self, processor):
        assert EightBitPreprocessing.of(processor) is None

    def test_images_smaller_than_the_crop_are_left_to_the_processor(self, tmp_path):
        processor = BitImageProcessor(size={"shortest_edge": 20}, crop_size=64)
        pixels = pixels_of((30, 40))
        preparation = preparation_of(processor)
        cropped, _ = preparation.crop(pixels)
        expected = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
        assert cropped.dtype == torch.float32 and torch.equal(cropped, expected)

    def test_a_batch_may_have_images_of_eight_and_of_sixteen_bits(self):
        preparation = preparation_of(build_processor(CONFIG))
        pixels = pixels_of((75, 100))
        eight, _ = preparation.crop(pixels)
        sixteen, _ = preparation.crop(pixels.astype(np.uint16) * 257)
        batch = preparation.normalize(preparation.stack_pixels([eight, sixteen]))
        assert torch.equal(batch[:1], preparation.normalize(eight[None]))
        assert (batch[0] - batch[1]).abs().max() < 0.05


class TestScaledDecoding:
    def test_photos_are_decoded_at_twice_the_target_or_more(self, photo_folder):
        target = needed_size(build_processor(CONFIG))
        for path in photo_folder.iterdir():
            height, width, _ = decode_pixels(str(path), target=target).pixels.shape
            assert (height, width) == (225, 300)
            assert min(height, width) >= 2 * target[0]

    def test_vectors_have_a_cosine_of_0_999_to_those_of_whole_photos(
        self, photo_folder, checkpoint
    ):
        embedder = Embedder.from_pretrained(checkpoint, device="cpu")
        embedded = embedder.embed(open_images(photo_folder))
        # as transformers' pipeline computes them
        images = [load_image(str(photo_folder / name)) for name in embedded.ids]
        pixel_values = embedder.processor(images, return_tensors="pt")["pixel_values"]
        expected = embedder.embed_pixels(pixel_values)
        # without the mean, which all images share
        center = expected.mean(axis=0)
        for found, wanted in [
            (embedded.vectors, expected),
            (embedded.vectors - center, expected - center),
        ]:
            lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
            assert ((found * wanted).sum(axis=1) / lengths).min() > 0.999

    @pytest.mark.parametrize("kind", ["files", "tar", "parquet", "stream of a tar", "bytes"])
    def test_every_kind_of_source_is_decoded_so(self, kind, photo_folder, tmp_path):
        preparation = preparation_of(build_processor(CONFIG))
        path = photo_folder / "0.jpg"
        content = path.read_bytes()
        expected, _ = preparation.crop(str(path))
        whole, _ = preparation.crop(decode_image(content))
        assert not torch.equal(expected, whole)
        if kind == "bytes":
            assert torch.equal(preparation.crop(content)[0], expected)
            return
        data = photo_folder
        if kind == "parquet":
            data = tmp_path / "images.parquet"
            images = pa.array([{"bytes": content, "path": "0.jpg"}])
            pq.write_table(pa.table({"image": images}), data)
        elif "tar" in kind:
            data = tmp_path / "images.tar"
            with tarfile.open(data, "w") as tar:
                member = tarfile.TarInfo("0.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        source = open_images(str(data), streaming=kind.startswith("stream"))
        _, batch = next(preparation.read(source, [range(source.num_positions)], 8))
        assert torch.equal(batch.pixels[0][0], expected)


class TestThreads:
    @pytest.fixture(autouse=True)
    def three_threads(self):
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        yield
        torch.set_num_threads(before)

    def test_batches_are_decoded_in_order_and_warnings_stay_as_they_were(self, tmp_path):
        for number in range(12):
            pixels = pixels_of((75, 100), number)
            Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
        (tmp_path / "05.png").write_bytes(b"no image")
        preparation = preparation_of(build_processor(CONFIG))
        source = open_images(str(tmp_path))
        filters = list(warnings.filters)
        read = list(preparation.read(source, [range(12)], 8))
        assert warnings.filters == filters
        assert [batch.ids for _, batch in read] == [
            [f"{n:02}.png" for n in range(8) if n != 5],
            [f"{n:02}.png" for n in range(8, 12)],
        ]
        assert [image.id for image in read[0][1].skipped] == ["05.png"]
        for positions, batch in read:
            places = [n for n in positions if n != 5]
            for place, found in zip(places, batch.pixels[0], strict=True):
                expected, _ = preparation.crop(str(tmp_path / f"{place:02}.png"))
                assert torch.equal(found, expected)

    def test_an_image_that_cannot_be_read_is_named(self, checkpoint):
        embedder = Embedder.from_pretrained(checkpoint, device="cpu")
        images = [pixels_of((75, 100)), b"no image", pixels_of((75, 100), 1)]
        with pytest.raises(UnreadableImageError, match="image 1 cannot be read"):
            embedder(images)
