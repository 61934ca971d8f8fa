"""The vocabulary of space: readings of a spatial memory's `relation`, and names of directions.

The map has two dimensions and one pair of axes: left is west, above is north. A relation is one of these
kinds (`other` is the memory's):

| kind | examples | meaning |
|---|---|---|
| direction | left_of, north_of, upper_right_of | where `place` lies, seen from `other` |
| near | near, next_to, beside | close to each other |
| in | in, inside, at, on, moved_to, went_to | `place` is (now) in `other` |
| not_in | not_in, no_longer_in, departed_from | `place` is not, or no longer, in `other` |
| carried | carried_by, taken_by, given_to | `place` goes where `other` goes |
| dropped | dropped_by, put_down_by | `place` stays where `other` is at that time |
| moved | moved_north, went_left | `place` made `other` steps (a number), or came to `other` (a place) |
| connected | connected_to, door_to; one way: leads_to | there is a way between them |
| same | same_as, also_known_as | two names of one place |

`contains`, `carries` and the like are read in the opposite direction (`swapped`).
"""

import math
from dataclasses import dataclass

from stores.facts.names import normalise_relation

Step = tuple[int, int]

COMPASS: dict[Step, str] = {
    (0, 1): "north",
    (1, 1): "north_east",
    (1, 0): "east",
    (1, -1): "south_east",
    (0, -1): "south",
    (-1, -1): "south_west",
    (-1, 0): "west",
    (-1, 1): "north_west",
}
_AXIS_WORDS = {
    (0, 1): "north n above over top up upper upward upwards atop overhead northern forward",
    (0, -1): "south s below under bottom down lower beneath underneath downward downwards southern backward",
    (1, 0): "east e right righthand eastern rightward rightwards",
    (-1, 0): "west w left lefthand western leftward leftwards",
    (1, 1): "northeast ne",
    (1, -1): "southeast se",
    (-1, -1): "southwest sw",
    (-1, 1): "northwest nw",
}
_STEP_OF = {word: step for step, words in _AXIS_WORDS.items() for word in words.split()}
_FILLERS = frozenset(
    "is lies located positioned placed to the of on at in side from and directly just".split()
)
_MOVES = frozenset(
    "moved went goes go moves walked walks travelled traveled headed ran drove stepped".split()
)
_KINDS = {
    "near": "near next_to beside by close_to nearby adjacent_to alongside",
    "in": "in inside at on within into located_in located_at contained_in is_in is_at moved_to moved_into "
    "went_to went_back_to travelled_to traveled_to journeyed_to walked_to arrived_at arrived_in came_to "
    "entered put_in put_on placed_in placed_on stored_in",
    "not_in": "not_in not_at no_longer_in no_longer_at departed_from departed exited moved_out_of left_from",
    "carried": "carried_by held_by taken_by picked_up_by grabbed_by got_by worn_by given_to handed_to "
    "passed_to with",
    "dropped": "dropped_by put_down_by discarded_by left_by left_behind_by released_by",
    "connected": "connected_to connected_with linked_to joined_to door_to opens_to path_to road_to borders",
    "leads_to": "leads_to one_way_to exits_to",
    "same": "same_as alias_of also_known_as",
}
_SWAPPED = {
    "in": "contains holds includes",
    "carried": "carries carrying holding took grabbed picked_up got has",
    "dropped": "dropped put_down discarded released",
}
_TABLE = {relation: (kind, False) for kind, known in _KINDS.items() for relation in known.split()}
_TABLE |= {relation: (kind, True) for kind, known in _SWAPPED.items() for relation in known.split()}


@dataclass(frozen=True, slots=True)
class Reading:
    """The meaning of a relation; `step` is the direction from `other` to `place` (or of a move)."""

    kind: str
    step: Step = (0, 0)
    swapped: bool = False


def read(relation: str) -> Reading | None:
    """The reading of a relation, or None if it is no spatial relation that the map knows."""
    name = normalise_relation(relation)
    if name in _TABLE:
        kind, swapped = _TABLE[name]
        return Reading(kind, swapped=swapped)
    words = name.split("_")
    kind = "moved" if words[0] in _MOVES else "direction"
    steps = [_STEP_OF.get(word) for word in words[kind == "moved" :] if word not in _FILLERS]
    known = [step for step in steps if step is not None]
    total = sum(step[0] for step in known), sum(step[1] for step in known)
    if not known or len(known) < len(steps) or total == (0, 0) or max(map(abs, total)) > 1:
        return None
    return Reading(kind, total)


def by_sign(dx: float, dy: float, tolerance: float = 0.2) -> Step:
    """The direction of an offset whose length has no meaning: the signs of its components."""
    return _sign(dx, tolerance), _sign(dy, tolerance)


def by_sector(dx: float, dy: float) -> Step:
    """The nearest of the eight directions to an offset."""
    if dx == dy == 0.0:
        return 0, 0
    eighth = round(math.atan2(dy, dx) / (math.pi / 4)) * (math.pi / 4)
    return _sign(math.cos(eighth), 0.5), _sign(math.sin(eighth), 0.5)


def _sign(value: float, tolerance: float) -> int:
    return (value > tolerance) - (value < -tolerance)
