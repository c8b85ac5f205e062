"""The benchmarks run, say what they should, and both paths agree; no time is asserted."""

import json
import math

import pytest
import torch

from benchmarks import common, data, evaluation, margins, memory, training
from benchmarks.report import write_report


def named(result: dict) -> dict[str, dict]:
    return {row["what"]: row for row in result["rows"]}


def test_the_png_folder_gives_the_packed_pictures_back(tmp_path):
    images, labels = common.pictures(12, 4)
    files = common.png_folder(images, labels, tmp_path, augmented=False)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (common.MEAN, common.STD))
    for number in (0, 5, 11):
        image, label = files[number]
        assert label == labels[number]
        assert torch.equal((image * std + mean).mul(255).round().to(torch.uint8), images[number])


def test_the_clock_counts_only_what_is_inside():
    clock = common.Clock()
    assert (clock.wall, clock.cpu) == (0, 0)
    for _ in range(2):
        with clock:
            sum(range(200_000))
    before = (clock.wall, clock.cpu)
    sum(range(200_000))
    assert (clock.wall, clock.cpu) == before
    assert clock.rate(10)["per_second"] == pytest.approx(10 / clock.wall)


def test_cached_features_give_the_logits_of_the_usual_path():
    small = {"images": 400, "rounds": 1, "embedded": 64, "slow_episodes": 1, "repeats": 1}
    result = evaluation.measure("resnet12_slim", **small)
    rows = named(result)
    difference = rows["logits: largest difference / largest logit, fp32"]
    assert 0 <= difference["value"] <= 1e-4
    assert difference["met"]
    ratio = rows["evaluation: fslib / usual path"]["value"]
    slow = rows["2,000 episodes, usual path (extrapolated)"]["value"]
    fast = rows["2,000 episodes, fslib: 12,000 images once, then scores"]["value"]
    assert ratio == pytest.approx(slow / fast)
    assert result["raw"]["usual"]["episodes"] == 1


def test_training_compares_both_paths_and_its_ratio_is_that_of_the_rates():
    result = training.measure(("conv4",), batch=8, rounds=1, steps=1)
    rows = named(result)
    usual, ours = (rows[f"conv4: {path}"]["value"] for path in ("usual path", "fslib"))
    assert rows["conv4: fslib / usual path"]["value"] == pytest.approx(ours / usual)
    assert 0 < rows["conv4: data path"]["value"] < 100


def test_the_memory_run_trains_and_tells_the_peak_in_bytes(capsys):
    memory._train_and_tell("ce", 128)
    # 38,400 packed images alone are 0.12 GB.
    assert 0.12e9 < int(capsys.readouterr().out) < 100e9


def test_the_command_writes_json_and_the_page_names_the_machine(tmp_path, capsys):
    words = ["--quick", "--output", str(tmp_path)]
    common.main("data", data.measure, {"per_class": 20, "batches": 1}, words, ["from"])
    content = json.loads((tmp_path / "data.json").read_text())
    assert content["quick"] is True
    assert content["images"] == {"train": 1280, "val": 320, "test": 400}
    assert all(math.isfinite(row["value"]) and row["value"] > 0 for row in content["rows"])
    assert "opening" in capsys.readouterr().out
    page = tmp_path / "README.md"
    write_report([tmp_path / "data.json"], page)
    text = page.read_text()
    assert content["machine"]["processor"] in text
    assert "A quick run" in text
    assert "| drawing 10,000 episodes |" in text


def test_the_margins_benchmark_sets_its_milliseconds_against_a_step():
    rows = named(margins.measure(rounds=1, turns=3, episodes=8))
    for backbone in ("conv4", "resnet12_slim"):
        step = rows[f"{backbone}: a step of ProtoNet, 300 images"]["value"]
        for kind in margins.KINDS:
            alone = rows[f"a {kind} margin, forward and backward"]["value"]
            share = rows[f"{backbone}: added by a {kind} margin"]["value"]
            assert share == pytest.approx(100 * alone / step)
    name = "stage 2 of dynamic_fsl_traml, 64 base classes, 192 wide, 20 shot"
    assert rows[name]["value"] > 0
