"""The Ray Serve application: `build` for `serve run|build|deploy`, `running` for a server of this machine alone.

It refuses to know what a replica does.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import LoggingConfig

from prefixbank.model_store.errors import ServerNotStarted
from prefixbank.serving.config import validated
from prefixbank.serving.haproxy import LOOPBACK
from prefixbank.serving.replica import deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ray.serve import Application

    from prefixbank.serving.config import ServeConfig

_OBJECT_STORE_BYTES = 80 * 2**20
"""Near Ray's minimum: no object of ours passes through it."""
_QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


def build(args: dict[str, Any]) -> Application:
    """The application of `args`, the same keys as a config file; names of host and port are the cluster's affair.

    Raises:
        InvalidConfig: a key is unknown or a value out of range.
    """
    config = validated(args)
    return deployment(config).bind(config.model_dump(mode="json"))


@contextmanager
def running(config: ServeConfig, run_folder: Path, on_cluster: Callable[[], None]) -> Iterator[None]:
    """A local cluster with the application, answering; everything it started has ended afterwards.

    `on_cluster` is called when the cluster runs: Ray has then put its own handlers for signals in place.

    The environment of `serving.front` must have been set before this module was imported.

    Raises:
        ServerNotStarted: the proxy or a replica did not come up.
    """
    try:
        _start_cluster(config, run_folder)
        on_cluster()
        _start_proxy(config)
        _deploy(config)
        yield
    finally:
        with redirect_stdout(StringIO()):  # Ray prints that its controller, asked to end, has ended
            if ray.is_initialized():
                serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()


def _start_cluster(config: ServeConfig, run_folder: Path) -> None:
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_OBJECT_STORE_BYTES,
        num_cpus=config.num_replicas,
        _temp_dir=str(run_folder),
    )


def _start_proxy(config: ServeConfig) -> None:
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": LOOPBACK, "port": config.port})
    except (RayError, TimeoutError) as error:
        found = type(error).__name__
        raise ServerNotStarted(
            f"Ray Serve's proxy did not come up in its time ({found}): is the machine busy?"
        ) from error


def _deploy(config: ServeConfig) -> None:
    application = build(config.model_dump(mode="json"))
    try:
        serve.run(application, name="prefixbank", route_prefix="/", logging_config=_QUIET)
    except RuntimeError as error:
        raise ServerNotStarted("no replica came up; its log says why") from error
