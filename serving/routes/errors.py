"""The one table from an error's class to its status code and `error_type`.

Every error leaves as `{"error": "<sentence>", "error_type": "<word>"}`. What is not in the table is our fault: it is
logged with the id that the client is given, and nothing else about it leaves the house.
"""

from __future__ import annotations

import logging
import math
from http import HTTPStatus as Status
from typing import NamedTuple

from prefixbank.model_store import errors as tree
from prefixbank.serving.routes.router import MethodNotAllowed, UnknownRoute
from prefixbank.serving.routes.wire import (
    BodyTooLarge,
    BodyTooSlow,
    Headers,
    InvalidJson,
    Response,
    UnsupportedMediaType,
)

logger = logging.getLogger(__name__)


class Rule(NamedTuple):
    """How a class of errors is told."""

    status: Status
    error_type: str
    sentence: str | None = None
    """Said instead of the error's own message where that names our files or machines."""


_UNFIT = "what is published for this task cannot be served; `prefixbank store verify` and the server's log say why"

TABLE: dict[type[Exception], Rule] = {
    InvalidJson: Rule(Status.BAD_REQUEST, "invalid_json"),
    tree.Unauthorized: Rule(Status.UNAUTHORIZED, "unauthorized"),
    tree.UnknownTask: Rule(Status.NOT_FOUND, "unknown_task"),
    UnknownRoute: Rule(Status.NOT_FOUND, "unknown_route"),
    MethodNotAllowed: Rule(Status.METHOD_NOT_ALLOWED, "method_not_allowed"),
    BodyTooSlow: Rule(Status.REQUEST_TIMEOUT, "body_too_slow"),
    BodyTooLarge: Rule(Status.REQUEST_ENTITY_TOO_LARGE, "body_too_large"),
    tree.InputTooLong: Rule(Status.REQUEST_ENTITY_TOO_LARGE, "input_too_long"),
    UnsupportedMediaType: Rule(Status.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
    tree.RequestError: Rule(Status.UNPROCESSABLE_ENTITY, "invalid_request"),
    tree.ArtifactError: Rule(Status.FAILED_DEPENDENCY, "broken_prompt", _UNFIT),
    tree.BackboneError: Rule(Status.FAILED_DEPENDENCY, "unfit_prompt", _UNFIT),
    tree.PromptTooLarge: Rule(Status.FAILED_DEPENDENCY, "unfit_prompt", _UNFIT),
    tree.StoreError: Rule(Status.SERVICE_UNAVAILABLE, "store_unavailable", "the prompt store cannot be read now"),
    tree.Overloaded: Rule(Status.TOO_MANY_REQUESTS, "overloaded"),
    tree.DeadlineExceeded: Rule(Status.GATEWAY_TIMEOUT, "deadline_exceeded"),
    tree.ShuttingDown: Rule(Status.SERVICE_UNAVAILABLE, "shutting_down"),
}
_UNFORESEEN = Rule(Status.INTERNAL_SERVER_ERROR, "internal", "something failed here; the log has it under id {id}")


def response_to(error: Exception, request_id: bytes) -> Response:
    """What the client is told."""
    rule = _rule_for(error)
    if rule is _UNFORESEEN:
        logger.error("request %s failed", request_id.decode(), exc_info=error)
    elif rule.sentence:
        logger.warning("request %s refused: %s: %s", request_id.decode(), type(error).__name__, error)
    sentence = (rule.sentence or str(error)).replace("{id}", request_id.decode())
    return Response.of_json({"error": sentence, "error_type": rule.error_type}, rule.status, _headers_of(error))


def _rule_for(error: Exception) -> Rule:
    return next((TABLE[base] for base in type(error).__mro__ if base in TABLE), _UNFORESEEN)


def _headers_of(error: Exception) -> Headers:
    match error:
        case MethodNotAllowed(allowed=allowed):
            return ((b"allow", ", ".join(allowed).encode()),)
        case tree.Overloaded(retry_after_s=seconds):
            return ((b"retry-after", b"%d" % max(1, math.ceil(seconds))),)
        case tree.Unauthorized():
            return ((b"www-authenticate", b"Bearer"),)
        case BodyTooLarge() | BodyTooSlow():
            return ((b"connection", b"close"),)
        case _:
            return ()
