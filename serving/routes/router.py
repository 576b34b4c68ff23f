"""The table of routes: a path and a method to a handler.

Paths are literal but for `{tenant}/{task}`. It refuses to know what a handler does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from prefixbank.model_store.errors import RequestError
from prefixbank.serving.routes.site import Site
from prefixbank.serving.routes.wire import Request, Response

Handler = Callable[[Site, Request], Awaitable[Response]]


class UnknownRoute(RequestError):
    """No route has this path."""


class MethodNotAllowed(RequestError):
    """The route does not take this method.

    Args:
        allowed: the methods it takes.
    """

    def __init__(self, method: str, allowed: tuple[str, ...]) -> None:
        super().__init__(f"this route takes {', '.join(allowed)}, not {method[:16]}")
        self.allowed = allowed


class Route(NamedTuple):
    """One path and what it takes."""

    path: str
    """Literal, or a literal prefix when it ends with "/"."""
    handlers: dict[str, Handler]

    @property
    def allowed(self) -> tuple[str, ...]:
        """The methods of the Allow header."""
        head = ("HEAD",) if "GET" in self.handlers else ()
        return (*self.handlers, *head, "OPTIONS")


class Router:
    """Finds the handler of a request."""

    def __init__(self, *routes: Route) -> None:
        self.routes = routes
        self._literal = {route.path: route for route in routes if not route.path.endswith("/")}
        self._prefixes = [route for route in routes if route.path.endswith("/")]

    def handler(self, method: str, path: str) -> Handler:
        """The handler of this method and path; HEAD is answered by GET's.

        Raises:
            UnknownRoute: no route has the path.
            MethodNotAllowed: the route takes others.
        """
        route = self._literal.get(path) or self._by_prefix(path)
        if method == "OPTIONS":
            return _options(route)
        found = route.handlers.get("GET" if method == "HEAD" else method)
        if found is None:
            raise MethodNotAllowed(method, route.allowed)
        return found

    def _by_prefix(self, path: str) -> Route:
        for route in self._prefixes:
            if path.startswith(route.path):
                return route
        raise UnknownRoute("no such route; GET /openapi.json lists them")


def _options(route: Route) -> Handler:
    async def answer(_site: Site, _request: Request) -> Response:
        return Response(204, b"", headers=((b"allow", ", ".join(route.allowed).encode()),))

    return answer
