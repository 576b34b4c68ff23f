"""GET /metrics: this replica's Prometheus text. Behind several replicas a scrape reads one of them: see deploy/."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.serving.routes.router import UnknownRoute
from prefixbank.serving.routes.wire import Response

if TYPE_CHECKING:
    from prefixbank.serving.routes.site import Site
    from prefixbank.serving.routes.wire import Request

TEXT = b"text/plain; version=1.0.0; charset=utf-8"


async def metrics(site: Site, request: Request) -> Response:
    """The exposition; it names all tenants, so only a key that sees every tenant reads it."""
    if not site.caller(request).sees_everything:
        raise UnknownRoute("no such route for this key")
    return Response(200, site.service.exposition(), TEXT)
