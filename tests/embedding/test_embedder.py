import pickle
import re
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    ConvNextImageProcessor,
    ViTImageProcessor,
    pipeline,
)

from selfvit import SelfViTConfig, SelfViTModel
from selfvit.data.decoding import UnreadableImageError, decode_image
from selfvit.data.sources import open_images
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.preprocessing import build_processor
from selfvit.embedding.vectors.writer import write_embeddings

from .. import image_files
from ..image_files import noise

POOLINGS = ["cls", "mean", "cls+mean", "gem", "concat:2"]


@pytest.fixture
def embedder(tiny_checkpoint):
    return Embedder.from_pretrained(tiny_checkpoint, device="cpu", batch_size=3)


@pytest.fixture(scope="module")
def awkward_folder(tmp_path_factory):
    """Folder with every kind of file in `image_files`, except the very large one."""
    folder = tmp_path_factory.mktemp("awkward")
    image_files.write_all(folder, without=("bomb.png",))
    return folder


class TestPipelineEquality:
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_vectors_equal_the_pipeline(self, pooling, tiny_checkpoint, image_folder, tmp_path):
        model = SelfViTModel.from_pretrained(tiny_checkpoint, pooling=pooling)
        model.save_pretrained(tmp_path)
        AutoImageProcessor.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path)
        extractor = pipeline("image-feature-extraction", model=str(tmp_path), device="cpu")
        embedded = Embedder.from_pretrained(tmp_path, device="cpu").embed(open_images(image_folder))
        assert embedded.vectors.shape == (7, model.config.embedding_size)
        for name, vector in zip(embedded.ids, embedded.vectors, strict=True):
            expected = np.array(extractor(str(image_folder / name), pool=True)[0])
            np.testing.assert_allclose(vector, expected, atol=1e-5)

    def test_unusual_files_give_the_same_vectors_except_clipped_grays(
        self, tiny_checkpoint, awkward_folder
    ):
        extractor = pipeline("image-feature-extraction", model=str(tiny_checkpoint), device="cpu")
        embedder = Embedder.from_pretrained(tiny_checkpoint, device="cpu")
        for name in set(image_files.READABLE) - {"sixteen_bit.png", "float.tiff"}:
            expected = np.array(extractor(str(awkward_folder / name), pool=True)[0])
            np.testing.assert_allclose(
                embedder(awkward_folder / name), expected, atol=1e-5, err_msg=name
            )


class TestEmbed:
    def test_order_ids_and_labels_equal_those_of_the_source(self, embedder, image_folder):
        source = open_images(image_folder)
        embedded = embedder.embed(source)
        assert embedded.ids == [source[i].id for i in range(7)]
        np.testing.assert_array_equal(embedded.labels, source.labels(), strict=True)
        assert embedded.vectors.dtype == np.float32
        assert embedded.label_names == ["cat", "dog", "owl"] and embedded.skipped == []
        alone = embedder([source[i].image for i in range(7)])
        np.testing.assert_allclose(embedded.vectors, alone, atol=1e-6)

    def test_paths_are_opened_and_images_that_are_left_out_are_logged(
        self, embedder, image_folder, tmp_path, caplog
    ):
        expected = embedder.embed(open_images(image_folder))
        embedded = embedder.embed(image_folder)
        assert (embedded.ids, embedded.label_names) == (expected.ids, expected.label_names)
        np.testing.assert_array_equal(embedded.vectors, expected.vectors)
        assert caplog.text == ""
        report = write_embeddings(embedder, str(image_folder), tmp_path / "out", progress=False)
        assert report.num_embedded == 7
        photos = tmp_path / "photos"
        shutil.copytree(image_folder, photos)
        (photos / "pipe.jpg").symlink_to(photos / "missing.jpg")
        assert len(embedder.embed(photos).ids) == 7
        assert "8 found, 7 taken, 1 left out" in caplog.text

    def test_images_in_memory_are_no_source(self, embedder):
        with pytest.raises(TypeError, match="an object of type Image; open paths by open_images"):
            embedder.embed([Image.new("RGB", (8, 8))])

    def test_different_images_give_different_vectors(self, embedder, image_folder):
        vectors = embedder.embed(open_images(image_folder)).vectors
        assert np.linalg.norm(vectors[0] - vectors[1]) > 0.1

    def test_unreadable_images_are_skipped_with_a_reason(self, embedder, awkward_folder):
        embedded = embedder.embed(open_images(awkward_folder))
        assert sorted(embedded.ids) == sorted(image_files.READABLE)
        assert len(embedded.vectors) == len(embedded.ids) and embedded.labels is None
        reasons = {skipped.id: skipped.reason for skipped in embedded.skipped}
        assert sorted(reasons) == sorted(set(image_files.UNREADABLE) - {"bomb.png"})
        assert all(reasons[n].startswith(image_files.UNREADABLE[n][1]) for n in reasons)

    @pytest.mark.parametrize("kind, setting, reason", [
        (ViTImageProcessor, {"size": {"height": 16, "width": 16}, "resample": 1},
         r"resample \(1\) must be one of"),
        (ViTImageProcessor, {"size": {"shortest_edge": 16, "longest_edge": 32}},
         "must be a height and a width"),
        (ConvNextImageProcessor, {"size": {"shortest_edge": 16}, "crop_pct": 0.8},
         r"crop_pct \(0.8\) is supported for eight bits"),
        (BitImageProcessor, {"size": {"shortest_edge": 8}, "do_center_crop": False, "do_pad": True,
                             "pad_size": {"height": 16, "width": 16}},
         r"do_pad \(True\) is supported for eight bits"),
    ])  # fmt: skip
    def test_a_deep_image_that_the_processor_cannot_resize_is_skipped(
        self, kind, setting, reason, embedder, tmp_path
    ):
        # It ended the run, or got another geometry than an image of eight bits.
        noise(20, 20).save(tmp_path / "a.png")
        image_files.sixteen_bit_png(tmp_path / "b.png", 9)
        processor = kind(**setting)
        embedded = Embedder(embedder.model, processor).embed(open_images(tmp_path))
        assert embedded.ids == ["a.png"]
        [skipped] = embedded.skipped
        assert skipped.id == "b.png" and re.search(
            f"more than eight bits.*{reason}", skipped.reason
        )

    def test_a_source_without_a_readable_image_gives_no_vectors(self, embedder, tmp_path):
        image_files.empty_jpeg(tmp_path / "a.jpg")
        embedded = embedder.embed(open_images(tmp_path))
        assert embedded.vectors.shape == (0, 32) and len(embedded.skipped) == 1

    def test_workers_and_batch_size_change_no_vector(
        self, embedder, tiny_checkpoint, awkward_folder
    ):
        source = open_images(awkward_folder)
        other = Embedder.from_pretrained(
            tiny_checkpoint, device="cpu", batch_size=64, num_workers=2
        )
        one, two = embedder.embed(source), other.embed(source)
        assert one.ids == two.ids and sorted(one.skipped, key=str) == sorted(two.skipped, key=str)
        np.testing.assert_allclose(one.vectors, two.vectors, atol=1e-5)

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_the_global_random_state_does_not_change(
        self, num_workers, tiny_checkpoint, image_folder
    ):
        embedder = Embedder.from_pretrained(tiny_checkpoint, device="cpu", num_workers=num_workers)
        before, numpy_before = torch.get_rng_state(), pickle.dumps(np.random.get_state())
        embedder.embed(open_images(image_folder))
        assert torch.equal(torch.get_rng_state(), before)
        assert pickle.dumps(np.random.get_state()) == numpy_before

    def test_a_model_in_training_is_evaluated_and_stays_in_training(self, image_folder):
        torch.manual_seed(0)
        config = SelfViTConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8,
            drop_path_rate=0.9,
        )  # fmt: skip
        model = SelfViTModel(config).train()
        model.layers[0].eval()  # a frozen part
        modes = [module.training for module in model.modules()]
        embedder = Embedder(model, build_processor(config))
        stream = embedder.stream(open_images(image_folder))
        first = next(stream).vectors
        assert [module.training for module in model.modules()] == modes
        np.testing.assert_array_equal(first, embedder.embed(open_images(image_folder)).vectors)
        assert [module.training for module in model.modules()] == modes
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_vectors_that_are_not_finite_are_an_error(self, embedder, image_folder):
        with torch.no_grad():
            embedder.model.layernorm.bias[0] = float("nan")
        with pytest.raises(ValueError, match="not finite"):
            embedder.embed(open_images(image_folder))

    def test_normalized_vectors_have_length_one(self, tiny_checkpoint, image_folder):
        embedder = Embedder.from_pretrained(tiny_checkpoint, device="cpu", normalize=True)
        vectors = embedder.embed(open_images(image_folder)).vectors
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    def test_bfloat16_gives_similar_float32_vectors(self, embedder, tiny_checkpoint, image_folder):
        source = open_images(image_folder)
        half = Embedder.from_pretrained(tiny_checkpoint, device="cpu", dtype="bfloat16")
        assert half.model.dtype == torch.bfloat16
        one, two = embedder.embed(source).vectors, half.embed(source).vectors
        assert two.dtype == np.float32
        cosines = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
        assert cosines.min() > 0.99


class TestCall:
    def test_one_image_gives_one_vector(self, embedder):
        assert embedder(noise(40, 40)).shape == (32,)

    def test_all_types_of_input_give_the_same_vector(self, embedder, image_folder):
        path = image_folder / "cat" / "1.png"
        images = [path, str(path), path.read_bytes(), decode_image(path), Image.open(path)]
        vectors = embedder(images)
        np.testing.assert_allclose(vectors, np.broadcast_to(vectors[:1], (5, 32)), atol=1e-5)

    def test_an_iterator_of_images_gives_the_vectors_of_the_list(self, embedder, image_folder):
        paths = sorted(image_folder.rglob("*.png"))[:3]
        assert np.array_equal(embedder(iter(paths)), embedder(paths))

    def test_errors_for_a_tensor_and_for_a_folder_name_the_method_to_use(
        self, embedder, image_folder
    ):
        with pytest.raises(TypeError, match="not a tensor; embed_pixels"):
            embedder(torch.zeros(3, 32, 32))
        with pytest.raises(UnreadableImageError, match=r"is a folder; embedder\.embed\("):
            embedder(image_folder)

    def test_an_open_image_may_occur_twice_in_a_call(self, tiny_checkpoint, tmp_path):
        # Two threads loaded it at the same time: "cannot be opened: Bad file descriptor".
        noise(300, 300).save(tmp_path / "a.png")
        embedder = Embedder.from_pretrained(tiny_checkpoint, device="cpu", batch_size=8)
        before = torch.get_num_threads()
        torch.set_num_threads(4)
        try:
            for _ in range(20):
                opened = Image.open(tmp_path / "a.png")
                vectors = embedder([opened] * 8)
        finally:
            torch.set_num_threads(before)
        np.testing.assert_allclose(vectors, [embedder(tmp_path / "a.png")] * 8, atol=1e-5)

    def test_no_images_give_no_vectors(self, embedder):
        assert embedder([]).shape == (0, 32)

    def test_the_error_for_an_unreadable_image_names_it(self, embedder, tmp_path):
        image_files.empty_jpeg(tmp_path / "a.jpg")
        with pytest.raises(UnreadableImageError, match=r"a\.jpg' cannot be read: empty"):
            embedder([noise(8, 8), tmp_path / "a.jpg"])
        with pytest.raises(UnreadableImageError, match="image 1 cannot be read"):
            embedder([noise(8, 8), b"text"])


class TestFromPretrained:
    def test_the_student_differs_from_the_teacher(self, embedder, tiny_checkpoint):
        student = Embedder.from_pretrained(tiny_checkpoint, device="cpu", network="student")
        assert not np.allclose(student(noise(40, 40)), embedder(noise(40, 40)), atol=1e-3)

    def test_the_pooling_can_be_changed(self, tiny_checkpoint):
        embedder = Embedder.from_pretrained(tiny_checkpoint, device="cpu", pooling="concat:3")
        assert embedder(noise(40, 40)).shape == (96,) and embedder.embedding_size == 96

    @pytest.mark.parametrize("pooling", ["max", "concat:4"])
    def test_an_unsupported_pooling_is_an_error(self, pooling, tiny_checkpoint):
        with pytest.raises(StrictDataclassError, match="pooling"):
            Embedder.from_pretrained(tiny_checkpoint, device="cpu", pooling=pooling)

    @pytest.mark.parametrize(
        "wrong", [{"dtype": "float8"}, {"batch_size": 0}, {"num_workers": -1}, {"device": "tpu9"}]
    )
    def test_errors_for_wrong_arguments_name_the_argument(self, wrong, tiny_checkpoint):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Embedder.from_pretrained(tiny_checkpoint, **{"device": "cpu", **wrong})


class TestBuildProcessor:
    def test_shortest_edge_keeps_the_aspect_ratio(self):
        config = SelfViTConfig.from_name("vits16")
        processor: Any = build_processor(config)
        assert dict(processor.size) == {"shortest_edge": 256}
        pixels = processor(image_files.light_left(300, 100), return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 3, 224, 224)

    @pytest.mark.parametrize("image_size, resize", [(224, "square"), ((96, 160), "shortest_edge")])
    def test_square_and_oblong_sizes_keep_the_whole_image(self, image_size, resize):
        config = SelfViTConfig.from_name("vits16", image_size=image_size)
        processor: Any = build_processor(config, resize=resize)
        pixels = processor(image_files.light_left(300, 100), return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 3, *config.image_height_width)
        # Nothing is cropped: half of the pixels are light, half are dark.
        gray = np.mean([image_files.LIGHT, image_files.DARK]) / 255
        middle = (gray - processor.image_mean[0]) / processor.image_std[0]
        assert pixels[0, 0].mean() == pytest.approx(middle, abs=0.02)

    @pytest.mark.parametrize("resize", ["shortest_edge", "square"])
    def test_it_is_saved_as_a_class_of_transformers_without_pil_in_its_name(self, resize, tmp_path):
        processor = build_processor(SelfViTConfig.from_name("vits16"), resize=resize)
        processor.save_pretrained(tmp_path)
        text = (tmp_path / "preprocessor_config.json").read_text()
        name = {"shortest_edge": "BitImageProcessor", "square": "ViTImageProcessor"}[resize]
        assert f'"image_processor_type": "{name}"' in text
        reopened = AutoImageProcessor.from_pretrained(tmp_path)
        image = noise(300, 260)
        torch.testing.assert_close(
            reopened(image, return_tensors="pt")["pixel_values"],
            processor(image, return_tensors="pt")["pixel_values"],
        )

    def test_wrong_resize_and_crop_ratio_are_errors(self):
        config = SelfViTConfig.from_name("vits16")
        with pytest.raises(ValueError, match="resize"):
            build_processor(config, resize="longest_edge")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="crop_ratio"):
            build_processor(config, crop_ratio=0.9)
