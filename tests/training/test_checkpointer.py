import json
import shutil

import pytest

from selfvit.training.config.run_config import RunConfig
from selfvit.training.train import main

from .tiny_runs import arguments, log_of, weights_of

OPTIONS = ("--max_steps", 3, "--batch_size", 6, "--save_steps", 1)


@pytest.fixture
def finished(two_classes, tmp_path):
    main(arguments("dino", two_classes, tmp_path / "out", *OPTIONS))
    return tmp_path / "out"


def command(two_classes, output, *options):
    return arguments("dino", two_classes, output, *OPTIONS, *options)


def test_only_the_newest_checkpoints_are_kept(finished):
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000003"]


def test_the_result_and_what_can_be_resumed_carry_their_code(finished):
    for folder in (finished, finished / "checkpoints" / "step-00000003"):
        config = json.loads((folder / "config.json").read_text())
        assert config["auto_map"]["AutoModelForPreTraining"] == "modeling_selfvit.SelfViTForDINO"
        code = {path.name for path in folder.glob("*.py")}
        assert code == {"configuration_selfvit.py", "modeling_selfvit.py"}


def test_no_code_leaves_the_code_out_and_changes_no_weight(two_classes, finished, tmp_path):
    before = weights_of(finished)
    main(command(two_classes, tmp_path / "bare", "--no-code"))
    assert not list((tmp_path / "bare").rglob("*.py"))
    assert "save_code: false" in (tmp_path / "bare" / "training.yaml").read_text()
    after = weights_of(tmp_path / "bare")
    assert all((after[name] == tensor).all() for name, tensor in before.items())


def test_a_run_that_another_selfvit_began_keeps_none_of_its_modules(two_classes, finished):
    config = json.loads((finished / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "modeling_old.SelfViTModel"
    (finished / "modeling_old.py").write_text("")
    (finished / "config.json").write_text(json.dumps(config))
    shutil.rmtree(finished / "checkpoints" / "step-00000003")
    main(command(two_classes, finished, "--resume", "true"))
    modules = {path.stem for path in finished.glob("*.py")}
    assert modules == {"configuration_selfvit", "modeling_selfvit"}


def test_what_a_checkpoint_says_of_its_folder_does_not_go_into_the_run(
    two_classes, finished, tmp_path
):
    options = ("--init_from", finished, "--init_scope", "all")
    main(command(two_classes, tmp_path / "next", *options))
    run = (tmp_path / "next" / "training.yaml").read_text()
    for name in ("auto_map", "format_version", "selfvit_version", "transformers_version"):
        assert name not in run


def test_a_folder_with_a_run_is_refused_and_left_as_it_is(two_classes, finished):
    before = weights_of(finished)
    with pytest.raises(FileExistsError, match="--resume.*--overwrite"):
        main(command(two_classes, finished))
    assert weights_of(finished).keys() == before.keys()


def test_overwrite_starts_anew(two_classes, finished):
    main(command(two_classes, finished, "--overwrite", "true", "--seed", 5))
    assert "seed: 5" in (finished / "training.yaml").read_text()


def test_a_folder_that_is_no_run_is_never_overwritten(two_classes, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="something else than a run"):
        main(command(two_classes, tmp_path, "--overwrite", "true"))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_resume_without_a_run_is_an_error(two_classes, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        main(command(two_classes, tmp_path / "out", "--resume", "true"))


def test_resuming_a_finished_run_changes_nothing(two_classes, finished):
    before, log = weights_of(finished), log_of(finished)
    main(command(two_classes, finished, "--resume", "true"))
    assert all((weights_of(finished)[name] == tensor).all() for name, tensor in before.items())
    assert log_of(finished) == log


def test_resume_with_other_values_is_an_error_naming_them(two_classes, finished):
    with pytest.raises(ValueError, match="model.hidden_size: 32 then, 64 now"):
        main(command(two_classes, finished, "--resume", "true", "--hidden_size", 64))
    with pytest.raises(ValueError, match="training.max_steps: 3 then, 4 now"):
        main(command(two_classes, finished, "--resume", "true", "--max_steps", 4))


def test_resume_on_a_changed_data_set_is_an_error(two_classes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(two_classes, data)
    main(command(data, tmp_path / "out"))
    next(data.rglob("*.png")).rename(data / "bright" / "another.png")
    written = (tmp_path / "out" / "training.yaml").read_bytes()
    for folder in (data, tmp_path / "moved"):
        if not folder.exists():
            data.rename(folder)
        with pytest.raises(ValueError, match="the data set changed"):
            main(command(folder, tmp_path / "out", "--resume", "true"))
    assert (tmp_path / "out" / "training.yaml").read_bytes() == written


def test_a_run_does_not_go_into_the_images_that_it_trains_on(two_classes, tmp_path):
    with pytest.raises(ValueError, match="lies in data .*choose an --output outside"):
        main(command(two_classes, two_classes / "bright" / "out"))
    assert not (two_classes / "bright" / "out").exists()


def test_resume_takes_a_data_set_that_was_moved_from_where_it_is_now(two_classes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(two_classes, data)
    main(command(data, tmp_path / "out"))
    unbroken = log_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step-00000003")
    main(command(data.rename(tmp_path / "moved"), tmp_path / "out", "--resume", "true"))
    assert log_of(tmp_path / "out") == unbroken
    run = RunConfig.from_yaml((tmp_path / "out" / "training.yaml").read_text())
    assert (run.data.data, run.start.resume) == (str(tmp_path / "moved"), False)


def test_an_unfinished_save_is_not_taken_for_a_checkpoint(two_classes, finished):
    log = log_of(finished)
    newest = finished / "checkpoints" / "step-00000003"
    newest.rename(finished / "checkpoints" / ".unfinished-00000003")
    main(command(two_classes, finished, "--resume", "true"))
    assert log_of(finished) == log
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000003"]


def test_a_checkpoint_says_what_it_needs_to_be_resumed(finished):
    state = json.loads((finished / "checkpoints/step-00000003/trainer_state.json").read_text())
    assert state["step"] == 3 and state["num_processes"] == 1 and len(state["data"]) == 16


def test_every_checkpoint_opens_with_automodel(finished):
    from transformers import AutoImageProcessor, AutoModel

    folder = finished / "checkpoints" / "step-00000002"
    assert AutoModel.from_pretrained(folder).config.hidden_size == 32
    assert AutoImageProcessor.from_pretrained(folder).size["height"] == 32
