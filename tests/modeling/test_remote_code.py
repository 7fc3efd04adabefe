"""A saved folder opens in a virtual environment without selfvit."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    pipeline,
)

from selfvit import (
    SelfViTBackbone,
    SelfViTConfig,
    SelfViTForDINO,
    SelfViTForImageClassification,
    SelfViTModel,
)
from selfvit.embedding.preprocessing import build_processor
from selfvit.modeling.checkpoints.pretrained import write_checkpoint
from selfvit.modeling.checkpoints.remote_code import code_files
from tests.hub_requests import USER
from tests.image_files import noise
from tests.local_hub import LocalHub
from tests.objectives import DINOV3, OBJECTIVES, TINY_TEACHER, tiny_config, tiny_dino_config
from tests.python_without_selfvit import create_python_without_selfvit
from tests.sharing.hub_client import HubClient

NAMES = [objective.name for objective in OBJECTIVES]
PUBLISHED = ("classifier", "dino", "distill")  # opened from the Hub, too
CARD = "---\nlibrary_name: transformers\n---\n\n# A model\n"

# Opens every checkpoint of a folder with every Auto class, and saves the outputs and the models.
WITHOUT_SELFVIT = """
import functools, importlib.util, json, os, sys
from pathlib import Path

assert importlib.util.find_spec("selfvit") is None, "selfvit can be imported"
import torch
import transformers.dynamic_module_utils
from transformers import (
    AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
    AutoModelForPreTraining, pipeline,
)
from PIL import Image

checkpoints, inputs, images, resaved, user, published, results = sys.argv[1:]
inputs, images = torch.load(inputs), sorted(str(path) for path in Path(images).iterdir())
trust = {"trust_remote_code": True}
# each of 74 loads would parse the same files again, for 0.1 s
transformers.dynamic_module_utils.get_imports = functools.cache(
    transformers.dynamic_module_utils.get_imports
)
found = {"by id": {}}


@torch.no_grad()
def results_of(name, checkpoint, resaved="-"):
    architecture = AutoConfig.from_pretrained(checkpoint, **trust).architectures[0]
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    pixels = processor([Image.open(path) for path in images], return_tensors="pt")
    encoder = AutoModel.from_pretrained(checkpoint, **trust)
    extract = pipeline("image-feature-extraction", model=checkpoint, **trust)
    result = {
        "embeddings": encoder(**pixels).pooler_output,
        "pipeline": [extract(path, pool=True)[0] for path in images],
    }
    model = encoder
    if name in inputs:
        model = AutoModelForPreTraining.from_pretrained(checkpoint, **trust)
        if name == "distill":  # a published checkpoint has no local path of its teacher
            model.config.distill_config.teacher = os.environ["TEACHER"]
        torch.manual_seed(0)
        result["loss"] = model(**inputs[name]).loss
        if hasattr(model, "student"):
            student = AutoModel.from_pretrained(checkpoint, network="student", **trust)
            result["student"] = student(**pixels).pooler_output
    if name == "classifier":
        model = AutoModelForImageClassification.from_pretrained(checkpoint, **trust)
        result["logits"] = model(**pixels).logits
        classify = pipeline("image-classification", model=checkpoint, **trust)
        result["scores"] = [classify(path) for path in images]
    for opened in (encoder, model):
        assert type(opened).__module__.startswith("transformers_modules."), type(opened)
    assert type(model).__name__ == architecture or name == "backbone", type(model)
    if resaved != "-":
        model.save_pretrained(Path(resaved) / name)
        processor.save_pretrained(Path(resaved) / name)
    return result


for folder in sorted(Path(checkpoints).iterdir()):
    found[folder.name] = results_of(folder.name, str(folder), resaved)
    if user != "-" and folder.name in published.split():
        found["by id"][folder.name] = results_of(folder.name, f"{user}/{folder.name}")
try:
    AutoModel.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    found["without trust"] = str(error)
if user != "-":
    backbone = AutoBackbone.from_pretrained(f"{user}/dino", out_indices=[1, 3], **trust)
    with torch.no_grad():
        found["feature maps"] = backbone(inputs["dino"]["global_views"][0]).feature_maps
torch.save(found, results)
"""


@pytest.fixture(scope="module")
def python_without_selfvit(tmp_path_factory) -> Path:
    return create_python_without_selfvit(tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(3):
        noise(40 + seed, 50, seed).save(folder / f"{seed}.png")
    return folder


def build_checkpoints(folder: Path) -> dict[str, Any]:
    """Save a tiny model of every class, with all weights changed; return the models by name."""
    torch.manual_seed(0)
    models = {objective.name: objective.model_class(objective.config()) for objective in OBJECTIVES}
    labeled = tiny_config(id2label={0: "cat", 1: "dog", 2: "owl"}, initializer_range=0.2)
    models["classifier"] = SelfViTForImageClassification(labeled)
    models["encoder"] = SelfViTModel(tiny_config(pooling="cls+mean", initializer_range=0.2))
    models["backbone"] = SelfViTBackbone(tiny_config(initializer_range=0.2, **DINOV3))
    for name, model in models.items():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.eval().save_pretrained(folder / name)
        build_processor(model.config).save_pretrained(folder / name)
        (folder / name / "README.md").write_text(CARD)
    return models


class Opened:
    """Models, and what their checkpoints computed in an environment without selfvit."""

    def __init__(self, folder: Path, models: dict[str, Any], images: Path, python: Path, hub: str):
        generator = torch.Generator().manual_seed(1)
        self.models = models
        self.folder = folder
        self.paths = sorted(images.iterdir())
        self.inputs = {entry.name: entry.inputs(generator, 4) for entry in OBJECTIVES}
        torch.save(self.inputs, folder / "inputs.pt")

        def run(checkpoints: str, resaved: str, user: str, cache: str) -> dict[str, Any]:
            variables = {"HF_HOME": str(folder / cache), "HF_ENDPOINT": hub, "OMP_NUM_THREADS": "1"}
            variables["TEACHER"] = TINY_TEACHER
            if user == "-":
                variables["HF_HUB_OFFLINE"] = "1"
            process = subprocess.run(
                [
                    python, "-I", "-c", WITHOUT_SELFVIT, folder / checkpoints, folder / "inputs.pt",
                    images, resaved, user, " ".join(PUBLISHED), folder / "results.pt",
                ],
                cwd=folder,
                env={"PATH": os.environ["PATH"], "HF_HUB_DISABLE_XET": "1", **variables},
                capture_output=True,
                text=True,
            )  # fmt: skip
            assert process.returncode == 0, process.stderr
            return torch.load(folder / "results.pt")

        self.first = run("checkpoints", str(folder / "resaved"), USER, "cache")
        self.again = run("resaved", "-", "-", "another cache")

    def __getitem__(self, name: str) -> list[dict[str, Any]]:
        """Return the outputs of a checkpoint, of the resaved one, and of a copy on the Hub."""
        by_id = [self.first["by id"][name]] if name in PUBLISHED else []
        return [self.first[name], self.again[name], *by_id]

    def pixels(self, name: str) -> torch.Tensor:
        processor = AutoImageProcessor.from_pretrained(self.folder / "checkpoints" / name)
        return processor([Image.open(path) for path in self.paths], return_tensors="pt")[
            "pixel_values"
        ]


@pytest.fixture(scope="module")
def opened(tmp_path_factory, images, python_without_selfvit) -> Opened:
    folder = tmp_path_factory.mktemp("remote")
    models = build_checkpoints(folder / "checkpoints")
    with LocalHub() as hub:
        with HubClient(hub, folder / "publisher") as client:
            for name in PUBLISHED:
                code, printed = client.run(
                    "publish", folder / "checkpoints" / name, f"{USER}/{name}"
                )
                assert code == 0, printed
        return Opened(folder, models, images, python_without_selfvit, hub.url)


@torch.no_grad()
def embeddings_of(encoder: Any, pixels: torch.Tensor) -> torch.Tensor:
    embeddings = encoder(pixels).pooler_output
    assert embeddings.std(dim=0).mean() > 0.01, "embeddings must differ between images"
    return embeddings


@pytest.mark.parametrize("name", [*NAMES, "classifier", "encoder", "backbone"])
def test_without_selfvit_the_vectors_are_bit_identical(name, opened):
    model = opened.models[name]
    expected = embeddings_of(getattr(model, "vit", model), opened.pixels(name))
    for result in opened[name]:
        assert torch.equal(result["embeddings"], expected)
    extract = pipeline(
        "image-feature-extraction", model=str(opened.folder / "checkpoints" / name), device="cpu"
    )
    for result in opened[name]:
        assert result["pipeline"] == [extract(str(path), pool=True)[0] for path in opened.paths]


@pytest.mark.parametrize("name", NAMES)
def test_without_selfvit_the_objective_computes_the_same_loss(name, opened):
    torch.manual_seed(0)
    with torch.no_grad():
        expected = opened.models[name](**opened.inputs[name]).loss
    for result in opened[name]:
        assert torch.equal(result["loss"], expected)


def test_without_selfvit_the_student_opens(opened):
    with_students = [name for name in NAMES if hasattr(opened.models[name], "student")]
    assert with_students
    for name in with_students:
        expected = embeddings_of(opened.models[name].student.vit, opened.pixels(name))
        for result in opened[name]:
            assert torch.equal(result["student"], expected), name
            assert not torch.equal(result["student"], result["embeddings"]), name


def test_without_selfvit_the_classifier_and_its_pipeline_are_bit_identical(opened):
    with torch.no_grad():
        expected = opened.models["classifier"](opened.pixels("classifier")).logits
    folder = str(opened.folder / "checkpoints" / "classifier")
    classify = pipeline("image-classification", model=folder, device="cpu")
    for result in opened["classifier"]:
        assert torch.equal(result["logits"], expected)
        assert result["scores"] == [classify(str(path)) for path in opened.paths]


def test_without_selfvit_a_repository_opens_as_a_backbone(opened):
    backbone = SelfViTBackbone.from_pretrained(
        opened.folder / "checkpoints" / "dino", out_indices=[1, 3]
    )
    with torch.no_grad():
        expected = backbone(opened.inputs["dino"]["global_views"][0]).feature_maps
    assert len(opened.first["feature maps"]) == len(expected) == 2
    for found, wanted in zip(opened.first["feature maps"], expected, strict=True):
        assert torch.equal(found, wanted)


def test_without_selfvit_the_code_has_to_be_trusted(opened):
    assert "trust_remote_code=True" in opened.first["without trust"]


def test_installed_selfvit_is_used_instead_of_the_code_in_the_folder(opened, capfd):
    for name, model in opened.models.items():
        folder = opened.folder / "checkpoints" / name
        for trust in ({}, {"trust_remote_code": True}, {"trust_remote_code": False}):
            assert type(AutoConfig.from_pretrained(folder, **trust)) is SelfViTConfig
            assert type(AutoModel.from_pretrained(folder, **trust)) is SelfViTModel
            if name in NAMES:
                found = AutoModelForPreTraining.from_pretrained(folder, **trust)
                assert type(found) is type(model)
    found = AutoModelForImageClassification.from_pretrained(opened.folder / "resaved/classifier")
    assert type(found) is SelfViTForImageClassification
    assert "custom code" not in "".join(capfd.readouterr())


# What is written


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def modules_of(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.py")}


CODE = {"configuration_selfvit", "modeling_selfvit"}


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda entry: entry.name)
def test_a_folder_has_two_code_files_with_its_own_objective_only(objective, tmp_path):
    model = objective.model_class(objective.config())
    model.save_pretrained(tmp_path)
    assert modules_of(tmp_path) == {path.stem for path in code_files(tmp_path)} == CODE
    code = (tmp_path / "modeling_selfvit.py").read_text()
    for other in OBJECTIVES:
        is_defined = f"class {other.model_class.__name__}(" in code
        assert is_defined == (other is objective)
    assert written(tmp_path)["auto_map"] == {
        "AutoConfig": "modeling_selfvit.SelfViTConfig",
        "AutoModel": "modeling_selfvit.SelfViTModel",
        "AutoModelForImageClassification": "modeling_selfvit.SelfViTForImageClassification",
        "AutoBackbone": "modeling_selfvit.SelfViTBackbone",
        "AutoModelForPreTraining": f"modeling_selfvit.{objective.model_class.__name__}",
    }


def test_an_encoder_has_no_code_of_an_objective(tmp_path):
    # its configuration still has the settings of the objective
    SelfViTForDINO(tiny_config(dino_config=tiny_dino_config())).save_pretrained(tmp_path / "dino")
    encoder = SelfViTModel.from_pretrained(tmp_path / "dino")
    encoder.save_pretrained(tmp_path / "encoder")
    assert "AutoModelForPreTraining" not in written(tmp_path / "encoder")["auto_map"]
    assert "DINOLoss" not in (tmp_path / "encoder" / "modeling_selfvit.py").read_text()


def test_save_code_false_writes_no_code_and_removes_earlier_code(tmp_path):
    model = SelfViTModel(tiny_config())
    model.save_pretrained(tmp_path)
    assert modules_of(tmp_path) == CODE
    model.save_pretrained(tmp_path, save_code=False)
    assert not modules_of(tmp_path)
    assert "auto_map" not in written(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is SelfViTModel


def test_saving_over_an_older_checkpoint_removes_its_modules(tmp_path):
    (tmp_path / "auto_classes.py").write_text("from .modeling_old import SelfViTModel\n")
    (tmp_path / "modeling_old.py").write_text("from .old_layers import OldLayer\n")
    (tmp_path / "old_layers.py").write_text("from .modeling_selfvit import pool\n")
    (tmp_path / "modeling_selfvit.py").write_text("raise ImportError('older selfvit')\n")
    (tmp_path / "my_notes.py").write_text("'of the user'\n")
    code = {"AutoModel": "auto_classes.SelfViTModel", "AutoConfig": "someone/else--elsewhere.X"}
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": code}))
    SelfViTModel(tiny_config()).save_pretrained(tmp_path)
    assert modules_of(tmp_path) == CODE | {"my_notes"}
    assert "older selfvit" not in (tmp_path / "modeling_selfvit.py").read_text()
    assert (tmp_path / "my_notes.py").read_text() == "'of the user'\n"


def test_a_process_that_is_not_the_main_one_writes_no_code(tmp_path):
    SelfViTModel(tiny_config()).save_pretrained(tmp_path, is_main_process=False)
    assert not modules_of(tmp_path)


def test_a_class_derived_outside_the_package_is_saved_as_its_base(tmp_path):
    class Derived(SelfViTForDINO):
        """A class as FSDP or a user derives it."""

    Derived(tiny_config(dino_config=tiny_dino_config())).save_pretrained(tmp_path)
    code = written(tmp_path)["auto_map"]
    assert code["AutoModelForPreTraining"] == "modeling_selfvit.SelfViTForDINO"


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640)])
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "30KB"}, {"variant": "fp32"}])
def test_file_modes_follow_the_umask(umask, mode, options, tmp_path):
    # safetensors creates files that only their owner can read
    (tmp_path / "private.safetensors").touch(0o600)
    earlier = os.umask(umask)
    try:
        write_checkpoint(
            SelfViTModel(tiny_config()), tmp_path, build_processor(tiny_config()), CARD, **options
        )
    finally:
        os.umask(earlier)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes.pop("private.safetensors") == 0o600, "save_pretrained did not write this file"
    assert {"config.json", "README.md", "preprocessor_config.json"} < set(modes)
    assert set(modes.values()) == {mode}, modes


# Resaved without selfvit


def test_code_that_is_saved_again_without_selfvit_stays_the_same(opened):
    for name in opened.models:
        for module in CODE:
            first = opened.folder / "checkpoints" / name / f"{module}.py"
            again = opened.folder / "resaved" / name / f"{module}.py"
            assert again.read_bytes() == first.read_bytes(), name
        assert modules_of(opened.folder / "resaved" / name) == CODE
