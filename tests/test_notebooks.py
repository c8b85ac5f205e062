"""Pages: reading, identity, parameters, running, and what a failure leaves behind."""

from pathlib import Path

import nbformat
import pytest

from fslib import notebooks
from fslib.values import value_of

HEADER = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A page

# %% tags=["parameters"]
shots: int = 5  # images a class
seeds = [0]
name = "glyphs"

# %%
"""


def write_page(folder: Path, code: str) -> Path:
    path = folder / "page.py"
    path.write_text(HEADER + code + "\n")
    return path


def printed(path: str | Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.get("text", "") for c in cells for o in c.get("outputs", []))


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run that the tests of a finished run share."""
    folder = tmp_path_factory.mktemp("executed")
    code = (
        "import os, sys\nprint(shots + 1, seeds, name)\nprint(os.getcwd() + '/x', sys.executable)\n"
        "print('noise', file=sys.stderr)"
    )
    page = write_page(folder, code)
    given = {"shots": 1, "seeds": [0, 2]}
    return Path(notebooks.run(page, folder / "out.ipynb", given, metadata={"profile": "x"}))


def test_cell_identity_comes_from_the_text(tmp_path):
    one = notebooks.read_page(write_page(tmp_path, "a = 1\n\n# %%\na = 1"))
    two = notebooks.read_page(write_page(tmp_path, "a = 1\n\n# %%\na = 1\n\n# %%\nb = 2"))
    assert [c.id for c in two.cells[: len(one.cells)]] == [c.id for c in one.cells]
    assert len({c.id for c in two.cells}) == len(two.cells)


def test_parameters_are_read_from_their_cell(tmp_path):
    page = notebooks.read_page(write_page(tmp_path, "later = 3"))
    assert notebooks.parameters_of(page) == {"shots": "5", "seeds": "[0]", "name": '"glyphs"'}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-2", 0.01), ("1e3", 1000.0), ("-2.5E4", -25000.0), ("[1e-3,1e-2]", [0.001, 0.01])],
        *[("[1e-3, small, '1e-3']", [0.001, "small", "1e-3"]), ("3", 3), ("true", True)],
        *[("no", False), ("glyphs", "glyphs"), ("[[0],[1,2]]", [[0], [1, 2]]), ("e-2", "e-2")],
    ],
)
def test_values_of_a_command_line_are_typed(text, value):
    assert repr(value_of(text)) == repr(value)


def test_the_copies_of_jupyterlab_are_no_pages(tmp_path):
    page = write_page(tmp_path, "")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints/page-checkpoint.py").write_text(page.read_text())
    assert notebooks.pages_in(tmp_path) == [page]


def test_only_code_decides_the_digest(tmp_path):
    first = notebooks.read_page(write_page(tmp_path, "a = 1\n\n# %% [markdown]\n# prose"))
    prose = notebooks.read_page(write_page(tmp_path, "a = 1\n\n# %% [markdown]\n# better prose"))
    code = notebooks.read_page(write_page(tmp_path, "a = 2\n\n# %% [markdown]\n# prose"))
    assert notebooks.code_digest(first) == notebooks.code_digest(prose)
    assert notebooks.code_digest(first) != notebooks.code_digest(code)


def test_tree_digest_sees_content_and_names(tmp_path):
    (tmp_path / "a.py").write_text("1")
    first = notebooks.tree_digest(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    renamed = notebooks.tree_digest(tmp_path)
    (tmp_path / "b.py").write_text("2")
    assert len({first, renamed, notebooks.tree_digest(tmp_path)}) == 3


def test_a_run_gets_its_parameters_and_its_own_python(executed):
    import sys

    assert "2 [0, 2] glyphs" in printed(executed)
    assert sys.executable.removeprefix(str(notebooks.REPOSITORY) + "/") in printed(executed)


def test_a_published_copy_names_no_machine(executed):
    text = executed.read_text()
    assert str(notebooks.REPOSITORY) not in text and "noise\\n" not in printed(executed)
    assert '"papermill"' not in text and "start_time" not in text
    note = nbformat.read(executed, as_version=4).metadata.fslib
    assert note.profile == "x" and note.seconds > 0
    assert not list(executed.parent.glob("*.partial.ipynb"))


def test_new_prose_keeps_the_outputs_and_new_code_does_not(executed):
    ran = nbformat.read(executed, as_version=4)
    source = notebooks.read_page(executed.with_name("page.py"))
    source.cells[0].source = "# A better title"
    shown = notebooks.refresh_prose(ran, source)
    assert shown.cells[0].source == "# A better title"
    assert shown.cells[-1].outputs == ran.cells[-1].outputs
    assert [c.metadata.get("tags") for c in shown.cells][2] == ["injected-parameters"]
    source.cells[-1].source += "\nmore = 1"
    assert notebooks.refresh_prose(ran, source) is None


def test_an_unknown_parameter_is_refused_before_anything_runs(tmp_path):
    page = write_page(tmp_path, "print(shots)")
    with pytest.raises(
        notebooks.UnknownParameter, match=r"no parameter shot; .*shots, seeds, name"
    ):
        notebooks.run(page, tmp_path / "out.ipynb", {"shot": 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.py"]


def test_a_failing_cell_is_named_and_leaves_no_output(tmp_path):
    page = write_page(tmp_path, "fine = 1\n\n# %%\nraise ValueError('too few images')")
    with pytest.raises(notebooks.CellFailed, match=r"page.py, cell 4 .*ValueError: too few images"):
        notebooks.run(page, tmp_path / "out.ipynb", {"shots": 1}, metadata={})
    assert not (tmp_path / "out.ipynb").exists()
    assert (tmp_path / "out.partial.ipynb").exists()


def test_of_two_equal_cells_the_one_that_failed_is_named(tmp_path):
    page = write_page(tmp_path, "left = [1]\n\n# %%\nleft.pop()\n\n# %%\nleft.pop()")
    with pytest.raises(notebooks.CellFailed, match=r"page.py, cell 5 .*IndexError: pop from empty"):
        notebooks.run(page, tmp_path / "out.ipynb")


def test_a_kernel_that_dies_is_one_clear_sentence(tmp_path):
    page = write_page(tmp_path, "import os\nos._exit(9)")
    with pytest.raises(notebooks.CellFailed, match=r"page.py, after .* Kernel died"):
        notebooks.run(page, tmp_path / "out.ipynb")
    assert not (tmp_path / "out.ipynb").exists()
