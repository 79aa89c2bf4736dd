"""Turn a mistaken command line into a hint at the one that was meant."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# What other tools call a command of ours.
COMMANDS = {
    "inspect": "tree", "info": "tree", "summary": "tree", "summarize": "tree", "print": "tree", "view": "tree",
    "list": "ls", "keys": "ls", "dir": "ls",
    "cat": "show", "get": "show", "dump": "show", "head": "show",
    "compare": "diff", "cmp": "diff",
    "reset": "init", "reinit": "init", "reinitialize": "init", "reinitialise": "init", "initialize": "init",
    "initialise": "init", "edit": "set", "fill": "set", "share": "tie", "link": "tie", "unlink": "untie",
    "export": "convert", "save": "convert", "to": "convert", "extract": "convert",
    "verify": "check", "validate": "check", "lint": "check", "scan": "check", "fsck": "check",
    "hist": "plot", "histogram": "plot", "graph": "plot", "describe": "stats", "stat": "stats", "follow": "track",
    "undo": "recover", "repair": "recover", "topics": "help", "man": "help", "version": "--version",
}  # fmt: skip

# What people write for an option of ours, or in place of an option that no command has.
OPTIONS = {
    "-V": "write --version",
    "-v": "write --version",
    "--out": "write -o FILE",
    "--overwrite": "write -f",
    "--yes": "write -f",
    "-y": "write -f",
    "--inplace": "write -i or --in-place",
    "--silent": "write -q",
    "--name": "write --layer SELECTION",
    "--param": "write --layer SELECTION",
    "--filter": "write --layer SELECTION",
    "--select": "write --layer SELECTION",
    "--regex": "write --layer 're:PATTERN'",
    "--exclude": "write --layer '!SELECTION'",
    "--init": "write --scheme NAME",
    "--method": "write --scheme NAME",
    "--format": "write --json",
    "-d": "write -L N",
    "-s": "write --sort KEY",
    "-r": "write --reverse",
    "--csv": "write --tsv",
    "--no-color": "write --color never",
    "--full": "write --expand",
    "--all": "write --expand",
    "--level": "write --depth N",
    "--max-depth": "write --depth N",
    "--verbose": "write --debug to see the traceback of an error",
    "--shape": "filter the lines of 'paramctl ls': in a pipe, column 4 is the shape",
    "--dtype": "filter the lines of 'paramctl ls': in a pipe, column 3 is the dtype",
}


def for_command(args: Sequence[str], known: Sequence[str]) -> str:
    """Return the hint at the command line that is meant by one whose first argument names no command."""
    name, *others = args
    meant = COMMANDS.get(name.lower())
    if meant is not None:
        return f"run '{shlex.join(['paramctl', meant, *others])}'"
    if _looks_like_a_file(name):
        return f"run '{shlex.join(['paramctl', 'tree', name])}' to look into a checkpoint"
    from difflib import get_close_matches

    near = get_close_matches(name.lower(), known, n=2, cutoff=0.7)
    return f"nearest: {', '.join(near)}" if near else "'paramctl --help' lists the commands"


def for_option(error: Any) -> str:
    """Return the hint at the option that was meant by one that a command does not have, or ""."""
    name: str = error.option_name
    known = [option for each in error.ctx.command.params for option in each.opts] if error.ctx else []
    alike = [option for option in known if _letters(option) == _letters(name) and len(option) > 2]
    if alike:
        return f"write {alike[0]}"
    hint = OPTIONS.get(name, "")
    option = re.match(r"write (-\S+)", hint)
    if hint and (option is None or option[1] in (*known, "--version", "--debug")):
        return hint
    if len(name) == 2 or not error.possibilities:
        return ""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=3, cutoff=0.7)
    return f"nearest: {', '.join(near)}" if near else ""


def for_extra(command: str, message: str) -> str:
    """Return the hint at the options that are meant by arguments that a command does not take, or ""."""
    found = re.search(r"argument\(s\) \((.*)\)$", message)
    words = found[1].split() if found else []
    if command == "init" and words:
        layers, scheme = (words[:-1], words[-1:]) if len(words) > 1 else (words, [])
        return f"write {' '.join([*(f'--layer {each}' for each in layers), *(f'--scheme {each}' for each in scheme)])}"
    return f"write -o {words[0]}" if command == "convert" and len(words) == 1 else ""


def for_flags_of_ls(args: Sequence[str]) -> str:
    """Return the hint at what `ls -lh` does here, if the command line has such flags, or ""."""
    flags = [arg for arg in args[1:] if re.fullmatch(r"-l[ahrtS]+", arg)] if args[:1] == ["ls"] else []
    return f"{flags[0]} means --layer {flags[0][2:]}; 'paramctl ls FILE' shows sizes without options" if flags else ""


def _looks_like_a_file(name: str) -> bool:
    """Return whether a word that is no command names a file."""
    with suppress(OSError, ValueError):  # a name too long for the system, or with a null character
        return name == "-" or re.search(r"[/.]", name) is not None or Path(name).exists()
    return False


def _letters(option: str) -> str:
    """Return an option without dashes, underscores and a plural's s: `--dryrun` is `--dry-run`."""
    return re.sub(r"[-_]", "", option).lower().removesuffix("s")
