"""Child process of `math_process`: one JSON request per line in, one verdict per line out. Run as a script,
never imported."""

import json
import logging
import os
import sys
from typing import Any


def main() -> None:
    # Whatever a library prints must not get between the verdicts.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout = sys.stderr
    logging.disable(logging.WARNING)  # math-verify warns that its timeouts are off; the parent kills us instead
    from math_verify import parse, verify

    def read(text: str) -> list[Any]:
        return parse(f"${text.strip().strip('$')}$", parsing_timeout=None)

    def compare(reference: str, answer: str) -> dict[str, Any]:
        gold = read(reference)
        if not gold:
            return {"equal": None, "parsed": None}
        try:
            given = read(answer)
            equal = bool(verify(gold, given, timeout_seconds=None))
        except Exception as error:  # an answer that breaks the parser is wrong, and the note says why
            return {"equal": False, "parsed": None, "note": f"unreadable to math-verify: {error!r}"}
        return {"equal": equal, "parsed": str(given[0]) if given else None}

    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(compare(**json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
