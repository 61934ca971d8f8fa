"""Names for the values that calls take and answer with."""

from typing import Any, Literal, get_args

Json = dict[str, Any]  # a JSON object
Page = list[Json]  # a list of JSON objects, in the order of the answer
Mode = Literal["full", "text", "prefix", "hybrid", "off"]  # how memories reach the model
MODES: tuple[str, ...] = get_args(Mode)
