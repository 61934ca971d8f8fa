"""Read the metadata of a safetensors file held in memory."""

import json

Notes = dict[str, str]


def read_notes(data: bytes) -> Notes:
    """The file's header is its length and JSON. Raises `ValueError` or `KeyError` where it is none."""
    end = 8 + int.from_bytes(data[:8], "little")
    notes: Notes = json.loads(data[8:end])["__metadata__"]
    return notes
