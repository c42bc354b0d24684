"""Child process of `math_process`: one JSON request per line in, one verdict per line out. Run as a script,
never imported."""

import json
import logging
import os
import sys
from typing import Any

_CLIPPED = 500
"""Characters of a reading that are worth keeping."""


def main() -> None:
    # Whatever a library prints must not get between the verdicts.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout = sys.stderr
    sys.set_int_max_str_digits(0)  # long integers are answers too; how long they may take is the parent's business
    logging.disable(logging.WARNING)  # math-verify warns that its timeouts are off; the parent kills us instead
    from math_verify import parse, verify

    def read(text: str) -> list[Any]:
        return parse(f"${text.strip().strip('$')}$", parsing_timeout=None)

    def compare(reference: str, answer: str) -> dict[str, Any]:
        try:
            gold = read(reference)
        except Exception as error:
            return {"equal": None, "parsed": None, "note": _complaint(error)}
        if not gold:
            return {"equal": None, "parsed": None}
        try:
            given = read(answer)
            equal = bool(verify(gold, given, timeout_seconds=None))
            return {"equal": equal, "parsed": str(given[0])[:_CLIPPED] if given else None}
        except Exception as error:  # an answer that breaks the parser is wrong, and the note says why
            return {"equal": False, "parsed": None, "note": _complaint(error)}

    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(compare(**json.loads(line))), file=out, flush=True)


def _complaint(error: Exception) -> str:
    return f"unreadable to math-verify: {error!r}"[:_CLIPPED]


if __name__ == "__main__":
    main()
