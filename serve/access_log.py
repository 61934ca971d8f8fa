"""Serve's log with a line for each request: in files below the store's `logs/serve`, and not on stderr, which Ray
copies into the output of every job."""

import logging
from typing import Any

from common.config import Config


def logging_config(config: Config) -> dict[str, Any]:
    """Serve's option of a deployment."""
    return {"logs_dir": str(config.store_dir / "logs" / "serve"), "enable_access_log": True}


def keep_off_stderr() -> None:
    """In a replica's process: what Serve logs of a request goes to its file alone; warnings and errors to both."""
    for handler in logging.getLogger("ray.serve").handlers:
        if type(handler) is logging.StreamHandler:
            handler.addFilter(_is_no_access)


def _is_no_access(record: logging.LogRecord) -> bool:
    return not getattr(record, "serve_access_log", False)
