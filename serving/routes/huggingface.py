"""POST /models/{tenant}/{task}[@alias] in the Hugging Face inference format: the hot route.

It reads the envelope `{"inputs", "parameters", "options"}` and refuses to know what a family's inputs look like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from prefixbank.model_store.address import LIVE, Address, is_name
from prefixbank.model_store.errors import (
    InvalidRequest,
    NoSuchAlias,
    NoSuchRevision,
    NoSuchTask,
    StoreError,
    UnknownTask,
)
from prefixbank.serving.routes.wire import Response

if TYPE_CHECKING:
    from prefixbank.serving.routes.site import Site
    from prefixbank.serving.routes.wire import Headers, Request
    from prefixbank.serving.service import Answer

PREFIX = "/models/"


class Target(NamedTuple):
    """Which pointer of which task is asked."""

    address: Address
    alias: str

    @classmethod
    def parse(cls, path: str) -> Target:
        """The target named by the route's path; raises `UnknownTask` for what can be no task."""
        spelled, at, alias = path.removeprefix(PREFIX).partition("@")
        try:
            address = Address.parse(spelled)
        except StoreError:
            raise UnknownTask("no such task: a path is /models/TENANT/TASK or /models/TENANT/TASK@ALIAS") from None
        if at and not is_name(alias):
            raise unknown_task(address)
        return cls(address, alias if at else LIVE)


class Envelope(NamedTuple):
    """The checked outer form of a body."""

    inputs: Any
    parameters: dict[str, Any]

    @classmethod
    def parse(cls, body: Any) -> Envelope:
        """The envelope of a JSON body; raises `InvalidRequest`."""
        if not isinstance(body, dict) or "inputs" not in body:
            raise InvalidRequest('the body must be an object with "inputs"')
        if unknown := body.keys() - {"inputs", "parameters", "options"}:
            raise InvalidRequest(f'unknown key {min(unknown)[:64]!r}; "inputs" and "parameters" are known')
        parameters = body.get("parameters")
        if not isinstance(parameters, dict | None):
            raise InvalidRequest('"parameters" must be an object')
        return cls(body["inputs"], parameters or {})


async def answer(site: Site, request: Request) -> Response:
    """Answers one input or a list of them."""
    caller = site.caller(request)
    target = Target.parse(request.path)
    if not caller.sees(target.address.tenant):
        raise unknown_task(target.address)
    request.subject = target.address
    with site.admission.permit():
        config = site.config
        body = await request.json(config.max_body_bytes, config.limits.timeout_s)
        answered = await request.unless_gone(_ask(site, target, Envelope.parse(body), caller.name))
    return Response.of_json(answered.value, headers=_headers(target, answered))


async def _ask(site: Site, target: Target, envelope: Envelope, asker: str | None) -> Answer:
    address, alias = target
    try:
        return await site.service.answer(address, *envelope, alias=alias, tenant=asker or address.tenant)
    except (UnknownTask, NoSuchTask, NoSuchAlias, NoSuchRevision):
        raise unknown_task(address) from None


def _headers(target: Target, answered: Answer) -> Headers:
    """Which task and revision answered, and whether it read all of the input."""
    named = (
        (b"x-prefixbank-task", str(target.address).encode()),
        (b"x-prefixbank-revision", answered.revision.encode()),
    )
    if not answered.num_truncated:
        return named
    return (*named, (b"x-prefixbank-truncated", b"%d" % answered.num_truncated))


def unknown_task(address: Address) -> UnknownTask:
    """The same words for a task that does not exist and for one that is not this caller's."""
    return UnknownTask(f"no task {address} is served here, or not with this key")
