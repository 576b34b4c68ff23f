"""GET /health: may this replica be sent requests? GET /info: what is it?

A stranger gets /health too, for probes, but sees no task in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.serving.routes.wire import Response

if TYPE_CHECKING:
    from prefixbank.serving.routes.site import Site
    from prefixbank.serving.routes.wire import Request


async def health(site: Site, request: Request) -> Response:
    """200 while requests are taken, 503 otherwise; broken tasks are named and hurt nobody else."""
    caller = site.access.identify_or_nobody(request.headers.get(b"authorization"))
    state = site.service.health()
    tasks = [task for task in site.service.tasks() if caller.sees(task.address.tenant)]
    broken = {str(task.address): task.error for task in tasks if task.error}
    served = [str(task.address) for task in tasks if not task.error]
    body = state._asdict() | {"tasks": served, "broken": broken}
    return Response.of_json(body, 200 if state.status == "ok" else 503)


async def info(site: Site, request: Request) -> Response:
    """Backbone, device, limits and counts."""
    site.caller(request)
    return Response.of_json(site.service.info()._asdict())
