"""Names of namespaces and memories: any text of 1 to 128 characters, compared in one Unicode form.

E-mail addresses, paths and names in any script are names. What no file name, line of a log or URL can hold whole is
refused: control characters, line separators, halves of surrogate pairs, white space around it.
"""

import unicodedata
from typing import Any
from urllib.parse import quote, unquote

from common.errors import InvalidInput

MAX_NAME = 128  # characters, after normalisation
ALL = "*"  # as a namespace of an API key: every one
# Of memories: a URL drops the dots, and GET /v1/memories/weakest is a route of its own.
RESERVED_IDS = (".", "..", "weakest")
_REFUSED = ("Cc", "Cs", "Zl", "Zp")
RULE = f"must be 1 to {MAX_NAME} characters without control characters, and no white space at either end"


def normal(name: str) -> str:
    """The form in which names are stored and compared: Unicode's NFC."""
    return unicodedata.normalize("NFC", name)


def check_name(value: Any, name: str, param: str | None = None) -> str:
    """The normal form of an `id` or a `namespace`. Raises `InvalidInput` for `param`, else for `name`."""
    param = param or name
    text = normal(value) if isinstance(value, str) else ""
    if not 0 < len(text) <= MAX_NAME or text != text.strip() or any(map(_refused, text)):
        shown = repr(value[:64] if isinstance(value, str) else value)[:80]
        raise InvalidInput(f"{name} = {shown}: {RULE}", param=param)
    if name == "id" and text in RESERVED_IDS:
        raise InvalidInput(
            f"id = {text!r}: is reserved; valid is any other than {', '.join(RESERVED_IDS)}", param=param
        )
    if name == "namespace" and text == ALL:
        raise InvalidInput(
            f"namespace = {ALL!r}: means all of them to an API key; give another name", param=param
        )
    return text


def encoded(name: str) -> str:
    """The name in letters, digits and `._-~%` alone; no two names have the same. For paths of URLs and names of files;
    a long name (12 characters for each of its own) may be too long for a file system."""
    text = quote(name, safe="")
    return text if text.strip(".") else text.replace(".", "%2E")


def decoded(text: str) -> str:
    """The inverse of `encoded`."""
    return unquote(text, errors="strict")


def _refused(character: str) -> bool:
    inner = "\ufdd0" <= character <= "\ufdef"  # left to the inside of programs, as `serve.http` uses one
    return inner or unicodedata.category(character) in _REFUSED
