"""The built-in data set: characters drawn with the fonts that matplotlib ships.

It needs no download and takes seconds, so every page of the book runs on a fresh machine. A class
is one Unicode character. Its images differ in typeface (12 DejaVu faces), rotation, scale, shear,
position, colours, background, clutter, blur and noise. The Unicode name of a character ("LATIN
SMALL LETTER A") gives the class a word vector, which the chapters on semantics need.
"""

import hashlib
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ft2font import FT2Font, LoadFlags
from torch import Tensor

from fslib.image_set import ImageSet

FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic",
)
"""The faces used; the two "Display" faces of matplotlib hold a few symbols only."""

# Candidates, in order of preference: of two characters that look alike the first one stays.
_CANDIDATES = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "abcdefghijklmnopqrstuvwxyz"
    "0123456789"
    "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπσςφχψω"
    "БДЖЗИЛУЦЧШЩЪЫЭЮЯЂЄЉЊЋЏѢѪбвгджзийлцчшщъыьэюяђљњћѣ"
    + "".join(chr(code) for code in range(0x0531, 0x0557))  # Armenian capitals
    + "".join(chr(code) for code in range(0x0561, 0x0588))  # Armenian small letters
    + "".join(chr(code) for code in range(0x10D0, 0x10F1))  # Georgian letters
    + "ÇÑØÞßæðþÅÄÉÛĦŁŊœäéîõůčğłŧŋñçø"
    "$£¥€§¶&@%#©®†‡¿¤?!"
    "∀∂∃∅∇∈∋∏∑√∞∧∩∪∫≈≠≡≤≥⊂⊕⊗⊥±÷×"  # noqa: RUF001
    "←↑↔↗⇒⇔■▲◆●○♠♣♥♦"
)
_ALIKE = 0.86  # Dice overlap, averaged over three faces, above which two characters look alike
_CELL = 48  # side of a stored character mask in pixels
_CHUNK = 2000  # images drawn at once; part of the random stream, so changing it changes the images


@dataclass(frozen=True)
class Difficulty:
    """How far the images of one class differ. Lengths are fractions of the image's side.

    Attributes:
        rotation: Largest rotation to either side, in degrees.
        shear: Largest horizontal shear to either side.
        scale: Smallest and largest longest side of the character.
        shift: Largest displacement of the character's middle, in each direction.
        contrast: Smallest and largest distance of ink and paper in RGB, each channel in [0, 1].
        inverted: Share of images with dark ink on light paper instead of light on dark. It is
            what a network finds hardest: one tenth costs a one-minute run 25 points, and at one
            half such a run learns nothing.
        texture: Largest amplitude of the smooth background texture.
        neighbours: Number of other characters that reach in from the border.
        strokes_behind: Number of line segments behind the character.
        strokes_across: Number of line segments across it; each is there in half of the images.
        blur: Largest weight of a 3 x 3 mean filter, in [0, 1].
        noise: Largest standard deviation of the pixel noise.
    """

    rotation: float = 15.0
    shear: float = 0.2
    scale: tuple[float, float] = (0.6, 0.85)
    shift: float = 0.06
    contrast: tuple[float, float] = (0.4, 0.8)
    inverted: float = 0.0
    texture: float = 0.1
    neighbours: int = 1
    strokes_behind: int = 1
    strokes_across: int = 1
    blur: float = 0.5
    noise: float = 0.06


DIFFICULTY = Difficulty()
"""The built-in level, set so that methods can differ after a minute of training.

Cross-entropy with Conv-4 (SGD, batches of 128, 3 epochs of the 7,680 training images, no
augmentation: a minute of one slow core) gets 71 % at 5-way 1-shot and 85 % at 5-shot on the novel
classes, with the mean of normalised pooled features.
"""


def render_glyphs(
    classes: int = 100,
    per_class: int = 120,
    side: int = 32,
    seed: int = 0,
    difficulty: Difficulty = DIFFICULTY,
) -> dict[str, ImageSet]:
    """Draw the data set; the same arguments give the same images, bit for bit.

    Args:
        classes: Number of characters, split 64/16/20 per cent into train, val and test.
        per_class: Number of images of each character.
        side: Height and width of the images in pixels.
        seed: Chooses the characters, their split and every random variation.
        difficulty: How far images of one class differ.

    Returns:
        `{"train", "val", "test"}`. Images are uint8 (N, 3, side, side), ordered by class;
        semantics are float32 (C, d), one column for each word of the Unicode names of all three
        splits, rows of length 1.

    Raises:
        ValueError: If there are too few or too many classes, or a size is not positive.
    """
    pool = character_pool()
    if not 5 <= classes <= len(pool):
        raise ValueError(
            f"classes={classes} is out of range: choose 5 to {len(pool)}, the number of "
            "characters that differ in look and are in all twelve faces."
        )
    if per_class < 1 or side < 8:
        raise ValueError(
            f"per_class={per_class}, side={side}: choose at least 1 image a class and 8 pixels."
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pool), generator=generator)[:classes].tolist()
    characters = [pool[i] for i in order]
    masks = torch.stack([_masks(character, FACES) for character in characters])
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = torch.cat(
        [_draw(masks, part, side, difficulty, generator) for part in labels.split(_CHUNK)]
    )
    names = [unicodedata.name(character) for character in characters]
    semantics = name_vectors(names)
    first_val, first_test = split_points(classes)
    sets = {}
    for split, start, stop in (
        ("train", 0, first_val),
        ("val", first_val, first_test),
        ("test", first_test, classes),
    ):
        part = images[start * per_class : stop * per_class].clone()
        sets[split] = ImageSet(
            name="glyphs",
            split=split,
            images=part,
            labels=labels[: (stop - start) * per_class].clone(),
            class_names=tuple(names[start:stop]),
            superclass=tuple(superclass_of(name) for name in names[start:stop]),
            semantics=semantics[start:stop].clone(),
            digest=hashlib.sha256(part.numpy().tobytes()).hexdigest(),
        )
    return sets


def split_points(classes: int) -> tuple[int, int]:
    """First class of val and of test: 64, 16 and 20 per cent, each part at least one class."""
    test = max(1, round(0.20 * classes))
    val = max(1, round(0.16 * classes))
    return classes - test - val, classes - test


def superclass_of(name: str) -> str:
    """Script and case of a Unicode name: "LATIN SMALL LETTER A" gives "latin small"."""
    words = name.split()
    if words[0] == "DIGIT":
        return "digit"
    if "LETTER" not in words and "LIGATURE" not in words:
        return "symbol"
    case = [word for word in ("CAPITAL", "SMALL") if word in words]
    return " ".join([words[0], *case]).lower()


def name_vectors(names: list[str]) -> Tensor:
    """Word vectors (C, d) float32 of unit length: which words occur in each of C names."""
    words = [name.replace("-", " ").split() for name in names]
    vocabulary = sorted({word for part in words for word in part})
    column = {word: i for i, word in enumerate(vocabulary)}
    vectors = torch.zeros(len(names), len(vocabulary))
    for row, part in enumerate(words):
        vectors[row, [column[word] for word in part]] = 1.0
    return F.normalize(vectors, dim=1)


@lru_cache(maxsize=1)
def character_pool() -> tuple[str, ...]:
    """Characters that all faces contain and of which no two look alike.

    Alike means that the masks, scaled to the same size as every image may be, overlap by a Dice
    coefficient above 0.86 on the average of three faces: Latin A and Greek Alpha are one class,
    and so are C and c.
    """
    present = set.intersection(*(set(_font(face).get_charmap()) for face in FACES))
    candidates = [c for c in dict.fromkeys(_CANDIDATES) if ord(c) in present]
    faces = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono-Oblique")
    masks = torch.stack([_masks(c, faces) for c in candidates]).float() / 255
    masks = F.avg_pool2d(masks, 2).flatten(2)  # (characters, faces, pixels)
    masks = masks.transpose(0, 1)
    energy = masks.square().sum(2)
    dice = 2 * masks @ masks.transpose(1, 2) / (energy[:, :, None] + energy[:, None, :])
    alike = dice.mean(0) > _ALIKE
    kept: list[int] = []
    for i in range(len(candidates)):
        if not alike[i, kept].any():
            kept.append(i)
    return tuple(candidates[i] for i in kept)


@lru_cache(maxsize=len(FACES))
def _font(face: str) -> FT2Font:
    font = FT2Font(str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")))
    font.set_size(72, 72)
    return font


@lru_cache(maxsize=8192)
def _masks(character: str, faces: tuple[str, ...]) -> Tensor:
    """Coverage uint8 (faces, cell, cell): the character centred, its longest side the cell's."""
    masks = []
    for face in faces:
        font = _font(face)
        font.set_text(character, 0.0, flags=LoadFlags.NO_HINTING)
        font.draw_glyphs_to_bitmap(antialiased=True)
        ink = np.asarray(font.get_image())
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        longest = max(ink.shape)
        square = np.zeros((longest, longest), np.uint8)
        top, left = (longest - ink.shape[0]) // 2, (longest - ink.shape[1]) // 2
        square[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
        masks.append(
            F.interpolate(
                torch.from_numpy(square)[None, None].float(),
                size=(_CELL, _CELL),
                mode="bilinear",
                antialias=True,
            )[0, 0]
        )
    return torch.stack(masks).round().to(torch.uint8)


def _draw(
    masks: Tensor, labels: Tensor, side: int, level: Difficulty, generator: torch.Generator
) -> Tensor:
    """Draw uint8 (B, 3, side, side) images of the classes `labels` (B,), back to front."""
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    def ink_for(paper: Tensor) -> Tensor:
        """A colour (B, 3) lighter than `paper` by the wanted distance."""
        step = F.normalize(torch.rand(count, 3, generator=generator), dim=1)
        return (paper + step * uniform(*level.contrast, 1)).clamp_max(1)

    def warped(chosen: Tensor, middle: Tensor) -> Tensor:
        """Coverage (B, 1, side, side) of characters `chosen`, in random pose at `middle`."""
        angle = torch.deg2rad(uniform(-level.rotation, level.rotation))
        cos, sin, shear = angle.cos(), angle.sin(), uniform(-level.shear, level.shear)
        size = uniform(*level.scale)
        # A pixel at p of the image reads the mask at shear . rotate . (p - middle) / size.
        matrix = torch.stack(
            [
                torch.stack([cos + shear * sin, shear * cos - sin], 1),
                torch.stack([sin, cos], 1),
            ],
            1,
        )
        matrix = matrix.transpose(1, 2) / size[:, None, None]
        offset = -(matrix @ middle[:, :, None])
        grid = F.affine_grid(
            torch.cat([matrix, offset], 2), [count, 1, side, side], align_corners=False
        )
        face = torch.randint(len(FACES), (count,), generator=generator)
        source = masks[chosen, face][:, None].float() / 255
        return F.grid_sample(source, grid, padding_mode="zeros", align_corners=False)

    axis = (torch.arange(side) + 0.5) * 2 / side - 1
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), 2)  # (side, side, 2): x, y

    def stroke() -> Tensor:
        """Coverage (B, 1, side, side) of one soft line segment."""
        start, stop = uniform(-1.1, 1.1, 2), uniform(-1.1, 1.1, 2)
        along = (stop - start)[:, None, None, :]
        away = pixels - start[:, None, None, :]
        where = (away * along).sum(3) / along.square().sum(3).clamp_min(1e-6)
        distance = (away - where.clamp(0, 1)[..., None] * along).norm(dim=3)
        width = uniform(0.02, 0.07)[:, None, None]
        return ((width - distance) * side / 2 + 0.5).clamp(0, 1)[:, None]

    def paint(canvas: Tensor, cover: Tensor, colour: Tensor) -> Tensor:
        return canvas + cover * (colour[:, :, None, None] - canvas)

    paper = uniform(0.0, 0.5, 3)
    texture = torch.randn(count, 3, 4, 4, generator=generator)
    texture = F.interpolate(texture, size=(side, side), mode="bicubic")
    canvas = paper[:, :, None, None] + uniform(0, level.texture, 1, 1, 1) * texture
    for _ in range(level.strokes_behind):
        canvas = paint(canvas, stroke(), ink_for(paper))
    for _ in range(level.neighbours):
        other = torch.randint(len(masks), (count,), generator=generator)
        angle, reach = uniform(0, 2 * torch.pi), uniform(0.95, 1.4)
        middle = torch.stack([angle.cos(), angle.sin()], 1) * reach[:, None]
        canvas = paint(canvas, warped(other, middle), ink_for(paper))
    middle = uniform(-2 * level.shift, 2 * level.shift, 2)
    canvas = paint(canvas, warped(labels, middle), ink_for(paper))
    for _ in range(level.strokes_across):
        there = (uniform(0, 1, 1, 1, 1) < 0.5).float()
        canvas = paint(canvas, there * stroke(), ink_for(paper))
    mean = F.avg_pool2d(F.pad(canvas, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    canvas = canvas + uniform(0, level.blur, 1, 1, 1) * (mean - canvas)
    inverted = uniform(0, 1, 1, 1, 1) < level.inverted
    canvas = torch.where(inverted, 1 - canvas, canvas)
    noise = torch.randn(canvas.shape, generator=generator)
    canvas = canvas + uniform(0, level.noise, 1, 1, 1) * noise
    return (canvas * 255).round_().clamp_(0, 255).to(torch.uint8)
