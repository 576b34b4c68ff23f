"""Site: what every route may use. A value handed to each handler; it holds no state of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from prefixbank.serving.access import Access, Admission, Caller
    from prefixbank.serving.config import ServeConfig
    from prefixbank.serving.routes.wire import Request
    from prefixbank.serving.service import Service


class Site(NamedTuple):
    """The engine's service and the two checks at the door."""

    service: Service
    access: Access
    admission: Admission
    config: ServeConfig

    def caller(self, request: Request) -> Caller:
        """Who asks; raises `Unauthorized`."""
        return self.access.identify(request.headers.get(b"authorization"))
