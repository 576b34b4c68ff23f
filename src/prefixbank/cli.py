"""The `prefixbank` command. It turns errors into one line and an exit code, and refuses to know what the rooms do.

Nothing heavy is imported before a command runs: `prefixbank --help` loads neither torch nor ray.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from prefixbank import __version__
from prefixbank.cli_formats import export, import_
from prefixbank.cli_report import report
from prefixbank.cli_serve import predict, serve
from prefixbank.cli_store import store
from prefixbank.cli_sweep import sweep
from prefixbank.cli_train import train
from prefixbank.model_store.errors import PrefixbankError

FAILED, INTERRUPTED = 1, 130

app = typer.Typer(
    name="prefixbank",
    help="Serve thousands of P-Tuning v2 task prompts from one frozen transformer.",
    epilog="A first walk: prefixbank train recipe.toml, then store publish, then serve. `COMMAND --help` tells more.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)
app.command()(sweep)
app.command()(report)
app.add_typer(store, name="store")
app.command()(serve)
app.command()(predict)
app.command("import")(import_)
app.command()(export)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 for an error, 2 for a misused option, 130 for Ctrl-C."""
    try:
        app(arguments, prog_name="prefixbank")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except PrefixbankError as error:
        return _failed(str(error) or type(error).__name__)
    except OSError as error:
        return _failed(_said(error))
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prefixbank {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serve thousands of P-Tuning v2 task prompts from one frozen transformer."""


def _failed(message: str) -> int:
    """One line, without what would steer a terminal: messages may quote a stranger's file."""
    line = "".join(character if character.isprintable() else "?" for character in " ".join(message.split()))
    typer.echo(f"prefixbank: error: {line}", err=True)
    return FAILED


def _said(error: OSError) -> str:
    """The error as a sentence: `No such file or directory: recipe.toml`, without the number."""
    if error.strerror is None:
        return str(error) or type(error).__name__
    return f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror


if __name__ == "__main__":
    sys.exit(main())
