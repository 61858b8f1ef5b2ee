"""On PYTHONPATH this puts a stand-in for `flashslm.steps.run` into every Python process: steps without the work.

What a step does is set by $FAKE_STEPS (JSON): `decision` of the gate, `decisions` {step: word},
`fail` {step: message}, `sleep` {step: seconds}, `linger` {label: seconds a sleeping step takes to end after a TERM},
`kill_once` [steps], `may_pass` (of a failure).

Each call is a line in $FAKE_CALLS; a TERM that a sleeping step takes is a line too.
"""

import hashlib
import json
import os
import signal
import sys
import time
import types
from pathlib import Path


def note(**line: object) -> None:
    with open(os.environ["FAKE_CALLS"], "a") as file:
        file.write(json.dumps(line) + "\n")


def makers(manifests: object) -> object:
    if isinstance(manifests, list):
        return [makers(manifest) for manifest in manifests]
    return manifests.metadata["made_by"]


def work(name: str, label: str, script: dict) -> None:
    if name in script.get("kill_once", []) and not (mark := Path(os.environ["FAKE_CALLS"] + ".killed")).exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if seconds := script.get("sleep", {}).get(name):

        def end(*_: object) -> None:
            note(step=name, label=label, signal="TERM")
            time.sleep(script.get("linger", {}).get(label, 0))
            sys.exit(143)

        signal.signal(signal.SIGTERM, end)
        note(step=name, label=label, sleeping=os.getpid(), side_by_side=os.environ.get("FLASHSLM_SIDE_BY_SIDE", "1"))
        time.sleep(seconds)
    if name in script.get("fail", {}):
        raise ValueError(script["fail"][name])


def run_step(name, *, config, inputs=None, outputs=None, parameters=None):
    from flashslm.infra.events import Events
    from flashslm.infra.process.parent import die_with_parent
    from flashslm.infra.storage.tree import Manifest
    from flashslm.steps.inputs import read_inputs

    die_with_parent()
    script = json.loads(os.environ.get("FAKE_STEPS", "{}"))
    variant = {k: v for k, v in (parameters or {}).items() if k not in ("code_digest", "config_digest", "image")}
    label = " ".join([name, *(f"{k}={v}" for k, v in sorted(variant.items()))])
    events = Events.from_env(name, label)
    events.emit("start")
    given = read_inputs(name, config, inputs or {})
    call = {"step": name, "label": label, "config": json.loads(given.config), "parameters": parameters}
    found = {key: makers(manifests) for key, manifests in given.manifests.items()}
    note(**call, pid=os.getpid(), inputs=found, outputs=sorted(outputs or {}))
    try:
        work(name, label, script)
    except ValueError as error:
        events.emit("fail", f"ValueError: {error}", may_pass=bool(script.get("may_pass")))
        raise
    for key, path in (outputs or {}).items():
        digest = hashlib.sha256(f"{label} {key}".encode()).hexdigest()
        manifest = {"kind": key, "uri": f"s3://fake/cas/{digest}", "sha256": digest, "bytes": 1}
        Manifest(**manifest, metadata={"made_by": label}).write(path, given.origins)
    events.emit("end", f"{label} is done")
    decision = script.get("decisions", {}).get(name, script.get("decision", "promote"))
    checked = {}
    if name == "check_recipe":
        from flashslm.config import from_step_json

        checked = {"variants": from_step_json(name, config).variants(), "config_digest": "recipe"}
    return checked | {"loss_nats": 1.5, "worker": f"fake-{variant.get('worker')}", "decision": decision}


sys.modules["flashslm.steps.run"] = module = types.ModuleType("flashslm.steps.run")
module.run_step = run_step
