"""License and base model carry over from a source through conversion and training."""

import json
import shutil
from typing import Any

import pytest
import torch
from huggingface_hub import metadata_load
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMSNConfig, ViTMSNModel

from selfvit.conversion.convert import convert
from selfvit.conversion.exporters.export import export
from selfvit.sharing.provenance import (
    PERMISSIVE,
    Provenance,
    derived_provenance,
    display_name,
    read_provenance,
)
from selfvit.training.train import main

from ..conversion.source_files import golden_weights, heads_of, save_weights
from ..training import conftest as training
from ..training.tiny_runs import LOOP

two_classes = training.two_classes
fresh_accelerate_state = training.fresh_accelerate_state

STEPS = ("--max-steps", "1", "--batch-size", "6")


@pytest.fixture(scope="module")
def converted_mae(tmp_path_factory):
    """Return a converted folder of weights with the names of facebookresearch/mae."""
    place = tmp_path_factory.mktemp("mae")
    convert(save_weights(golden_weights("mae"), place), place / "mae", **heads_of("mae"))
    return place / "mae"


def folder_with_card(folder, metadata):
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n# Weights\n", encoding="utf-8")
    return folder


def metadata_of(folder):
    return metadata_load(folder / "README.md")


def finetune(recipe, start, data, output, *options):
    paths = ("--init-from", str(start), "--data", str(data), "--output", str(output))
    main([recipe, *LOOP, *paths, *STEPS, *options])


def test_a_non_commercial_license_carries_over_through_every_training(
    converted_mae, two_classes, tmp_path
):
    assert metadata_of(converted_mae)["license"] == "cc-by-nc-4.0"
    finetune("mae_finetune", converted_mae, two_classes, tmp_path / "first")
    # also from a resumable checkpoint that was moved out of its run
    step = tmp_path / "step"
    shutil.copytree(tmp_path / "first" / "checkpoints" / "step-00000001", step)
    finetune("classify", step, two_classes, tmp_path / "second")
    for name in ("first", "second"):
        card = (tmp_path / name / "README.md").read_text()
        assert metadata_of(tmp_path / name)["license"] == "cc-by-nc-4.0"
        assert "`cc-by-nc-4.0`, as stated by the card of" in card.split("## License")[1]
    assert "2111.06377" in (tmp_path / "second" / "README.md").read_text()


def test_replacing_a_non_commercial_license_by_a_permissive_one_is_rejected_with_the_reason(
    converted_mae, two_classes, tmp_path
):
    with pytest.raises(ValueError) as refused:
        finetune("classify", converted_mae, two_classes, tmp_path / "out", "--license", "mit")
    for part in (
        "'mit'",
        "cc-by-nc-4.0",
        "initial weights mae",
        "no commercial use",
        "every checkpoint",
    ):
        assert part in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_the_license_option_sets_the_license_of_the_card(two_classes, tiny_checkpoint, tmp_path):
    out = tmp_path / "out"
    finetune("classify", tiny_checkpoint, two_classes, out, "--license", "apache-2.0")
    assert metadata_of(out)["license"] == "apache-2.0"
    card = (out / "README.md").read_text()
    assert "`apache-2.0`, as stated by the owner" in card and "license: apache-2.0" in card
    assert "license: apache-2.0" in (out / "training.yaml").read_text()


def test_an_unknown_license_is_stated_as_unknown(two_classes, tiny_checkpoint, tmp_path):
    finetune("classify", tiny_checkpoint, two_classes, tmp_path / "out")
    assert "license" not in metadata_of(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text().split("## License")[1]
    assert "Unknown" in text and tiny_checkpoint.name in text


@pytest.mark.parametrize(
    ("source", "asked", "allowed"),
    [
        ("apache-2.0", "mit", True),
        ("apache-2.0", "cc-by-nc-4.0", True),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", True),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", True),
        ("cc-by-nc-4.0", "cc-by-4.0", False),
        ("cc-by-nc-4.0", "apache-2.0", False),
        ("cc-by-nc-sa-4.0", "cc-by-nc-4.0", False),
        ("cc-by-sa-4.0", "cc-by-nc-sa-4.0", False),  # share-alike allows only itself
        ("gpl-3.0", "mit", False),
        ("openrail", "apache-2.0", False),
        ("some-new-license", "mit", False),
    ],
)
def test_the_terms_of_a_source_are_kept(source, asked, allowed, tmp_path):
    folder = folder_with_card(tmp_path / "source", f"license: {source}")
    if allowed:
        assert derived_provenance(folder, asked).license == asked
        return
    with pytest.raises(ValueError, match=f"states {source}, and its terms"):
        derived_provenance(folder, asked)


def test_a_license_of_kind_other_carries_over_with_name_and_link(tmp_path):
    metadata = "license: other\nlicense_name: lab-1\nlicense_link: https://lab.example/license"
    derived = derived_provenance(folder_with_card(tmp_path / "source", metadata))
    assert (derived.license, derived.license_name) == ("other", "lab-1")
    assert derived.license_link == "https://lab.example/license"


def test_two_licenses_of_kind_other_contradict_each_other_unless_they_are_the_same(tmp_path):
    """They counted as equal, and the terms of the teacher were dropped."""
    lab = "license: other\nlicense_name: lab-1\nlicense_link: https://lab.example/license"
    meta = "license: other\nlicense_name: dinov3-license\nlicense_link: https://meta.example"
    start, same, teacher = (
        folder_with_card(tmp_path / name, metadata)
        for name, metadata in (("start", lab), ("same", lab), ("teacher", meta))
    )
    assert derived_provenance(start, teacher=str(same)).license_name == "lab-1"
    stated = r"\(other, lab-1, .*\(other, dinov3-license, .* contradict each other"
    for license in (None, "other"):
        with pytest.raises(ValueError, match=stated):
            derived_provenance(start, license, teacher=str(teacher))


def test_the_most_restrictive_of_several_licenses_counts(tmp_path):
    folder = folder_with_card(tmp_path / "source", "license: [mit, cc-by-nc-4.0]")
    assert read_provenance(folder).license == "cc-by-nc-4.0"


def test_the_error_for_an_unknown_license_suggests_the_closest_one():
    with pytest.raises(ValueError, match=r"'apache2'.*apache-2\.0"):
        derived_provenance(None, "apache2")
    with pytest.raises(ValueError, match="use 'other'"):
        derived_provenance(None, "???")


def test_unreadable_metadata_is_an_error_since_a_license_could_be_lost(tmp_path):
    folder = folder_with_card(tmp_path / "source", "license: [cc-by-nc-4.0")
    with pytest.raises(ValueError, match=r"README\.md must be readable.*license"):
        derived_provenance(folder)


def test_a_converted_folder_without_card_keeps_its_license(converted_mae, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(converted_mae, folder)
    (folder / "README.md").unlink()
    found = read_provenance(folder)
    assert found.license == "cc-by-nc-4.0" and found.origin == "conversion.json of copy"


def test_an_export_states_the_license(converted_mae, tmp_path):
    export(converted_mae, tmp_path / "out", to="transformers", pooling="cls")
    facts = json.loads((tmp_path / "out" / "selfvit_export.json").read_text())
    assert facts["license"] == "cc-by-nc-4.0" and facts["base_model"] is None


# --- base models


def test_the_base_model_is_the_hub_checkpoint_or_that_of_its_card(tmp_path):
    assert read_provenance("user/not-here-at-all") == Provenance(base_model="user/not-here-at-all")
    folder = folder_with_card(tmp_path / "local", "base_model: [user/dino]\nlicense: mit")
    assert read_provenance(folder) == Provenance(
        "mit", base_model="user/dino", origin="the card of local"
    )


def test_a_run_keeps_the_base_model_of_its_initial_weights(two_classes, tiny_checkpoint, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(tiny_checkpoint, start)
    (start / "README.md").write_text("---\nbase_model: user/dino\nlicense: apache-2.0\n---\n")
    finetune("classify", start, two_classes, tmp_path / "out")
    metadata = metadata_of(tmp_path / "out")
    assert (metadata["base_model"], metadata["license"]) == ("user/dino", "apache-2.0")


def test_the_display_name_of_a_path_is_its_last_part(tmp_path):
    assert display_name(tmp_path) == tmp_path.name and display_name("user/dino") == "user/dino"
    assert display_name("/home/somebody/weights.pth") == "weights.pth"


# --- converted folders of transformers


def vit_sizes():
    return {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8, "intermediate_size": 64,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["mae", "msn"])
def test_a_mae_or_msn_of_transformers_is_non_commercial_unless_its_card_says_otherwise(
    kind, tmp_path
):
    torch.manual_seed(0)
    if kind == "mae":
        decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
        heads = {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 64}
        model: Any = ViTMAEForPreTraining(ViTMAEConfig(**vit_sizes(), **decoder, **heads))
    else:
        model = ViTMSNModel(ViTMSNConfig(**vit_sizes()))
    model.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out")
    assert metadata_of(tmp_path / "out")["license"] == "cc-by-nc-4.0"

    card = "---\nlicense: apache-2.0\nbase_model: user/original\n---\n# Mine\n"
    (tmp_path / "source" / "README.md").write_text(card)
    convert(tmp_path / "source", tmp_path / "out", overwrite=True)
    metadata = metadata_of(tmp_path / "out")
    assert (metadata["license"], metadata["base_model"]) == ("apache-2.0", "user/original")
    text = (tmp_path / "out" / "README.md").read_text().split("## License")[1]
    assert "by the card of source" in text and "CC BY-NC 4.0" in text
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (report["license"], report["base_model"]) == ("apache-2.0", "user/original")


def test_no_permissive_license_has_restrictive_terms():
    assert not {name for name in PERMISSIVE if {"nc", "sa", "nd"} & set(name.split("-"))}
