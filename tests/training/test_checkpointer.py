import json
import shutil

import pytest

from selfvit.training.checkpoints.run_folder import prepare_run_folder
from selfvit.training.config.run_config import RunConfig
from selfvit.training.train import main

from .tiny_runs import arguments, log_of, weights_of

OPTIONS = ("--max-steps", 3, "--batch-size", 6, "--save-steps", 1)


@pytest.fixture
def finished(two_classes, tmp_path):
    main(arguments("dino", two_classes, tmp_path / "out", *OPTIONS))
    return tmp_path / "out"


def command(two_classes, output, *options):
    return arguments("dino", two_classes, output, *OPTIONS, *options)


def test_only_the_newest_checkpoints_are_kept(finished):
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000003"]


def test_the_result_and_the_checkpoints_contain_their_code(finished):
    for folder in (finished, finished / "checkpoints" / "step-00000003"):
        config = json.loads((folder / "config.json").read_text())
        assert config["auto_map"]["AutoModelForPreTraining"] == "modeling_selfvit.SelfViTForDINO"
        code = {path.name for path in folder.glob("*.py")}
        assert code == {"configuration_selfvit.py", "modeling_selfvit.py"}


def test_no_save_code_omits_the_code_and_does_not_change_the_weights(
    two_classes, finished, tmp_path
):
    before = weights_of(finished)
    main(command(two_classes, tmp_path / "bare", "--no-save-code"))
    assert not list((tmp_path / "bare").rglob("*.py"))
    assert "save_code: false" in (tmp_path / "bare" / "training.yaml").read_text()
    after = weights_of(tmp_path / "bare")
    assert all((after[name] == tensor).all() for name, tensor in before.items())


def test_resuming_a_run_of_another_selfvit_version_replaces_its_modules(two_classes, finished):
    config = json.loads((finished / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "modeling_old.SelfViTModel"
    (finished / "modeling_old.py").write_text("")
    (finished / "config.json").write_text(json.dumps(config))
    shutil.rmtree(finished / "checkpoints" / "step-00000003")
    main(command(two_classes, finished, "--resume"))
    modules = {path.stem for path in finished.glob("*.py")}
    assert modules == {"configuration_selfvit", "modeling_selfvit"}


def test_training_yaml_does_not_contain_metadata_of_the_initial_checkpoint(
    two_classes, finished, tmp_path
):
    options = ("--init-from", finished, "--init-scope", "all")
    main(command(two_classes, tmp_path / "next", *options))
    run = (tmp_path / "next" / "training.yaml").read_text()
    for name in ("auto_map", "format_version", "selfvit_version", "transformers_version"):
        assert name not in run


def test_a_folder_with_a_run_is_rejected_and_left_unchanged(two_classes, finished):
    before = weights_of(finished)
    with pytest.raises(FileExistsError, match="--resume.*--overwrite"):
        main(command(two_classes, finished))
    assert weights_of(finished).keys() == before.keys()


def test_overwrite_starts_a_new_run(two_classes, finished):
    main(command(two_classes, finished, "--overwrite", "--seed", 5))
    assert "seed: 5" in (finished / "training.yaml").read_text()


def test_overwrite_deletes_all_of_the_run_and_nothing_that_a_user_added(two_classes, finished):
    # it deleted everything in the folder
    run = RunConfig.from_yaml((finished / "training.yaml").read_text())
    for name in ("skipped.csv", "skipped-1.csv", "best/config.json", ".unfinished-result/x"):
        (finished / name).parent.mkdir(exist_ok=True)
        (finished / name).touch()
    for name in ("notes.txt", "model_ema.safetensors", "my_vectors/part-00000.parquet"):
        (finished / name).parent.mkdir(exist_ok=True)
        (finished / name).write_text("mine")
    prepare_run_folder(run.replace(overwrite=True))
    assert {path.name for path in finished.iterdir()} == {
        "training.yaml", "environment.json", "notes.txt", "model_ema.safetensors", "my_vectors"
    }  # fmt: skip
    assert (finished / "my_vectors" / "part-00000.parquet").read_text() == "mine"


def test_overwrite_does_not_delete_a_folder_without_a_run(two_classes, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="something other than a run"):
        main(command(two_classes, tmp_path, "--overwrite"))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_resume_without_a_run_is_an_error(two_classes, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        main(command(two_classes, tmp_path / "out", "--resume"))


def test_resuming_a_finished_run_changes_nothing(two_classes, finished):
    before, log = weights_of(finished), log_of(finished)
    main(command(two_classes, finished, "--resume"))
    assert all((weights_of(finished)[name] == tensor).all() for name, tensor in before.items())
    assert log_of(finished) == log


def test_resume_with_other_values_is_an_error_that_names_them(two_classes, finished):
    with pytest.raises(ValueError, match="model.hidden_size: 32 then, 64 now"):
        main(command(two_classes, finished, "--resume", "--hidden-size", 64))
    with pytest.raises(ValueError, match="schedule.max_steps: 3 then, 4 now"):
        main(command(two_classes, finished, "--resume", "--max-steps", 4))


def test_resume_on_a_changed_dataset_is_an_error(two_classes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(two_classes, data)
    main(command(data, tmp_path / "out"))
    next(data.rglob("*.png")).rename(data / "bright" / "another.png")
    written = (tmp_path / "out" / "training.yaml").read_bytes()
    for folder in (data, tmp_path / "moved"):
        if not folder.exists():
            data.rename(folder)
        with pytest.raises(ValueError, match="the dataset has changed"):
            main(command(folder, tmp_path / "out", "--resume"))
    assert (tmp_path / "out" / "training.yaml").read_bytes() == written


def test_an_output_folder_inside_the_data_folder_is_an_error(two_classes, tmp_path):
    with pytest.raises(ValueError, match="must lie outside of data .*choose another --output"):
        main(command(two_classes, two_classes / "bright" / "out"))
    assert not (two_classes / "bright" / "out").exists()


def test_resume_accepts_the_new_path_of_a_dataset_that_was_moved(two_classes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(two_classes, data)
    main(command(data, tmp_path / "out"))
    uninterrupted = log_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step-00000003")
    main(command(data.rename(tmp_path / "moved"), tmp_path / "out", "--resume"))
    assert log_of(tmp_path / "out") == uninterrupted
    run = RunConfig.from_yaml((tmp_path / "out" / "training.yaml").read_text())
    assert (run.data.data, run.start.resume) == (str(tmp_path / "moved"), False)


def test_an_unfinished_save_is_not_used_as_a_checkpoint(two_classes, finished):
    log = log_of(finished)
    newest = finished / "checkpoints" / "step-00000003"
    newest.rename(finished / "checkpoints" / ".unfinished-00000003")
    main(command(two_classes, finished, "--resume"))
    assert log_of(finished) == log
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000003"]


def test_trainer_state_contains_step_number_of_processes_and_data_fingerprint(finished):
    state = json.loads((finished / "checkpoints/step-00000003/trainer_state.json").read_text())
    assert state["step"] == 3 and state["num_processes"] == 1 and len(state["data"]) == 16


def test_every_checkpoint_opens_with_automodel(finished):
    from transformers import AutoImageProcessor, AutoModel

    folder = finished / "checkpoints" / "step-00000002"
    assert AutoModel.from_pretrained(folder).config.hidden_size == 32
    assert AutoImageProcessor.from_pretrained(folder).size["height"] == 32
