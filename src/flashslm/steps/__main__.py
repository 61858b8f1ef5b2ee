"""One attempt of a step: python -m flashslm.steps CALL RESULT, both JSON files; `attempts` starts it."""

import json
import logging
import sys
from pathlib import Path

from flashslm.infra.process.collection import collection_held
from flashslm.steps.attempts import MAY_PASS, may_pass
from flashslm.steps.run import run_step


def main(request: str, result: str) -> None:
    """Run the step that `request` names with the arguments that it holds. Exit code 75 says: it may pass next time."""
    call = json.loads(Path(request).read_text(encoding="utf-8"))
    try:
        with collection_held():
            made = run_step(call.pop("name"), **call)
    except Exception as error:
        if not may_pass(error):
            raise
        logging.getLogger(__name__).exception("this may pass")
        raise SystemExit(MAY_PASS) from error
    Path(result).write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
