"""Replica: one process with a backbone, its engine, and the wire in front of it, as a Ray Serve deployment.

With several replicas each follows the store by itself. It refuses to know what a route does.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import torch
from ray import serve

from prefixbank.model_store.backbones.devices import device_named
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import InvalidConfig
from prefixbank.model_store.store import PromptStore
from prefixbank.serving.access import Access, Admission
from prefixbank.serving.config import ServeConfig, validated
from prefixbank.serving.encoding import EncodingLimits
from prefixbank.serving.front import LOG_VARIABLE
from prefixbank.serving.routes.asgi import Application
from prefixbank.serving.routes.site import Site
from prefixbank.serving.service import Service
from prefixbank.serving.staging import prefix_dtype_of

if TYPE_CHECKING:
    from ray.serve.deployment import Deployment

logger = logging.getLogger(__name__)


@serve.ingress()
class Replica:
    """Builds everything from the settings, and ends it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        config = validated(settings)
        _start_logging(config)
        try:
            self._build(config)
        except InvalidConfig as error:
            logger.error("the replica cannot start: %s", error)
            raise
        except Exception:
            logger.exception("the replica cannot start")
            raise

    def _build(self, config: ServeConfig) -> None:
        torch.set_num_threads(threads_per_replica(config))
        device = device_named(config.device)
        backbone = load_backbone(config.backbone, dtype=getattr(torch, config.dtype), device=device)
        encoding = EncodingLimits(max_inputs=config.max_inputs, num_threads=config.tokenizer_threads)
        access = Access.from_file(config.keys) if config.keys else Access.open()
        prefix_dtype = prefix_dtype_of(config.prefix_dtype)
        self._service = Service(backbone, PromptStore(config.store), config.limits, encoding, prefix_dtype=prefix_dtype)
        self._site = Site(self._service, access, Admission(config.max_in_flight), config)
        logger.info("replica ready: %s in %s on %s", config.backbone, config.dtype, device)

    def __serve_build_asgi_app__(self) -> Application:
        return Application(self._site)

    def check_health(self) -> None:
        """Ray Serve replaces a replica whose engine has died."""
        if (status := self._service.health().status) == "failed":
            raise RuntimeError(f"the engine's status is {status}")

    def __del__(self) -> None:
        """Ray Serve calls this when it stops a replica, after the last request."""
        if hasattr(self, "_service"):
            self._service.close()


def deployment(config: ServeConfig) -> Deployment:
    """The deployment of a config; the door refuses overload, so Ray's own queue limits are out of the way."""
    as_deployment = serve.deployment(
        name="replica",
        num_replicas=config.num_replicas,
        max_ongoing_requests=100_000,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if device_named(config.device).type == "cuda" else 0},
        graceful_shutdown_timeout_s=5.0,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=2.0,
        max_constructor_retry_count=1,
    )
    return as_deployment(Replica)


def threads_per_replica(config: ServeConfig) -> int:
    """CPU threads of one replica's model; Ray would give it one."""
    return config.threads or max(1, len(os.sched_getaffinity(0)) // config.num_replicas)


def _start_logging(config: ServeConfig) -> None:
    file = os.environ.get(LOG_VARIABLE)
    handler = logging.FileHandler(file) if file else logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours = logging.getLogger("prefixbank")
    ours.handlers = [handler]
    ours.propagate = False
    ours.setLevel(config.log_level.upper())
