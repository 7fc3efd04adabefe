"""Model cards of real checkpoints: one run per objective, a classifier, converted weights."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id
from transformers.pipelines import PIPELINE_REGISTRY

from selfvit import SelfViTConfig, SelfViTForImageClassification, SelfViTModel
from selfvit.conversion.convert import convert
from selfvit.data.sources import open_images
from selfvit.embedding.preprocessing import build_processor
from selfvit.modeling.checkpoints.pretrained import write_checkpoint
from selfvit.sharing.model_card import (
    CardContents,
    TrainingFacts,
    add_results,
    render_model_card,
)
from selfvit.sharing.provenance import LICENSES, Provenance
from selfvit.training.checkpoints.card import describe_data
from selfvit.training.train import main

from ..conversion.source_files import dino_checkpoint, golden_weights, heads_of, save_weights
from ..image_files import noise
from ..objectives import tiny_config, tiny_dino_config
from ..training import conftest as training
from ..training.tiny_runs import LOOP, OBJECTIVES, arguments

two_classes = training.two_classes
fresh_accelerate_state = training.fresh_accelerate_state

CARDS = [*OBJECTIVES, "classifier", "converted_dino", "converted_mae"]
PAPERS = {
    "dino": ["2104.14294"],
    "dinov2": ["2304.07193", "2111.07832"],
    "distill": ["2101.04731", "2106.05237"],
    "lejepa": ["2511.08544"],
    "mae": ["2111.06377"],
    "pmsn": ["2204.07141", "2210.07277"],
    "classifier": ["2104.14294"],  # the objective of its encoder
    "converted_dino": ["2104.14294"],
    "converted_mae": ["2111.06377"],
}
# Title of each objective in the table of a run, and one of its fields there.
SETTINGS = {
    "dino": ("DINO", "teacher_momentum"),
    "dinov2": ("DINOv2", "patch_loss_weight"),
    "distill": ("distillation", "temperature"),
    "lejepa": ("LeJEPA", "regularization_weight"),
    "mae": ("MAE", "mask_ratio"),
    "pmsn": ("PMSN", "teacher_momentum"),
}


@pytest.fixture(scope="module")
def checkpoints(two_classes, tmp_path_factory):
    """Write one checkpoint folder per name, beside an image.jpg, and return their parent folder."""
    place = tmp_path_factory.mktemp("cards")
    noise(40, 36, 1).save(place / "image.jpg")
    evaluation = ("--eval-steps", 2, "--eval-train", two_classes, "--eval-test", two_classes)
    options = ("--max-steps", 2, "--batch-size", 6, *evaluation)
    for objective in OBJECTIVES:
        main(arguments(objective, two_classes, place / objective, *options))
    start = ["classify", *LOOP, "--init-from", str(place / "dino"), "--data", str(two_classes)]
    main([*start, "--output", str(place / "classifier"), *map(str, options)])
    torch.save(dino_checkpoint(), place / "dino.pth")
    convert(place / "dino.pth", place / "converted_dino", num_heads=3)
    convert(save_weights(golden_weights("mae"), place), place / "converted_mae", **heads_of("mae"))
    return place


def card_of(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def sections_of(card):
    """Return the text of each section by its title; the text before the first title is ""."""
    body = card.split("\n---\n", 1)[1]
    parts = re.split(r"^## (.+)\n", body, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def table_of(section):
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", section, flags=re.MULTILINE)
    return dict(rows)


def code_of(card):
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def assert_valid(folder):
    """Check the rules of the validator of the Hub, as far as they are known without the Hub."""
    text = card_of(folder)
    card = ModelCard.load(folder / "README.md")
    assert str(card) == text  # a round trip changes nothing
    metadata = metadata_load(folder / "README.md")
    assert json.loads(json.dumps(metadata)) == metadata  # plain values
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] in PIPELINE_REGISTRY.get_supported_tasks()
    assert all(isinstance(tag, str) and len(tag) < 64 for tag in metadata["tags"])
    assert metadata.get("license", "other") in LICENSES
    for name in [metadata.get("base_model"), *(metadata.get("datasets") or [])]:
        if name is not None:
            validate_repo_id(name)
    if "model-index" in metadata:
        name, results = model_index_to_eval_results(metadata["model-index"])
        assert name and results == card.data.eval_results
        assert all(0 <= result.metric_value <= 1 for result in results)
    return metadata


@pytest.mark.parametrize("name", CARDS)
def test_a_card_has_every_section_and_valid_metadata(name, checkpoints, two_classes):
    card = card_of(checkpoints / name)
    origin = "Source" if name.startswith("converted") else "Training"
    sections = sections_of(card)
    assert list(sections) == [
        "", "Usage", "Model details", origin, "Results", "Limitations", "License", "Citation",
    ]  # fmt: skip
    assert all(len(text.strip()) > 40 for text in sections.values())
    assert sections[""].strip().startswith(f"# {name}\n")
    config = json.loads((checkpoints / name / "config.json").read_text())
    details = table_of(sections["Model details"])
    assert details["Class"] == f"`{config['architectures'][0]}`"
    assert f"width {config['hidden_size']}," in details["Encoder"]
    cited = re.findall(r"arXiv (\d+\.\d+)", sections["Citation"])
    assert cited == PAPERS[name] and "@software{selfvit" in sections["Citation"]
    assert_valid(checkpoints / name)
    # no local paths and no remains of the template
    assert str(checkpoints) not in card and str(two_classes.parent) not in card
    assert not re.search(r"\{[{%]|None|Undefined|\n\n\n", card)


@pytest.mark.parametrize("name", [*OBJECTIVES, "classifier"])
def test_the_card_of_a_run_describes_its_training_and_results(name, checkpoints, two_classes):
    sections = sections_of(card_of(checkpoints / name))
    rows = table_of(sections["Training"])
    assert rows["Data"] == f"24 image files in {two_classes.name}"
    assert rows["Initial weights"] == ("dino" if name == "classifier" else "random weights")
    assert rows["Steps"] == "2" and rows["Batch"] == "6 images" and rows["Processes"] == "1"
    assert rows["Hardware"].startswith("CPU (") and rows["Precision"] == "float32"
    assert float(rows["Time"].split()[0]) > 0
    if name != "classifier":
        title, field = SETTINGS[name]
        assert f"{field} " in rows[title]

    logged = (checkpoints / name / "log.jsonl").read_text().splitlines()[-1]
    metrics = json.loads(logged)
    results = table_of(sections["Results"])
    for title, key in {"linear probe": "linear_probe", "k-NN, k = 10": "knn_10"}.items():
        # a run that starts from weights has metrics before and after, with intervals
        after = results[title].split(" | ")[-1]
        assert after.startswith(f"{100 * metrics[key]:.1f} %")
        assert (" | " in results[title]) == (name == "classifier")
    metadata = metadata_load(checkpoints / name / "README.md")
    _, found = model_index_to_eval_results(metadata["model-index"])
    expected = {"k-NN, k = 10": "knn_10", "k-NN, k = 20": "knn_20", "linear probe": "linear_probe"}
    if name == "classifier":
        expected["classifier"] = "accuracy"
    assert {result.metric_name: result.metric_value for result in found} == {
        title: round(metrics[key], 4) for title, key in expected.items()
    }
    assert {(result.dataset_type, result.dataset_name) for result in found} == {
        ("imagefolder", two_classes.name)
    }
    assert {"classifier": "dino", "distill": "distillation"}.get(name, name) in metadata["tags"]
    assert metadata.get("license") == {"distill": "apache-2.0"}.get(name)  # that of its teacher


@pytest.mark.parametrize("name", ["converted_dino", "converted_mae"])
def test_the_card_of_a_converted_checkpoint_names_its_source(name, checkpoints):
    sections = sections_of(card_of(checkpoints / name))
    source = {"converted_dino": "dino.pth", "converted_mae": "weights.pth"}[name]
    assert f"converted by selfvit from `{source}` (facebookresearch/" in sections[""]
    assert table_of(sections["Source"])["`num_attention_heads`"] == "3 (from: option)"
    assert f"selfvit evaluate {name} --train" in sections["Results"]


@pytest.mark.parametrize("name", CARDS)
def test_the_code_of_a_card_runs(name, checkpoints, monkeypatch):
    monkeypatch.chdir(checkpoints)
    with_selfvit, without = code_of(card_of(checkpoints / name))
    assert "import selfvit" in with_selfvit and len(with_selfvit.split("\n\n")[1].split("\n")) < 5
    assert "selfvit" not in without and "trust_remote_code=True" in without
    given: dict[str, Any] = {}
    alone: dict[str, Any] = {}
    exec(with_selfvit, given)
    exec(without, alone)
    if name == "classifier":
        assert given["labels"][0]["label"] == alone["label"]
        return
    config = SelfViTConfig.from_pretrained(checkpoints / name)
    assert len(given["vector"]) == config.embedding_size
    torch.testing.assert_close(torch.tensor(given["vector"]), alone["vector"].detach())


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("is_classifier", [False, True])
def test_the_code_of_a_card_runs_for_other_channels(channels, is_classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise(40, 36, 1).save("image.jpg")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 36, channels), dtype=np.uint8)
    np.save("image.npy", pixels)
    config = tiny_config(num_channels=channels, initializer_range=0.2)
    model_class = SelfViTForImageClassification if is_classifier else SelfViTModel
    contents = CardContents(
        name="bands",
        architecture=model_class.__name__,
        config=config,
        num_parameters=1,
        image_mean=[0.5] * channels,
        image_std=[0.5] * channels,
        provenance=Provenance(),
        pixel_range=(0, 4095),
    )
    processor = build_processor(config, pixel_range=(0, 4095))
    card = render_model_card(contents)
    write_checkpoint(model_class(config), tmp_path / "bands", processor, card)
    assert table_of(sections_of(card)["Model details"])["Channels"] == str(channels)
    assert "0 to 4095" in card
    given: dict[str, Any] = {}
    alone: dict[str, Any] = {}
    with_selfvit, without = code_of(card)
    assert ("image.jpg" in with_selfvit) == (channels == 1)
    exec(with_selfvit, given)
    exec(without, alone)
    if is_classifier:
        assert given["labels"][0]["label"] == alone["label"]
        return
    vector = torch.as_tensor(given["vector"])
    torch.testing.assert_close(vector, alone["vector"].detach(), atol=1e-5, rtol=0)


def test_a_checkpoint_with_model_code_opens_without_selfvit(checkpoints, python_with_torch):
    without = code_of(card_of(checkpoints / "dino"))[1]
    assert "torch and transformers are enough" in card_of(checkpoints / "dino")
    if "auto_map" not in json.loads((checkpoints / "dino" / "config.json").read_text()):
        return
    hidden = "import sys; sys.modules['selfvit'] = None\n"
    result = subprocess.run(
        [python_with_torch, "-c", f"{hidden}{without}\nprint(len(vector))"],
        cwd=checkpoints,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0 and int(result.stdout.split()[-1]) > 0, result.stderr


def test_each_resumable_checkpoint_has_its_own_card(two_classes, tmp_path):
    evaluation = ("--eval-steps", 2, "--eval-train", two_classes, "--eval-test", two_classes)
    options = ("--max-steps", 3, "--batch-size", 6, "--save-steps", 1, "--save-total-limit", 3)
    main(arguments("dino", two_classes, tmp_path / "out", *options, *evaluation))
    steps = [tmp_path / "out" / "checkpoints" / f"step-0000000{step}" for step in (1, 2, 3)]
    cards = [sections_of(card_of(step)) for step in steps]
    finished = [table_of(sections["Training"])["Steps"] for sections in cards]
    assert finished == ["1 of 3", "2 of 3", "3"]
    # step 1 was not evaluated, so its card has no metrics of another step
    assert ["linear probe" in sections["Results"] for sections in cards] == [False, True, True]


def test_duration_and_metrics_survive_a_resume(two_classes, tmp_path):
    evaluation = ("--eval-steps", 2, "--eval-train", two_classes, "--eval-test", two_classes)
    out = tmp_path / "out"
    command = arguments(
        "mae", two_classes, out, "--max-steps", 4, "--batch-size", 6, "--save-steps", 2, *evaluation
    )
    main(command)
    state = out / "checkpoints" / "step-00000002" / "trainer_state.json"
    stored = json.loads(state.read_text())
    assert stored["callbacks"]["CostMeter"]["seconds"] > 0
    stored["callbacks"]["CostMeter"]["seconds"] = 5000.0
    state.write_text(json.dumps(stored))
    (out / "config.json").unlink()
    (out / "checkpoints" / "step-00000004").rename(
        tmp_path / "later"
    )  # as if the run was killed before step 4
    main([*command, "--resume"])
    duration = table_of(sections_of(card_of(out))["Training"])["Time"]
    assert 5000 < float(duration.split()[0].replace(",", "")) < 5060 and "(1:23:2" in duration
    newest = out / "checkpoints" / "step-00000004" / "trainer_state.json"
    assert 5000 < json.loads(newest.read_text())["callbacks"]["CostMeter"]["seconds"] < 5060

    # killed between the last checkpoint and the result: the stored metrics are used
    (out / "config.json").unlink()
    before = table_of(sections_of(card_of(out))["Results"])
    main([*command, "--resume"])
    assert table_of(sections_of(card_of(out))["Results"]) == before and "linear probe" in before


def test_a_card_shows_training_images_only_with_card_picture(two_classes, tmp_path):
    options = ("--max-steps", 1, "--batch-size", 6)
    for name, asked in (("plain", ()), ("drawn", ("--card-picture",))):
        main(arguments("dino", two_classes, tmp_path / name, *options, *asked))
    assert not list((tmp_path / "plain").glob("*.png"))
    assert "![" not in card_of(tmp_path / "plain")
    named = re.search(r"!\[attention\]\((.+)\)", card_of(tmp_path / "drawn"))[1]
    picture = (tmp_path / "drawn" / named).read_bytes()
    assert picture.startswith(b"\x89PNG") and "/" not in named
    # only the card of the final checkpoint has a picture
    assert "![" not in card_of(tmp_path / "drawn" / "checkpoints" / "step-00000001")


def test_card_picture_with_a_stream_is_rejected_before_anything_is_written(two_classes, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = next(two_classes.rglob("*.png")).read_bytes()
    rows = [{"image": {"bytes": content, "path": None}}] * 4
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")
    options = ("--streaming", "--max-steps", 1, "--batch-size", 2)
    command = arguments("dino", tmp_path / "images.parquet", tmp_path / "out", *options)
    with pytest.raises(ValueError, match="--card-picture draws some of the images"):
        main([*command, "--card-picture"])
    assert not (tmp_path / "out").exists()


def test_the_card_states_the_energy_measured_by_codecarbon(two_classes, tmp_path):
    pytest.importorskip("codecarbon", reason="optional: pip install codecarbon")
    out = tmp_path / "out"
    measured = ("--energy-meter", "codecarbon", "--save-steps", 1)
    options = ("--max-steps", 2, "--batch-size", 6, *measured)
    main(arguments("dino", two_classes, out, *options))
    state = out / "checkpoints" / "step-00000001" / "trainer_state.json"
    stored = json.loads(state.read_text())
    assert stored["callbacks"]["CostMeter"]["energy_kwh"] > 0
    stored["callbacks"]["CostMeter"]["energy_kwh"] = 7.0
    state.write_text(json.dumps(stored))
    (out / "config.json").unlink()
    (out / "checkpoints" / "step-00000002").rename(tmp_path / "later")
    main([*arguments("dino", two_classes, out, *options), "--resume"])
    assert table_of(sections_of(card_of(out))["Training"])["Energy"].startswith("7 kWh, estimated")


# --- cards rendered from given contents


def contents(**changes):
    facts = TrainingFacts(
        recipe="dino_finetune",
        data="60000 rows of user/flowers (train)",
        dataset="user/flowers",
        started_from="user/dino",
        num_steps=1000,
        planned_steps=1000,
        values={"Batch": "256 images"},
        hardware="8 x NVIDIA H100",
        num_processes=8,
        seconds=4000.25,
        energy_kwh=1.25,
    )
    filled = CardContents(
        name="flowers",
        architecture="SelfViTForDINO",
        config=SelfViTConfig.from_name("vits16", dino_config=tiny_dino_config()),
        num_parameters=21_665_664,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        provenance=Provenance("cc-by-nc-4.0", base_model="user/dino", origin="the card of user/d"),
        training=facts,
    )
    return replace(filled, **changes)


def test_files_that_are_listed_are_described_without_their_folder(two_classes, tmp_path):
    files = sorted(two_classes.rglob("*.png"))[:3]
    for data, expected in (
        ([str(file) for file in files], "3 image files"),  # their folder was published
        ([str(files[0])], files[0].name),
        (str(two_classes), f"{len(open_images(two_classes))} image files in {two_classes.name}"),
    ):
        assert describe_data(open_images(data).description, data) == expected


def test_data_in_object_storage_is_described_without_its_bucket_and_folders(two_classes):
    """The whole URL was published, as it is no path."""
    storage = fsspec.filesystem("memory")
    for index, file in enumerate(sorted(two_classes.rglob("*.png"))[:3]):
        storage.pipe_file(f"/private/patients/2024/{index}.png", file.read_bytes())
    url = "memory://private/patients/2024"
    for data, expected in (
        (url, "3 image files in 2024"),
        ([f"{url}/"], "3 image files in 2024"),
        (f"{url}/0.png", "0.png"),
    ):
        assert describe_data(open_images(data).description, data) == expected
    storage.rm("/private", recursive=True)


def test_data_base_model_and_license_are_in_the_metadata(tmp_path):
    text = render_model_card(contents(evaluated_on="user/flowers-test", after={"knn_20": 0.875}))
    (tmp_path / "README.md").write_text(text)
    metadata = assert_valid(tmp_path)
    assert metadata["datasets"] == ["user/flowers"] and metadata["base_model"] == "user/dino"
    assert metadata["license"] == "cc-by-nc-4.0"
    (result,) = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert (result.dataset_type, result.metric_value) == ("user/flowers-test", 0.875)
    rows = table_of(sections_of(text)["Training"])
    assert rows["Hardware"] == "8 x NVIDIA H100" and rows["Time"].startswith("4,000.2 seconds (1:0")
    assert rows["Energy"].startswith("1.25 kWh")


def test_metrics_before_and_after_are_columns_with_intervals():
    card = render_model_card(
        contents(
            before={"knn_20": (0.7, 0.68, 0.72), "rankme": 12.0},
            after={"knn_20": (0.8, 0.785, 0.815), "linear_probe": 0.9},
            evaluated_on="test",
        )
    )
    results = sections_of(card)["Results"]
    assert "| metric | before | after |" in results
    assert "| k-NN, k = 20 | 70.0 % (68.0 % to 72.0 %) | 80.0 % (78.5 % to 81.5 %) |" in results
    assert "| linear probe | - | 90.0 % |" in results and "| RankMe | 12.0 | - |" in results


def test_a_metric_that_is_not_finite_is_not_in_the_metadata(tmp_path):
    metrics = {"knn_20": float("nan"), "linear_probe": 0.5}
    (tmp_path / "README.md").write_text(
        render_model_card(contents(after=metrics, evaluated_on="test"))
    )
    (result,) = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert result.metric_name == "linear probe"


def test_msn_and_pmsn_are_distinguished_by_the_prior():
    config = SelfViTConfig.from_name("vits16", pmsn_config={"prior": "uniform"})
    card = render_model_card(contents(config=config, architecture="SelfViTForPMSN"))
    assert "trained with MSN" in card and "2204.07141" in card and "2210.07277" not in card


def test_lejepa_and_visreg_are_distinguished_by_the_regularizer():
    config = SelfViTConfig.from_name("vits16", lejepa_config={"regularizer": "visreg"})
    card = render_model_card(contents(config=config, architecture="SelfViTForLeJEPA"))
    assert "trained with VISReg" in card and "2606.02572" in card and "2511.08544" in card


def test_a_card_without_model_code_does_not_mention_trust_remote_code():
    card = render_model_card(contents(has_code=False))
    assert len(code_of(card)) == 1 and "trust_remote_code" not in card


@pytest.mark.parametrize("name", ['it\'s "mine"', "a: b #c", "grün und ö|ü"])
def test_special_characters_in_a_name_break_neither_metadata_nor_code(name, tmp_path):
    (tmp_path / "README.md").write_text(
        render_model_card(contents(name=name, after={"knn_20": 0.5}, evaluated_on=f"data/{name}")),
        encoding="utf-8",
    )
    assert_valid(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.model_name == name and data.eval_results[0].dataset_name == name
    for code in code_of(card_of(tmp_path)):
        compile(code, "card", "exec")


# --- results that are added to a card


@pytest.fixture
def unevaluated(tmp_path):
    """Write a checkpoint folder whose card has no results."""
    folder = tmp_path / "flowers"
    folder.mkdir()
    (folder / "README.md").write_text(render_model_card(contents()), encoding="utf-8")
    assert "has not been evaluated" in card_of(folder)
    return folder


def test_added_results_replace_the_results_section_and_keep_the_rest(unevaluated):
    before = sections_of(card_of(unevaluated))
    baselines = {"raw pixels": {"knn_20": 0.7, "linear_probe": 0.6}}
    add_results(
        unevaluated,
        {"knn_20": 0.875, "rankme": 12.0},
        baselines=baselines,
        evaluated_on="user/flowers-test",
        verdict="The checkpoint is better than raw pixels.",
    )
    after = sections_of(card_of(unevaluated))
    results = after["Results"]
    assert "| metric | raw pixels | this checkpoint |" in results
    assert "| k-NN, k = 20 | 70.0 % | 87.5 % |" in results and "| RankMe | - | 12.0 |" in results
    assert "| linear probe | 60.0 % | - |" in results and "better than raw pixels." in results
    assert "user/flowers-test" in results and "has not been evaluated" not in results
    assert {**after, "Results": ""} == {**before, "Results": ""}
    metadata = assert_valid(unevaluated)
    assert metadata["license"] == "cc-by-nc-4.0"
    (result,) = ModelCard.load(unevaluated / "README.md").data.eval_results
    assert (result.dataset_name, result.metric_value) == ("user/flowers-test", 0.875)


def test_added_results_are_rendered_as_by_training(unevaluated):
    add_results(unevaluated, {"knn_20": 0.875}, evaluated_on="user/test", verdict="Good.")
    rendered = contents(after={"knn_20": 0.875}, evaluated_on="user/test", verdict="Good.")
    assert sections_of(card_of(unevaluated)) == sections_of(render_model_card(rendered))


def test_added_pictures_are_copied_into_the_folder_and_published(unevaluated, tmp_path):
    outside, inside = tmp_path / "map.png", unevaluated / "attention.png"
    outside.write_bytes(b"map")
    inside.write_bytes(b"attention")
    pictures = [(outside, "Map of the test images."), (inside, "Attention of the class token.")]
    add_results(unevaluated, {"knn_20": 0.5}, pictures)
    results = sections_of(card_of(unevaluated))["Results"]
    assert "![map.png](map.png)\n\nMap of the test images." in results
    assert "![attention.png](attention.png)" in results and str(tmp_path) not in results
    assert (unevaluated / "map.png").read_bytes() == b"map" and outside.exists()
    assert "eval_results" not in metadata_load(unevaluated / "README.md")  # no evaluation data


def test_results_can_be_added_again(unevaluated):
    add_results(unevaluated, {"knn_20": 0.5}, evaluated_on="user/test")
    add_results(unevaluated, {"linear_probe": 0.75})
    results = sections_of(card_of(unevaluated))["Results"]
    assert "75.0 %" in results and "50.0 %" not in results
    assert "model-index" not in metadata_load(unevaluated / "README.md")


def test_results_of_a_real_checkpoint_keep_its_card_valid(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints / "converted_dino", tmp_path / "converted_dino")
    add_results(folder, {"knn_20": (0.5, 0.4, 0.6)}, evaluated_on="user/test")
    assert "50.0 % (40.0 % to 60.0 %)" in sections_of(card_of(folder))["Results"]
    assert_valid(folder)


def test_invalid_folders_and_pictures_are_rejected_and_change_nothing(unevaluated, tmp_path):
    with pytest.raises(FileNotFoundError, match="must have a model card"):
        add_results(tmp_path, {"knn_20": 0.5})
    before = card_of(unevaluated)
    with pytest.raises(FileNotFoundError, match="missing.png"):
        add_results(unevaluated, {"knn_20": 0.5}, [(tmp_path / "missing.png", "A map.")])
    with pytest.raises(ValueError, match="different file names"):
        add_results(
            unevaluated, {"knn_20": 0.5}, [("a/map.png", "A map."), ("b/map.png", "A map.")]
        )
    assert card_of(unevaluated) == before
    (unevaluated / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    with pytest.raises(ValueError, match="section '## Results'"):
        add_results(unevaluated, {"knn_20": 0.5})


@pytest.mark.parametrize("name", CARDS)
def test_a_card_has_no_link_to_a_package_index(name, checkpoints):
    card = card_of(checkpoints / name)
    assert "pypi.org" not in card and "pip install selfvit" not in card
