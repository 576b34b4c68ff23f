"""GET /v1/models in the OpenAI shape: the tasks that exist for the caller."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from prefixbank.serving.routes.wire import Response

if TYPE_CHECKING:
    from prefixbank.serving.catalog import TaskStatus
    from prefixbank.serving.routes.site import Site
    from prefixbank.serving.routes.wire import Request


async def models(site: Site, request: Request) -> Response:
    """One entry per live task; `root` is the revision, `parent` the backbone."""
    caller = site.caller(request)
    parent = site.service.info().backbone
    visible = (task for task in site.service.tasks() if caller.sees(task.address.tenant))
    return Response.of_json({"object": "list", "data": [_entry(task, parent) for task in visible]})


def _entry(task: TaskStatus, parent: str) -> dict[str, Any]:
    entry = {
        "id": str(task.address),
        "object": "model",
        "created": 0,
        "owned_by": task.address.tenant,
        "root": task.revision,
        "parent": parent,
    }
    if facts := task.facts:
        entry |= {"created": _epoch_s(facts.created), "task": facts.family, "labels": facts.labels}
        entry |= {"takes_pairs": facts.is_pair, "max_tokens": facts.max_tokens}
        entry |= {"prefix_length": facts.prefix_length, "shallow_length": facts.shallow_length}
        entry |= {"settings": facts.settings} if facts.settings else {}
    return entry


def _epoch_s(created: str) -> int:
    """Seconds since 1970; 0 for a prompt that does not say when it was made."""
    try:
        return int(datetime.fromisoformat(created).timestamp())
    except (ValueError, OverflowError):
        return 0
