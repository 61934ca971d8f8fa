"""Every error Sharpwave raises on purpose.

    SharpwaveError
    |-- InvalidInput   400  a value breaks a rule; the message says name, value, rule, fix
    |-- Unauthorized   401  no API key, or an unknown one
    |-- Forbidden      403  the key is bound to other namespaces
    |-- NotFound       404  unknown memory, model or adapter
    |-- Conflict       409  the id exists with other content, or a stale generation
    |-- TooLarge       413  a body or a text over its limit
    |-- Unsupported    415  a body in an encoding other than gzip
    |-- Overloaded     429  admission control; retry after `retry_after_s`
    |-- NotReady       503  the model is loading, or a shard did not answer in time
    `-- StoreCorrupt   500  the log on disk fails its checks; nothing is served from it

`to_dict` is the body of the HTTP error and of `--json` errors on the command line.
"""

from typing import Any


class SharpwaveError(Exception):
    """Base of the tree. `param` is the name of the offending field, never its value."""

    status = 500
    kind = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.kind

    def __reduce__(self) -> tuple:  # exceptions with keyword-only arguments do not pickle by default
        return _rebuild, (type(self), self.message, self.__dict__)

    def to_dict(self) -> dict:
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def _rebuild(cls: type[SharpwaveError], message: str, state: dict) -> SharpwaveError:
    error = cls(message)
    error.__dict__.update(state)
    return error


class InvalidInput(SharpwaveError):
    status = 400
    kind = "invalid_request_error"


class Unauthorized(SharpwaveError):
    status = 401
    kind = "authentication_error"


class Forbidden(SharpwaveError):
    status = 403
    kind = "permission_error"


class NotFound(SharpwaveError):
    status = 404
    kind = "not_found_error"


class Conflict(SharpwaveError):
    status = 409
    kind = "conflict_error"


class TooLarge(SharpwaveError):
    status = 413
    kind = "too_large_error"


class Unsupported(SharpwaveError):
    status = 415
    kind = "unsupported_media_type_error"


class Overloaded(SharpwaveError):
    status = 429
    kind = "overloaded_error"

    def __init__(self, message: str, *, retry_after_s: float = 1.0, **details: str | None) -> None:
        super().__init__(message, **details)
        self.retry_after_s = retry_after_s


class NotReady(SharpwaveError):
    status = 503
    kind = "not_ready_error"


class StoreCorrupt(SharpwaveError):
    """`fault` is `{seq, op, op_id, reason}` of the first broken record, where one is known."""

    status = 500
    kind = "store_corrupt_error"

    def __init__(self, message: str, *, fault: dict[str, Any] | None = None, **details: str | None) -> None:
        super().__init__(message, **details)
        self.fault = fault
