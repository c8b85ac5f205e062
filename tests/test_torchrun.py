"""Several processes of `torchrun` and one run."""

import dataclasses
import itertools
import json
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_faults import TINY, sets, slow_run, start

from fslib import runs, train
from fslib.device import LEADER
from fslib.runs import Config, open_run, save_tensors, write_json
from fslib.train import fit

HALF = dataclasses.replace(TINY, options={"batch": 16})


def one_of_two(rank: int, port: int, folder: Path, config: Config = HALF) -> None:
    """A process as `torchrun --nproc-per-node 2` starts it."""
    torch.set_num_threads(1)
    size = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2")
    place = dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
    server = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= size | place | server | {"GROUP_RANK": "0", "CUDA_VISIBLE_DEVICES": ""}
    ticks = itertools.count(0, 10**rank)  # a clock of each processor's own
    train.time = SimpleNamespace(
        perf_counter=time.perf_counter, process_time=lambda: float(next(ticks))
    )
    rows, drawn = [], train.epoch_rows
    train.epoch_rows = lambda *arguments: rows.append(drawn(*arguments)) or rows[-1]
    run = fit(config, sets(), runs=folder, progress=False)
    content = [[r.flatten().tolist() for r in rows], str(run.folder)]
    write_json(folder / f"rank{rank}.json", content)
    save_tensors(folder / f"rank{rank}.safetensors", run.method.state_dict())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


gloo = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="torch was built without gloo",
)


@gloo
def test_two_processes_of_torchrun_wait_for_another_job_and_open_its_run(tmp_path):
    """Both of them: the second one used to set out to train, and met nobody."""
    started, go, port = tmp_path / "started", tmp_path / "go", free_port()
    alone = start(slow_run, tmp_path / "runs", started, go)
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    pair = [start(one_of_two, rank, port, tmp_path / "runs", TINY) for rank in (0, 1)]
    time.sleep(3)
    assert all(child.exitcode is None for child in pair)
    go.touch()
    for child in (alone, *pair):
        child.join(60)
        assert child.exitcode == 0
    (folder,) = (tmp_path / "runs").glob("ce-*")
    assert open_run(folder).facts["processes"] == 1 and not (folder / LEADER).exists()
    for rank in (0, 1):
        rows, opened = json.loads((tmp_path / "runs" / f"rank{rank}.json").read_text())
        assert rows == [] and opened == str(folder)


@gloo
def test_two_processes_of_torchrun_make_one_run(tmp_path):
    port = free_port()
    children = [start(one_of_two, rank, port, tmp_path) for rank in (0, 1)]
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    (rows, folder), (others, same) = (
        json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)
    )
    assert same == folder and [str(p) for p in tmp_path.glob("ce-*")] == [folder]
    for mine, theirs in zip(rows, others, strict=True):  # one epoch after the other
        assert len(mine) == len(theirs) == 48 and not set(mine) & set(theirs)
    run = open_run(Path(folder))
    assert run.facts["processes"] == 2 and run.images_seen == 2 * 96 and len(run.history) == 2
    # Of both processes, as the images are.
    assert run.facts["cpu_seconds"] == 22 and [r["cpu_seconds"] for r in run.history] == [11, 11]
    for rank in (0, 1):
        saved, _ = runs.load_tensors(tmp_path / f"rank{rank}.safetensors")
        for key, value in run.method.state_dict().items():
            assert torch.equal(value, saved[key])
