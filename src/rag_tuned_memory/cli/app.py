"""The command tree, and how errors leave it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from rag_tuned_memory.cli import adapters, answering, episodes, evaluating, learning, moving, serving, upkeep
from rag_tuned_memory.cli.output import one_line
from rag_tuned_memory.errors import RagTunedMemoryError

# typer brings its own copy of click or uses the installed one, depending on its version
_UsageError: type[Exception]
_ClickException: type[Exception]
_UsageError, _ClickException = typer.BadParameter.__mro__[1:3]
_USAGE = 2

app = typer.Typer(
    name="rtm",
    help="Agent memory that retrieves and learns.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (moving, episodes, answering, learning, upkeep, serving):
    for command in commands.COMMANDS:
        app.command(command.__name__.removesuffix("_").replace("_", "-"))(command)
app.add_typer(adapters.app, name="adapters")
app.add_typer(evaluating.app, name="eval")


def _version(wanted: bool) -> None:
    if wanted:
        from rag_tuned_memory import __version__

        print(f"rtm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which it is.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more, with tracebacks of errors.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )


def run(arguments: Sequence[str]) -> int:
    """Run a command; see ``main``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # text of all the world, on a terminal that may not show it
            stream.reconfigure(errors="backslashreplace")
    try:
        done = app(args=list(arguments), prog_name="rtm", standalone_mode=False)
        return done if isinstance(done, int) else 0
    except typer.Exit as leaving:
        return leaving.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except RagTunedMemoryError as error:
        _complain(str(error))
    except _ClickException as wrong:
        shown: Any = wrong
        if type(wrong).__name__ == "NoArgsIsHelpError":
            print(shown, file=sys.stderr)
        else:
            _complain(shown.format_message())
        return _USAGE if isinstance(wrong, _UsageError) else 1
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        _complain(f"{error.filename or 'file'}: {error.strerror or error}")
    return 1


def _complain(message: str) -> None:
    logging.getLogger("rag_tuned_memory").info("", exc_info=True)
    print(f"error: {one_line(message)}", file=sys.stderr)
