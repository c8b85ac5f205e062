"""The one command behind every record."""

import contextlib
import dataclasses
import shlex
import shutil

import numpy as np
import pytest
import torch
from conftest import coloured

from fslib import device, measure, train
from fslib.data import DataMissing, PackSplit, open_dataset, write_pack
from fslib.episodes import TooFewImages
from fslib.evaluate import embed_images, evaluate
from fslib.heads import HEADS
from fslib.heads.finetune import FINE_TUNED
from fslib.measure import join, main, measured, part_of
from fslib.results import command_of, load_records, load_scores
from fslib.runs import Config, config_of, open_run, publish_run

CONFIGS = [
    Config("ce"),
    Config(
        "protonet",
        dataset="cifar_fs",
        backbone="resnet12_slim",
        options={"way": 10, "pool": "mean", "point_wise": True},
        backbone_options={"drop_rate": 1e-5, "widths": [24, 48, 96, 192]},
        lr=0.003,
        seed=2,
        profile="cpu",
        variant="two words",
    ),
    Config("negative_margin", options={"margin": 0.1, "batch": 64}, optimiser="adam", warmup=0.0),
    Config("ce", schedule="steps", milestones=((0.5, 0.06), (0.75, 0.2)), weight_decay=1e-5),
]


@pytest.mark.parametrize("config", CONFIGS, ids=range(4))
def test_the_command_gives_back_the_configuration(config, monkeypatch, coloured_sets):
    asked = []

    def fit(config, data, root):
        asked.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "open_dataset", lambda name, root: coloured_sets)
    monkeypatch.setattr(measure, "fit", fit)
    words = shlex.split(command_of(config, ["--heads", "l2n"]))
    assert words[:4] == ["python", "-m", "fslib.measure", config.method]
    with pytest.raises(KeyboardInterrupt):
        main(words[3:])
    assert asked == [config]
    assert asked[0].identity("d") == config.identity("d")


@pytest.fixture
def places(tmp_path, monkeypatch, coloured_sets):
    """Data sets in memory; runs and results in a folder of the test."""
    monkeypatch.setenv("FSLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FSLIB_RESULTS", str(tmp_path / "results"))
    birds = {
        split: dataclasses.replace(coloured(split, classes, side=20, seed=7), name="birds")
        for split, classes in (("train", 3), ("test", 2))
    }
    known = {"coloured": coloured_sets, "birds": birds}
    monkeypatch.setattr(measure, "open_dataset", lambda name, root: known[name])
    return known


WORDS = shlex.split(
    "ce --dataset coloured --backbone-options width=4 --options batch=32 --epochs 1 "
    "--precision 32-true --profile cpu --episodes 30 --shots 1 2 --heads centred "
    "--corruptions pepper enlarge --on coloured birds"
)


def test_one_command_trains_scores_and_records(places, tmp_path, capsys):
    main(WORDS)
    records = {record.id.removesuffix("--30-episodes"): record for record in load_records()}
    name = "coloured--ce--conv4--cpu--seed0"
    # Heads and corruptions are tried on the own images only.
    endings = ("on-birds", "pepper", "enlarge", "head-centred")
    names = [name, *(f"{name}--{ending}" for ending in endings)]
    assert sorted(records) == sorted(names)
    assert f"{name}--30-episodes: 1-shot " in capsys.readouterr().out
    (folder,) = (tmp_path / "runs").glob("ce-*")
    run = open_run(folder)
    record, test = records[name], places["coloured"]["test"]
    maps = embed_images(run.method, test)
    for shot in (1, 2):
        expected = evaluate(run.method, test, shot, episodes=30, maps=maps)
        assert np.array_equal(load_scores(record, shot).correct, expected.correct)
        assert record.accuracy[str(shot)]["mean"] == round(expected.mean, 3)
    assert record.episodes == {"way": 5, "query": 15, "episodes": 30, "seed": 0}
    assert record.evaluated_digest == test.digest
    assert record.facts["data_digest"] == places["coloured"]["train"].digest
    assert record.history == run.history and record.config == run.config.as_dict()
    head = HEADS["centred"]
    base = head.raw_features(embed_images(run.method, places["coloured"]["train"])).mean(0)
    centred = evaluate(run.method, test, 1, episodes=30, head=head, base_mean=base)
    assert np.array_equal(load_scores(records[f"{name}--head-centred"], 1).correct, centred.correct)

    # A degraded image set keeps the name and the digest of the clean one, and says its own side.
    large = records[f"{name}--enlarge"]
    assert (large.evaluated_on, large.evaluated_digest) == ("coloured", test.digest)
    assert large.facts["scored_side"] == round(test.size[0] * 224 / 84)

    far = records[f"{name}--on-birds"]
    assert (far.evaluated_on, far.facts["scored_side"]) == ("birds", 16)
    assert far.evaluated_digest.endswith("@16")
    # The command of a record makes all of these records again.
    again = shlex.split(record.command)[3:]
    given = vars(measure._parser().parse_args(again))
    for key in ("on", "corruptions", "heads", "shots", "episodes", "epochs", "profile"):
        assert given[key] == vars(measure._parser().parse_args(WORDS))[key]


def test_own_parts_and_fitted_heads_are_scored_by_the_same_command(places, tmp_path):
    main(
        [
            *WORDS[: WORDS.index("--heads")],
            "--heads",
            "tuned_dot",
            "--on",
            "coloured",
            "coloured_val",
        ]
    )
    records = {record.id.removesuffix("--30-episodes"): record for record in load_records()}
    name = "coloured--ce--conv4--cpu--seed0"
    assert sorted(records) == [name, f"{name}--head-tuned_dot", f"{name}--on-coloured_val"]
    (folder,) = (tmp_path / "runs").glob("ce-*")
    run, val = open_run(folder), part_of(places["coloured"], "val")
    assert val.name == "coloured_val" and val.counts.max() <= 100
    expected = evaluate(run.method, val, 2, episodes=30)
    assert np.array_equal(
        load_scores(records[f"{name}--on-coloured_val"], 2).correct, expected.correct
    )
    expected = evaluate(
        run.method, places["coloured"]["test"], 2, episodes=30, head=FINE_TUNED["tuned_dot"]
    )
    assert np.array_equal(
        load_scores(records[f"{name}--head-tuned_dot"], 2).correct, expected.correct
    )


def test_a_committed_record_is_taken_where_it_answers_the_question(places, tmp_path, monkeypatch):
    config = Config(
        "ce",
        dataset="coloured",
        backbone_options={"width": 4},
        options={"batch": 32},
        epochs=1,
        precision="32-true",
    )
    data = places["coloured"]
    made = measured(config, data, episodes=30)
    assert made.root.parent == tmp_path / "runs" / "records" and not (tmp_path / "results").exists()
    monkeypatch.setattr(measure, "fit", lambda *_: pytest.fail("trained again"))
    assert measured(config, data, episodes=30) == made
    for other in ({"episodes": 31}, {"episodes": 30, "shots": (1, 2)}):
        with pytest.raises(pytest.fail.Exception):
            measured(config, data, **other)


def test_pages_that_ask_for_other_shots_do_not_share_a_record(places):
    main([*WORDS[: WORDS.index("--heads")], "--on", "coloured"])
    (committed,) = load_records()
    config, data = config_of(committed.config), places["coloured"]
    # What has more shots answers a question for fewer.
    assert measured(config, data, shots=(1,), episodes=30) == committed
    first = measured(config, data, shots=(1, 5), episodes=30)
    second = measured(config, data, shots=(5,), episodes=30)
    assert first.id == second.id == committed.id and first.root != second.root
    for record in (first, second):
        assert load_scores(record, 5).mean == pytest.approx(record.accuracy["5"]["mean"], abs=1e-3)
    assert list(load_records()) == [committed]


def test_a_record_of_other_word_vectors_is_not_taken(places, monkeypatch):
    def known(seed: int) -> dict:
        words = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))
        sets = places["coloured"].items()
        return {split: dataclasses.replace(part, semantics=words) for split, part in sets}

    options = {"way": 3, "shot": 2, "query": 2}
    config = Config("protonet_craml", "coloured", backbone_options={"width": 4}, epochs=1)
    config = dataclasses.replace(config, options=options, precision="32-true")
    made = measured(config, known(1), episodes=30)
    assert made.facts["semantics"] == known(1)["train"].semantics_digest
    monkeypatch.setattr(measure, "fit", lambda *_: pytest.fail("asked for the run"))
    for same in (known(1), places["coloured"]):
        assert measured(config, same, episodes=30) == made
    with pytest.raises(pytest.fail.Exception, match="asked for the run"):
        measured(config, known(2), episodes=30)


def test_other_processes_of_torchrun_only_help_to_train(places, tmp_path, monkeypatch, capsys):
    fits, fit = [], train.fit
    monkeypatch.setattr(measure, "fit", lambda *a, **k: fits.append(a) or fit(*a, **k))
    main(WORDS)
    shutil.rmtree(tmp_path / "results")
    capsys.readouterr()
    monkeypatch.setenv("RANK", "1")
    main([*WORDS, "--publish"])
    assert len(fits) == 2 and not (tmp_path / "results").exists()
    monkeypatch.delenv("RANK")
    main([*WORDS, "--publish"])
    made = capsys.readouterr().out
    assert len(made.splitlines()) == 5 and len(list((tmp_path / "results").rglob("*.json"))) == 6
    monkeypatch.setenv("RANK", "1")
    main([*WORDS, "--publish"])  # all is there: the first process would not train either
    assert len(fits) == 3 and capsys.readouterr().out == ""


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_is_scored_on_the_gpu_and_put_back(fails, coloured_sets, tmp_path, monkeypatch):
    config = Config(
        "ce", "coloured", backbone_options={"width": 4}, options={"batch": 32}, epochs=1
    )
    run = train.fit(config, coloured_sets, runs=tmp_path)
    moves = []
    run.method.to = lambda device: moves.append(str(device))  # there need not be a GPU here

    def watched(*arguments, **how):
        moves.append("scored")
        if fails:
            raise KeyboardInterrupt
        return evaluate(*arguments, **how)

    monkeypatch.setattr(device, "usual_device", lambda: "cuda")
    monkeypatch.setattr(measure, "evaluate", watched)
    with pytest.raises(KeyboardInterrupt) if fails else contextlib.nullcontext():
        measure.score_run(run, coloured_sets["test"], shots=(1,), episodes=20, root=tmp_path)
    assert moves == ["cuda", "scored", "cpu"]


def packed(root, name: str, per_class: int = 24, classes: int = 5, splits=("test",)):
    """A data set of one's own photos."""
    parts = {split: coloured(split, classes, per_class) for split in splits}
    packs = {
        split: PackSplit(part.images.numpy(), part.labels.numpy(), part.class_names)
        for split, part in parts.items()
    }
    write_pack(root, name, packs, licence="", source="")


def test_a_split_that_own_photos_lack_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "fit", lambda *_, **__: pytest.fail("trained"))
    packed(tmp_path, "photos")
    packed(tmp_path, "both", splits=("train", "test"))
    for dataset, on, split in (("photos", "photos", "train"), ("both", "both_val", "val")):
        message = f"data set '{dataset}' at .* has no split '{split}', only .*own_images FOLDER"
        with pytest.raises(DataMissing, match=message):
            main(["ce", "--dataset", dataset, "--on", on, "--root", str(tmp_path)])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            {"per_class": 12},
            r"5 classes of 20 images \(5 support \+ 15 query\) are needed and photos has 5, of "
            "which test0 has 12: add images$",
        ),
        ({"per_class": 18}, "which test0 has 18: add images, or ask for at most 3 shots$"),
        ({"classes": 3}, "are needed and photos has 3, of which test0 has 24: add images$"),
    ],
)
def test_too_few_images_are_told_before_the_training(made, message, places, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "fit", lambda *_, **__: pytest.fail("trained"))
    packed(tmp_path, "photos", **made)
    places["photos"] = open_dataset("photos", tmp_path)
    words = ["ce", "--dataset", "coloured", "--on", "photos"]
    with pytest.raises(TooFewImages, match=message):
        main(words)
    config = Config("ce", dataset="coloured")
    with pytest.raises(TooFewImages, match=message):
        measured(config, places["coloured"], places["photos"]["test"])


def test_a_published_network_is_opened_instead_of_trained(places, tmp_path, monkeypatch):
    main([*WORDS[: WORDS.index("--heads")], "--publish"])
    (folder,) = (tmp_path / "runs").glob("ce-*")
    trained, published = open_run(folder), tmp_path / "results" / "networks" / folder.name
    shutil.rmtree(tmp_path / "runs")
    monkeypatch.setattr(train, "_train", lambda *_: pytest.fail("trained again"))
    run = train.fit(trained.config, places["coloured"])
    assert run.folder == published and not (tmp_path / "runs").exists()
    assert run.facts == {**trained.facts, "stored": "float16"} and run.history == trained.history
    for name, value in trained.method.state_dict().items():
        kept = run.method.state_dict()[name]
        assert kept.dtype == value.dtype
        torch.testing.assert_close(kept, value, rtol=2**-11, atol=2**-25)
    assert not torch.equal(run.method.classifier.weight, trained.method.classifier.weight)
    weights = published / "weights.safetensors"
    assert (
        weights.stat().st_size
        < 0.6 * sum(value.nbytes for value in trained.method.state_dict().values()) + 4000
    )  # the table of contents


def test_a_network_too_large_for_half_precision_is_not_published(coloured_sets, tmp_path):
    run = train.fit(
        Config("ce", "coloured", backbone_options={"width": 4}, options={"batch": 32}, epochs=1),
        coloured_sets,
        runs=tmp_path,
    )
    run.method.classifier.weight.data[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"classifier\.weight of .* does not fit half precision"):
        publish_run(run, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_all_classes_of_another_set_are_joined():
    parts = {"train": coloured("train", 3, 4), "test": coloured("test", 2, 5, seed=1)}
    whole = join(parts)
    assert whole.classes == 5 and whole.counts.tolist() == [4, 4, 4, 5, 5]
    assert whole.class_names == ("train0", "train1", "train2", "test0", "test1")
    assert torch.equal(whole.images[12:], parts["test"].images)
    assert whole.digest != join({"train": parts["train"]}).digest
    assert whole.semantics is None
    words = {split: torch.rand(part.classes, 3) for split, part in parts.items()}
    named = {s: dataclasses.replace(part, semantics=words[s]) for s, part in parts.items()}
    expected = torch.cat([words["train"], words["test"]])
    assert torch.equal(join(named).semantics, expected)
    assert join({**named, "test": parts["test"]}).semantics is None


def test_wrong_words_end_in_one_sentence(capsys):
    with pytest.raises(SystemExit, match=r"an option is NAME=VALUE, .* not 'point_wise'"):
        main(["ce", "--options", "point_wise"])
    for words, message in (
        (["maml"], "invalid choice: 'maml'"),
        (["ce", "--heads", "svm"], "unknown head 'svm': choose one of"),
        (["ce", "--corruptions", "rain"], "invalid choice: 'rain'"),
        (["ce", "--colour", "red"], "unrecognized arguments: --colour red"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown schedule 'linear': choose one of cosine, steps"):
        main(["ce", "--schedule", "linear"])
