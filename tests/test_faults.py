"""What goes wrong on real machines: kills, full disks, NaN, foreign and damaged files."""

import dataclasses
import errno
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import coloured
from test_train import TINY

from fslib import runs, train
from fslib.methods.ce import CrossEntropy
from fslib.runs import Config, RunCorrupt, load_weights, open_run, save_tensors, write_json
from fslib.train import TrainingDiverged, fit

# Dropout, DropBlock and augmentation all draw numbers that a resumed run must draw again.
DROPPING = dataclasses.replace(
    TINY,
    backbone="resnet12",
    backbone_options={"widths": (2, 3, 4, 5), "drop_rate": 0.2, "block_size": 2},
    epochs=3,
)
ADAM = dataclasses.replace(DROPPING, optimiser="adam", lr=0.01)
STEPS = 3  # of an epoch: 120 images in batches of 32


def sets() -> dict:
    return {"train": coloured("train", seed=0), "val": coloured("val", seed=1)}


# A forked child need not import torch again; with CUDA a fork would be broken.
CHILDREN = multiprocessing.get_context("forkserver" if torch.cuda.is_available() else "fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def start(target, *arguments) -> multiprocessing.Process:
    child = CHILDREN.Process(target=target, args=arguments, daemon=True)
    child.start()
    return child


def killed_in_an_epoch(config: Config, folder: Path) -> None:
    torch.set_num_threads(1)
    loss, calls = CrossEntropy.loss, []

    def mortal(self, batch, progress):
        calls.append(progress)
        if len(calls) == 2 * STEPS:  # the last step of the second epoch
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(self, batch, progress)

    CrossEntropy.loss = mortal
    fit(config, sets(), runs=folder, progress=False)


def killed_in_a_checkpoint(config: Config, folder: Path) -> None:
    torch.set_num_threads(1)
    save, calls = runs.save_file, []

    def mortal(tensors, path, metadata):
        save(tensors, path, metadata)
        calls.append(path)
        if len(calls) == 2:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    runs.save_file = mortal
    fit(config, sets(), runs=folder, progress=False)


def plain(history: list[dict]) -> list[dict]:
    """The history without what a clock says."""
    clocks = ("seconds", "cpu_seconds")
    return [{k: v for k, v in row.items() if k not in clocks} for row in history]


@pytest.mark.parametrize(
    ("config", "death"), [(DROPPING, killed_in_an_epoch), (ADAM, killed_in_a_checkpoint)]
)
def test_a_killed_run_ends_where_an_uninterrupted_one_ends(config, death, tmp_path, monkeypatch):
    child = start(death, config, tmp_path)
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    (folder,) = tmp_path.glob("ce-*")
    strays = list(folder.glob(".*.partial"))
    assert len(strays) == (death is killed_in_a_checkpoint)
    assert not (folder / "run.json").exists() and not (folder / "weights.safetensors").exists()

    epochs, train_epoch = [], train._train_epoch

    def watched(*arguments):
        epochs.append(arguments[6])
        return train_epoch(*arguments)

    monkeypatch.setattr(train, "_train_epoch", watched)
    resumed = fit(config, sets(), runs=tmp_path, progress=False)
    assert epochs == [1, 2]  # the whole epoch that was saved is not trained again
    whole = fit(config, sets(), runs=tmp_path / "whole", progress=False)
    assert plain(resumed.history) == plain(whole.history)
    for key, value in whole.method.state_dict().items():
        assert torch.equal(value, resumed.method.state_dict()[key]), key
    names = sorted(p.name for p in folder.iterdir())
    assert names == [".lock", "config.json", "run.json", "weights.safetensors"]


def slow_run(folder: Path, started: Path, go: Path) -> None:
    torch.set_num_threads(1)
    loss = CrossEntropy.loss

    def patient(self, batch, progress):
        started.touch()
        while not go.exists():
            time.sleep(0.01)
        return loss(self, batch, progress)

    CrossEntropy.loss = patient
    fit(TINY, sets(), runs=folder, progress=False)


def test_of_two_processes_one_trains_and_the_other_waits(tmp_path, monkeypatch, capsys):
    started, go = tmp_path / "started", tmp_path / "go"
    child = start(slow_run, tmp_path / "runs", started, go)
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert started.exists()
    monkeypatch.setattr(train, "_train", lambda *_: pytest.fail("both trained"))
    timer = threading.Timer(0.3, go.touch)
    timer.start()
    run = fit(TINY, sets(), runs=tmp_path / "runs", progress=False)
    assert go.exists() and len(run.history) == 2
    assert "is being trained by another process: waiting for it" in capsys.readouterr().err
    child.join(60)
    assert child.exitcode == 0


def test_a_nan_loss_names_the_place_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    loss, calls = CrossEntropy.loss, []

    def sick(self, batch, progress):
        made = loss(self, batch, progress)
        calls.append(1)
        return made | {"loss": made["loss"] * (float("nan") if len(calls) == STEPS + 2 else 1)}

    monkeypatch.setattr(CrossEntropy, "loss", sick)
    message = r"not a number at epoch 2, step 2 \(loss nan, base_accuracy [\d.]+\): lower `lr`"
    with pytest.raises(TrainingDiverged, match=message):
        fit(TINY, sets(), runs=tmp_path, progress=False)
    (checkpoint,) = tmp_path.glob("ce-*/checkpoint.safetensors")
    tensors, facts = runs.load_tensors(checkpoint)
    assert len(facts["history"]) == 1
    assert all(torch.isfinite(value).all() for value in tensors.values())
    monkeypatch.undo()
    assert len(fit(TINY, sets(), runs=tmp_path, progress=False).history) == 2


@pytest.mark.parametrize(("key", "value"), [("processes", 2), ("semantics", "abc")])
def test_a_run_goes_on_only_as_it_was_begun(tmp_path, monkeypatch, key, value):
    """Half of the processes would make batches of half the size in the middle of a training."""
    train_epoch = train._train_epoch

    def once(*arguments):
        if arguments[6] == 1:
            raise KeyboardInterrupt
        return train_epoch(*arguments)

    monkeypatch.setattr(train, "_train_epoch", once)
    with pytest.raises(KeyboardInterrupt):
        fit(TINY, sets(), runs=tmp_path, progress=False)
    monkeypatch.undo()
    (checkpoint,) = tmp_path.glob("ce-*/checkpoint.safetensors")
    tensors, facts = runs.load_tensors(checkpoint)
    kept = {"semantics": None, "processes": 1}
    assert {name: facts[name] for name in kept} == kept
    save_tensors(checkpoint, tensors, **facts | {key: value})
    message = f"was begun with {key} = {value}, and now {key} = {kept[key]}: go on as it was begun"
    with pytest.raises(ValueError, match=message):
        fit(TINY, sets(), runs=tmp_path, progress=False)
    save_tensors(checkpoint, tensors, history=facts["history"])  # from before this was noted
    assert len(fit(TINY, sets(), runs=tmp_path, progress=False).history) == 2


def full_disk(monkeypatch, after: int) -> None:
    """From the given call on, tensors are half written and then the disk is full."""
    save, calls = runs.save_file, []

    def fails(tensors, path, metadata):
        calls.append(path)
        if len(calls) > after:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, metadata)

    monkeypatch.setattr(runs, "save_file", fails)


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, epochs=3)
    full_disk(monkeypatch, after=1)
    message = r"no space left to write .*checkpoint\.safetensors: free some and start again, noth"
    with pytest.raises(OSError, match=message):
        fit(config, sets(), runs=tmp_path, progress=False)
    monkeypatch.undo()
    (folder,) = tmp_path.glob("ce-*")
    names = sorted(p.name for p in folder.iterdir())
    assert names == [".lock", "checkpoint.safetensors", "config.json"]
    assert len(runs.load_tensors(folder / "checkpoint.safetensors")[1]["history"]) == 1
    resumed = fit(config, sets(), runs=tmp_path, progress=False)
    whole = fit(config, sets(), runs=tmp_path / "whole", progress=False)
    assert plain(resumed.history) == plain(whole.history)


def test_a_full_disk_never_replaces_a_json_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def fails(self, text, encoding):
        self.write_bytes(b"{")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fails)
    with pytest.raises(OSError, match=r"no space left to write .*a\.json"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UnicodeError])
def test_no_failure_leaves_a_partial_file(tmp_path, error):
    def write(partial: Path) -> None:
        partial.write_text("half")
        raise error

    with pytest.raises(error):
        runs.write_atomically(tmp_path / "a.json", write)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return fit(TINY, sets(), runs=tmp_path_factory.mktemp("runs"), progress=False)


def one_sentence(error: pytest.ExceptionInfo) -> None:
    assert "\n" not in str(error.value) and ": " in str(error.value)


def test_weights_of_another_method_or_of_other_options_are_refused(finished):
    weights = finished.folder / "weights.safetensors"
    other = dataclasses.replace(TINY, method="protonet", options={})
    with pytest.raises(RunCorrupt, match="holds weights of 'ce', not of 'protonet': give") as error:
        load_weights(other.build(5), weights, "protonet")
    one_sentence(error)
    wider = dataclasses.replace(TINY, backbone_options={"width": 8})
    with pytest.raises(RunCorrupt, match=r"does not fit 'ce' with these options .*: use") as error:
        load_weights(wider.build(5), weights, "ce")
    one_sentence(error)
    load_weights(TINY.build(5), weights, "ce")


@pytest.fixture
def copy(finished, tmp_path):
    folder = tmp_path / finished.folder.name
    folder.mkdir()
    for file in finished.folder.glob("*.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("weights.safetensors", halve),
        ("weights.safetensors", lambda path: path.write_bytes(b"")),
        ("weights.safetensors", lambda path: path.unlink()),
        ("run.json", halve),
        ("run.json", lambda path: path.write_text("[]")),
        ("run.json", lambda path: path.write_text('{"config": {"method": "ce"}}')),
    ],
)
def test_a_damaged_run_says_which_file_and_what_to_do(copy, name, damage):
    damage(copy / name)
    for attempt in (lambda: open_run(copy), lambda: fit(TINY, sets(), runs=copy.parent)):
        with pytest.raises(RunCorrupt, match=f"{name} cannot be read") as error:
            attempt()
        assert f"delete the folder {copy} and train again" in str(error.value)
        one_sentence(error)


def test_a_damaged_checkpoint_says_what_to_do(tmp_path):
    folder = tmp_path / TINY.identity(sets()["train"].digest)
    save_tensors(folder / "checkpoint.safetensors", {"model.mean": torch.zeros(3)}, history=[])
    halve(folder / "checkpoint.safetensors")
    message = r"checkpoint\.safetensors cannot be read .*: delete the folder .* and train again"
    with pytest.raises(RunCorrupt, match=message):
        fit(TINY, sets(), runs=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "unknown schedule 'linear': choose one of cosine, steps"),
        ({"optimiser": "lion"}, "unknown optimiser 'lion': choose one of sgd, adam"),
        ({"augment": "blur"}, "unknown augment 'blur': choose one of none, crop_flip"),
        ({"precision": "int8"}, "unknown precision 'int8': choose one of auto, bf16-mixed"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"warmup": 1.0}, r"warmup a share in \[0, 1\)"),
        ({"method": "maml"}, "unknown method 'maml': choose one of ce"),
        ({"backbone": "vgg"}, "unknown backbone 'vgg': choose one of conv4"),
        ({"options": {"margin": 1}}, "method 'ce' does not take these options: .*'margin'"),
        ({"backbone_options": {"depth": 1}}, "backbone 'conv4' does not take these options"),
        ({"options": {"batch": 500}}, "120 training images do not fill one batch of 500: lower"),
        (
            {"method": "protonet", "options": {"way": 8, "shot": 1, "query": 1}},
            "a 8-way episode needs 8 classes and there are 5: lower `way`",
        ),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_trained(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        fit(dataclasses.replace(TINY, **changes), sets(), runs=tmp_path, progress=False)
    assert not list(tmp_path.glob("*/*.safetensors"))
