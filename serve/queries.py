"""The part of a URL after the question mark: what a route does not take is refused, as unknown fields of bodies are. A
list that ignored `user_id=bob` would show everybody's memories."""

from fastapi import Request
from fastapi.dependencies.models import Dependant

from common.errors import InvalidInput


async def only_known(request: Request) -> None:
    """Raises `InvalidInput` naming the valid parameters. Leaves the route where `CountRequests` looks for it."""
    request.state.route = request.scope["route"]
    given = request.query_params.keys()
    if not given:
        return
    taken = _names(request.scope["route"].dependant)
    for name in given - taken:
        valid = f"valid here: {', '.join(sorted(taken))}" if taken else "this route takes none"
        raise InvalidInput(f"unknown parameter {name[:64]!r}; {valid}", param=name[:64])


def _names(dependant: Dependant) -> set[str]:
    """Parameters of a route and of what it depends on."""
    own = {field.alias for field in dependant.query_params}
    return own.union(*map(_names, dependant.dependencies))
