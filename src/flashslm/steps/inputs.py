"""What the files of a step's input artifacts give it: manifests, and sections of the recipe that were read before."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path

from flashslm.config.steps import STEP_INPUTS, STEP_SECTIONS
from flashslm.infra.storage.tree import ArtifactFile, Manifest, Origins


@dataclass(frozen=True)
class StepInputs:
    """`manifests` are those that the step reads, `config` its sections, `origins` all that its outputs are made of."""

    manifests: dict[str, Manifest | list[Manifest]]
    config: str
    origins: Origins


def read_inputs(step: str, config: str, inputs: Mapping[str, str | Sequence[str]]) -> StepInputs:
    """Of a step that is given `config` (JSON of sections) and the paths of artifact files.

    What it is given goes before what came with it. Raises ValueError if a section is missing.
    """
    files = {
        name: [_read(path) for path in ([paths] if isinstance(paths, str) else paths)] for name, paths in inputs.items()
    }
    given: dict[str, Manifest | list[Manifest]] = {
        name: found[0].manifest if isinstance(inputs[name], str) else [file.manifest for file in found]
        for name, found in files.items()
    }
    single = Origins(
        manifests={name: value for name, value in given.items() if isinstance(value, Manifest)},
        sections=json.loads(config),
    )
    origins = reduce(or_, [file.origins for found in files.values() for file in found], Origins()) | single
    known = origins.manifests | given
    if missing := [section for section in STEP_SECTIONS[step] if section not in origins.sections]:
        raise ValueError(
            f"step '{step}' has no section {', '.join(missing)}: neither its arguments nor its inputs "
            f"({', '.join(inputs) or 'none'}) bring it"
        )
    return StepInputs(
        {name: known[name] for name in dict.fromkeys((*STEP_INPUTS[step], *given)) if name in known},
        json.dumps({section: origins.sections[section] for section in STEP_SECTIONS[step]}),
        origins,
    )


def _read(path: str) -> ArtifactFile:
    return ArtifactFile.model_validate_json(Path(path).read_bytes())
