"""transformers' Trainer fine-tunes the classifier on the project's sample of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Array3D, Features, load_dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    DefaultDataCollator,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
    pipeline,
)

from selfvit import SelfViTForImageClassification
from tests.objectives import tiny_config

SAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist_sample"
CHANCE = 0.1  # ten balanced classes of clothes


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """1,600 training images and 400 test images."""
    files = {name: str(SAMPLE / f"{name}.parquet") for name in ("train", "test")}
    cache = tmp_path_factory.mktemp("datasets")
    data = load_dataset("parquet", data_files=files, cache_dir=str(cache))
    for name, number in (("train", 1600), ("test", 400)):
        data[name] = data[name].shuffle(seed=0).select(range(number))
    return data


@pytest.fixture(scope="module")
def processor():
    return ViTImageProcessor(size={"height": 28, "width": 28}, do_convert_rgb=True)


@pytest.fixture(scope="module")
def mapped(sample, processor):
    """The sample with pixel values, computed by `datasets.map`."""
    # without a feature type they would be nested lists, which take 6 ms per image to read
    pixels = Array3D(shape=(3, 28, 28), dtype="float32")
    return sample.map(
        lambda batch: processor(batch["image"], return_tensors="np"),
        batched=True,
        remove_columns="image",
        features=Features(label=sample["train"].features["label"], pixel_values=pixels),
    ).with_format("torch")


def test_map_stores_the_output_of_the_processor(sample, mapped, processor):
    assert mapped["test"].column_names == ["label", "pixel_values"]
    images = sample["test"][:5]["image"]
    expected = processor(images, return_tensors="pt").pixel_values
    torch.testing.assert_close(mapped["test"][:5]["pixel_values"], expected, rtol=0, atol=0)


def accuracy(prediction) -> dict[str, float]:
    logits, labels = prediction
    return {"accuracy": float(np.mean(logits.argmax(-1) == labels))}


@pytest.fixture(scope="module")
def trainer(sample, mapped, processor, tmp_path_factory):
    torch.manual_seed(0)
    names = sample["train"].features["label"].names
    config = tiny_config(
        image_size=28,
        patch_size=7,
        pooling="mean",
        hidden_size=64,
        num_attention_heads=4,
        initializer_range=0.1,  # about 1 / sqrt(width)
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("trainer")),
        use_cpu=True,
        num_train_epochs=4,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=200,
        learning_rate=2e-3,
        warmup_steps=20,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(
        model=SelfViTForImageClassification(config),
        args=arguments,
        train_dataset=mapped["train"],
        eval_dataset=mapped["test"],
        processing_class=processor,
        data_collator=DefaultDataCollator(),
        compute_metrics=accuracy,
    )
    trainer.train()
    return trainer


def test_trainer_learns_to_classify_clothes(trainer):
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[-1] < losses[0]
    assert trainer.evaluate()["eval_accuracy"] > 5 * CHANCE


def test_a_checkpoint_of_trainer_opens_in_the_pipeline(trainer, sample, tmp_path):
    trainer.save_model(str(tmp_path))
    opened = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(opened) is SelfViTForImageClassification
    AutoImageProcessor.from_pretrained(tmp_path)

    classify = pipeline("image-classification", model=str(tmp_path), device="cpu")
    found = classify(list(sample["test"]["image"]), top_k=1, batch_size=100)
    names = sample["test"].features["label"].names
    correct = [
        best[0]["label"] == names[label]
        for best, label in zip(found, sample["test"]["label"], strict=True)
    ]
    assert np.mean(correct) == pytest.approx(trainer.evaluate()["eval_accuracy"], abs=0.01)
