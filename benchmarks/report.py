"""The results of all benchmarks as one Markdown page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import Row

HEAD = """# Benchmarks

Speed and memory of fslib against the usual path: fp32, NCHW, one image file at a time through
torchvision's transforms and a `DataLoader`, every episode sent through the network. This page is
written by

    python -m benchmarks --from <the CIFAR-FS archive or the folder of its zips>

(`--quick`: rough numbers, into `build/benchmarks`); the raw numbers are in `results/*.json`. One
thread; both sides of a ratio take turns within one run; CPU-s are processor seconds, which another
program on the machine disturbs less than seconds on the wall. There is no timed test: tests assert
only the form of the results and that fast and slow path give the same logits.
"""

METHOD = """
## How to read it

- **Training.** The usual path's loader has no workers, which costs it the least processor time.
  The data path is what fslib does to get a batch: draw rows, index, augment.
- **Evaluation.** The usual path is measured on a few episodes and extrapolated to 2,000, since all
  of them would take too long. fslib's figure is embedding 12,000 images, drawing and scoring.
- **Memory.** Largest resident size of a process that trains one epoch over 12,800 of 38,400 images
  in memory. ProtoNet's batch is 300 images (20 ways, 5 + 10), cross-entropy's 128.
- **BML.** One episode of 15 ways, 5 + 7 images each, against a loop over its queries and positions
  (forward and backward), and a step of it against a step of cross-entropy on the same 180 images.
- **DMF.** The fast head against the one that forms every pair's map, at the paper's shapes; its
  step against ProtoNet's on the same images; 2,000 episodes from cached 8 x 8 maps.
- **Margins.** What a margin adds to ProtoNet's step (20 ways, 300 images), timed by itself because
  it is far below the noise of a whole step; lessons of Dynamic FSL from cached features.
- **SCL.** The Gram-matrix form of the spatial loss against two plain forms, 256 views of 25 places;
  memory is what the forward pass keeps for the backward one. Then the authors' test.
- **Negative margin.** Heads of 600 episodes tuned at once against one episode at a time, and the
  chapter's whole analysis of a network from cached features.
"""

WITHOUT_BF16 = """
## Ratios that need bfloat16

This processor has no bfloat16 instructions, so `precision="auto"` trained and embedded in float32
here, and the aims marked (bf16) are not expected to be reached. They were set with a prototype on a
processor that has them (AVX512-BF16); bfloat16 with channels-last trained 2.1 times as fast there
as plain float32. In float32 two differences are left in training, channels-last and packed images;
the table says what they come to together (nothing here measures them apart).
In evaluation, embedding 12,000 images rather than the 200,000 that 2,000 episodes of 100 images
name is 16.7 times less work; the rest of that ratio is reading files and channels-last.
"""

WITH_BF16 = """
## bfloat16

This machine multiplies bfloat16 in hardware, so `precision="auto"` used it on fslib's side; the
usual path is float32. The logits were compared with both in float32.
"""


def _number(value: float) -> str:
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(rows: Sequence[Row]) -> list[str]:
    lines = ["| measured | value | aim | reached |", "|---|---|---|---|"]
    for row in rows:
        reached = {True: "yes", False: "no", None: ""}[row["met"]]
        value = f"{_number(row['value'])} {row['unit']}".rstrip()
        lines.append(f"| {row['what']} | {value} | {row['target']} | {reached} |")
    return lines


def write_report(results: Sequence[Path], target: Path) -> None:
    """Write the page.

    Args:
        results: JSON files of the benchmarks, at least one.
        target: The Markdown file.
    """
    contents = [json.loads(path.read_text()) for path in results]
    machine = contents[0]["machine"]
    lines = [HEAD]
    if any(c["quick"] for c in contents):
        lines.append("**A quick run: one turn of each, numbers for a first look only.**\n")
    lines.append(
        f"Machine: {machine['processor']}, {machine['cores']} cores, one thread used, bfloat16 in "
        f"hardware: {'yes' if machine['bf16'] else 'no'}; load before the start "
        f"{', '.join(format(c['machine']['load_before'], '.1f') for c in contents)}; "
        f"{sum(c['seconds'] for c in contents) / 60:.0f} minutes on the wall in all. Python "
        f"{machine['python']}, torch {machine['torch']}, torchvision {machine['torchvision']}."
    )
    for content in contents:
        lines += [f"\n## {content['benchmark'].capitalize()}\n", *_table(content["rows"])]
    text = "\n".join(lines) + "\n" + METHOD + (WITH_BF16 if machine["bf16"] else WITHOUT_BF16)
    target.write_text(text)
