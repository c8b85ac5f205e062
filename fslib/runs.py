"""A training run on disk: always whole, never half-written, nothing unpickled.

`<runs>/<id>/` holds `config.json`, while training `checkpoint.safetensors` (weights, optimiser
and history in one file, replaced in one step), and at the end `weights.safetensors` and
`run.json`, whose presence says that the run is finished.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from fslib.augment import POLICIES
from fslib.image_set import ImageSet
from fslib.methods import Method, build_method
from fslib.paths import networks_root


class RunCorrupt(RuntimeError):
    """A file of a run is damaged or belongs to something else; the message says what to do."""


@dataclass(frozen=True)
class Config:
    """Everything that decides what a training run becomes.

    Attributes:
        method: A key of `fslib.methods.METHODS`.
        dataset: `glyphs` or a packed data set; its `train` split is trained on.
        backbone: A key of `fslib.backbones.BACKBONES`.
        options: Arguments of the method.
        backbone_options: Arguments of the backbone.
        augment: A key of `fslib.augment.POLICIES`.
        epochs: Passes over as many images as the training split holds.
        optimiser: `sgd` (momentum 0.9, Nesterov) or `adam`.
        lr: Peak learning rate.
        weight_decay: On every parameter.
        schedule: `cosine` to zero, or `steps` at the milestones.
        warmup: Share of training with a linearly rising rate.
        milestones: For `steps`: pairs (share of training, factor on the rate from there on).
        precision: `auto` (bfloat16 where the hardware has it), `bf16-mixed` or `32-true`.
        seed: Of weights, batches, augmentation and dropout.
        profile: Under which profile it ran; a label.
        variant: What an ablation changed, "" for the main row; a label.
    """

    method: str
    dataset: str = "glyphs"
    backbone: str = "conv4"
    options: Mapping[str, Any] = field(default_factory=dict)
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    augment: str = "crop_flip"
    epochs: int = 8
    optimiser: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup: float = 0.15
    milestones: tuple[tuple[float, float], ...] = ()
    precision: str = "auto"
    seed: int = 0
    profile: str = ""
    variant: str = ""

    LABELS = ("profile", "variant")

    def __post_init__(self) -> None:
        """Refuse a wrong name now rather than hours into training; equal numbers are one run."""
        for name in ("lr", "weight_decay", "warmup"):
            object.__setattr__(self, name, float(getattr(self, name)))
        milestones = tuple((float(share), float(factor)) for share, factor in self.milestones)
        object.__setattr__(self, "milestones", milestones)
        for name, known in (
            ("augment", POLICIES),
            ("optimiser", ("sgd", "adam")),
            ("schedule", ("cosine", "steps")),
            ("precision", ("auto", "bf16-mixed", "32-true")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(known)}"
                )
        if self.epochs < 1 or not 0 <= self.warmup < 1:
            raise ValueError(
                "epochs must be at least 1 and warmup a share in [0, 1), "
                f"not {self.epochs} and {self.warmup}"
            )

    def as_dict(self) -> dict[str, Any]:
        """All fields, as JSON holds them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def identity(self, digest: str) -> str:
        """Name of the run: method, data set and a hash of all that decides its result.

        Fields at their default are left out of the hash, so that an option added later does not
        rename the runs made before it.

        Args:
            digest: sha256 of the training images.
        """
        plain = Config(self.method).as_dict()
        changed = {k: v for k, v in self.as_dict().items() if v != plain[k]}
        for label in self.LABELS:
            changed.pop(label, None)
        text = json.dumps([self.method, changed, digest], sort_keys=True)
        return f"{self.method}-{self.dataset}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def build(self, classes: int) -> Method:
        """The untrained method, with weights drawn from `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return build_method(
                self.method,
                self.backbone,
                classes,
                dict(self.backbone_options),
                **self.options,
            )


def config_of(fields: Mapping[str, Any]) -> Config:
    """The configuration that `Config.as_dict` wrote."""
    return Config(**fields)


@dataclass
class Run:
    """A finished training run.

    Attributes:
        config: What was asked for.
        method: The trained method, in evaluation mode.
        history: One row an epoch: losses, rate, images seen, validation accuracy.
        folder: Where it lies.
        facts: Seconds, processor seconds, images seen, sha256 of images and word vectors, machine.
    """

    config: Config
    method: Method
    history: list[dict[str, Any]]
    folder: Path
    facts: dict[str, Any]

    @property
    def images_seen(self) -> int:
        """Images that went through the network in training."""
        return self.facts["images_seen"]


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then put it in place in one step.

    Whatever stops it, nothing but a kill leaves the half-written file behind.

    Raises:
        OSError: The disk is full; the message says so and the old file is untouched.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:  # Ctrl-C too
        partial.unlink(missing_ok=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if full:
            raise OSError(
                errno.ENOSPC,
                f"no space left to write {path}: free some and start again, "
                "nothing that was saved before is lost",
            ) from error
        raise


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def save_tensors(path: Path, tensors: dict[str, Tensor], **facts: Any) -> None:
    """Write tensors and facts (as JSON) into one safetensors file, atomically."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    metadata = {key: json.dumps(value) for key, value in facts.items()}
    write_atomically(path, lambda partial: save_file(tensors, partial, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        RunCorrupt: The file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            return {key: file.get_tensor(key) for key in file.keys()}, facts
    except (SafetensorError, ValueError, OSError) as error:
        raise RunCorrupt(
            f"{path} cannot be read ({error}): delete the folder {path.parent} and train again"
        ) from None


def save_checkpoint(path: Path, method: Method, optimiser: Optimizer, **facts: Any) -> None:
    """Write weights, the optimiser's state and facts (as JSON) into one file, in one step."""
    tensors = {f"model.{key}": value for key, value in method.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{index}.{name}"] = value
    save_tensors(path, tensors, **facts)


def load_checkpoint(path: Path, method: Method, optimiser: Optimizer) -> dict[str, Any]:
    """Give method and optimiser what `save_checkpoint` wrote of them, and return the facts."""
    tensors, facts = load_tensors(path)
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    method.load_state_dict(weights)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    return facts


def load_weights(method: Method, path: Path, name: str) -> None:
    """Fill a method with saved weights.

    Args:
        method: Built with the same options as the saved one.
        path: A `weights.safetensors`.
        name: The method's name, which must be the saved one's.

    Raises:
        RunCorrupt: The weights belong to another method, or to other options.
    """
    tensors, facts = load_tensors(path)
    if facts.get("method") != name:
        raise RunCorrupt(
            f"{path} holds weights of {facts.get('method')!r}, not of {name!r}: "
            "give the weights of a run of this method"
        )
    try:
        method.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise RunCorrupt(
            f"{path} does not fit {name!r} with these options ({first}): "
            "use the backbone and options it was trained with"
        ) from None


def open_run(folder: Path, images: ImageSet | None = None) -> Run:
    """Open a finished run.

    Args:
        folder: Where it lies.
        images: What it should have learned from, of which its name says all but the word vectors.

    Raises:
        FileNotFoundError: There is no finished run in the folder.
        RunCorrupt: A file is damaged, or the run learned from other word vectors.
    """
    summary = folder / "run.json"
    if not summary.exists():
        raise FileNotFoundError(f"no finished run at {folder}: train it with fslib.train.fit")
    try:
        content = json.loads(summary.read_text(encoding="utf-8"))
        config, facts = config_of(content["config"]), content["facts"]
        history, classes = content["history"], facts["classes"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunCorrupt(
            f"{summary} cannot be read ({error}): delete the folder {folder} and train again"
        ) from None
    if images is not None and not same_words(facts, images):
        raise RunCorrupt(
            f"{folder} learned from other word vectors than {images.name} has now: give them back "
            "to the data set, or delete the folder and train again"
        )
    method = config.build(classes)
    load_weights(method, folder / "weights.safetensors", config.method)
    method = method.to(memory_format=torch.channels_last).eval()
    return Run(config, method, history, folder, facts)


def publish_run(run: Run, root: Path) -> Path:
    """Copy a finished run to where it is committed, its weights rounded to half precision.

    `fit` opens it there where it has not been trained on this machine. Rounding changes a weight
    by at most 0.05 %, less than bfloat16 arithmetic changes a feature.

    Args:
        run: A finished run.
        root: Folder of published networks.

    Returns:
        The folder of the copy.

    Raises:
        ValueError: A weight is too large for half precision.
    """
    folder = root / run.folder.name
    tensors = {
        key: value.half() if value.is_floating_point() else value
        for key, value in run.method.state_dict().items()
    }
    if large := [key for key, value in tensors.items() if not bool(value.isfinite().all())]:
        raise ValueError(f"{large[0]} of {run.folder} does not fit half precision")
    save_tensors(folder / "weights.safetensors", tensors, method=run.config.method)
    facts = {**run.facts, "stored": "float16"}
    content = {"config": run.config.as_dict(), "facts": facts, "history": run.history}
    write_json(folder / "run.json", content)
    return folder


def folder_of(name: str, runs: Path) -> Path:
    """Where a run of this name lies, trained here or published; else where it is to be."""
    own, published = runs / name, networks_root() / name
    if not (own / "run.json").exists() and (published / "run.json").exists():
        return published
    return own


def same_words(facts: Mapping[str, Any], images: ImageSet) -> bool:
    """Whether a run with these facts may have learned from the word vectors of these images.

    A run that read none fits any, and so does one from before that was noted; images without word
    vectors speak against nothing.
    """
    words = images.semantics_digest
    return words is None or facts.get("semantics") in (None, words)
