"""GET /openapi.json: the routes as they are, written by hand; a test holds it against the router.

It refuses to know the tasks: one templated path stands for all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import prefixbank
from prefixbank.serving.routes.errors import TABLE
from prefixbank.serving.routes.openapi_families import (
    INTEGER,
    TEXT,
    Schema,
    answer_examples,
    any_of,
    array,
    record,
    ref,
    request_examples,
    schemas,
)
from prefixbank.serving.routes.wire import Response

if TYPE_CHECKING:
    from prefixbank.serving.routes.site import Site
    from prefixbank.serving.routes.wire import Request


async def document(_site: Site, _request: Request) -> Response:
    """The document; it names no tenant, so it needs no key."""
    return Response.of_json(DOCUMENT)


def _content(schema: Schema, media: str = "application/json", examples: Schema | None = None) -> Schema:
    return {"content": {media: {"schema": schema} | ({"examples": examples} if examples else {})}}


def _get(summary: str, schema: Schema, media: str = "application/json") -> Schema:
    ok = {"description": "as asked"} | _content(schema, media)
    return {"get": {"summary": summary, "responses": {"200": ok, "default": _ERROR}}}


_NAME: Schema = {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,63}$"}
_TARGET: Schema = {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,63}(@[a-z0-9][a-z0-9._-]{0,63})?$"}
_ERROR: Schema = {"description": "refused"} | _content(ref("Error"))

_SCHEMAS: Schema = {
    "Error": record(
        ("error", "error_type"),
        error=TEXT,
        error_type={"enum": sorted({rule.error_type for rule in TABLE.values()} | {"internal"})},
    ),
    **schemas(),
    "Request": any_of("Request"),
    "Answer": any_of("Answer"),
    "Health": record(("status", "tasks", "broken"), status=TEXT, tasks=array(TEXT), broken={"type": "object"}),
    "Models": record(("object", "data"), object=TEXT, data=array({"type": "object"})),
}

_ANSWERED: Schema = {
    "description": "the answer",
    "headers": {
        "x-prefixbank-task": {"schema": TEXT, "description": "the task that answered"},
        "x-prefixbank-revision": {"schema": TEXT, "description": "digest of the prompt that answered"},
        "x-prefixbank-truncated": {"schema": INTEGER, "description": "how many inputs were cut, if any"},
    },
} | _content(ref("Answer"), examples=answer_examples())

_ASK: Schema = {
    "parameters": [
        {"name": "tenant", "in": "path", "required": True, "schema": _NAME},
        {"name": "task", "in": "path", "required": True, "schema": _TARGET, "description": "task or task@alias"},
    ],
    "post": {
        "summary": "Answer one input, or a list of them, in the Hugging Face inference format",
        "requestBody": {"required": True} | _content(ref("Request"), examples=request_examples()),
        "responses": {"200": _ANSWERED, "default": _ERROR},
    },
}

DOCUMENT: Schema = {
    "openapi": "3.1.0",
    "info": {"title": "prefixbank", "version": prefixbank.__version__},
    "security": [{}, {"key": []}],
    "paths": {
        "/models/{tenant}/{task}": _ASK,
        "/health": _get("200 while requests are taken, 503 otherwise", ref("Health")),
        "/info": _get("What this server is", {"type": "object"}),
        "/v1/models": _get("The tasks that exist for the caller", ref("Models")),
        "/metrics": _get("Prometheus text of one replica", TEXT, "text/plain"),
        "/openapi.json": _get("This document", {"type": "object"}),
    },
    "components": {"schemas": _SCHEMAS, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
}
