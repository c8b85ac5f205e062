"""Sweeps: a grid of settings, each run once, in processes and as jobs."""

import concurrent.futures
import contextlib
import json
import os
import shutil
from pathlib import Path

import nbformat
import pytest
import sweep
from test_ci import make_book


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return make_book(tmp_path / "book")


def pretend(notebook: Path, output: Path, parameters: dict, cwd: Path, note: dict) -> str:
    """Stand in for a run: write the setting, or fail where it says so."""
    if parameters["episodes"] == 13:
        raise RuntimeError("thirteen failed")
    page = nbformat.v4.new_notebook(metadata={"fslib": {**note, "seconds": 1.5}})
    page.cells = [nbformat.v4.new_raw_cell(json.dumps(parameters), id="a")]
    nbformat.write(page, output)
    return str(output)


@pytest.mark.parametrize("executor", ["processes", "local"])
def test_a_sweep_runs_each_setting_once(book, tmp_path, capsys, monkeypatch, executor):
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{sweep.ROOT}:{sweep.ROOT}/ci")
    monkeypatch.chdir(tmp_path)
    grid = ["--grid", "episodes=2" if executor == "local" else "episodes=1,2,13"]
    arguments = [str(book / "start/task.py"), *grid, "--executor", executor, "--output", "out"]
    code = sweep.main(arguments, runner=pretend)
    shown = capsys.readouterr()
    assert code == (0 if executor == "local" else 1)
    assert ("thirteen failed" in shown.err) == (executor == "processes")
    count = 1 if executor == "local" else 2
    assert shown.out.count("done") == count
    held = nbformat.read(tmp_path / "out/episodes=2.ipynb", as_version=4)
    assert json.loads(held.cells[0].source) == {"episodes": 2}
    sweep.main(arguments, runner=pretend)
    assert capsys.readouterr().out.count("was there") == count


def test_a_sweep_runs_again_for_new_code_and_has_a_folder_for_each_page(
    book, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    script, other = book / "start/task.py", book / "end/task.py"
    shutil.copytree(script.parent, other.parent)

    def state(page: Path) -> str:
        assert sweep.main([str(page), "--grid", "episodes=2"], runner=pretend) == 0
        return capsys.readouterr().out.split()[1]

    assert [state(script), state(script), state(other)] == ["done", "was", "done"]
    script.write_text(script.read_text() + "more = 1\n")
    assert [state(script), state(script), state(other)] == ["done", "was", "was"]
    assert (tmp_path / "build/sweep/end/task/episodes=2.ipynb").exists()


def test_the_threads_of_a_slurm_job_are_those_that_it_asks_for(book, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sweep.joblib, "cpu_count", lambda: 64)
    here = contextlib.nullcontext(concurrent.futures.ThreadPoolExecutor(1))
    monkeypatch.setattr(sweep, "pool", lambda *_: here)
    line = [str(book / "start/task.py"), "--grid", "episodes=2", "--output", str(tmp_path / "out")]
    sweep.main([*line, "--executor", "slurm"], runner=pretend)
    assert os.environ["OMP_NUM_THREADS"] == str(sweep.SLURM_CORES)
    sweep.main(line, runner=pretend)
    assert os.environ["OMP_NUM_THREADS"] == "32"


def test_grids_are_products_and_lists_stay_lists():
    assert sweep.settings_of(["a=1,5", "b=x,y"], {"c": 0})[1] == {"c": 0, "a": 1, "b": "y"}
    assert sweep.settings_of(["s=[[0],[1,2]]"], {}) == [{"s": [0]}, {"s": [1, 2]}]
    assert sweep.settings_of(["p=1e-3,1e-2,no"], {}) == [{"p": 0.001}, {"p": 0.01}, {"p": False}]
    assert sweep.label({"a": 1, "b": "x"}) == "a=1-b=x" and len(sweep.label({"a": [1]})) == 16


def test_a_sweep_refuses_what_it_does_not_know(book):
    page = str(book / "start/task.py")
    with pytest.raises(SystemExit, match="no parameter shot; its parameters are: dataset"):
        sweep.main([page, "--grid", "shot=1,5"])
    with pytest.raises(SystemExit, match="no executor ray"):
        sweep.main([page, "--executor", "ray"])
    with pytest.raises(SystemExit, match="--grid takes"):
        sweep.main([page, "--grid", "episodes"])
