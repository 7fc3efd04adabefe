import json
import logging

import numpy as np
import pytest
from transformers import AutoImageProcessor

from selfvit.conversion.exporters.export import export
from selfvit.conversion.exporters.sentence_transformers import _quiet_bitsandbytes
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.preprocessing import resized_processor

sentence_transformers = pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint):
    return make_checkpoint()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
def test_encode_vectors_match(pooling, normalize, checkpoint, photos, tmp_path):
    folder = tmp_path / "out"
    report = export(
        checkpoint, folder, to="sentence-transformers", pooling=pooling, normalize=normalize
    )
    assert report.fidelity.max_difference < 1e-5
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    embedder = Embedder.from_pretrained(
        checkpoint, pooling=pooling, normalize=normalize, device="cpu"
    )
    np.testing.assert_allclose(model.encode(photos), embedder(photos), atol=1e-5)
    assert model.get_embedding_dimension() == embedder.embedding_size


def test_the_mean_is_that_of_the_patches_that_the_processor_gives(
    make_checkpoint, photos, tmp_path
):
    checkpoint = make_checkpoint()
    processor = resized_processor(AutoImageProcessor.from_pretrained(checkpoint), 16)
    processor.save_pretrained(checkpoint)  # half the size of the encoder's grid
    export(checkpoint, tmp_path / "out", to="sentence-transformers", pooling="mean")
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    embedder = Embedder.from_pretrained(checkpoint, pooling="mean", device="cpu")
    np.testing.assert_allclose(model.encode(photos), embedder(photos), atol=1e-5)


def test_pooling_and_normalization_are_stored(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "out", to="sentence-transformers", normalize=True)
    modules = json.loads((tmp_path / "out" / "modules.json").read_text())
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    assert kinds == ["Transformer", "Pooling", "Normalize"]
    pooling = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode"] == "cls"


def test_the_warning_of_bitsandbytes_about_a_kernel_is_silent_during_the_import(caplog):
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    with _quiet_bitsandbytes():
        logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community")
    assert not caplog.records
    logger.warning("another one")
    assert len(caplog.records) == 1


def test_register_tokens_work_with_the_class_token(make_checkpoint, photos, tmp_path):
    checkpoint = make_checkpoint(num_register_tokens=3)
    export(checkpoint, tmp_path / "out", to="sentence-transformers")
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    expected = Embedder.from_pretrained(checkpoint, device="cpu")(photos)
    np.testing.assert_allclose(model.encode(photos), expected, atol=1e-5)
    with pytest.raises(ValueError, match="means of sentence-transformers include them"):
        export(checkpoint, tmp_path / "mean", to="sentence-transformers", pooling="mean")


@pytest.mark.parametrize("pooling", ["gem", "concat:2"])
def test_other_poolings_are_refused(pooling, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="modules for cls, mean and cls.mean. Use --pooling cls"):
        export(checkpoint, tmp_path / "out", to="sentence-transformers", pooling=pooling)
    assert not list(tmp_path.iterdir())
