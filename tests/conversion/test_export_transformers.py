import json
import subprocess

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

from selfvit import DINOConfig, SelfViTConfig, SelfViTModel
from selfvit.conversion.exporters.export import export
from selfvit.embedding.embedder import Embedder

# Embeds the images of a folder with every exported model, by AutoModel and by pipeline.
WITHOUT_SELFVIT = """
import json, sys
from pathlib import Path

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "selfvit":
            raise ModuleNotFoundError("selfvit is not here")

sys.meta_path.insert(0, Nowhere())
try:
    import selfvit
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("selfvit can be imported")

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, pipeline

models, images = Path(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir())
vectors = {}
for folder in sorted(models.iterdir()):
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    left = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    assert not left, left
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor([Image.open(path) for path in images], return_tensors="pt")
    with torch.no_grad():
        by_model = model.eval()(**pixels).pooler_output.tolist()
    extract = pipeline("image-feature-extraction", model=str(folder))
    by_pipeline = [extract(str(path), pool=True)[0] for path in images]
    vectors[folder.name] = [type(model).__name__, by_model, by_pipeline]
print(json.dumps(vectors))
"""


@pytest.fixture(scope="module")
def checkpoints(make_checkpoint):
    dino = DINOConfig(num_prototypes=16, head_hidden_size=24, head_bottleneck_size=8)
    return {
        "plain": make_checkpoint(),
        "everything": make_checkpoint(
            num_register_tokens=4, layerscale_value=0.1, use_mask_token=True, resize="square"
        ),
        "fixed": make_checkpoint(position_embedding_type="sincos", qkv_bias=False),
        "other": make_checkpoint(layer_norm_eps=1e-3, hidden_act="relu", mlp_ratio=2.0),
        "dino": make_checkpoint(dino_config=dino),
        "student": make_checkpoint(dino_config=dino),
        "vits16": make_checkpoint(SelfViTConfig.from_name("vits16")),
    }


def network_of(name):
    return "student" if name == "student" else "teacher"


@pytest.fixture(scope="module")
def exported(checkpoints, tmp_path_factory):
    """Return the folder of the exports, named after their checkpoints."""
    folder = tmp_path_factory.mktemp("exports")
    for name, checkpoint in checkpoints.items():
        export(checkpoint, folder / name, to="transformers", network=network_of(name))
    return folder


def test_stock_transformers_vectors_match_without_selfvit(
    python_with_torch, checkpoints, exported, photos, tmp_path
):
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"{index}.png" for index in range(len(photos))]
    for image, path in zip(photos, paths, strict=True):
        image.save(path)
    result = subprocess.run(
        [python_with_torch, "-c", WITHOUT_SELFVIT, exported, tmp_path / "images"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert sorted(found) == sorted(checkpoints)
    for name, (class_name, by_model, by_pipeline) in found.items():
        embedder = Embedder.from_pretrained(
            checkpoints[name], network=network_of(name), device="cpu"
        )
        expected = embedder(paths)
        assert expected.std(axis=0).mean() > 0.01, "the embeddings of the images must differ"
        np.testing.assert_allclose(by_model, expected, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(by_pipeline, expected, atol=1e-5, err_msg=name)
        wanted = "Dinov2WithRegistersModel" if name == "everything" else "Dinov2Model"
        assert class_name == wanted


def test_teacher_and_student_differ(exported):
    weights = [
        AutoModel.from_pretrained(exported / name).embeddings.cls_token
        for name in ("dino", "student")
    ]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("size", [(48, 32), (16, 40), (64, 64), (16, 64)])
def test_vectors_match_for_any_image_size(size, checkpoints, exported):
    pixel_values = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    ours = SelfViTModel.from_pretrained(checkpoints["plain"]).eval()
    theirs = AutoModel.from_pretrained(exported / "plain").eval()
    with torch.no_grad():
        expected, found = ours(pixel_values), theirs(pixel_values)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        found.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0
    )


def test_the_mask_token_is_kept_or_zero(checkpoints, exported):
    ours = SelfViTModel.from_pretrained(checkpoints["everything"]).embeddings.mask_token
    theirs = AutoModel.from_pretrained(exported / "everything").embeddings.mask_token
    assert torch.equal(theirs, ours.flatten(1)) and theirs.any()
    assert not AutoModel.from_pretrained(exported / "plain").embeddings.mask_token.any()


def test_the_processor_of_the_checkpoint_is_kept(checkpoints, exported):
    for name, checkpoint in checkpoints.items():
        ours = AutoImageProcessor.from_pretrained(checkpoint).to_dict()
        assert AutoImageProcessor.from_pretrained(exported / name).to_dict() == ours


@pytest.mark.parametrize(
    ("pooling", "nearest"),
    [
        ("mean", "--to timm"),
        ("cls+mean", "--to sentence-transformers"),
        ("gem", "--to onnx for the exact one"),
        ("concat:2", "--to onnx for the exact one"),
    ],
)
def test_a_pooling_that_cannot_be_expressed_is_refused_with_alternatives(
    pooling, nearest, checkpoints, tmp_path
):
    with pytest.raises(ValueError, match="cannot be expressed.*Use --pooling cls") as error:
        export(checkpoints["plain"], tmp_path / "out", to="transformers", pooling=pooling)
    assert nearest in str(error.value) and repr(pooling) in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_size": [16, 64]}, r"image_size \(16 x 64\) must be square"),
        ({"mlp_ratio": 2.5}, r"mlp_ratio \(2.5\) must be a whole number"),
    ],
)
def test_an_encoder_that_cannot_be_expressed_is_refused(
    overrides, message, make_checkpoint, tmp_path
):
    with pytest.raises(ValueError, match=message):
        export(make_checkpoint(**overrides), tmp_path / "out", to="transformers")
    assert not list(tmp_path.iterdir())
