import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor  # noqa: F401 - registers the processors

from selfvit import SelfViTConfig
from selfvit.data.decoding import decode_pixels
from selfvit.data.sources import open_images
from selfvit.embedding.preprocessing import build_processor
from selfvit.training.augmentations.multi_crop import MultiCrop
from selfvit.training.augmentations.single_crop import CropAndFlip, MixedCrop
from selfvit.training.dataloader.collate import collate, normalize
from selfvit.training.dataloader.loader import build_loader
from selfvit.training.dataloader.sampler import BatchPlan, ShuffledBatches
from selfvit.training.dataloader.streaming import stream_state
from selfvit.training.dataloader.views import ViewDataset

from ..image_files import empty_jpeg, noise, text_jpeg, truncated_jpeg


def plan(**changes):
    values = {
        "num_steps": 5,
        "start_step": 0,
        "batch_size": 12,
        "accumulation_steps": 1,
        "num_processes": 1,
        "rank": 0,
    }
    return BatchPlan(**{**values, **changes})


@pytest.mark.parametrize("accumulation_steps", [1, 3])
@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_processes_and_micro_batches_together_cover_each_global_batch(
    accumulation_steps, num_processes
):
    shared = {"accumulation_steps": accumulation_steps, "num_processes": num_processes}
    by_rank = [list(plan(rank=rank, **shared).draws()) for rank in range(num_processes)]
    assert all(len(draws) == 5 * accumulation_steps for draws in by_rank)
    for step in range(5):
        micro = slice(step * accumulation_steps, (step + 1) * accumulation_steps)
        drawn = sorted(draw for draws in by_rank for part in draws[micro] for draw in part)
        assert drawn == list(range(12 * step, 12 * (step + 1)))


def test_an_indivisible_batch_size_is_an_error_with_the_nearest_divisible_one():
    with pytest.raises(ValueError, match=r"batch_size \(10\).*\(2\) times .*\(2\); use 8"):
        plan(batch_size=10, accumulation_steps=2, num_processes=2)


def test_batches_from_a_later_step_equal_the_last_of_all_batches():
    batches = list(ShuffledBatches(40, plan(), seed=7))
    assert list(ShuffledBatches(40, plan(start_step=3), seed=7)) == batches[3:]


def test_no_image_repeats_within_an_epoch_and_each_epoch_has_another_order():
    batches = list(ShuffledBatches(40, plan(num_steps=6), seed=7))  # 3 steps per epoch
    epochs = [[position for batch in batches[i : i + 3] for position, _ in batch] for i in (0, 3)]
    assert all(len(set(epoch)) == 36 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_order_is_determined_by_the_seed():
    assert list(ShuffledBatches(40, plan(), 1)) == list(ShuffledBatches(40, plan(), 1))
    assert list(ShuffledBatches(40, plan(), 1)) != list(ShuffledBatches(40, plan(), 2))


def test_a_batch_size_larger_than_the_dataset_is_an_error_with_both_sizes():
    with pytest.raises(
        ValueError, match=r"batch_size \(12\) is larger than the dataset \(10 images"
    ):
        ShuffledBatches(10, plan(), seed=0)


def test_collate_adds_the_batch_axis_after_the_axis_of_views():
    sample = {
        "global_views": np.zeros((2, 3, 8, 8), np.uint8),
        "pixel_values": np.zeros((3, 8, 8), np.uint8),
        "noises": np.zeros((2, 4), np.float32),
        "noise": np.zeros(4, np.float32),
        "labels": 1,
        "skipped": [("a", "b")],
    }
    batch = collate([sample, {**sample, "skipped": []}, sample])
    assert batch["global_views"].shape == (2, 3, 3, 8, 8)
    assert batch["pixel_values"].shape == (3, 3, 8, 8)
    assert batch["noises"].shape == (2, 3, 4)
    assert batch["noise"].shape == (3, 4)
    assert batch["labels"].tolist() == [1, 1, 1]
    assert batch["skipped"] == [("a", "b"), ("a", "b")]


def test_normalize_equals_the_image_processor():
    config = SelfViTConfig(image_size=32, patch_size=8)
    processor = build_processor(config, resize="square")
    image = noise(32, 32)
    expected = processor(image, return_tensors="pt").pixel_values[0]
    views = torch.from_numpy(np.array(image).transpose(2, 0, 1))
    normalized = normalize(views, processor.image_mean, processor.image_std)
    torch.testing.assert_close(normalized, expected, rtol=0, atol=1e-5)


def loader(
    source, num_workers=0, augmentation=None, with_labels=False, stream_state=None, **changes
):
    return build_loader(
        source,
        augmentation or MultiCrop(num_local_views=1, local_view_size=16),
        plan(batch_size=4, num_steps=6, **changes),
        image_size=(32, 32),
        patch_size=8,
        seed=3,
        with_labels=with_labels,
        num_workers=num_workers,
        shuffle_buffer=10,
        stream_state=stream_state,
    )


def test_a_large_photo_is_decoded_no_larger_than_its_crops_need(tmp_path):
    noise(800, 600).save(tmp_path / "a.jpg", quality=95)
    augmentation = MultiCrop(num_local_views=2, local_view_size=16)
    views = ViewDataset(open_images(tmp_path), augmentation, (64, 64), 8, 3, with_labels=False)
    record = views.source[0]
    whole = decode_pixels(record.image)
    assert whole.pixels.shape == (600, 800, 3)
    sizes = set()
    for draw in range(20):
        reduced = views.decode(record, draw)
        sizes.add(reduced.pixels.shape)
        first, second = (views.make_views(image, record, draw) for image in (reduced, whole))
        for name in ("global_views", "local_views"):
            assert np.abs(first[name].astype(int) - second[name]).mean() < 2
    assert sizes == {(300, 400, 3), (150, 200, 3)}  # by what is drawn


def views_of(batches):
    return torch.stack([batch["global_views"] for batch in batches])


def test_batches_do_not_depend_on_the_number_of_workers_or_the_global_random_state(image_folder):
    source = open_images(image_folder)
    without_workers = views_of(loader(source))
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(views_of(loader(source, num_workers=2)), without_workers)


def test_loading_does_not_change_the_global_random_state(image_folder):
    before = torch.get_rng_state()
    list(loader(open_images(image_folder), num_workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_image_seen_again_is_augmented_differently(image_folder):
    source = open_images(image_folder)
    dataset = ViewDataset(source, MultiCrop(local_view_size=16), (32, 32), 8, 0, False)
    first, second = dataset[(2, 2)], dataset[(2, 9)]
    assert not np.array_equal(first["global_views"], second["global_views"])


def test_batches_contain_labels_if_requested(image_folder):
    source = open_images(image_folder)
    for batch in loader(source, augmentation=CropAndFlip(), with_labels=True):
        assert batch["pixel_values"].shape == (4, 3, 32, 32)
        assert set(batch["labels"].tolist()) <= {0, 1, 2}


def test_unreadable_images_are_replaced_and_reported_with_their_reason(tmp_path):
    for index in range(4):
        noise(20, 20, index).save(tmp_path / f"{index}.png")
    empty_jpeg(tmp_path / "empty.jpg")
    text_jpeg(tmp_path / "text.jpg")
    truncated_jpeg(tmp_path / "truncated.jpg")
    batches = list(loader(open_images(tmp_path), num_workers=1))
    assert all(batch["global_views"].shape == (2, 4, 3, 32, 32) for batch in batches)
    reasons = dict(entry for batch in batches for entry in batch["skipped"])
    assert reasons.keys() == {"empty.jpg", "text.jpg", "truncated.jpg"}
    assert "empty" in reasons["empty.jpg"] and all(reasons.values())


def test_a_folder_of_only_unreadable_images_is_an_error_with_one_name_and_reason(tmp_path):
    for index in range(5):
        empty_jpeg(tmp_path / f"{index}.jpg")
    with pytest.raises(ValueError, match=r"5 images in a row cannot be read.*\.jpg \(empty"):
        next(iter(loader(open_images(tmp_path))))


MIXING = MixedCrop(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1)


def assert_equal_batches(first, second):
    for name in ("pixel_values", "labels"):
        assert torch.equal(first[name], second[name]), name


def test_mixed_batches_resume_exactly_with_another_number_of_workers(image_folder):
    source = open_images(image_folder)
    mixing = {"augmentation": MIXING, "with_labels": True}
    uninterrupted = list(loader(source, **mixing))
    assert all(batch["labels"].shape == (4, 3) for batch in uninterrupted)
    assert not torch.equal(uninterrupted[0]["labels"], uninterrupted[1]["labels"])
    resumed = list(loader(source, num_workers=2, start_step=2, **mixing))
    for expected, batch in zip(uninterrupted[2:], resumed, strict=True):
        assert_equal_batches(batch, expected)


def test_mixed_crop_with_default_settings_changes_only_labels_to_one_hot(image_folder):
    source = open_images(image_folder)
    plain = loader(source, augmentation=CropAndFlip(), with_labels=True)
    without_mixing = loader(source, augmentation=MixedCrop(), with_labels=True)
    for expected, batch in zip(plain, without_mixing, strict=True):
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
        assert torch.equal(batch["labels"].argmax(dim=1), expected["labels"])


def test_batches_without_labels_are_not_mixed(image_folder):
    source = open_images(image_folder)
    plain = loader(source, augmentation=CropAndFlip())
    for expected, batch in zip(plain, loader(source, augmentation=MIXING), strict=True):
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
        assert "labels" not in batch


def test_each_process_mixes_its_images_independently(image_folder):
    source = open_images(image_folder)
    parts = [
        next(
            iter(loader(source, augmentation=MIXING, with_labels=True, num_processes=2, rank=rank))
        )
        for rank in (0, 1)
    ]
    assert all(part["labels"].shape == (2, 3) for part in parts)
    assert not torch.equal(parts[0]["labels"], parts[1]["labels"])


def test_a_mixed_stream_resumes_at_its_position(labeled_parquet):
    source = open_images(labeled_parquet, streaming=True)
    mixing = {"augmentation": MIXING, "with_labels": True}
    uninterrupted = loader(source, **mixing)
    stream = iter(uninterrupted)
    first = [next(stream) for _ in range(3)]
    state = stream_state(uninterrupted)
    batches = [*first, *(next(stream) for _ in range(4))]  # beyond the first pass
    torch.testing.assert_close(batches[0]["labels"].sum(dim=1), torch.ones(4))
    resumed = iter(loader(source, start_step=3, num_workers=1, stream_state=state, **mixing))
    for expected in batches[3:]:
        assert_equal_batches(next(resumed), expected)


@pytest.fixture(scope="module")
def labeled_parquet(tmp_path_factory):
    from datasets import ClassLabel, Dataset, Features, Image

    rows = {"image": [noise(24, 24, index) for index in range(20)], "label": [0, 1, 2, 1] * 5}
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog", "owl"])})
    path = tmp_path_factory.mktemp("labeled") / "images.parquet"
    Dataset.from_dict(rows, features=features).to_parquet(path)
    return path
