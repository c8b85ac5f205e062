"""The book's plumbing: executing by profile, freshness, checks."""

import json
import shutil
from pathlib import Path

import check
import execute
import nbformat
import pytest
import render
import twins

PAGE = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # {title}

# %% tags=["parameters"]
dataset = "cifar_fs"
episodes = 5

# %%
print(dataset, episodes)
"""


def make_book(folder: Path) -> Path:
    """A book of one page, its twin, and a page of prose."""
    (folder / "start").mkdir(parents=True)
    (folder / "_toc.yml").write_text(
        "format: jb-book\nroot: intro\nchapters:\n  - file: start/task\n"
    )
    (folder / "intro.md").write_text("# Intro\n")
    (folder / "start/task.py").write_text(PAGE.format(title="Task"))
    twins.main([str(folder / "start/task.py")])
    return folder


def texts(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.get("text", "") for c in cells for o in c.get("outputs", []))


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return make_book(tmp_path / "book")


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a book and its copy, executed once under the profile smoke."""
    folder = tmp_path_factory.mktemp("executed")
    make_book(folder / "book")
    assert run_book(folder) == 0
    return folder


@pytest.fixture
def copied(executed: Path, tmp_path: Path) -> Path:
    """A copy of the executed book that a test may damage."""
    shutil.copytree(executed, tmp_path / "copied")
    return tmp_path / "copied"


def run_book(folder: Path, *more: str) -> int:
    where = ["--book", str(folder / "book"), "--output", str(folder / "out")]
    return execute.main(["--profile", "smoke", "--jobs", "1", *where, *more])


def faults(capsys: pytest.CaptureFixture, *arguments: object) -> list[str]:
    capsys.readouterr()
    code = check.main([str(a) for a in arguments])
    lines = capsys.readouterr().err.splitlines()
    assert code == (1 if lines else 0)
    return lines


def test_the_profile_reaches_the_page(executed):
    assert "glyphs_small 200" in texts(executed / "out/start/task.ipynb")
    note = nbformat.read(executed / "out/start/task.ipynb", as_version=4).metadata.fslib
    assert note.profile == "smoke" and set(note) == {"profile", "fslib", "source", "key", "seconds"}


@pytest.mark.parametrize("name", ["smoke", "quick", "cpu", "paper"])
def test_profiles_hold_the_agreed_parameters(name):
    values = execute.profile_parameters(name)
    assert values["profile"] == name
    kinds = {k: type(v) for k, v in values.items()}
    assert kinds == dict(
        profile=str,
        dataset=str,
        transfer=str,
        backbone=str,
        epochs=int,
        ablation_backbone=str,
        ablation_epochs=int,
        augment=str,
        seeds=list,
        baseline_seeds=list,
        episodes=int,
        dense=bool,
        places=int,
        per_class=int,
    )


def test_a_second_run_does_nothing_and_changed_code_runs(copied, capsys):
    copy = copied / "out/start/task.ipynb"
    before = copy.stat().st_mtime_ns
    assert run_book(copied) == 0
    assert "profile smoke: pages to run: 0, unchanged: 1" in capsys.readouterr().out
    script = copied / "book/start/task.py"
    script.write_text(script.read_text().replace("# # Task", "# # A better title"))
    assert run_book(copied) == 0
    assert copy.stat().st_mtime_ns == before
    script.write_text(script.read_text() + "raise ValueError('too few images')\n")
    assert run_book(copied) == 1
    shown = capsys.readouterr()
    assert "task.py, cell 3 (In [3]): ValueError: too few images" in shown.err
    assert "start/task" in shown.out and "FAILED" in shown.out
    assert copy.stat().st_mtime_ns == before, "the copy that ran is kept, whole"


def test_parameters_fslib_data_and_records_make_a_page_run_again(book, tmp_path, monkeypatch):
    page = execute.notebooks.read_page(book / "start/task.py")
    key = execute.key_of(page, {"episodes": 5}, "fslib")
    assert key == execute.key_of(page, {"episodes": 5}, "fslib")
    others = [({"episodes": 6}, "fslib"), ({"episodes": 5}, "other")]
    assert len({key, *(execute.key_of(page, *o) for o in others)}) == 3
    monkeypatch.setenv("FSLIB_RESULTS", str(tmp_path))
    (tmp_path / "runs").mkdir()

    def with_record(name: str) -> list[str]:
        (tmp_path / f"runs/{name}.json").write_text("{}")
        return [execute.key_of(page, {"dataset": d}, "fslib") for d in ("a", "b")]

    (a, b), (new_a, same_b) = with_record("c--ce"), with_record("a--ce")
    assert new_a != a and same_b == b
    monkeypatch.setattr(execute, "ROOT", tmp_path)
    before = execute.key_of(page, {}, "fslib")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/published.csv").write_text("paper\n")
    assert execute.key_of(page, {}, "fslib") != before


def test_only_the_data_sets_that_a_page_names_make_it_run_again(book, tmp_path, monkeypatch):
    page = execute.notebooks.read_page(book / "start/task.py")
    monkeypatch.setenv("FSLIB_DATA", str(tmp_path / "data"))
    settings = ({}, {"dataset": "glyphs", "transfer": ""}, {"dataset": "a", "transfer": "far"})

    def changed_by(name: str) -> list[bool]:
        before = [execute.key_of(page, given, "fslib") for given in settings]
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "pack.json").write_text(name)
        after = [execute.key_of(page, given, "fslib") for given in settings]
        return [a != b for a, b in zip(before, after, strict=True)]

    assert changed_by("glyphs") == [False, False, False], "made by the first run of any page"
    assert changed_by("other") == [False, False, False]
    assert changed_by("cifar_fs") == [True, False, False], "the default of the page"
    assert changed_by("far") == [False, False, True]


def test_an_empty_variable_is_the_usual_folder(monkeypatch):
    monkeypatch.delenv("FSLIB_DATA", raising=False)
    usual = execute.data_root()
    monkeypatch.setenv("FSLIB_DATA", "")
    assert execute.data_root() == usual


def test_unknown_names_are_one_clear_sentence(book, tmp_path):
    with pytest.raises(SystemExit, match="no profile fast; the profiles are: cpu, paper, quick"):
        execute.main(["--profile", "fast"])
    with pytest.raises(SystemExit, match=r"no parameter shot; its parameters are: dataset, episod"):
        execute.main(["--book", str(book), "--output", str(tmp_path), "-p", "shot=1"])
    with pytest.raises(SystemExit, match=r"no page start/tusk; the pages are: start/task"):
        execute.main(["--book", str(book), "--output", str(tmp_path), "--only", "start/tusk"])
    with pytest.raises(SystemExit, match="-p takes name=value"):
        execute.main(["-p", "shots"])


def test_override_values_are_typed():
    given = execute.overrides(["a=3", "b=[0, 1]", "c=glyphs", "d=0.5", "e=1e-2"])
    assert given == {"a": 3, "b": [0, 1], "c": "glyphs", "d": 0.5, "e": 0.01}


def test_pages_come_before_threads(monkeypatch):
    monkeypatch.setattr(execute.joblib, "cpu_count", lambda: 8)
    monkeypatch.setattr(execute, "MEMORY_A_PAGE", 1.0)
    assert execute.crew(None, 20) == (8, 1)
    assert execute.crew(None, 2) == (2, 4)
    assert execute.crew(3, 20) == (3, 2)


def test_twins_are_the_same_bytes_every_time(book):
    twin = book / "start/task.ipynb"
    first = twin.read_bytes()
    twin.unlink()
    twins.main([str(book / "start/task.py")])
    assert twin.read_bytes() == first


def test_a_book_in_order_has_no_faults(copied, capsys, monkeypatch):
    book = copied / "book"
    arguments = ("--sources", "--executed", copied / "out", "--book", book)
    assert faults(capsys, *arguments) == []
    for folder, name in ((book, "task-checkpoint.py"), (copied / "out", "task-checkpoint.ipynb")):
        kept = folder / "start/.ipynb_checkpoints" / name
        kept.parent.mkdir()
        kept.write_text("an older page, as JupyterLab keeps it")
    assert faults(capsys, *arguments) == []
    monkeypatch.setattr(twins, "BOOK", book)
    twins.main([])
    assert not list((book / "start/.ipynb_checkpoints").glob("*.ipynb"))


def test_source_faults_are_found(book, capsys):
    script, twin = book / "start/task.py", book / "start/task.ipynb"
    text = script.read_text()

    def found(new: str, follow: bool = True) -> list[str]:
        script.write_text(new)
        if follow:
            twins.main([str(script)])
        return faults(capsys, "--sources", "--book", book)

    assert ["run `make twins`" in f for f in found(text + "\nx = 1\n", follow=False)] == [True]
    assert "exactly one cell tagged" in found(text.replace('["parameters"]', '["other"]'))[0]
    assert "kernel must be python3" in found(text.replace("name: python3", "name: mine"))[0]
    assert "a line of 90 columns" in found(text + "\n# %%\n" + "x" * 90 + "\n")[0]
    assert found(text) == []
    held = nbformat.read(twin, as_version=4)
    held.cells[-1].outputs = [nbformat.v4.new_output("stream", text="1")]
    nbformat.write(held, twin)
    assert "committed with outputs" in faults(capsys, "--sources", "--book", book)[0]
    (book / "intro.md").unlink()
    assert any("no page intro" in f for f in faults(capsys, "--sources", "--book", book))


def test_executed_faults_are_found(copied, capsys):
    copy, book = copied / "out/start/task.ipynb", copied / "book"
    page = nbformat.read(copy, as_version=4)
    page.cells[-1].outputs = [
        nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[]),
        nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}}),
        nbformat.v4.new_output("display_data", {"text/plain": "<Legend at 0x7f>"}),
        nbformat.v4.new_output("display_data", {"text/plain": "<F at 0x7f>", "image/png": ""}),
        nbformat.v4.new_output("display_data", {"text/plain": "a number at 0x7f"}),
    ]
    nbformat.write(page, copy)
    lines = faults(capsys, "--executed", copied / "out", "--book", book)
    said = ("an error: ValueError: no", "a widget", "shown as its address")
    assert [[words in line for words in said] for line in lines] == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]
    script = book / "start/task.py"
    script.write_text(script.read_text() + "more = 1\n")
    assert "older than" in faults(capsys, "--executed", copied / "out", "--book", book)[0]
    copy.unlink()
    assert "not been executed" in faults(capsys, "--executed", copied / "out", "--book", book)[0]


def test_site_faults_are_found(book, tmp_path, capsys):
    html = tmp_path / "html"
    (html / "start").mkdir(parents=True)
    good = '<link rel="canonical" href="https://x.org"><a href="https://x.org">x</a><p id="a">'
    for name in ("index", "intro", "start/task"):
        (html / f"{name}.html").write_text(good)
    arguments = ("--html", html, "--book", book)
    assert faults(capsys, *arguments) == []
    (html / "intro.html").write_text(
        '<script src="https://cdn.org/a.js"></script><img src="//cdn.org/a.png">'
        '<a href="start/task.html#a">good</a><a href="start/task.html#b">bad</a><a href="no.html">'
    )
    (html / "a.css").write_text("@import url('https://fonts.org/x.css'); b{src:url(local.woff)}")
    (html / "start/task.html").rename(html / "start/moved.html")
    text = "\n".join(lines := faults(capsys, *arguments))
    assert len(lines) == 7
    for part in (
        *("start/task.html: not rendered", "loads https://cdn.org/a.js", "loads //cdn.org/a.png"),
        *("broken link to no.html", "broken link to start/task.html#b", "https://fonts.org/x.css"),
    ):
        assert part in text
    (html / "start/moved.html").rename(html / "start/task.html")
    assert any("start/task.html#b, where nothing" in x for x in faults(capsys, *arguments))


def test_an_assembled_page_says_where_its_outputs_are_from(copied):
    book, out, pages = (copied / n for n in ("book", "out", "pages"))
    script, shown = book / "start/task.py", pages / "start/task.ipynb"

    def assembled() -> str:
        render.assemble(book, out, pages)
        return json.dumps(nbformat.read(shown, as_version=4))

    assert "profile <code>smoke</code>" in assembled()
    assert (pages / "_assets/mathjax/MathJax.js").exists() and (pages / "intro.md").exists()
    before = shown.stat().st_mtime_ns
    assembled()
    assert shown.stat().st_mtime_ns == before, "an unchanged page is not written again"
    script.write_text(script.read_text() + "more = 1\n")
    assert (
        "an earlier version" in (text := assembled().replace("\\n", " "))
        and "glyphs_small 200" in text
    )
    (out / "start/task.ipynb").unlink()
    assert "has not been run" in assembled() and "glyphs_small 200" not in assembled()
