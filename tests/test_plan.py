"""The plan of a page: which commands make its numbers under a profile, with nothing trained."""

from pathlib import Path

import plan

PAGE = """\
# %% tags=["parameters"]
dataset: str = "glyphs"
backbone: str = "conv4"
epochs: int = 3
episodes: int = 2000
profile: str = ""

# %%
from fslib.study import Study, generalised_records

study = Study(dataset, backbone, epochs, profile=profile, seeds=(0, 1))
study.records("ce", shots=(1,), head="l2n")
study.records("ce", shots=(1,), corruption="blur")
study.but(episodes=500).records("ce", head="sqrt", shots=(1,))
far = study.but(dataset="flowers102").data["test"]
study.but(seeds=(0,)).records("protonet", "pushed", images=far, alpha1=5.5, shots=(1,))
network = study.run("bml").method
one = study.but(seeds=(0,))
generalised_records(one, "dynamic_fsl", shots=[1, 5], lessons=4000, draws=100)
"""
LETTERS = """\
# %% tags=["parameters"]
dataset: str = "glyphs"

# %%
raise AssertionError("a page that measures nothing need not be read")
"""


def test_a_page_tells_the_commands_of_its_records(tmp_path: Path, capsys):
    page = tmp_path / "book" / "chapter" / "page.py"
    page.parent.mkdir(parents=True)
    page.write_text(PAGE)
    page.with_name("letters.py").write_text(LETTERS)
    assert plan.main(["chapter", "--book", str(tmp_path / "book")]) == 0
    common = "--dataset cifar_fs --backbone resnet12_slim"
    ce = [
        f"ce {common} --epochs 19{seed} --profile cpu --corruptions blur --heads l2n --shots 1"
        for seed in ("", " --seed 1")
    ]
    fewer = [
        f"ce {common} --epochs 19{seed} --profile cpu --heads sqrt --shots 1 --episodes 500"
        for seed in ("", " --seed 1")
    ]
    pushed = (
        f"protonet {common} --options alpha1=5.5 --epochs 19 --profile cpu --variant pushed "
        "--on cifar_fs flowers102 --shots 1"
    )
    bml = f"bml {common} --epochs 19 --profile cpu --publish"
    both = (
        f"dynamic_fsl {common} --epochs 19 --profile cpu "
        "--generalised 'shots=[1,5]' lessons=4000 draws=100"
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines == [ce[0], fewer[0], ce[1], fewer[1], pushed, bml, both]
