"""What pydantic finds wrong in a file, a request or an option, as one sentence."""

import reprlib

from pydantic import ValidationError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def explain(error: ValidationError, where: object) -> ValueError:
    """The first fault that pydantic found, to be raised in its place: ``rows.jsonl, line 3: `image` must be a valid
    string, got 7.``

    Args:
        error: What the schema raised.
        where: File and line, option or request that the value came from.
    """
    faults = error.errors(include_url=False)
    first = faults[0]
    field = ".".join(map(str, first["loc"]))
    subject = f"`{field}`" if field else "it"
    if first["type"] == "missing":
        text = f"{subject} is missing"
    elif first["type"] == "extra_forbidden":
        text = f"{subject} is no field that is known here"
    elif first["type"] in ("value_error", "assertion_error"):
        text = f"{subject}: {first['ctx']['error']}" if field else str(first["ctx"]["error"])
    else:
        rule = first["msg"].replace("Input should", "must", 1)
        text = f"{subject}{' ' if rule.startswith('must') else ': '}{rule}, got {_SHORT.repr(first['input'])}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return ValueError(f"{where}: {text.removesuffix('.')}{more}.")
