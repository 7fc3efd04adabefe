"""Trackers, tested by reading back what they wrote.

They keep global state, so each run has its own process.
"""

import importlib.util
import json
import os
import shutil
import sqlite3
import struct
import subprocess

import pytest

from selfvit.training.config.tracker_names import NEEDS, chosen_trackers, read_trackers

from .tiny_runs import arguments, log_of

BLOCK, HEADER = 32768, 7  # bytes; LevelDB's log format after a header of W&B
# Not in [dev]: trackio 0.43 requires Pillow < 13, and the tests use the newest Pillow.
NOT_IN_DEV = {"trackio"}
TRACKER_VARIABLES = ("WANDB_MODE", "WANDB_ERROR_REPORTING", "TRACKIO_DIR", "MLFLOW_TRACKING_URI")


def missing(tracker):
    return [name for name in NEEDS[tracker] if importlib.util.find_spec(name) is None]


def require(tracker):
    """Skip the test if a tracker is not installed; fail in continuous integration."""
    if not missing(tracker):
        return
    if os.environ.get("CI") and tracker not in NOT_IN_DEV:
        raise ModuleNotFoundError(f"{', '.join(missing(tracker))} is missing, but part of [dev]")
    pytest.skip(f"optional: pip install {tracker}")


def train(python, command):
    """Run `selfvit train` without the tracker variables of this process's environment."""
    kept = {name: value for name, value in os.environ.items() if name not in TRACKER_VARIABLES}
    result = subprocess.run(
        [python, "-m", "selfvit.training.train", *command],
        env={**kept, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def tracked_run(two_classes, python_with_selfvit, tmp_path_factory):
    """Run of four steps with all trackers, resumed once from the checkpoint of step 2."""
    out = tmp_path_factory.mktemp("tracked") / "out"
    trackers = ",".join(name for name in NEEDS if not missing(name))
    options = ("--max-steps", 4, "--batch-size", 6, "--save-steps", 2, "--image-steps", 2)
    command = arguments("mae", two_classes, out, *options, "--tracker", trackers)
    train(python_with_selfvit, command)
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    train(python_with_selfvit, [*command, "--resume"])
    return out


def losses_of(out):
    """Return the losses of steps 1 to 4, followed by those that the resumed run repeated."""
    losses = [line["loss"] for line in log_of(out).values()]
    return pytest.approx(losses + losses[2:])


def id_of(out, tracker):
    return json.loads((out / "trackers.json").read_text())[tracker]


def rows_of(database, query):
    with sqlite3.connect(database) as connection:
        return connection.execute(query).fetchall()


def records_of(content):
    """Yield the records of a .wandb file.

    A record consists of parts with a header of checksum (4 bytes), length (2) and kind (1).
    """
    position, record = HEADER, b""
    while position + HEADER <= len(content):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        position += HEADER
        record += content[position : position + length]
        position += length
        if kind in (1, 4):  # a full record, or its last part
            yield record
            record = b""


def wandb_records(out):
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted(out.rglob("offline-run-*/*.wandb")):
        for content in records_of(file.read_bytes()):
            record = Record()
            record.ParseFromString(content)
            yield record


def test_unknown_empty_and_repeated_tracker_names_are_errors():
    assert read_trackers("none") == []
    assert read_trackers("tensorboard, mlflow") == ["tensorboard", "mlflow"]
    for names in ("tensorbord", "none,wandb", "wandb,wandb", ""):
        with pytest.raises(ValueError, match="separated by commas: tensorboard, wandb"):
            read_trackers(names)


@pytest.mark.parametrize("tracker", ["wandb", "trackio", "mlflow"])
def test_a_missing_tracker_is_an_error_with_the_command_that_installs_it(tracker, monkeypatch):
    monkeypatch.setitem(NEEDS, tracker, ("a_module_that_does_not_exist",))
    with pytest.raises(ValueError, match=f"pip install {tracker}"):
        chosen_trackers(f"tensorboard,{tracker}")


def test_wandb_stores_a_resumed_run_as_one_run_with_losses_settings_and_pictures(
    tracked_run,
):
    require("wandb")
    losses: list[float] = []
    ids: set[str] = set()
    values: dict[str, str] = {}
    for record in wandb_records(tracked_run):
        if record.HasField("run"):
            ids.add(record.run.run_id)
        for configuration in (record.config, record.run.config):
            values |= {item.key: item.value_json for item in configuration.update}
        for item in record.history.item:
            if "loss" in (item.key, *item.nested_key):
                losses.append(json.loads(item.value_json))
    assert losses == losses_of(tracked_run)
    assert values["schedule.batch_size"] == "6"
    assert ids == {id_of(tracked_run, "wandb")}
    assert list(tracked_run.rglob("offline-run-*/files/media/images/*.png"))


def test_trackio_stores_a_resumed_run_as_one_run_with_losses_settings_and_pictures(tracked_run):
    require("trackio")
    (database,) = tracked_run.rglob("trackio/*.db")
    logged = [
        (step, json.loads(metrics))
        for step, metrics in rows_of(database, "select step, metrics from metrics order by id")
    ]
    losses = [metrics["loss"] for _, metrics in logged if "loss" in metrics]
    assert losses == losses_of(tracked_run)
    assert {step for step, metrics in logged if "views" in metrics} == {1, 2, 4}
    ((run, config),) = rows_of(database, "select run_name, config from configs")
    assert run == id_of(tracked_run, "trackio")
    assert json.loads(config)["schedule.batch_size"] == 6
    assert list((tracked_run / "trackio").rglob("*.png"))


def test_mlflow_stores_a_resumed_run_as_one_run_with_losses_settings_and_pictures(tracked_run):
    require("mlflow")
    database = tracked_run / "mlflow" / "mlflow.db"
    query = "select value, run_uuid from metrics where key = 'loss' order by timestamp, step"
    logged = rows_of(database, query)
    assert [loss for loss, _ in logged] == losses_of(tracked_run)
    assert {run for _, run in logged} == {id_of(tracked_run, "mlflow")}
    values = dict(rows_of(database, "select key, value from params"))
    assert values["schedule.batch_size"] == "6"
    assert values["model.mae_config.mask_ratio"] == "0.75"
    assert list((tracked_run / "mlflow" / "artifacts").rglob("views*.png"))


def test_strings_of_a_collapse_warning_become_tags_in_mlflow(python_with_selfvit, tmp_path):
    # metrics of MLflow are numbers: Accelerate used to drop the strings, with a warning
    require("mlflow")
    code = (
        "from accelerate import Accelerator\n"
        "from selfvit.training.callbacks.trackers import log_tracker_metrics\n"
        "accelerator = Accelerator(cpu=True, log_with='mlflow')\n"
        "accelerator.init_trackers('alarms')\n"
        "alarm = {'collapse': 'uniform', 'loss': 1.5}\n"
        "log_tracker_metrics(accelerator.trackers[0], alarm, 3)\n"
        "accelerator.end_training()\n"
    )
    database = tmp_path / "mlflow.db"
    place = {"MLFLOW_TRACKING_URI": f"sqlite:///{database}", "MLFLOW_DISABLE_TELEMETRY": "true"}
    result = subprocess.run(
        [python_with_selfvit, "-c", code], env=os.environ | place, cwd=tmp_path, timeout=600,
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "dropped" not in result.stdout + result.stderr
    assert ("collapse", "uniform") in rows_of(database, "select key, value from tags")
    assert rows_of(database, "select key, value, step from metrics") == [("loss", 1.5, 3)]


def test_tensorboard_stores_each_step_of_a_resumed_run_once_with_metrics_and_pictures(tracked_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked_run / "logs" / "selfvit"))
    events.Reload()
    assert {"loss", "learning_rate", "images_per_second"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert {"views", "reconstructions"} <= set(events.Tags()["images"])
