"""Names for JSON values that calls take and answer with."""

from typing import Any

Json = dict[str, Any]  # a JSON object
Page = list[Json]  # a list of JSON objects, in the order of the answer
