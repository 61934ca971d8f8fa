"""The divergence matrix as one HTML page without network: heat map, sums, the memories that mattered to a response."""

import base64
import json
from pathlib import Path

import numpy as np

from jobs.scoring.matrix import Matrix

TEMPLATE = Path(__file__).with_name("page.html")
LONGEST = 300  # characters of a text that the page shows


def page_of(matrix: Matrix) -> str:
    """Memories down, responses across. Failed cells are grey, never zero."""
    n, m = matrix.divergence.shape
    told = {
        "memories": [
            {"id": id, "text": _short(text)} for id, text in zip(matrix.memory_ids, matrix.texts, strict=True)
        ],
        "responses": [
            {
                "question": _short(str(one.get("question", ""))),
                "response": _short(str(one.get("response", ""))),
                "place": f"conversation {one['conversation']}, message {one['entry_index']}, {one['tokens']} tokens",
            }
            for one in matrix.responses
        ],
        "truth": matrix.truth,
        "cells": base64.b64encode(matrix.divergence.astype("<f4").tobytes()).decode(),
        "noise": float(np.nanmax(np.abs(matrix.null))) if np.isfinite(matrix.null).any() else None,
        "about": f"{n} memories by {m} responses, {matrix.context}, {matrix.fingerprint}, {matrix.seconds:.0f} s",
    }
    data = json.dumps(told, ensure_ascii=False).replace("</", "<\\/").replace("<!--", "<\\!--")
    return TEMPLATE.read_text(encoding="utf-8").replace("DATA_HERE", data)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
