"""The time that a request asks about, and whether a memory holds then.

A fact holds from its `valid_from` (or its time) until its `valid_to`. A question may name a time: "Where did he live in
2020?", "... before March 2021?", "... two years ago?". English only; other languages name the time in the request.
"""

import calendar
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

Period = tuple[float, float]
"""First and last moment (seconds since the epoch) of a time asked about; equal for a moment."""

EVER: Period = (float("-inf"), float("inf"))
_MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_name) if name}
_MONTHS |= {name[:3]: number for name, number in _MONTHS.items()} | {"sept": 9}
_MONTH = r"(?P<month>" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + r")\.?"
_YEAR, _DAY = r"(?<!\d)(?P<year>(?:1[5-9]|20|21)\d\d)(?!\d|-\d)", r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_DATES = (
    re.compile(r"(?P<year>\d{4})-(?P<number>\d\d)-(?P<day>\d\d)"),
    re.compile(rf"{_DAY}\s+(?:of\s+)?{_MONTH},?\s+{_YEAR}", re.IGNORECASE),
    re.compile(rf"{_MONTH}\s+{_DAY},?\s+{_YEAR}", re.IGNORECASE),
    re.compile(rf"{_MONTH},?\s+(?:of\s+)?{_YEAR}", re.IGNORECASE),
    re.compile(_YEAR),
)
_BEFORE = re.compile(
    r"\b(?P<word>in|on|during|since|from|by|until|till|before|after|around|about|as of|back in|(?:start|end|beginning|"
    r"spring|summer|autumn|fall|winter|middle) of)\s+(?:the\s+)?(?:year\s+|early\s+|late\s+|mid-?\s*)?$",
    re.IGNORECASE,
)
_AGO = re.compile(
    r"\b(?:(?P<count>\d+|a|an|one|two|three|four|five|six|seven|eight|nine|ten)\s+(?P<unit>day|week|month|year)s?\s+ago"
    r"|last\s+(?P<last>week|month|year)|(?P<yesterday>yesterday))\b",
    re.IGNORECASE,
)
_COUNTS = {"a": 1, "an": 1} | {
    word: n for n, word in enumerate("one two three four five six seven eight nine ten".split(), 1)
}
_DAYS = {"day": 1, "week": 7, "month": 30, "year": 365}


def period_in(question: str, now: float) -> Period | None:
    """The time that a question names, or None. A time needs a word before it that makes it one ("in 2020", not "the
    2020 model"); a whole date needs none."""
    for pattern in _DATES:
        for match in pattern.finditer(question):
            word = _BEFORE.search(question[: match.start()])
            if (word or "day" in match.groupdict()) and (span := _span(match)):
                return _bounded(span, word["word"].lower() if word else "on", now)
    ago = _AGO.search(question)
    return _relative(ago, now) if ago else None


def holds(memory: Mapping[str, Any], period: Period) -> bool:
    """Whether a memory, as answers show it, holds at some time of the period; what is no fact always does."""
    if memory["kind"] != "relational":
        return True
    start, end = memory.get("valid_from"), memory.get("valid_to")
    return (memory["time"] if start is None else start) <= period[1] and (end is None or end > period[0])


def names_validity(filter: Any) -> bool:
    """Whether a filter of the API names `valid_from` or `valid_to`: then it says itself what should hold."""
    if isinstance(filter, Mapping):
        field = filter.get("field")
        return field in ("valid_from", "valid_to") or any(map(names_validity, filter.values()))
    return isinstance(filter, list | tuple) and any(map(names_validity, filter))


def dated(memory: Mapping[str, Any]) -> str:
    """The text of a memory as a model is shown it: of a fact that ends, with the days from which to which it holds."""
    end = memory.get("valid_to")
    if memory["kind"] != "relational" or end is None:
        return str(memory["text"])
    start = memory.get("valid_from")
    return f"{memory['text']} ({'' if start is None else f'from {_date(start)} '}until {_date(end)})"


def _date(seconds: float) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%d")


def _span(match: re.Match[str]) -> Period | None:
    """First and last second of the day, month or year; None if there is no such day."""
    found = match.groupdict()
    year, day = int(found["year"]), found.get("day")
    named = found.get("month")
    month = _MONTHS[named.lower()] if named else int(found.get("number") or 0)
    try:
        start = datetime(year, month or 1, int(day or 1), tzinfo=UTC)
    except ValueError:
        return None
    if day:
        end = start + timedelta(days=1)
    elif month:
        end = start + timedelta(days=calendar.monthrange(year, month)[1])
    else:
        end = start.replace(year=year + 1)
    return start.timestamp(), end.timestamp() - 1.0


def _bounded(span: Period, word: str, now: float) -> Period:
    start, end = span
    if word == "before":
        return EVER[0], start - 1.0
    if word in ("until", "till", "by"):
        return EVER[0], end
    if word == "after":
        return end + 1.0, max(now, end + 1.0)
    if word in ("since", "from"):
        return start, max(now, start)
    return start, end


def _relative(match: re.Match[str], now: float) -> Period:
    unit = (match["unit"] or match["last"] or "day").lower()
    given = (match["count"] or "1").lower()
    count = int(given) if given.isdigit() else _COUNTS[given]
    moment = datetime.fromtimestamp(now, UTC)
    if unit == "year":
        year = max(1, moment.year - count)
        return (
            datetime(year, 1, 1, tzinfo=UTC).timestamp(),
            datetime(year + 1, 1, 1, tzinfo=UTC).timestamp() - 1.0,
        )
    middle, half = now - count * _DAYS[unit] * 86400.0, _DAYS[unit] * 43200.0
    return middle - half, min(now, middle + half)
