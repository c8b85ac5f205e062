"""What all data scripts share: options, errors in one sentence, the finished pack, the split."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from fslib.packs import BUILT_IN, SPLITS, DataCorrupt, check_pack, refuse_foreign

SPLIT_FILES = Path(__file__).parent / "splits"


class ScriptError(Exception):
    """Something the user can mend; the text is the one sentence that says how."""


def parser(description: str, name: str | None) -> argparse.ArgumentParser:
    """An argument parser with the options that every packing script has.

    Args:
        description: First lines of `--help`.
        name: Default name of the pack; required from the user where None.
    """
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "--root",
        type=Path,
        default=Path("data"),
        help="folder of all packed data sets (default: %(default)s)",
    )
    result.add_argument(
        "--name",
        default=name,
        required=name is None,
        help="name of the pack, later given to open_dataset"
        + ("" if name is None else " (default: %(default)s)"),
    )
    result.add_argument(
        "--force", action="store_true", help="build the pack again although it is there"
    )
    return result


def run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Call a script's main function and turn every foreseen failure into one line.

    Args:
        main: Takes the command line; raises on failure.
        argv: The command line, `sys.argv[1:]` where None.

    Returns:
        The exit code: 0, 1 after a failure, 130 after Ctrl-C. Errors of the code itself are not
        caught: their traceback is wanted.
    """
    try:
        main(argv)
    except KeyboardInterrupt:
        print("stopped: nothing half-written was left; run it again to go on", file=sys.stderr)
        return 130
    except ScriptError as error:
        message = str(error)
    except OSError as error:
        if error.errno is None:  # raised with a sentence of its own, as fslib's errors are
            message = str(error)
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = error.strerror or "no space left on the disk"
        else:
            where = f": {error.filename}" if error.filename else ""
            message = f"{error.strerror}{where}"
    else:
        return 0
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 1


def positive(text: str) -> int:
    """A whole number above zero from the command line, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return number


def say(text: str) -> None:
    """Tell the user something; flushed, so that it stands before the progress bar."""
    print(text, flush=True)


def check_name(name: str) -> None:
    """Refuse a pack name that is not a plain folder name.

    Raises:
        ScriptError: It holds other characters, or begins as the names of built-in data sets do.
    """
    # Some file systems take Glyphs and glyphs for the same folder.
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name.lower().startswith(BUILT_IN):
        raise ScriptError(
            f"--name {name!r} cannot be used: take letters, digits, '_', '-' and '.', "
            f"beginning with a letter or digit, but not with {BUILT_IN!r}, which is built in"
        )


@contextlib.contextmanager
def locked(root: Path, name: str) -> Iterator[None]:
    """Let one process at a time make a pack; the second waits and then finds it finished."""
    check_name(name)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        yield


def need_space(folder: Path, need: int, what: str) -> None:
    """Stop before the work when the disk cannot hold its outcome.

    Args:
        folder: A folder on the disk in question; it is made if it is not there.
        need: Bytes.
        what: What is going to be written, for the message.

    Raises:
        ScriptError: Fewer bytes are free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ScriptError(
            f"no space left under {folder}: {what} needs about {need / 1e6:.0f} MB and "
            f"{free / 1e6:.0f} MB are free; free some space or choose another --root"
        )


def opening_line(folder: Path) -> str:
    """How to open a pack, as Python code."""
    return f'fslib.data.open_dataset("{folder.name}", root="{folder.parent}")'


def summary(folder: Path) -> str:
    """One line: what a pack holds and how to open it."""
    content = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
    parts = []
    for split, entry in content["splits"].items():
        parts.append(f"{split} {len(entry['class_names'])} classes / {entry['count']:,} images")
        height, width = entry["size"]
    return f"{folder} ({'; '.join(parts)}; {height} x {width}): {opening_line(folder)}"


def finished(root: Path, name: str, settings: dict[str, Any], force: bool) -> bool:
    """Whether the wanted pack is there already; says so if it is.

    Args:
        root: Folder of the packs.
        name: Name of the pack.
        settings: The options that decide its content; kept in the pack's notes.
        force: The user wants it built again.

    Raises:
        ScriptError: It is there, made with other options.
        FileExistsError: Something that is no pack lies in its place, whatever `force` says.
    """
    folder = root / name
    if not folder.exists():
        return False
    if force:
        refuse_foreign(folder)  # before the work, not only when the pack is written
        return False
    try:
        content = check_pack(folder)
    except DataCorrupt as error:
        refuse_foreign(folder)
        say(f"building it again: {error}")
        return False
    made_with = content["notes"].get("settings", {})
    other = [
        f"{k} {made_with.get(k)}, not {v}" for k, v in settings.items() if made_with.get(k) != v
    ]
    if other:
        raise ScriptError(
            f"{folder} is there, made with {' and '.join(other)}: add --force to build it again "
            "or --name to make another one beside it"
        )
    say(f"already there: {summary(folder)}; --force builds it again")
    return True


def read_split(path: Path) -> dict[str, Any]:
    """Read a class split: JSON with lists of class names under train, val, test.

    Raises:
        ScriptError: The file is missing or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        classes = [c for split in SPLITS for c in content.get(split, [])]
        if not classes or not all(isinstance(c, str) for c in classes):
            raise ValueError("no class names under train, val or test")
    except FileNotFoundError:
        raise ScriptError(f"there is no split file {path}") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise ScriptError(f"{path} is not a class split in JSON: {error}") from None
    twice = sorted({c for c in classes if classes.count(c) > 1})
    if twice:
        raise ScriptError(f"{path} lists classes more than once: {', '.join(twice)}")
    return content
