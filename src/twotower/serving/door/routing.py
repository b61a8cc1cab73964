"""Which scope a request takes, and by which name it is counted, before the application sees it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from twotower.serving.door.keys import KeyScope

OTHER = "other"
"""The route of a path that is none of ours."""
SCOPE_OF: dict[str, KeyScope | None] = {"health": None, "page": None, "write": "write", "deployment": "admin"}
"""Tag of a route -> the scope that it takes; every other takes `read`."""
Methods = Mapping[str, KeyScope | None]
"""Method -> the scope that it takes; nothing where it needs no key."""


@dataclass(frozen=True, slots=True)
class Route:
    """A path, or a template of paths."""

    template: str
    methods: Methods


def scope_of(tag: str) -> KeyScope | None:
    """The scope that a route of this tag takes; nothing where it needs no key."""
    return SCOPE_OF.get(tag, "read")


class Routes:
    """Which scope a request takes, by its path and method."""

    def __init__(self, routes: Mapping[str, Methods]) -> None:
        """Take paths; `{name}` stands for one part of a path, `{name:path}` for any rest of it."""
        self._exact = {path: Route(path, methods) for path, methods in routes.items() if "{" not in path}
        self._templates = [
            (_pattern(path), Route(re.sub(r":path\}", "}", path), methods))
            for path, methods in routes.items()
            if "{" in path
        ]
        self._unknown = Route(OTHER, {})

    def find(self, path: str) -> Route:
        """The route of a path; one without methods where it is none of ours."""
        route = self._exact.get(path)
        if route is not None:
            return route
        return next((route for pattern, route in self._templates if pattern.fullmatch(path)), self._unknown)


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{\w+(:path)?\}", template)
    between = ["(?:.*)" if kind else "[^/]+" for kind in parts[1::2]]
    texts = [re.escape(text) for text in parts[0::2]]
    return re.compile(texts[0] + "".join(a + b for a, b in zip(between, texts[1:], strict=True)), re.DOTALL)
