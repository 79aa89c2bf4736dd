"""Run the command line: its commands, and the one place where an error becomes an exit code."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from paramctl import __version__
from paramctl.cli import output, text
from paramctl.errors import NoMatch, ParamctlError, ReaderLeft, Stopped, UsageError

# Each command is the function of that name in the file of that name. A file is imported when its
# command runs or its help is shown: start-up pays for one command, not for all.
LOOK = (
    "tree",
    "ls",
    "show",
    "diff",
    "stats",
    "track",
    "plot",
    "ties",
    "check",
    "schemes",
    "help",
)
CHANGE = (
    "init",
    "set",
    "tie",
    "untie",
    "convert",
    "recover",
)

# Typer 0.26 has no public name for the class of all usage errors; BadParameter is one of them.
_UsageMistake: type[Exception] = typer.BadParameter.__bases__[0]


class Commands(TyperGroup):
    """The table of commands, each built when it is needed."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = dict.fromkeys((*LOOK, *CHANGE))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of that name, or None."""
        if cmd_name not in self.commands:
            return None
        if self.commands[cmd_name] is None:
            self.commands[cmd_name] = _build(cmd_name)
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the first argument names. Raises UsageError with the one that may be meant."""
        if args[0].startswith("--") or args[0] in self.commands:
            return super().resolve_command(ctx, args)
        from paramctl.cli import usage_hints

        hint = usage_hints.for_command(args, (*LOOK, *CHANGE))
        raise UsageError(f"no command '{args[0]}'", hint=hint)

    def make_context(self, *args: Any, **settings: Any) -> Any:
        """Read the command line, which also prints the help."""
        with _translate_interruptions():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _translate_interruptions():
            return super().invoke(ctx)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands in two groups: those that look and those that change."""
        for title, names in (("Look", LOOK), ("Change", CHANGE)):
            if names:
                with formatter.section(title):
                    formatter.write_dl([(name, self.get_command(ctx, name).get_short_help_str(66)) for name in names])


@contextmanager
def _translate_interruptions() -> Iterator[None]:
    """Turn a closed pipe and Ctrl-C into our own exceptions, as Typer would hide the reason and the exit code."""
    try:
        yield
    except BrokenPipeError:
        output.discard_output()
        raise output.ReaderGone from None
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT) from None


def _build(name: str) -> Any:
    """Return the Typer command of that name."""
    one = typer.Typer(add_completion=False, rich_markup_mode=None)
    one.command(name)(getattr(import_module(f"paramctl.cli.commands.{name}"), name))
    return typer.main.get_command(one)


app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,  # boxes are in the way of grep
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        output.write(f"paramctl {__version__}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def paramctl(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", "-V", callback=_print_version, is_eager=True, help="Print the version."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    """See, re-initialise, tie and rewrite the parameters of saved networks.

    Only headers are read to look, nothing inside a file is ever executed, and a write is whole or did
    not happen.

    \b
    Examples:
      paramctl tree model.pt
      paramctl ls model.safetensors --layer '**.bias'
      cat model.pt | paramctl init --layer 0 --scheme xavier > new.pt
      paramctl tree --help
      paramctl help
    """
    if ctx.invoked_subcommand is None:
        output.write(f"{ctx.get_help()}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors are one line on standard error."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = _take_debug(args)
    # A listing of 60,000 tensors is a million objects and not one cycle: looking for some after
    # every few hundred of them takes longer than reading the file.
    gc.disable()
    try:
        with _signals():
            output.prepare()
            return _run(args)
    except BaseException as error:  # noqa: BLE001 - here every error ends, as an exit code
        if debug and not isinstance(error, output.ReaderGone | SystemExit):
            import traceback

            for line in "".join(traceback.format_exception(error)).splitlines():
                output.note(text.escape(line, None))
        return _explain(_with_hint(error, args))
    finally:
        if argv is None:
            gc.freeze()  # or the interpreter looks through all of it once more before it ends
        gc.enable()


def _run(args: list[str]) -> int:
    """Run the command line and return its exit code."""
    code = typer.main.get_command(app).main(args, prog_name="paramctl", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _take_debug(args: list[str]) -> bool:
    """Remove `--debug`, before or after the command, and return whether it was given."""
    end = args.index("--") if "--" in args else len(args)
    if "--debug" not in args[:end]:
        return False
    args.remove("--debug")
    return True


def _with_hint(error: BaseException, args: Sequence[str]) -> BaseException:
    """Return the error, with a hint at what flags mean here that other tools have, where they found nothing."""
    if isinstance(error, NoMatch):
        from paramctl.cli import usage_hints

        error.hint = usage_hints.for_flags_of_ls(args) or error.hint
    return error


def _explain(error: BaseException) -> int:
    """Print in one line what went wrong and return the exit code for it."""
    match error:
        case output.ReaderGone():
            return 0
        case ReaderLeft():
            return error.exit_code
        case ParamctlError():
            return _print_error(error.what, error.hint, error.file, code=error.exit_code)
        case SystemExit():
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        case _ if isinstance(error, _UsageMistake):
            return _print_usage_error(error)
        case Stopped():
            return _print_error(_SIGNALS[signal.Signals(error.signum)], code=128 + error.signum)
        case KeyboardInterrupt():
            return _print_error(_SIGNALS[signal.SIGINT], code=130)
        case MemoryError():
            return _print_error("there is not enough memory", code=3)
        case RecursionError():
            return _print_error("the file is nested too deeply", code=3)
        case OSError():
            return _print_error(f"cannot read or write: {error.strerror or error}", file=_file_of(error), code=3)
        case _:
            what = f"internal error: {type(error).__name__}: {error}"
            return _print_error(what, "run it with --debug and report what it prints", code=3)


def _print_error(what: str, hint: str = "", file: str = "", *, code: int) -> int:
    """Print an error and return its exit code."""
    where = f"{text.escape(file)}: " if file else ""
    todo = f"; {text.sentence(hint)}" if hint else ""
    output.note(f"paramctl: {where}{text.sentence(what)}{todo}")
    return code


def _print_usage_error(error: Any) -> int:
    """Print an error of Typer and return its exit code."""
    command = error.ctx.command_path if error.ctx else "paramctl"
    hint = f"see '{command} --help'"
    if hasattr(error, "possibilities"):
        from paramctl.cli import usage_hints

        return _print_error(f"no option {error.option_name}", usage_hints.for_option(error) or hint, code=2)
    message = _number_rule(error) or " ".join(error.format_message().split()).rstrip(".")
    if "unexpected extra argument" in message:
        from paramctl.cli import usage_hints

        hint = usage_hints.for_extra(command.rpartition(" ")[2], message) or hint
    return _print_error(message[:1].lower() + message[1:], hint, code=2)


def _number_rule(error: Any) -> str:
    """Return the numbers that an option takes, in words, if its value is the error; else ""."""
    option: Any = getattr(error, "param", None)
    kind: Any = getattr(option, "type", None)
    if type(error) is not typer.BadParameter or not hasattr(kind, "min"):
        return ""
    noun = "a whole number" if "int" in kind.name else "a number"
    most = "" if kind.max is None else f" and at most {kind.max:g}"
    return f"{max(option.opts, key=len)} must be {noun}, {kind.min:g} or more{most}"


def _file_of(error: OSError) -> str:
    """Return the name of the file that an error is about, or ""."""
    return str(error.filename) if error.filename is not None else ""


_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


@contextmanager
def _signals() -> Iterator[None]:
    """Turn the signals that end a command into an exception, so that it cleans up on its way out.

    A signal that was ignored from the start stays ignored: that is how `nohup` works.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        """Raise Stopped."""
        raise Stopped(signum)

    def resend(lost: sys.UnraisableHookArgs) -> None:
        """Send the signal again if it arrived in a finalizer, where an exception is lost."""
        if isinstance(lost.exc_value, Stopped):
            signal.raise_signal(lost.exc_value.signum)
        else:
            sys.__unraisablehook__(lost)

    hook, sys.unraisablehook = sys.unraisablehook, resend
    before = {s: signal.getsignal(s) for s in _SIGNALS}
    for signum, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(signum, stop)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        sys.unraisablehook = hook
