"""Whether a tool failed: what its record says outright, else what its result is.

A record is believed where it says that a call failed. Where it says nothing, or only what every
record says by default, the result is looked at: an exception, an error object, a status of HTTP or
a refusal that is all there is. A text that speaks of errors among other things is a text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

_FAILED_STATUS = {
    *("error", "failed", "failure", "incomplete", "cancelled", "canceled", "timeout", "timed_out"),
    *("rejected", "denied", "aborted", "output-error", "output-denied"),
}
_FINE_STATUS = {"success", "succeeded", "ok", "completed", "executed", "output-available"}
_NAMED = r"(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Timeout|Failure|Interrupt)"
_RAISED = re.compile(
    r"\s*(?:<\w*error>|(?:\[error\]|\W?)\s*(?:"
    r"Traceback \(most recent call last\)"
    rf"|(?:{_NAMED}|Error|Exception|ERROR|error|exception)\s*(?::|\()"
    r"|(?:Tool )?[Ee]rror (?:while|when|executing|calling|running|invoking|reading|fetching|"
    r"loading|writing|opening|processing)\b"
    r"|(?:An?|There was an) (?:\w+ )?error (?:has )?(?:occurred|while|when)\b"
    r"|[Ee]rror(?: code)?[: ]\s*[45]\d\d\b"
    r"|(?:FAILED|Failed|failed|Failure|failure|Timeout|timeout)\s*:"
    r"|MCP error -?\d"
    r"|npm ERR!|fatal:|panic:"
    r"))"
)
_REFUSED = re.compile(
    r"\s*(?:<\w+>)?\s*(?:"
    r"(?:the )?(?:permission|access|authorization|request|operation|tool call)(?: \w+)? "
    r"(?:denied|forbidden|refused|rejected|not (?:permitted|allowed|authorized))"
    r"|(?:HTTP(?:/[\d.]+)?|status(?: code)?:?|error)\s*[45]\d\d\b.*"
    r"|[45]\d\d:? (?:forbidden|unauthorized|not found|bad request|internal server error|"
    r"service unavailable|bad gateway|gateway time-?out|too many requests|method not allowed|"
    r"conflict|payment required)"
    r"|forbidden|unauthorized|not authorized|not found|not permitted|not available|unavailable"
    r"|(?:the )?(?:service|server|tool|connection|network|host)(?: \w+)? (?:is )?"
    r"(?:not available|unavailable|unreachable|refused|reset|closed|down)"
    r"|(?:the )?(?:request|connection|call|operation|tool)? ?timed? ?out"
    r"|(?:failed|unable) to (?:read|load|fetch|open|connect|execute|get|call|retrieve|find|write|"
    r"send|parse|run|reach|invoke|access|delete|create|update|look up)\b.{0,80}"
    r"|no such (?:file|ticket|tool|user|order|record)\b.{0,80}"
    r"|no (?:file|ticket) \S{1,60}"
    r"|(?:[\w#/.-]+ ){1,4}(?:was |is |could )?(?:not found|not be (?:found|reached|read|opened))"
    r"|(?:command|tool|function) (?:not found|does not exist)|unknown (?:tool|function|command)\b.*"
    r"|rate limit(?: \w+)? exceeded|quota exceeded|too many requests"
    r"|internal server error|service unavailable|bad gateway|bad request"
    r")\s*(?:[.!]|:.{0,120}|\(.{0,80}\)|after \d.{0,20}|by (?:policy|user|admin\w*))?"
    r"\s*(?:</\w+>)?\s*",
    re.IGNORECASE,
)
_SPEAKS = re.compile(
    r"\b(?:errors?|exception|failed|failure|denied|forbidden|unauthorized|timed? ?out|unavailable"
    r"|not (?:available|found|permitted|allowed)|could not|unable to|traceback)\b",
    re.IGNORECASE,
)
_LONGEST_REFUSAL = 200
_LONGEST_OBJECT = 20_000


def told_failure(item: Mapping[str, Any]) -> bool | None:
    """Say whether a record says that a tool failed; None where it does not tell.

    Examples
    --------
    >>> told_failure({"is_error": True}), told_failure({"status": "success"}), told_failure({})
    (True, False, None)
    """
    if item.get("error") not in (None, "", False, [], {}) or item.get("errorText"):
        return True
    for name, fails in (("is_error", True), ("isError", True), ("success", False), ("ok", False)):
        if isinstance(item.get(name), bool):
            return bool(item[name]) is fails
    status = item.get("status") or item.get("state")
    if isinstance(status, str):
        word = status.lower()
        return True if word in _FAILED_STATUS else False if word in _FINE_STATUS else None
    return None


def has_failed(result: str, told: bool | None = None) -> bool:
    """Say whether a tool failed, by what its record tells and what it returned.

    Parameters
    ----------
    result : str
        What it returned.
    told : bool, optional
        What the record says outright; that it says "success" is often no more than a default.

    Examples
    --------
    >>> has_failed("Traceback (most recent call last): boom"), has_failed("Permission denied")
    (True, True)
    >>> has_failed("Error-free run, 3 rows"), has_failed("Permission denied", told=False)
    (False, False)
    """
    if told is True or _RAISED.match(result[:_LONGEST_REFUSAL]) or _is_error_object(result):
        return True
    short = len(result) <= _LONGEST_REFUSAL and len(result.strip().splitlines()) == 1
    return told is None and short and _REFUSED.fullmatch(result) is not None


def speaks_of_failure(result: str) -> bool:
    """Say whether a short result may be the words of a failure after all: a person should look."""
    return len(result) <= _LONGEST_REFUSAL and _SPEAKS.search(result) is not None


def _is_error_object(result: str) -> bool:
    text = result.strip()
    if not text.startswith("{") or len(text) > _LONGEST_OBJECT:
        return False
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return False
    if not isinstance(found, dict):
        return False
    for name in ("error", "errors", "Error", "exception"):
        if isinstance(found.get(name), str | dict | list) and found[name]:
            return True
    if any(isinstance(found.get(name), bool) for name in ("is_error", "isError", "success", "ok")):
        return told_failure(found) is True
    if isinstance(found.get("error"), bool):
        return bool(found["error"])
    codes = (found.get(name) for name in ("status", "statusCode", "status_code"))
    return found.get("status") == "error" or any(
        type(code) is int and 400 <= code < 600 for code in codes
    )
