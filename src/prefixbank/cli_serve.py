"""`prefixbank serve` and `prefixbank predict`: answers from a store, with and without a server.

It refuses to know Ray, tensors and HTTP.
"""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefixbank import cli_serve_view as view
from prefixbank.cli_common import DEFAULT_STORE, StorePath

if TYPE_CHECKING:
    from types import FrameType

    from prefixbank.serving.config import ServeConfig

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "prompts"
"""Artifacts by tenant and task, in a checkout."""

Store = Annotated[
    Path | None,
    typer.Option(envvar="PREFIXBANK_STORE", help="The store's folder. Left out: ./store, filled with the examples."),
]
Backbone = Annotated[str | None, typer.Option(help="Folder, hub id, or `minilm`, the packaged one.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
PrefixDtype = Annotated[str | None, typer.Option(help="How prefixes are stored: auto, int8 or float8_e4m3fn.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Config = Annotated[Path | None, typer.Option(help="TOML file of settings; options given here win over it.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, as in limits.token_budget=8192."),
]


def serve(
    config: Config = None,
    store: Store = None,
    backbone: Backbone = None,
    host: Annotated[str | None, typer.Option(help="Interface to listen on; 0.0.0.0 is everybody's.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default="8000")] = None,
    dtype: Dtype = None,
    prefix_dtype: PrefixDtype = None,
    device: Device = None,
    replicas: Annotated[int | None, typer.Option(help="Processes with a backbone each.", show_default="1")] = None,
    keys: Annotated[
        Path | None, typer.Option(help="TOML file of hashed API keys; without it, no key is needed.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Serve the tasks of a store until Ctrl-C. With nothing given: the packaged backbone and the example prompts.

    Example: `prefixbank serve --store /srv/prompts --backbone FacebookAI/roberta-large --dtype bfloat16`
    """
    from prefixbank.serving.launch import launched

    model: dict[str, object] = {"backbone": backbone, "dtype": dtype, "prefix_dtype": prefix_dtype, "device": device}
    given: dict[str, object] = {
        "store": _text(store),
        "host": host,
        "port": port,
        "num_replicas": replicas,
        "keys": keys,
    }
    chosen = _config(config, model | given, settings)
    if chosen.store == str(DEFAULT_STORE) and chosen.backbone == "minilm":
        view.remark_seeded(seed(DEFAULT_STORE))
    view.remark(f"starting {chosen.backbone} on port {chosen.port} ...")
    wish = _WishToEnd()
    try:
        with launched(chosen, view.remark, wish.listen) as url:
            if not wish.heard:
                view.show_curls(url)
                signal.pause()
    except (KeyboardInterrupt, SystemExit):
        view.remark("ended")


def predict(
    task: Annotated[str, typer.Argument(metavar="TENANT/TASK", help="The task's address, or address@alias.")],
    store: StorePath = DEFAULT_STORE,
    source: Annotated[typer.FileText, typer.Option("--input", help="JSON lines, `-` is standard input.")] = "-",  # type: ignore[assignment]
    config: Config = None,
    backbone: Backbone = None,
    dtype: Dtype = None,
    prefix_dtype: PrefixDtype = None,
    device: Device = None,
    settings: Settings = None,
) -> None:
    """Answer JSON lines with the engine of the server, without a server. One answer per line, in order.

    A line is an input or `{"inputs": ..., "parameters": {...}}`. What an input is depends on the task: a text,
    `{"text": ..., "text_pair": ...}`, `{"question": ..., "context": ...}`, `{"premise": ..., "choices": [...]}`,
    `{"words": [...], "predicates": [...]}`.

    Example: `echo '"book a table"' | prefixbank predict acme/intents`
    """
    from prefixbank.cli_predict import answer_lines

    model: dict[str, object] = {"backbone": backbone, "dtype": dtype, "prefix_dtype": prefix_dtype, "device": device}
    for line in answer_lines(_config(config, model | {"store": str(store)}, settings), task, source):
        typer.echo(line)


def seed(store: Path) -> list[str]:
    """Publishes and promotes the example prompts that the store does not have; returns their addresses."""
    from prefixbank.model_store.store import Address, PromptStore

    prompts = PromptStore(store)
    present = set(prompts.list())
    seeded = []
    for manifest in sorted(EXAMPLES.glob("*/*/manifest.json")):
        address = Address(manifest.parent.parent.name, manifest.parent.name)
        if address not in present:
            prompts.promote(address, prompts.publish(address, manifest.parent))
            seeded.append(str(address))
    return seeded


def _config(file: Path | None, given: dict[str, object], settings: list[str] | None) -> "ServeConfig":
    from prefixbank.serving.config import load_config

    named = {key: value for key, value in given.items() if value is not None}
    return load_config(file, overrides=named | dict(_setting(text) for text in settings or ()))


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not of the form KEY=VALUE", param_hint="--set")
    return key, value


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


class _WishToEnd:
    """SIGINT and SIGTERM. The first one interrupts; those that follow do not disturb the ending."""

    def __init__(self) -> None:
        self.heard = False
        """Asked after the start, some of whose steps swallow an interruption."""
        self.listen()

    def listen(self) -> None:
        """Be told from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)

    def _hear(self, _signal: int, _frame: "FrameType | None") -> None:
        first, self.heard = not self.heard, True
        if first:
            raise KeyboardInterrupt
