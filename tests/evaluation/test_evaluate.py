import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn")
from selfvit.data.sources import open_images
from selfvit.embedding.embedder import EmbeddedImages
from selfvit.evaluation.evaluate import (
    check_labels,
    count_shared,
    evaluate_checkpoint,
    evaluate_embeddings,
    format_table,
    label_free_measures,
    save_metrics,
    why_no_accuracies,
)
from selfvit.evaluation.knn import weighted_knn_accuracy
from selfvit.evaluation.label_free import feature_standard_deviation, rankme
from selfvit.evaluation.linear_probe import linear_probe_accuracy

NAMES = ["cat", "dog", "owl"]
KEYS = [
    "knn_10",
    "knn_20",
    "linear_probe",
    "feature_std",
    "rankme",
    "num_train",
    "num_test",
    "num_skipped",
]


def embedded(num_images, seed=0, label_names: list[str] | None = NAMES, labels=None):
    """Return vectors of three well-separated classes; the classes are the same for every seed."""
    if labels is None:
        labels = np.arange(num_images) % 3
    centers = 5 * np.random.default_rng(0).normal(size=(3, 8))
    vectors = centers[labels] + np.random.default_rng(seed).normal(size=(num_images, 8))
    ids = [str(index) for index in range(num_images)]
    return EmbeddedImages(vectors.astype(np.float32), ids, labels, label_names, [])


def without_labels(images):
    return EmbeddedImages(images.vectors, images.ids, None, None, [])


def write_folder(folder: Path, count: int, names=("black", "white"), seed: int = 0) -> Path:
    """Write dark and bright noise as PNG files, one folder per class."""
    generator = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            low = 0 if name == "black" else 200
            pixels = generator.integers(low, low + 55, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def test_separable_classes_have_an_accuracy_of_one():
    metrics = evaluate_embeddings(embedded(60), embedded(30, seed=1))
    assert list(metrics) == KEYS
    assert metrics["knn_10"] == metrics["knn_20"] == metrics["linear_probe"] == 1
    assert (metrics["num_train"], metrics["num_test"]) == (60, 30)
    assert json.loads(json.dumps(metrics)) == metrics


def test_classes_are_matched_by_name():
    # test lacks "cat", so "dog" is 0 and "owl" is 1: by index, every prediction would be wrong
    test = embedded(30, seed=1, labels=1 + np.arange(30) % 2)
    renumbered = EmbeddedImages(test.vectors, test.ids, test.labels - 1, ["dog", "owl"], [])
    assert evaluate_embeddings(embedded(60), renumbered)["knn_10"] == 1


def test_classes_without_names_are_matched_by_index():
    metrics = evaluate_embeddings(embedded(60), embedded(30, seed=1, label_names=None))
    assert metrics["knn_10"] == 1


def test_the_error_names_a_class_that_train_lacks():
    test = embedded(30, label_names=["cat", "dog", "emu"])
    with pytest.raises(ValueError, match="lacks emu"):
        evaluate_embeddings(embedded(60), test)


def test_ks_above_the_number_of_training_images_are_skipped_with_a_warning(caplog):
    metrics = evaluate_embeddings(embedded(12), embedded(9, seed=1))
    assert "knn_10" in metrics and "knn_20" not in metrics
    assert "k = 20 is skipped: there are only 12" in caplog.text


def test_test_images_that_are_also_training_images_are_counted(caplog):
    train, test = embedded(60), embedded(30, seed=1)
    evaluate_embeddings(train, test)
    assert not caplog.records
    rounding = 1 + 1e-6 * np.random.default_rng(0).standard_normal((7, 1), dtype=np.float32)
    test.vectors[:7] = train.vectors[20:27] * rounding
    evaluate_embeddings(train, test)
    assert "7 of 30 test images are also training images" in caplog.text
    same = np.ones(
        (40, 8), np.float32
    )  # of a collapsed encoder: equal vectors do not prove equal images
    assert count_shared(same, same) == 0


@pytest.mark.parametrize("unlabeled", ["train", "test", "both", "no test"])
def test_without_labels_there_are_label_free_metrics_and_a_note(unlabeled):
    train, test = embedded(60), embedded(30, seed=1)
    if unlabeled in ("train", "both"):
        train = without_labels(train)
    if unlabeled in ("test", "both"):
        test = without_labels(test)
    metrics = evaluate_embeddings(train, None if unlabeled == "no test" else test)
    assert list(metrics) == ["feature_std", "rankme", "num_train", "num_test", "num_skipped"]
    assert metrics["num_test"] == (0 if unlabeled == "no test" else 30)
    assert "No accuracies: they need labels" in format_table(metrics)
    # the sentence did not say which images have no labels
    reason = {
        "train": "the training images have no labels.",
        "test": "the test images have no labels.",
        "both": "the training and test images have no labels.",
        "no test": "they need labeled test images (--test).",
    }[unlabeled]
    why = why_no_accuracies(train, None if unlabeled == "no test" else test)
    assert format_table(metrics, why).endswith(f"No accuracies: {reason}")


def test_one_class_has_an_accuracy_of_knn_and_none_of_the_probe(caplog):
    """The table said that there are no accuracies, too."""
    train, test = (
        EmbeddedImages(part.vectors, part.ids, np.zeros(len(part.ids), int), NAMES, [])
        for part in (embedded(60), embedded(30, seed=1))
    )
    metrics = evaluate_embeddings(train, test)
    assert metrics["knn_10"] == 1 and "linear_probe" not in metrics
    assert "The linear probe is skipped" in caplog.text
    assert "No accuracies" not in format_table(metrics)


def test_images_without_a_label_do_not_count_toward_accuracies():
    # -1 marks a missing label; as an index it would be the last class
    test = embedded(30, seed=1)
    labels = np.where(np.arange(30) < 10, -1, test.labels)
    partly = EmbeddedImages(test.vectors, test.ids, labels, NAMES, [])
    metrics = evaluate_embeddings(embedded(60), partly)
    assert metrics["knn_10"] == metrics["linear_probe"] == 1
    hidden = EmbeddedImages(test.vectors, test.ids, np.full(30, -1), NAMES, [])
    assert "knn_10" not in evaluate_embeddings(embedded(60), hidden)


def test_vectors_that_are_not_finite_are_rejected():
    broken = embedded(60)
    broken.vectors[3, 2] = np.nan
    with pytest.raises(ValueError, match="train vectors must be finite, but 1 of 60"):
        evaluate_embeddings(broken, embedded(30))


def test_rankme_of_many_images_uses_a_subset(monkeypatch):
    monkeypatch.setattr("selfvit.evaluation.evaluate.MAX_RANKME_IMAGES", 300)
    vectors = np.random.default_rng(0).normal(size=(3000, 8))
    everything = label_free_measures(vectors[::10])
    assert label_free_measures(vectors)["rankme"] == pytest.approx(everything["rankme"], rel=0.01)


def test_table_is_aligned_and_in_percent():
    metrics = {"knn_20": 0.7451, "linear_probe": 1.0, "rankme": 201.44, "num_train": 60000}
    assert format_table(metrics) == (
        "k-NN, k = 20      74.5 %\n"
        "linear probe     100.0 %\n"
        "RankMe             201.4\n"
        "training images   60,000"
    )


def test_metrics_replace_the_file_atomically(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    save_metrics({"rankme": 1.5}, path)
    save_metrics({"rankme": 2.5}, path)
    assert json.loads(path.read_text()) == {"rankme": 2.5}
    with pytest.raises(TypeError):
        save_metrics({"rankme": object()}, path)  # type: ignore[dict-item]
    assert json.loads(path.read_text()) == {"rankme": 2.5}
    assert list(path.parent.iterdir()) == [path]


def test_a_checkpoint_is_measured_from_image_files(tiny_checkpoint, tmp_path):
    train = open_images(write_folder(tmp_path / "train", 12))
    test = open_images(write_folder(tmp_path / "test", 6, seed=1))
    metrics = evaluate_checkpoint(tiny_checkpoint, train, test, device="cpu")
    assert list(metrics) == KEYS
    assert metrics["knn_10"] == metrics["linear_probe"] == 1  # black from white
    assert (metrics["num_train"], metrics["num_test"]) == (24, 12)


def test_limit_samples_images_of_all_classes(tiny_checkpoint, tmp_path):
    # folders are sorted by class, so the first images all belong to one class
    train = open_images(write_folder(tmp_path / "train", 12))
    test = open_images(write_folder(tmp_path / "test", 6, seed=1))
    metrics = evaluate_checkpoint(tiny_checkpoint, train, test, ks=(1,), device="cpu", limit=6)
    assert (metrics["num_train"], metrics["num_test"]) == (6, 6)
    assert metrics["knn_1"] == 1


def test_unreadable_images_are_skipped_with_a_warning(tiny_checkpoint, tmp_path, caplog):
    train = write_folder(tmp_path / "train", 12)
    (train / "white" / "0.png").write_bytes(b"no image")
    metrics = evaluate_checkpoint(tiny_checkpoint, open_images(train), device="cpu")
    assert metrics["num_train"] == 23
    assert "1 of 24 images could not be read" in caplog.text and "white/0.png" in caplog.text


def test_invalid_labels_and_missing_packages_are_reported_before_embedding(
    tiny_checkpoint, tmp_path, monkeypatch
):
    train = open_images(write_folder(tmp_path / "train", 2))
    other = open_images(write_folder(tmp_path / "other", 2, names=("black", "gray")))
    test = open_images(write_folder(tmp_path / "test", 2))
    monkeypatch.setattr("selfvit.embedding.embedder.Embedder.embed", None)
    with pytest.raises(ValueError, match="gray"):
        evaluate_checkpoint(tiny_checkpoint, train, other, device="cpu")
    monkeypatch.setitem(sys.modules, "sklearn.preprocessing", None)
    with pytest.raises(ImportError, match=r"selfvit\[train\]"):
        evaluate_checkpoint(tiny_checkpoint, train, test, device="cpu")


def test_an_unlabeled_training_image_does_not_hide_a_missing_class(tmp_path):
    """A class without training images passed as unlabeled; the run failed after embedding."""
    rows = {"train": ["black", "white", ""], "test": ["black", "gray"]}
    sources = {}
    for split, labels in rows.items():
        (tmp_path / split).mkdir()
        for index in range(len(labels)):
            Image.new("RGB", (20, 20)).save(tmp_path / split / f"{index}.png")
        lines = [f"{index}.png,{label}\n" for index, label in enumerate(labels)]
        (tmp_path / split / "metadata.csv").write_text("file_name,label\n" + "".join(lines))
        sources[split] = open_images(tmp_path / split, label_column="label")
    train, test = sources["train"], sources["test"]
    assert train.labels().tolist() == [0, 1, -1]
    with pytest.raises(ValueError, match="lacks gray"):
        check_labels(train, test)
    check_labels(train, train)


def test_metrics_agree_with_the_functions_that_compute_them():
    train, test = embedded(60), embedded(30, seed=1)
    labels, test_labels = np.arange(60) % 3, np.arange(30) % 3
    test.vectors += 12 * np.random.default_rng(2).normal(size=(30, 8)).astype(np.float32)
    metrics = evaluate_embeddings(train, test, ks=(5,))
    arrays = (train.vectors, labels, test.vectors, test_labels)
    assert metrics["linear_probe"] == linear_probe_accuracy(*arrays) < 1
    assert metrics["knn_5"] == weighted_knn_accuracy(*arrays, ks=(5,))[5] < 1
    assert metrics["rankme"] == rankme(train.vectors)
    assert metrics["feature_std"] == feature_standard_deviation(train.vectors)
