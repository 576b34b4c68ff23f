"""`prefixbank store`: publish, promote, roll back and look around in a prompt store.

Results go to stdout, remarks to stderr. It refuses to know what a store's folder looks like.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefixbank import cli_store_view as view
from prefixbank.cli_common import DEFAULT_STORE, SHORT, StorePath, address_of, remark

if TYPE_CHECKING:
    from prefixbank.model_store.store import PromptStore

store = typer.Typer(
    help="Publish prompts, promote them, roll back, look around.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    epilog="The store is a folder: --store PATH, or PREFIXBANK_STORE in the environment, or ./store.",
)

Task = Annotated[str, typer.Argument(metavar="TENANT/TASK", help="The task's address, as in acme/intents.")]
Revision = Annotated[str, typer.Argument(metavar="REVISION", help="A revision, or its first 4 or more digits.")]
Alias = Annotated[str, typer.Option(help="The alias to move; `live` is the one that is served.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@store.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="An artifact: the folder that `prefixbank train` wrote.")],
    task: Task,
    promote: Annotated[bool, typer.Option("--promote", help="Point the alias at it, too.")] = False,
    alias: Alias = "live",
    path: StorePath = DEFAULT_STORE,
) -> None:
    """Check an artifact and take it into the store, which is made if there is none. Prints the revision.

    Example: `prefixbank store publish runs/intents/artifact acme/intents --promote`
    """
    from prefixbank.model_store.store import PromptStore

    address = address_of(task)
    prompts = PromptStore(path)
    revision = prompts.publish(address, folder)
    typer.echo(revision)
    if promote:
        prompts.promote(address, revision, alias)
        remark(f"{address}: {alias} is {revision[:SHORT]}")
    else:
        remark(f"published, not promoted: prefixbank store promote {address} {revision[:SHORT]}")


@store.command("list")
def list_tasks(as_json: AsJson = False, path: StorePath = DEFAULT_STORE) -> None:
    """List the tasks with what is live, newest revision and count."""
    prompts = _existing(path)
    records = [prompts.show(address) for address in prompts.list()]
    if as_json:
        typer.echo(json.dumps([view.summary(record) for record in records], indent=2))
    else:
        typer.echo(view.tasks_table(records))


@store.command()
def show(task: Task, as_json: AsJson = False, path: StorePath = DEFAULT_STORE) -> None:
    """Show a task: its aliases with their history, and its revisions."""
    record = _existing(path).show(address_of(task))
    if as_json:
        typer.echo(json.dumps(view.details(record), indent=2))
        return
    typer.echo(f"{record.address}\n\n{view.aliases_table(record)}\n\n{view.revisions_table(record)}")
    for fault in view.faults(record):
        remark(f"broken: {fault}")


@store.command()
def promote(task: Task, revision: Revision, alias: Alias = "live", path: StorePath = DEFAULT_STORE) -> None:
    """Point an alias at a revision. Servers that follow the store answer from it within a second.

    Example: `prefixbank store promote acme/intents 3f9a --alias canary`
    """
    prompts, address = _existing(path), address_of(task)
    whole = prompts.find_revision(address, revision)
    prompts.promote(address, whole, alias)
    typer.echo(whole)
    remark(f"{address}: {alias} is {whole[:SHORT]}")


@store.command()
def rollback(task: Task, alias: Alias = "live", path: StorePath = DEFAULT_STORE) -> None:
    """Point an alias where it pointed before. Prints that revision."""
    address = address_of(task)
    revision = _existing(path).rollback(address, alias)
    typer.echo(revision)
    remark(f"{address}: {alias} is {revision[:SHORT]}")


@store.command()
def delete(task: Task, revision: Revision, path: StorePath = DEFAULT_STORE) -> None:
    """Delete a revision. Refused while an alias points at it."""
    prompts, address = _existing(path), address_of(task)
    whole = prompts.find_revision(address, revision)
    prompts.delete(address, whole)
    remark(f"{address}: deleted {whole[:SHORT]}")


@store.command("delete-task")
def delete_task(task: Task, path: StorePath = DEFAULT_STORE) -> None:
    """Delete a task with all its revisions. Refused while it has an alias."""
    address = address_of(task)
    _existing(path).delete_task(address)
    remark(f"{address}: deleted")


@store.command("drop-alias")
def drop_alias(
    task: Task,
    alias: Annotated[str, typer.Argument(help="The alias to remove.")] = "live",
    path: StorePath = DEFAULT_STORE,
) -> None:
    """Remove an alias with its history. Without `live`, a task is out of service."""
    address = address_of(task)
    _existing(path).drop_alias(address, alias)
    remark(f"{address}: dropped {alias}")


@store.command()
def verify(path: StorePath = DEFAULT_STORE) -> None:
    """Reread and rehash everything. Prints one line per fault; exit code 1 when there is any."""
    prompts = _existing(path)
    num_faults = 0
    for finding in prompts.verify():
        typer.echo(str(finding))
        num_faults += 1
    remark(f"tasks: {len(prompts.list())}, faults: {num_faults}")
    if num_faults:
        raise typer.Exit(1)


def _existing(path: Path) -> "PromptStore":
    from prefixbank.model_store.store import PromptStore

    return PromptStore.existing(path)
