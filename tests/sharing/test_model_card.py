"""Cards of real checkpoints: of a run of each objective, of a classifier, of converted weights."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id
from transformers.pipelines import PIPELINE_REGISTRY

from selfvit import SelfViTConfig
from selfvit.conversion.convert import convert
from selfvit.sharing.model_card import (
    CardContents,
    TrainingFacts,
    render_model_card,
)
from selfvit.sharing.provenance import LICENSES, Provenance
from selfvit.training.train import main

from ..conversion.source_files import dino_checkpoint, golden_weights, heads_of, save_weights
from ..image_files import noise
from ..objectives import tiny_dino_config
from ..training import conftest as training
from ..training.tiny_runs import LOOP, OBJECTIVES, arguments

two_classes = training.two_classes
fresh_accelerate_state = training.fresh_accelerate_state

CARDS = [*OBJECTIVES, "classifier", "converted_dino", "converted_mae"]
PAPERS = {
    "dino": ["2104.14294"],
    "mae": ["2111.06377"],
    "pmsn": ["2204.07141", "2210.07277"],
    "classifier": ["2104.14294"],  # of the encoder that it was trained from
    "converted_dino": ["2104.14294"],
    "converted_mae": ["2111.06377"],
}


@pytest.fixture(scope="module")
def checkpoints(two_classes, tmp_path_factory):
    """Folders by name, all in one folder with an image.jpg."""
    place = tmp_path_factory.mktemp("cards")
    noise(40, 36, 1).save(place / "image.jpg")
    figures = ("--eval_steps", 2, "--eval_train", two_classes, "--eval_test", two_classes)
    options = ("--max_steps", 2, "--batch_size", 6, *figures)
    for objective in OBJECTIVES:
        main(arguments(objective, two_classes, place / objective, *options))
    start = ["classify", *LOOP, "--init_from", str(place / "dino"), "--data", str(two_classes)]
    main([*start, "--output", str(place / "classifier"), *map(str, options)])
    torch.save(dino_checkpoint(), place / "dino.pth")
    convert(place / "dino.pth", place / "converted_dino", num_heads=3)
    convert(save_weights(golden_weights("mae"), place), place / "converted_mae", **heads_of("mae"))
    return place


def card_of(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def sections_of(card):
    """Return the text of each section by its heading; what is before the first is ""."""
    body = card.split("\n---\n", 1)[1]
    parts = re.split(r"^## (.+)\n", body, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def table_of(section):
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", section, flags=re.MULTILINE)
    return dict(rows)


def code_of(card):
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def assert_valid(folder):
    """What the Hub's validator asks for, as far as it can be known without the Hub."""
    text = card_of(folder)
    card = ModelCard.load(folder / "README.md")
    assert str(card) == text  # reading and writing it again changes nothing
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
        "", "Use", "What it is", origin, "Results", "Limits", "License", "Citation",
    ]  # fmt: skip
    assert all(len(text.strip()) > 40 for text in sections.values())
    assert sections[""].strip().startswith(f"# {name}\n")
    config = json.loads((checkpoints / name / "config.json").read_text())
    what = table_of(sections["What it is"])
    assert what["Class"] == f"`{config['architectures'][0]}`"
    assert f"width {config['hidden_size']}," in what["Encoder"]
    cited = re.findall(r"arXiv (\d+\.\d+)", sections["Citation"])
    assert cited == PAPERS[name] and "@software{selfvit" in sections["Citation"]
    assert_valid(checkpoints / name)
    # nothing of where the files lie on this machine, and no sign of a template
    assert str(checkpoints) not in card and str(two_classes.parent) not in card
    assert not re.search(r"\{[{%]|None|Undefined|\n\n\n", card)


@pytest.mark.parametrize("name", [*OBJECTIVES, "classifier"])
def test_a_runs_card_tells_how_it_was_trained_and_what_came_of_it(name, checkpoints, two_classes):
    sections = sections_of(card_of(checkpoints / name))
    rows = table_of(sections["Training"])
    assert rows["Data"] == f"24 image files in {two_classes.name}"
    assert rows["Started from"] == ("dino" if name == "classifier" else "random weights")
    assert rows["Steps"] == "2" and rows["Batch"] == "6 images" and rows["Processes"] == "1"
    assert rows["Hardware"].startswith("CPU (") and rows["Precision"] == "float32"
    assert float(rows["Time"].split()[0]) > 0
    if name != "classifier":
        assert "teacher_momentum " in rows[name.upper()] or "mask_ratio " in rows[name.upper()]

    logged = (checkpoints / name / "log.jsonl").read_text().splitlines()[-1]
    figures = json.loads(logged)
    results = table_of(sections["Results"])
    for title, key in {"linear probe": "linear_probe", "k-NN, k = 10": "knn_10"}.items():
        # what started from weights has them before and after, with intervals
        after = results[title].split(" | ")[-1]
        assert after.startswith(f"{100 * figures[key]:.1f} %")
        assert (" | " in results[title]) == (name == "classifier")
    metadata = metadata_load(checkpoints / name / "README.md")
    _, found = model_index_to_eval_results(metadata["model-index"])
    expected = {"k-NN, k = 10": "knn_10", "k-NN, k = 20": "knn_20", "linear probe": "linear_probe"}
    if name == "classifier":
        expected["classifier"] = "accuracy"
    assert {result.metric_name: result.metric_value for result in found} == {
        title: round(figures[key], 4) for title, key in expected.items()
    }
    assert {(result.dataset_type, result.dataset_name) for result in found} == {
        ("imagefolder", two_classes.name)
    }
    tag = {"classifier": "dino"}.get(name, name)
    assert tag in metadata["tags"] and "license" not in metadata


@pytest.mark.parametrize("name", ["converted_dino", "converted_mae"])
def test_a_converted_checkpoints_card_tells_its_source(name, checkpoints):
    sections = sections_of(card_of(checkpoints / name))
    source = {"converted_dino": "dino.pth", "converted_mae": "weights.pth"}[name]
    assert f"Weights of `{source}` (facebookresearch/" in sections[""]
    assert table_of(sections["Source"])["`num_attention_heads`"] == "3 (from: option)"
    assert "selfvit evaluate --model" in sections["Results"]


@pytest.mark.parametrize("name", CARDS)
def test_the_code_of_a_card_runs_as_it_stands(name, checkpoints, monkeypatch):
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


def test_where_the_code_lies_beside_the_weights_selfvit_is_not_needed(checkpoints):
    without = code_of(card_of(checkpoints / "dino"))[1]
    assert "torch and transformers are enough" in card_of(checkpoints / "dino")
    if "auto_map" not in json.loads((checkpoints / "dino" / "config.json").read_text()):
        return
    hidden = "import sys; sys.modules['selfvit'] = None\n"
    result = subprocess.run(
        [sys.executable, "-c", f"{hidden}{without}\nprint(len(vector))"],
        cwd=checkpoints,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0 and int(result.stdout.split()[-1]) > 0, result.stderr


def test_a_checkpoint_to_resume_from_has_a_card_of_its_own(two_classes, tmp_path):
    figures = ("--eval_steps", 2, "--eval_train", two_classes, "--eval_test", two_classes)
    options = ("--max_steps", 3, "--batch_size", 6, "--save_steps", 1, "--save_total_limit", 3)
    main(arguments("dino", two_classes, tmp_path / "out", *options, *figures))
    steps = [tmp_path / "out" / "checkpoints" / f"step-0000000{step}" for step in (1, 2, 3)]
    told = [sections_of(card_of(step)) for step in steps]
    taken = [table_of(sections["Training"])["Steps"] for sections in told]
    assert taken == ["1 of 3", "2 of 3", "3"]
    # step 1 was not evaluated: no other step's figures are taken for its own
    assert ["linear probe" in sections["Results"] for sections in told] == [False, True, True]


def test_seconds_and_figures_survive_a_resume(two_classes, tmp_path):
    figures = ("--eval_steps", 2, "--eval_train", two_classes, "--eval_test", two_classes)
    out = tmp_path / "out"
    command = arguments(
        "mae", two_classes, out, "--max_steps", 4, "--batch_size", 6, "--save_steps", 2, *figures
    )
    main(command)
    state = out / "checkpoints" / "step-00000002" / "trainer_state.json"
    stored = json.loads(state.read_text())
    assert stored["cost"]["seconds"] > 0
    stored["cost"]["seconds"] = 5000.0
    state.write_text(json.dumps(stored))
    (out / "config.json").unlink()
    (out / "checkpoints" / "step-00000004").rename(tmp_path / "later")  # as if killed before it
    main([*command, "--resume", "true"])
    told = table_of(sections_of(card_of(out))["Training"])["Time"]
    assert 5000 < float(told.split()[0].replace(",", "")) < 5060 and "(1:23:2" in told
    newest = out / "checkpoints" / "step-00000004" / "trainer_state.json"
    assert 5000 < json.loads(newest.read_text())["cost"]["seconds"] < 5060

    # killed between the last checkpoint and the result: nothing is left to evaluate
    (out / "config.json").unlink()
    before = table_of(sections_of(card_of(out))["Results"])
    main([*command, "--resume", "true"])
    assert table_of(sections_of(card_of(out))["Results"]) == before and "linear probe" in before


def test_pictures_of_the_data_are_in_a_card_only_if_asked_for(two_classes, tmp_path):
    options = ("--max_steps", 1, "--batch_size", 6)
    for name, asked in (("plain", ()), ("drawn", ("--card_picture", "true"))):
        main(arguments("dino", two_classes, tmp_path / name, *options, *asked))
    assert not list((tmp_path / "plain").glob("*.png"))
    assert "![" not in card_of(tmp_path / "plain")
    named = re.search(r"!\[attention\]\((.+)\)", card_of(tmp_path / "drawn"))[1]
    picture = (tmp_path / "drawn" / named).read_bytes()
    assert picture.startswith(b"\x89PNG") and "/" not in named
    # the result alone is drawn: a checkpoint to resume from has no picture beside it
    assert "![" not in card_of(tmp_path / "drawn" / "checkpoints" / "step-00000001")


def test_a_picture_of_a_stream_is_refused_before_anything_is_written(two_classes, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = next(two_classes.rglob("*.png")).read_bytes()
    rows = [{"image": {"bytes": content, "path": None}}] * 4
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")
    options = ("--streaming", "true", "--max_steps", 1, "--batch_size", 2)
    command = arguments("dino", tmp_path / "images.parquet", tmp_path / "out", *options)
    with pytest.raises(ValueError, match="--card-picture draws some of the images"):
        main([*command, "--card_picture", "true"])
    assert not (tmp_path / "out").exists()


def test_energy_is_told_where_codecarbon_is_installed(two_classes, tmp_path):
    pytest.importorskip("codecarbon", reason="optional: pip install codecarbon")
    out = tmp_path / "out"
    measured = ("--energy_meter", "codecarbon", "--save_steps", 1)
    options = ("--max_steps", 2, "--batch_size", 6, *measured)
    main(arguments("dino", two_classes, out, *options))
    state = out / "checkpoints" / "step-00000001" / "trainer_state.json"
    stored = json.loads(state.read_text())
    assert stored["cost"]["energy_kwh"] > 0
    stored["cost"]["energy_kwh"] = 7.0
    state.write_text(json.dumps(stored))
    (out / "config.json").unlink()
    (out / "checkpoints" / "step-00000002").rename(tmp_path / "later")
    main([*arguments("dino", two_classes, out, *options), "--resume", "true"])
    assert table_of(sections_of(card_of(out))["Training"])["Energy"].startswith("7 kWh, estimated")


# --- what a run on this machine cannot show


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


def test_before_and_after_stand_side_by_side_with_their_intervals():
    card = render_model_card(
        contents(
            before={"knn_20": (0.7, 0.68, 0.72), "rankme": 12.0},
            after={"knn_20": (0.8, 0.785, 0.815), "linear_probe": 0.9},
            evaluated_on="test",
        )
    )
    results = sections_of(card)["Results"]
    assert "| measure | before | after |" in results
    assert "| k-NN, k = 20 | 70.0 % (68.0 % to 72.0 %) | 80.0 % (78.5 % to 81.5 %) |" in results
    assert "| linear probe | - | 90.0 % |" in results and "| RankMe | 12.0 | - |" in results


def test_a_figure_that_is_not_finite_is_kept_out_of_the_metadata(tmp_path):
    figures = {"knn_20": float("nan"), "linear_probe": 0.5}
    (tmp_path / "README.md").write_text(
        render_model_card(contents(after=figures, evaluated_on="test"))
    )
    (result,) = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert result.metric_name == "linear probe"


def test_msn_is_told_from_pmsn_by_its_prior():
    config = SelfViTConfig.from_name("vits16", pmsn_config={"prior": "uniform"})
    card = render_model_card(contents(config=config, architecture="SelfViTForPMSN"))
    assert "trained with MSN" in card and "2204.07141" in card and "2210.07277" not in card


def test_without_code_beside_the_weights_none_is_promised():
    card = render_model_card(contents(has_code=False))
    assert len(code_of(card)) == 1 and "trust_remote_code" not in card


@pytest.mark.parametrize("name", ['it\'s "mine"', "a: b #c", "grün und ö|ü"])
def test_an_odd_name_breaks_neither_metadata_nor_code(name, tmp_path):
    (tmp_path / "README.md").write_text(
        render_model_card(contents(name=name, after={"knn_20": 0.5}, evaluated_on=f"data/{name}")),
        encoding="utf-8",
    )
    assert_valid(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.model_name == name and data.eval_results[0].dataset_name == name
    for code in code_of(card_of(tmp_path)):
        compile(code, "card", "exec")
