"""The local runner with each attempt of a step in a container: `python -m tests.containers.run_job JOB IMAGE SHARED`.

Commands, arguments and paths are those that the compiled pipeline gives a cluster; the launcher's caching, loops,
conditions and retries are the local run's. SHARED is the one directory that steps and this process both see.
"""

import os
import subprocess
import sys
from pathlib import Path

from flashslm.infra.settings import VARIABLES
from flashslm.launch.local import runner
from tests.containers.container import hardened

PASSED_ON = (*VARIABLES.values(), "AWS_DEFAULT_REGION", "MLFLOW_S3_ENDPOINT_URL", "FLASHSLM_EVENTS", "OMP_NUM_THREADS")


def main() -> None:
    job, image, shared = sys.argv[1:]
    os.umask(0)  # steps are another user

    def run_attempt(task: runner.Task, command: list[str], env: dict[str, str]) -> int:
        task.attempts += 1
        task.emit("task_attempt", attempt=task.attempts)
        passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | env
        options = [*hardened(passed_on, network="host"), "--volume", f"{shared}:{shared}"]
        with task.log.open("ab") as log:
            code = subprocess.call(["docker", "run", *options, image, *command], stdout=log, stderr=log)
        if code:
            task.emit("task_exit", runner.describe_exit(code), attempt=task.attempts)
        return code

    runner.run_attempt = run_attempt
    runner.run(runner.Job.read(Path(job)))


if __name__ == "__main__":
    main()
