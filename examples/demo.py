"""Demo: train a small encoder on images of clothes, embed them, evaluate it, draw pictures.

    python examples/demo.py --objective dino --output demo [--seed 0] [--max-steps 1875]

Writes a checkpoint, the vectors of the test images, metrics.json (raw pixels, untrained encoder and
trained encoder), a map of the vectors (page and picture) and attention maps. The metrics and the
pictures are also added to the checkpoint's card. `--objective distill` takes the checkpoint of the
DINO demo as its teacher, or trains one first.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining

from selfvit import (
    EmbeddedImages,
    Embedder,
    SelfViTModel,
    add_results,
    decode_image,
    evaluate_embeddings,
    map_vectors,
    open_checkpoint,
    open_images,
    plot_attention_maps,
    save_metrics,
    train,
    write_embeddings,
)

OBJECTIVES = ("dino", "dinov2", "distill", "lejepa", "mae", "pmsn")
SAMPLE = Path(__file__).resolve().parent / "fashion_mnist_sample"
DINO_DEMO = Path("demo") / "checkpoint"  # written by `make demo`


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", choices=OBJECTIVES, default="dino")
    parser.add_argument("--output", "-o", type=Path, default=Path("demo"), help="Folder to write.")
    parser.add_argument("--seed", type=int, default=0, help="Random seed of the run.")
    parser.add_argument("--teacher", help="Teacher of distill; the DINO demo by default.")
    parser.add_argument(
        "--max-steps", type=int, help="Number of optimizer steps; that of the recipe by default."
    )
    arguments = parser.parse_args()
    output, checkpoint = arguments.output, arguments.output / "checkpoint"
    recipe = f"{arguments.objective}_demo"
    train_images = open_images(SAMPLE / "train.parquet")
    test_images = open_images(SAMPLE / "test.parquet")

    show(f"1 of 3: Training on {len(train_images):,} images, without their labels.")
    seconds = {}
    started = time.perf_counter()
    options = {} if arguments.max_steps is None else {"max_steps": arguments.max_steps}
    if arguments.objective == "distill":
        options["teacher"] = arguments.teacher or teacher_of_demo(output, arguments.seed, options)
    train(
        recipe,
        data=SAMPLE / "train.parquet",
        output=checkpoint,
        seed=arguments.seed,
        overwrite=True,
        **options,
    )
    seconds["train"] = time.perf_counter() - started

    show("2 of 3: Embedding and evaluating.")
    started = time.perf_counter()
    metrics, vectors = evaluate(checkpoint, train_images, test_images, arguments.seed)
    write_vectors(checkpoint, test_images, output / "vectors")
    seconds["evaluate"] = time.perf_counter() - started
    metrics |= {
        "recipe": recipe,
        "seed": arguments.seed,
        "loss": loss_curve(checkpoint),
        "seconds": seconds,
    }
    save_metrics(metrics, output / "metrics.json")

    show("3 of 3: Drawing.")
    pictures = draw(checkpoint, test_images, vectors, output)
    add_results(
        checkpoint,
        metrics["trained"],
        pictures,
        baselines={"raw pixels": metrics["raw_pixels"], "untrained": metrics["untrained"]},
        evaluated_on=str(SAMPLE / "test.parquet"),
    )

    print_summary(arguments.objective, output, metrics)


def teacher_of_demo(output: Path, seed: int, options: dict[str, Any]) -> str:
    """Return the checkpoint of the DINO demo, or train one in `output`/teacher."""
    if (DINO_DEMO / "config.json").exists():
        show(f"The teacher is {DINO_DEMO}.")
        return str(DINO_DEMO)
    show("Training a teacher first (dino_demo).")
    teacher = output / "teacher"
    train(
        "dino_demo",
        data=SAMPLE / "train.parquet",
        output=teacher,
        seed=seed,
        overwrite=True,
        **options,
    )
    return str(teacher)


def show(text: str) -> None:
    """Print a line of progress immediately, also to a pipe or file."""
    print(text, flush=True)


def evaluate(
    checkpoint: Path, train_images: Any, test_images: Any, seed: int
) -> tuple[dict[str, Any], EmbeddedImages]:
    """Evaluate raw pixels, the encoder without training and the trained encoder.

    Args:
        checkpoint: Checkpoint folder.
        train_images: Labeled images that k-NN and linear probe learn from.
        test_images: Labeled images that they are tested on.
        seed: Random seed of the untrained encoder.

    Returns:
        Metrics by encoder, and the test images' vectors by the trained encoder.
    """
    show("raw pixels: k-NN and linear probe")
    metrics = {"raw_pixels": evaluate_embeddings(raw_pixels(train_images), raw_pixels(test_images))}
    config = AutoConfig.from_pretrained(checkpoint)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    torch.manual_seed(seed)
    encoders = {
        "untrained": AutoModelForPreTraining.from_config(config).vit,
        "trained": AutoModel.from_pretrained(checkpoint),
    }
    for name, encoder in encoders.items():
        embedder = Embedder(encoder, processor, batch_size=256)
        show(f"{name} encoder: embedding {len(train_images) + len(test_images):,} images")
        vectors = [embedder.embed(images, progress=True) for images in (train_images, test_images)]
        show(f"{name} encoder: k-NN and linear probe")
        metrics[name] = evaluate_embeddings(*vectors)
    return metrics, vectors[1]


def raw_pixels(images: Any) -> EmbeddedImages:
    """Return the gray values of images as vectors, a baseline for every encoder."""
    records = list(images)
    gray = [decode_image(record.image).convert("L") for record in records]
    vectors = np.stack([np.asarray(image, dtype=np.float32).ravel() / 255 for image in gray])
    ids = [record.id for record in records]
    return EmbeddedImages(vectors, ids, images.labels(), images.label_names, skipped=[])


def write_vectors(checkpoint: Path, images: Any, folder: Path) -> None:
    """Write the vectors of images, as `selfvit embed` does."""
    embedder = Embedder.from_pretrained(checkpoint, batch_size=256)
    metadata = {
        "model": str(checkpoint.absolute()),
        "network": "teacher",
        "images": {"data": [str(SAMPLE / "test.parquet")]},  # where `selfvit explore` finds them
    }
    write_embeddings(embedder, images, folder, overwrite=True, progress=False, metadata=metadata)


def loss_curve(checkpoint: Path) -> dict[str, float]:
    """Return the loss at the start, at its highest and at the end, as means over ten log lines."""
    lines = (checkpoint / "log.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    window = min(10, len(losses))
    means = np.convolve(losses, np.ones(window) / window, mode="valid")
    return {"start": means[0], "highest": means.max(), "end": means[-1]}


def draw(
    checkpoint: Path, test_images: Any, vectors: EmbeddedImages, output: Path
) -> list[tuple[Path, str]]:
    """Draw maps of the test images and attention maps of four; return files and captions."""
    embedding_map, attention = output / "embedding_map.png", output / "attention_maps.png"
    show(f"arranging {len(test_images):,} test images on a map (t-SNE)")
    for file in (embedding_map, output / "map.html"):  # laid out once
        map_vectors(output / "vectors", file, method="tsne")
    show("attention of the class token")
    # Four times the size of training, because more patches give a finer map.
    model, processor = open_checkpoint(SelfViTModel, checkpoint, image_size=112)
    positions = [int(np.argmax(vectors.labels == label)) for label in (0, 3, 5, 8)]
    chosen = [decode_image(test_images[position].image) for position in positions]
    plot_attention_maps(model, processor, chosen, attention)
    return [
        (embedding_map, "The test images, arranged by their vectors (t-SNE)."),
        (attention, "Attention of the class token in the last block, for four test images."),
    ]


def print_summary(objective: str, output: Path, metrics: dict[str, Any]) -> None:
    """Print the metrics, the files that were written, and the next commands."""
    print(f"\n{'accuracy in %':<16}{'k-NN (k=20)':>12}{'linear probe':>14}")
    for name in ("raw_pixels", "untrained", "trained"):
        row = metrics[name]
        title = name.replace("_", " ")
        print(f"{title:<16}{100 * row['knn_20']:>12.1f}{100 * row['linear_probe']:>14.1f}")
    loss = metrics["loss"]
    teacher = " --teacher TEACHER" if objective == "distill" else ""
    print(
        f"\nTraining took {metrics['seconds']['train']:.0f} s. Loss: {loss['start']:.2f} at the "
        f"start, {loss['highest']:.2f} at its highest, {loss['end']:.2f} at the end."
    )
    print(
        f"""
{output}/checkpoint          the model: AutoModel.from_pretrained("{output}/checkpoint")
{output}/vectors             vectors of the test images (Parquet)
{output}/metrics.json        all metrics
{output}/map.html            map of the test images, similar ones next to each other
{output}/embedding_map.png   the same map as a picture
{output}/attention_maps.png  attention of the class token

Open the map, or search and browse the images (Ctrl+C ends it):
  {(output / "map.html").resolve().as_uri()}
  selfvit explore {output}/vectors

Next, on a folder of your own images:
  selfvit train {objective}{teacher} --data FOLDER --output my_model
  selfvit embed my_model --data FOLDER --output my_vectors"""
    )


if __name__ == "__main__":
    main()
