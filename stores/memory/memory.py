"""A memory: one stored experience. `parse_memory` is the only entry for input from outside."""

import hashlib
import json
import math
import re
import secrets
import unicodedata
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from common.errors import InvalidInput, TooLarge
from common.names import MAX_NAME, check_name, normal

KINDS = ("episodic", "relational", "spatial")
KIND_FIELDS = {
    "episodic": (),
    "relational": ("subject", "relation", "object", "confidence", "valid_from", "valid_to"),
    "spatial": ("place", "relation", "other", "x", "y"),
}
COMMON_FIELDS = ("id", "kind", "text", "conversation", "time", "context", "cues", "reward", "pin")
DERIVED = "derived_from"  # in a memory's context: ids of the memories that it was derived from
TIME_FIELDS = ("time", "valid_from", "valid_to")

MAX_CONVERSATION = 512
MAX_SOURCES = 64  # memories that one is derived from
_AROUND_WORDS = (
    ".,;:!\"'()[]{}\u2026\u201c\u201d\u2018\u2019\u201e\u201a\xab\xbb\xa1"  # also as typographers set them
)
_canonical = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
).encode
_SECONDS = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_TIME_RULE = "must be ISO 8601, as 2026-03-01T10:00:00Z, or seconds"
_FIRST, _LAST = -62135596800.0, 253402300799.0  # years 1 to 9999, what a datetime can hold


@dataclass(frozen=True, kw_only=True)
class Cue:
    """A question that the memory answers. Wording `family` decides who may use it: only `train` is
    trained on."""

    question: str
    answer: str
    family: str = "train"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """`time` is in seconds since the epoch, UTC; `fields` are the kind's own (see `KIND_FIELDS`)."""

    id: str
    namespace: str
    kind: str
    text: str
    conversation: str | None = None
    time: float
    fields: dict[str, Any] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    cues: tuple[Cue, ...] = ()
    reward: float = 0.0
    pin: bool = False
    timed: bool = field(default=True, compare=False)
    """False where `time` came from our clock: then a retried write is still the same content."""


def parse_memory(obj: Mapping[str, Any], *, namespace: str, now: float, max_text_bytes: int) -> Memory:
    """Check one experience in the API's shape and make it a memory.

    `now` (seconds) is the time if the experience gives none. Raises `InvalidInput` with the field in `param`, or
    `TooLarge`; the message names field, value, rule and fix.
    """
    namespace = check_name(namespace, "namespace")
    if not isinstance(obj, Mapping):
        raise InvalidInput(f"a memory must be an object, got {_short(obj)}", param="memory")
    kind = obj.get("kind", "episodic")
    if kind not in KINDS:
        raise _invalid("kind", kind, f"must be one of {', '.join(KINDS)}")
    _check_fields(obj, kind, namespace)
    fields = _KIND_PARSERS[kind](obj)
    given_id, given_time = obj.get("id"), obj.get("time")
    memory = Memory(
        id=new_id(now) if given_id is None else check_name(given_id, "id"),
        namespace=namespace,
        kind=kind,
        text=_text(obj, "text") if obj.get("text") is not None else _describe(kind, fields),
        conversation=_conversation(obj.get("conversation")),
        time=float(now) if given_time is None else parse_time(given_time, "time"),
        timed=given_time is not None,
        fields=fields,
        context=_context(obj.get("context")),
        cues=_cues(obj.get("cues")),
        reward=_number(obj.get("reward", 0.0), "reward"),
        pin=_flag(obj.get("pin", False), "pin"),
    )
    _check_size(memory, max_text_bytes)
    return memory


def to_json(memory: Memory) -> dict[str, Any]:
    """The API's shape: the kind's fields at the top level, times in seconds, cues as a list."""
    return {
        "id": memory.id,
        "namespace": memory.namespace,
        "kind": memory.kind,
        "text": memory.text,
        **memory.fields,
        "conversation": memory.conversation,
        "time": memory.time,
        "context": memory.context,
        "cues": [{"question": c.question, "answer": c.answer, "family": c.family} for c in memory.cues],
        "reward": memory.reward,
        "pin": memory.pin,
    }


def from_json(obj: Mapping[str, Any]) -> Memory:
    """The inverse of `to_json`, for trusted data: nothing is checked."""
    return Memory(
        id=obj["id"],
        namespace=obj["namespace"],
        kind=obj["kind"],
        text=obj["text"],
        conversation=obj["conversation"],
        time=obj["time"],
        fields={name: obj[name] for name in KIND_FIELDS[obj["kind"]] if name in obj},
        context=obj["context"],
        cues=tuple(Cue(**cue) for cue in obj["cues"]),
        reward=obj["reward"],
        pin=obj["pin"],
    )


def canonical(value: Any) -> bytes:
    """The canonical JSON of a value, over which digests are computed: sorted keys, no spaces, no NaN."""
    return _canonical(value).encode()


def content_digest(memory: Memory) -> str:
    """64 hex digits over the whole memory. Equal digests mean the same write, sent again."""
    return json_digest(to_json(memory))


def json_digest(value: Any) -> str:
    return hashlib.blake2b(canonical(value), digest_size=32).hexdigest()


def same_content(new: Memory, stored: Memory) -> bool:
    """True where writing `new` over `stored` would change nothing."""
    return content_digest(new if new.timed else replace(new, time=stored.time)) == content_digest(stored)


def plain_words(text: str) -> list[str]:
    """The words of a text as two texts are compared: case, spacing, Unicode form and the punctuation around words are
    ignored, question marks are not."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return [word for raw in plain.split() if (word := raw.strip(_AROUND_WORDS))]


def sources_of(memory: Mapping[str, Any]) -> list[str]:
    """Ids of the memories that this one (`to_json` shape) was derived from."""
    found = memory["context"].get(DERIVED)
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def stable_id(memory: Memory) -> str:
    """An id in UUIDv7 layout made from the content, so that a file without ids can be ingested
    twice.

    The time counts only if it was given; without it the time bits of the id are zero.
    """
    content = to_json(replace(memory, id="", time=memory.time if memory.timed else 0.0))
    digest = hashlib.blake2b(canonical(content), digest_size=10).digest()
    return _uuid7(memory.time if memory.timed else 0.0, digest)


def new_id(now: float) -> str:
    """A fresh UUIDv7: ids made later sort later, by the millisecond."""
    return _uuid7(now, secrets.token_bytes(10))


def parse_time(value: Any, name: str) -> float:
    """See `seconds_of`. Raises `InvalidInput` naming the field."""
    try:
        return seconds_of(value)
    except ValueError as error:
        raise _invalid(name, value, str(error)) from None


def seconds_of(value: Any) -> float:
    """ISO 8601 (UTC if no offset is given) or seconds since the epoch, also as text, -> seconds. Eight digits are a
    date. Raises `ValueError` with the rule."""
    text = value.strip() if isinstance(value, str) else ""
    if text and (len(text) == 8 or not _SECONDS.fullmatch(text)):
        try:
            moment = datetime.fromisoformat(text)
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise ValueError(_TIME_RULE) from None
    else:
        try:
            seconds = _number(float(text) if text else value, "time")
        except InvalidInput:
            raise ValueError(_TIME_RULE) from None
    if not _FIRST <= seconds <= _LAST:
        raise ValueError("is beyond year 9999: give seconds, not milliseconds")
    return seconds


def _uuid7(time_s: float, random: bytes) -> str:
    milliseconds = max(0, int(time_s * 1000)) & ((1 << 48) - 1)
    value = milliseconds << 80 | int.from_bytes(random, "big")
    value = value & ~(0xF << 76) | 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return str(uuid.UUID(int=value))


def _check_fields(obj: Mapping[str, Any], kind: str, namespace: str) -> None:
    valid = {*COMMON_FIELDS, *KIND_FIELDS[kind], "namespace"}
    for name in obj:
        if name not in valid:
            raise InvalidInput(
                f"unknown field {_short(name)} of a {kind} memory; valid: {', '.join(sorted(valid))}",
                param=str(name)[:MAX_NAME],
            )
    given = obj.get("namespace", namespace)
    if given != namespace and not (isinstance(given, str) and normal(given) == namespace):
        raise _invalid("namespace", obj["namespace"], f"must be the call's own, {namespace!r}, or absent")


def _episodic(obj: Mapping[str, Any]) -> dict[str, Any]:
    _text(obj, "text")
    return {}


def _relational(obj: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {name: _text(obj, name) for name in ("subject", "relation", "object")}
    if obj.get("confidence") is not None:
        fields["confidence"] = _number(obj["confidence"], "confidence")
        if not 0.0 <= fields["confidence"] <= 1.0:
            raise _invalid("confidence", obj["confidence"], "must lie in 0 to 1")
    for name in ("valid_from", "valid_to"):
        if obj.get(name) is not None:
            fields[name] = parse_time(obj[name], name)
    if fields.get("valid_to", math.inf) < fields.get("valid_from", -math.inf):
        raise _invalid("valid_to", obj["valid_to"], "must not be before valid_from")
    return fields


def _spatial(obj: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {"place": _text(obj, "place")}
    given = {name for name in ("relation", "other", "x", "y") if obj.get(name) is not None}
    if given == {"relation", "other"}:
        return fields | {name: _text(obj, name) for name in ("relation", "other")}
    if given == {"x", "y"}:
        return fields | {name: _number(obj[name], name) for name in ("x", "y")}
    has = ", ".join(sorted(given)) or "neither"
    raise InvalidInput(
        f"a spatial memory needs relation and other, or x and y: {_short(fields['place'])} has {has}",
        param="place",
    )


_KIND_PARSERS = {"episodic": _episodic, "relational": _relational, "spatial": _spatial}


def _describe(kind: str, fields: Mapping[str, Any]) -> str:
    """The text of a memory that came with fields only."""
    if kind == "relational":
        return f"{fields['subject']} {_words(fields['relation'])} {fields['object']}."
    if "other" in fields:
        return f"{fields['place']} is {_words(fields['relation'])} {fields['other']}."
    return f"{fields['place']} is at ({fields['x']:g}, {fields['y']:g})."


def _words(relation: str) -> str:
    return relation.replace("_", " ").strip()


def _text(obj: Mapping[str, Any], name: str) -> str:
    value = obj.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _invalid(name, value, "must be text that is not empty")
    return value


def _number(value: Any, name: str) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond every float
        pass
    raise _invalid(name, value, "must be a finite number")


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise _invalid(name, value, "must be true or false")
    return value


def _conversation(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_CONVERSATION:
        raise _invalid("conversation", value, f"must be text of 1 to {MAX_CONVERSATION} characters")
    return value


def _context(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _invalid("context", value, 'must be an object, as {"source": "chat"}')
    try:
        context: dict[str, Any] = json.loads(canonical(dict(value)))
    except (TypeError, ValueError, RecursionError):
        raise _invalid("context", value, "must hold JSON values only: no NaN, no deep nesting") from None
    if DERIVED in context:
        context[DERIVED] = _sources(context[DERIVED])
    return context


def _sources(sources: Any) -> list[str]:
    name = f"context.{DERIVED}"
    if not isinstance(sources, list) or len(sources) > MAX_SOURCES:
        raise _invalid(name, sources, f"must be a list of at most {MAX_SOURCES} ids of memories")
    return [check_name(source, name) for source in sources]


def _cues(value: Any) -> tuple[Cue, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise _invalid("cues", value, "must be a list")
    return tuple(_cue(cue) for cue in value)


def _cue(value: Any) -> Cue:
    valid = ("question", "answer", "family")
    if not isinstance(value, Mapping) or not set(value) <= set(valid):
        raise _invalid("cues", value, f"each must be an object of {', '.join(valid)}")
    try:
        return Cue(**{name: _text(value, name) for name in valid if name != "family" or name in value})
    except InvalidInput as error:
        raise InvalidInput(f"cues: {error.message}", param="cues") from None


def _check_size(memory: Memory, limit: int) -> None:
    """The text, and everything else together, each fit in `limit` bytes of UTF-8."""
    rest = {**to_json(memory), "text": ""}
    for name, value in (*rest.items(), ("text", memory.text)):
        try:
            canonical(value)
        except UnicodeEncodeError:
            rule = "holds half of a surrogate pair or bytes that are not UTF-8: send valid Unicode"
            raise _invalid(name, value, rule) from None
    size = len(memory.text.encode())
    if size > limit:
        raise TooLarge(f"text = {_short(memory.text)} has {size} bytes; {_limit_rule(limit)}", param="text")
    size = len(canonical(rest))
    if size > limit + 1024:  # room for the names, so that a limit of few bytes still admits a memory
        largest = max(rest, key=lambda name: len(canonical(rest[name])))
        raise TooLarge(
            f"all but the text has {size} bytes, {largest} the most; {_limit_rule(limit)}", param=largest
        )


def _limit_rule(limit: int) -> str:
    return f"at most {limit} (store.max_text_bytes): split it into several memories"


def _invalid(name: str, value: Any, rule: str) -> InvalidInput:
    return InvalidInput(f"{name} = {_short(value)}: {rule}", param=name)


def _short(value: Any) -> str:
    if isinstance(value, str | bytes):
        value = value[:64]  # never quote a text of 10 MB
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply; an integer with too many digits
        text = type(value).__name__
    return text if len(text) <= 64 else f"{text[:61]}..."
