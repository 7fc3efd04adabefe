"""The demo: train a small encoder on pictures of clothes, embed them, measure, draw.

    python examples/demo.py --objective dino --output demo [--seed 0] [any field of the recipe]

It writes a checkpoint, the test images' vectors, metrics.json (raw pixels, untrained and trained
encoder side by side), a map of the vectors and attention maps.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
)

import selfvit  # noqa: F401 - registers the models with transformers
from selfvit.data.decoding import decode_image
from selfvit.data.image_source import ImageSource
from selfvit.data.sources import open_images
from selfvit.embedding.embedder import EmbeddedImages, Embedder
from selfvit.embedding.writer import write_embeddings
from selfvit.evaluation.evaluate import evaluate_embeddings, save_metrics
from selfvit.training.recipes import RECIPES
from selfvit.training.train import main as train
from selfvit.visualization.attention_maps import plot_attention_maps
from selfvit.visualization.embedding_map import plot_embedding_map

SAMPLE = Path(__file__).parent / "fashion_mnist_sample"
OBJECTIVES = [name.removesuffix("_demo") for name in RECIPES if name.endswith("_demo")]


def raw_pixels(source: ImageSource) -> EmbeddedImages:
    """Return the images' own pixels as vectors: what any encoder has to beat."""
    images = [decode_image(source[position].image).convert("L") for position in range(len(source))]
    vectors = np.stack([np.asarray(image, dtype=np.float32).ravel() / 255 for image in images])
    ids = [source[position].id for position in range(len(source))]
    return EmbeddedImages(vectors, ids, source.labels(), source.label_names, skipped=[])


def loss_curve(checkpoint: Path) -> dict[str, float]:
    """Return the loss at the start, at its highest, at the end: means over ten log lines."""
    lines = (checkpoint / "log.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    window = min(10, len(losses))
    means = np.convolve(losses, np.ones(window) / window, mode="valid")
    return {"start": means[0], "highest": means.max(), "end": means[-1]}


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", choices=OBJECTIVES, default="dino")
    parser.add_argument("--output", type=Path, default=Path("demo"))
    parser.add_argument("--seed", type=int, default=0)
    arguments, recipe_options = parser.parse_known_args()
    output, checkpoint = arguments.output, arguments.output / "checkpoint"
    recipe = f"{arguments.objective}_demo"
    output.mkdir(parents=True, exist_ok=True)
    train_source = open_images(SAMPLE / "train.parquet")
    test_source = open_images(SAMPLE / "test.parquet")

    print(f"1. Training on {len(train_source)} images, without their labels.", flush=True)
    started = time.perf_counter()
    train(
        [
            recipe, "--data", str(SAMPLE / "train.parquet"), "--output", str(checkpoint),
            "--overwrite", "true", "--seed", str(arguments.seed), *recipe_options,
        ]
    )  # fmt: skip
    seconds = {"train": time.perf_counter() - started}

    print("2. Embedding and evaluating.", flush=True)
    started = time.perf_counter()
    config = AutoConfig.from_pretrained(checkpoint)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    torch.manual_seed(arguments.seed)
    encoders = {
        "untrained": AutoModelForPreTraining.from_config(config).vit,
        "trained": AutoModel.from_pretrained(checkpoint),
    }
    metrics: dict = {
        "raw_pixels": evaluate_embeddings(raw_pixels(train_source), raw_pixels(test_source))
    }
    for name, encoder in encoders.items():
        embedder = Embedder(encoder, processor, batch_size=256)
        vectors = [embedder.embed(source) for source in (train_source, test_source)]
        metrics[name] = evaluate_embeddings(*vectors)
    metadata = {"model": str(checkpoint), "network": "teacher"}
    write_embeddings(
        embedder, test_source, output / "vectors", overwrite=True, progress=False, metadata=metadata
    )
    seconds["evaluate"] = time.perf_counter() - started
    metrics |= {
        "recipe": recipe,
        "seed": arguments.seed,
        "loss": loss_curve(checkpoint),
        "seconds": seconds,
    }
    save_metrics(metrics, output / "metrics.json")

    print("3. Drawing.", flush=True)
    images = [decode_image(record.image) for record in test_source]
    _, test_vectors = vectors
    plot_embedding_map(
        test_vectors.vectors,
        images,
        test_vectors.labels,
        test_vectors.label_names,
        output / "embedding_map.png",
        title="Test images by their vectors (t-SNE), learned without labels",
    )
    one_of_each = [int(np.argmax(test_vectors.labels == label)) for label in range(6)]
    chosen = [images[position] for position in one_of_each]
    plot_attention_maps(encoders["trained"], processor, chosen, output / "attention_maps.png")

    print_summary(recipe, output, metrics)


def print_summary(recipe: str, output: Path, metrics: dict) -> None:
    """Print the figures, what was made, and what to do next."""
    print(f"\n{'accuracy in %':<16}{'k-NN (k=20)':>12}{'linear probe':>14}")
    for name in ("raw_pixels", "untrained", "trained"):
        row = metrics[name]
        title = name.replace("_", " ")
        print(f"{title:<16}{100 * row['knn_20']:>12.1f}{100 * row['linear_probe']:>14.1f}")
    loss = metrics["loss"]
    print(
        f"\nTrained in {metrics['seconds']['train']:.0f} s; loss {loss['start']:.2f} at the start, "
        f"{loss['highest']:.2f} at its highest, {loss['end']:.2f} at the end."
    )
    print(
        f"""
{output}/checkpoint          the model: AutoModel.from_pretrained("{output}/checkpoint")
{output}/vectors             embeddings.parquet of the test images
{output}/metrics.json        all figures
{output}/embedding_map.png   the test images on a map, alike beside alike
{output}/attention_maps.png  what the class token looks at

Next, on a folder of your own images:
  selfvit train {recipe} --data FOLDER --output my_model --image_size 56
  selfvit embed --model my_model --data FOLDER --output my_vectors"""
    )


if __name__ == "__main__":
    main()
