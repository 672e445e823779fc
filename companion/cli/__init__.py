"""The `companion` command: the road from a text file to a served model, one command per step.

Heavy libraries are imported inside the commands that need them, so that ``companion --help`` answers at once.
Mistakes end with exit code 2 and one line that says what to do.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from companion.cli import (
    about,
    diagnosing,
    exporting,
    grading,
    keys,
    loading,
    measuring,
    optimizing,
    rolling,
    stacking,
    training,
    using,
    watching,
)

__all__ = ["app", "main"]

app = typer.Typer(
    name="companion",
    help="Transformers in production: train, check, export and serve a text classifier.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    about.info,
    training.train,
    diagnosing.diagnose,
    using.evaluate,
    exporting.export,
    measuring.benchmark,
    optimizing.optimize,
    using.predict,
    using.serve,
    loading.loadtest,
    watching.drift,
    training.share,
    grading.grade,
):
    app.command()(command)
store = typer.Typer(help="The results that are stored under COMPANION_HOME.", rich_markup_mode=None)
store.command("list")(about.list_artifacts)
store.command("clear")(about.clear_artifacts)
app.add_typer(store, name="artifacts")
app.add_typer(rolling.rollout, name="rollout")
app.add_typer(stacking.stack, name="stack")
access = typer.Typer(help="The API keys of a server: made, listed, revoked.", rich_markup_mode=None)
access.command("new")(keys.new_key)
access.command("list")(keys.list_keys)
access.command("revoke")(keys.revoke_key)
app.add_typer(access, name="keys")


def main() -> NoReturn:
    """Run the command line: 0 when all went well, 2 after a mistake, with one line that says what to do."""
    try:
        code = app(standalone_mode=False, prog_name="companion")
    except (ValueError, OSError) as error:
        _fail(_one_line(error))
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        message = getattr(error, "format_message", None)  # a mistake in the arguments
        if message is None:
            raise
        context = getattr(error, "ctx", None)
        _fail(f"{_one_line(message())} Try: {context.command_path if context else 'companion'} --help")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"companion: {message}", file=sys.stderr)
    sys.exit(code)


def _one_line(error: object) -> str:
    """Say an error in one line; an operating system's error with the file it is about."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
