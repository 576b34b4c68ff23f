"""GET /openapi.json: the routes as they are, written by hand; a test holds it against the router.

It refuses to know the tasks: one templated path stands for all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import prefixbank
from prefixbank.serving.routes.errors import TABLE
from prefixbank.serving.routes.wire import Response

if TYPE_CHECKING:
    from prefixbank.serving.routes.site import Site
    from prefixbank.serving.routes.wire import Request

Schema = dict[str, Any]


async def document(_site: Site, _request: Request) -> Response:
    """The document; it names no tenant, so it needs no key."""
    return Response.of_json(DOCUMENT)


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _object(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def _content(schema: Schema, media: str = "application/json") -> Schema:
    return {"content": {media: {"schema": schema}}}


def _get(summary: str, schema: Schema, media: str = "application/json") -> Schema:
    ok = {"description": "as asked"} | _content(schema, media)
    return {"get": {"summary": summary, "responses": {"200": ok, "default": _ERROR}}}


_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_INTEGER: Schema = {"type": "integer"}
_NAME: Schema = {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,63}$"}
_TARGET: Schema = {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,63}(@[a-z0-9][a-z0-9._-]{0,63})?$"}
_ERROR: Schema = {"description": "refused"} | _content(_ref("Error"))
_INPUT: Schema = {"oneOf": [_TEXT, _ref("Pair")]}

_SCHEMAS: Schema = {
    "Error": _object(
        ("error", "error_type"),
        error=_TEXT,
        error_type={"enum": sorted({rule.error_type for rule in TABLE.values()} | {"internal"})},
    ),
    "Pair": _object(("text", "text_pair"), text=_TEXT, text_pair=_TEXT),
    "Parameters": _object(
        truncation={"type": "boolean", "default": False, "description": "cut an input that is too long, and say so"},
        top_k=_INTEGER,
        function_to_apply={"enum": ["softmax", "sigmoid", "none"]},
        aggregation_strategy={"enum": ["none", "simple", "first", "average", "max"]},
        ignore_labels=_array(_TEXT),
        stride=_INTEGER,
    ),
    "Request": _object(
        ("inputs",),
        inputs={"oneOf": [_INPUT, _array(_INPUT)]},
        parameters=_ref("Parameters"),
        options={"type": "object", "description": "accepted for older clients, and without effect"},
    ),
    "Label": _object(("label", "score"), label=_TEXT, score=_NUMBER),
    "Entity": _object(
        ("score", "word"),
        entity_group=_TEXT,
        entity=_TEXT,
        index=_INTEGER,
        score=_NUMBER,
        word=_TEXT,
        start=_INTEGER,
        end=_INTEGER,
    ),
    "Answer": {
        "oneOf": [_array(_array(_ref("Label"))), _array(_ref("Entity")), _array(_array(_ref("Entity")))],
        "description": "text classification is a list per input; token classification a list, of lists when batched",
    },
    "Health": _object(("status", "tasks", "broken"), status=_TEXT, tasks=_array(_TEXT), broken={"type": "object"}),
    "Models": _object(("object", "data"), object=_TEXT, data=_array({"type": "object"})),
}

_ANSWERED: Schema = {
    "description": "the answer",
    "headers": {
        "x-prefixbank-task": {"schema": _TEXT, "description": "the task that answered"},
        "x-prefixbank-revision": {"schema": _TEXT, "description": "digest of the prompt that answered"},
        "x-prefixbank-truncated": {"schema": _INTEGER, "description": "how many inputs were cut, if any"},
    },
} | _content(_ref("Answer"))

_ASK: Schema = {
    "parameters": [
        {"name": "tenant", "in": "path", "required": True, "schema": _NAME},
        {"name": "task", "in": "path", "required": True, "schema": _TARGET, "description": "task or task@alias"},
    ],
    "post": {
        "summary": "Answer one input, or a list of them, in the Hugging Face inference format",
        "requestBody": {"required": True} | _content(_ref("Request")),
        "responses": {"200": _ANSWERED, "default": _ERROR},
    },
}

DOCUMENT: Schema = {
    "openapi": "3.1.0",
    "info": {"title": "prefixbank", "version": prefixbank.__version__},
    "security": [{}, {"key": []}],
    "paths": {
        "/models/{tenant}/{task}": _ASK,
        "/health": _get("200 while requests are taken, 503 otherwise", _ref("Health")),
        "/info": _get("What this server is", {"type": "object"}),
        "/v1/models": _get("The tasks that exist for the caller", _ref("Models")),
        "/metrics": _get("Prometheus text of one replica", _TEXT, "text/plain"),
        "/openapi.json": _get("This document", {"type": "object"}),
    },
    "components": {"schemas": _SCHEMAS, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
}
