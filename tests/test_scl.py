"""The methods of spatial contrastive learning: which losses they add up, and distillation."""

import math

import pytest
import torch
from torch.nn import functional

from benchmarks import scl as benchmark
from fslib.analysis.neighbours import accuracy_against_k
from fslib.evaluate import embed_images
from fslib.losses.contrastive import contrastive_loss, feature_distance, soft_label_loss
from fslib.methods import Batch, build_method
from fslib.methods.scl import LOSSES, loss_row
from fslib.paths import runs_root
from fslib.runs import Config, open_run
from fslib.train import fit

SMALL = {"backbone": "conv4", "backbone_options": {"width": 4}, "classes": 6, "width": 3}
LABELS = torch.tensor([0, 5, 2, 2, 1])
WEIGHTS = ("ce", "gc", "sc", "ss_gc", "ss_sc")


def built(name="scl", **options):
    torch.manual_seed(0)
    return build_method(name, **{**SMALL, **options})


def batch_of(method, labels=LABELS, seed=0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = len(method.batches.views)
    return Batch(
        torch.rand(views * len(labels), 3, 32, 32, generator=generator), labels, method.batches
    )


def gradients(method, loss):
    found = torch.autograd.grad(loss, list(method.parameters()), allow_unused=True)
    return dict(zip(dict(method.named_parameters()), found, strict=True))


def test_the_parts_are_those_of_both_views():
    method = built(gc=0.5, sc=0.25, ss_gc=2.0, ss_sc=3.0, ce=1.5)
    assert method.batches.views == ("", "strong") and method.batches.size == 64
    batch = batch_of(method)
    made = method.loss(batch, 0.5)
    maps = method.backbone(method.normalise(batch.images))
    classes, images = LABELS.repeat(2), torch.arange(5).repeat(2)
    logits = method.classifier(maps.mean((2, 3), keepdim=True)).flatten(1)
    first, second = (functional.cross_entropy(z, LABELS) for z in logits.chunk(2))
    whole, places = method.whole(maps.mean((2, 3))), method.places(maps)
    expected = {
        "ce": (first + second) / 2,
        "gc": contrastive_loss(whole, classes),
        "sc": contrastive_loss(places, classes),
        "ss_gc": contrastive_loss(whole, images),
        "ss_sc": contrastive_loss(places, images),
    }
    for name, value in expected.items():
        torch.testing.assert_close(made[name], value)
    total = sum(w * expected[k] for k, w in zip(WEIGHTS, (1.5, 0.5, 0.25, 2, 3), strict=True))
    torch.testing.assert_close(made["loss"], total)
    hits = (logits.argmax(1) == classes).float().mean() * 100
    assert made["base_accuracy"].item() == pytest.approx(hits.item())


@pytest.mark.parametrize("name", WEIGHTS[1:])
def test_each_weight_turns_on_its_own_loss_and_layers(name):
    zero = dict.fromkeys(WEIGHTS, 0.0)
    method = built(**(zero | {name: 2.0}))
    made = method.loss(batch_of(method), 0)
    assert set(made) == {"loss", name, "base_accuracy"}
    torch.testing.assert_close(made["loss"], 2 * made[name])
    assert hasattr(method, "whole") == name.endswith("gc")
    assert hasattr(method, "places") == name.endswith("sc")
    found = gradients(method, made["loss"])
    idle = {key for key, gradient in found.items() if gradient is None}
    assert idle == {"classifier.weight", "classifier.bias"}
    assert found["backbone.blocks.0.0.weight"].abs().sum() > 0


def test_without_contrastive_weights_the_gradients_are_those_of_cross_entropy():
    plain = built(gc=0, sc=0, second=None)
    ce = build_method("ce", **{k: v for k, v in SMALL.items() if k != "width"})
    ce.load_state_dict(plain.state_dict())
    batch = batch_of(plain)
    ours = gradients(plain, plain.loss(batch, 0)["loss"])
    theirs = gradients(ce, ce.loss(batch, 0)["loss"])
    assert ours.keys() == theirs.keys()
    for key, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[key])


def test_all_variants_start_from_the_same_backbone_and_classifier():
    states = [built(sc=0).state_dict(), built(gc=1, sc=1).state_dict()]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key])


def test_the_options_of_the_similarity_reach_it():
    first, second = built(sc=1), built(sc=1, aggregate="max", average=True, chunk=3, tau=0.5)
    batch = batch_of(first)
    assert (second.places.aggregate, second.places.average, second.places.chunk) == ("max", True, 3)
    maps = second.backbone(second.normalise(batch.images))
    expected = contrastive_loss(second.places(maps), LABELS.repeat(2), tau=0.5)
    torch.testing.assert_close(second.loss(batch, 0)["sc"], expected)
    assert abs(first.loss(batch, 0)["sc"] - expected) > 0.01
    assert second.places.query[2].weight.shape == (3, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"second": None, "ss_sc": 1.0}, "only match is another view: give a `second` one"),
        ({"second": "blurr"}, "unknown view 'blurr': choose one of none, crop_flip"),
        ({"aggregate": "median"}, "unknown aggregate 'median'"),
        ({"lambda": 1}, "method 'scl' does not take these options"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        built(**options)


def test_mixed_precision_rounds_only_the_network():
    method = built(gc=1)
    batch = batch_of(method)
    exact = method.loss(batch, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = method.loss(batch, 0)
    for name in ("loss", "ce", "gc", "sc"):
        assert made[name].dtype == torch.float32
        assert made[name].item() == pytest.approx(exact[name].item(), rel=0.03)


def test_the_rows_of_the_loss_table_use_the_losses_they_name():
    """A row is named by its record: ce_ss_gc is CE and SS-GC, and nothing else."""
    assert len(LOSSES) == 7  # the eighth row is CE with one view
    for label, (variant, options) in LOSSES.items():
        used = {k for k, w in built(**options).weights.items() if w}
        named = set(label.replace(", two views", "").lower().replace("-", "_").split(" + "))
        assert used == named
        assert variant.removesuffix("_two_views") == "_".join(
            ["ce", *(n for n in label.lower().replace("-", "_").split(" + ")[1:])]
        )
        assert all(weight in (0, 1) for weight in built(**options).weights.values())
        assert loss_row(label) == (variant, options)
        scaled = built(**loss_row(label, 0.1)[1]).weights
        assert scaled == {
            k: w if k == "ce" else 0.1 * w for k, w in built(**options).weights.items()
        }


# ---- ProtoNet


EPISODE = {"way": 3, "shot": 1, "query": 2}


def test_protonet_with_contrastive_losses_adds_them_to_protonet():
    method = built("protonet_scl", **EPISODE, count=2, gc=0.5, sc=2.0)
    plain = build_method(
        "protonet", **{k: v for k, v in SMALL.items() if k != "width"}, **EPISODE, count=2
    )
    plain.load_state_dict(method.state_dict(), strict=False)
    classes = torch.tensor([0, 1, 2, 4, 1, 5]).repeat_interleave(3)
    batch = batch_of(method, classes)
    made, reference = method.loss(batch, 0), plain.loss(batch, 0)
    torch.testing.assert_close(made["prototypes"], reference["loss"])
    assert made["episode_accuracy"] == reference["episode_accuracy"]
    maps = method.backbone(method.normalise(batch.images))
    global_part = contrastive_loss(method.whole(maps.mean((2, 3))), classes)
    spatial_part = contrastive_loss(method.places(maps), classes)
    torch.testing.assert_close(
        made["loss"], reference["loss"] + 0.5 * global_part + 2 * spatial_part
    )


def test_a_second_view_is_seen_by_the_contrastive_losses_alone():
    one, two = (built("protonet_scl", **EPISODE, second=s).eval() for s in (None, "strong"))
    classes = torch.arange(3).repeat_interleave(3)
    batch = batch_of(two, classes)
    first = Batch(batch.images[:9], classes, one.batches)
    single, double = one.loss(first, 0), two.loss(batch, 0)
    torch.testing.assert_close(single["prototypes"], double["prototypes"])
    assert single["sc"] < math.log(8) + 0.1 < double["sc"] < math.log(17) + 0.1


# ---- training and distillation


def test_distance_of_unit_features():
    u, v = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    assert feature_distance(u, 2 * u) == 0
    assert feature_distance(u, v).item() == pytest.approx(2)
    assert feature_distance(u, -u).item() == pytest.approx(4)
    maps = torch.stack([torch.cat([u, u]).T, torch.cat([v, -u]).T])[..., None]  # (2, 2, 2, 1)
    assert feature_distance(u.view(1, 2, 1, 1).expand_as(maps), maps).item() == pytest.approx(1.5)


def test_soft_labels(normal):
    teacher, student = normal(3, 5), normal(3, 5)
    assert soft_label_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    p, q = (teacher / 4).softmax(1), (student / 4).softmax(1)
    expected = 16 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(soft_label_loss(teacher, student), expected)
    assert soft_label_loss(teacher, teacher + 7).item() == pytest.approx(0, abs=1e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def home(runs, monkeypatch):
    monkeypatch.setenv("FSLIB_RUNS", str(runs))


def config(method, **options):
    settings = {"backbone_options": {"width": 8}, "epochs": 2, "lr": 0.05, "precision": "32-true"}
    return Config(method, "coloured", options=options, **settings)


def prepared(student, images):
    """A student that has been given its teacher, as `fit` does."""
    student.prepare(images)
    student.learn_from(open_run(runs_root() / student.teacher).method)
    return student


@pytest.fixture
def teacher(home, coloured_sets):
    return fit(config("scl", batch=20, gc=0.5, width=4), coloured_sets, progress=False)


def test_training_lowers_every_part_and_brings_classes_together(teacher, coloured_sets):
    first, last = teacher.history[0], teacher.history[-1]
    assert set(first) >= {"loss", "ce", "gc", "sc"}
    assert last["loss"] < first["loss"] and last["sc"] < first["sc"]
    train = coloured_sets["train"]
    features = teacher.method.test_features(embed_images(teacher.method, train))
    votes = accuracy_against_k(features, train.labels, features, train.labels, [3], skip_self=True)
    assert votes[3] > 60  # of 5 classes


def test_a_student_learns_from_a_finished_run(teacher, coloured_sets):
    student = fit(
        config("scl_distilled", teacher=teacher.folder.name, batch=20),
        coloured_sets,
        progress=False,
    )
    first, last = student.history[0], student.history[-1]
    assert last["cd"] < first["cd"] and last["loss"] < first["loss"]
    # The teacher is no part of the student, in memory or on disk.
    assert student.method.state_dict().keys() == {
        k for k in teacher.method.state_dict() if not k.startswith(("whole", "places"))
    }
    again = open_run(student.folder).method
    images = coloured_sets["test"].images[:4]
    torch.testing.assert_close(again.embed(images), student.method.embed(images))


def test_a_teacher_lies_beside_its_student(home, coloured_sets, tmp_path):
    where = {"runs": tmp_path / "elsewhere", "progress": False}
    settings = {"batch": 20, "width": 4, "gc": 0.25}
    taught = fit(config("scl", **settings), coloured_sets, **where)
    assert not (runs_root() / taught.folder.name).exists()
    student = fit(
        config("scl_distilled", teacher=taught.folder.name, batch=20), coloured_sets, **where
    )
    assert student.folder.parent == taught.folder.parent == tmp_path / "elsewhere"


def test_the_parts_of_distillation(teacher, coloured_sets):
    options = {"teacher": str(teacher.folder), "local": 0.5, "kd": 2.0, "ce": 0.1}
    student = prepared(config("scl_distilled", **options).build(5), coloured_sets["train"])
    labels = torch.tensor([0, 3, 1])
    batch = batch_of(student, labels)
    made = student.loss(batch, 0)
    maps, taught = (
        student.backbone(student.normalise(batch.images)),
        teacher.method.embed(batch.images),
    )
    logits = student.classify(maps).flatten(1)
    answers = teacher.method.classify(taught).flatten(1)
    expected = {
        "cd": feature_distance(taught.mean((2, 3)), maps.mean((2, 3))),
        "local": feature_distance(taught, maps),
        "kd": soft_label_loss(answers, logits),
        "ce": functional.cross_entropy(logits, labels),
    }
    for name, value in expected.items():
        torch.testing.assert_close(made[name], value, msg=name)
    weights = {"cd": 10, "local": 0.5, "kd": 2, "ce": 0.1}
    total = sum(weights[name] * value for name, value in expected.items())
    torch.testing.assert_close(made["loss"], total)
    assert all(p.grad is None and not p.requires_grad for p in student._frozen[0].parameters())
    assert not student._frozen[0].training


def test_a_copy_of_the_teacher_has_nothing_to_learn(teacher, coloured_sets):
    student = config("scl_distilled", teacher=teacher.folder.name).build(5).eval()
    prepared(student, coloured_sets["train"])
    student.load_state_dict(
        {k: v for k, v in teacher.method.state_dict().items() if k in student.state_dict()}
    )
    made = student.loss(batch_of(student, torch.tensor([0, 3, 1])), 0)
    assert made["loss"].item() == pytest.approx(0, abs=1e-4)


def test_a_teacher_has_to_be_there_and_to_fit(home, teacher, coloured_sets):
    with pytest.raises(ValueError, match="needs a teacher: give the option `teacher`"):
        fit(config("scl_distilled", batch=20), coloured_sets, progress=False)
    missing = config("scl_distilled", teacher="nothing", batch=20)
    with pytest.raises(FileNotFoundError, match=r"no finished run at .*nothing"):
        fit(missing, coloured_sets, progress=False)
    other = config("scl_distilled", teacher=teacher.folder.name).build(6)
    with pytest.raises(ValueError, match="no classifier over these 6 base classes"):
        prepared(other, coloured_sets["train"])


def test_the_benchmark_compares_forms_that_agree():
    rows = benchmark.measure(views=8, places=4, rounds=1, episodes=2)["rows"]
    named = {row["what"]: row["value"] for row in rows}
    differences = [value for what, value in named.items() if "difference" in what]
    assert len(differences) == 2 and max(differences) < 1e-5
    kept = [value for what, value in named.items() if "kept" in what]
    assert len(kept) == 4 and min(kept[:2]) > 2 * max(kept[2:])
    assert rows[-1]["value"] > 0
