"""Name the production overlay's images by digest; until that is done the overlay does not render.

    make pin-images IMAGES="postgres=docker.io/library/postgres@sha256:…"

The project's own come from components/images.py, where `PUSH=1 make images` puts what it pushed; another place is given
in the same form (runtime=…, cuda=…). The file written belongs to the overlay: commit it where you keep that.
"""

import re
import sys
from pathlib import Path

from components.images import IMAGES

IN_MANIFESTS = {"runtime": "ghcr.io/flashslm/runtime", "cuda": "ghcr.io/flashslm/cuda", "postgres": "postgres"}
OUTPUT = Path(__file__).parent / "overlays" / "production" / "images" / "kustomization.yaml"
_REFERENCE = re.compile(r"(?P<name>[a-z0-9][a-z0-9._/:-]*)@(?P<digest>sha256:(?!0{64})[0-9a-f]{64})")
_HEADER = "# Written by `make pin-images`.\napiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nimages:\n"


def component(given: dict[str, str]) -> str:
    """The kustomize component with every image by digest. Raises ValueError that names each one that is not."""
    references = {name: given.get(name) or IMAGES.get(name, "") for name in IN_MANIFESTS}
    found = {name: _REFERENCE.fullmatch(reference) for name, reference in references.items()}
    unknown, known = sorted(given.keys() - IN_MANIFESTS), ", ".join(IN_MANIFESTS)
    problems = [f"{name}: no such image; there are: {known}" for name in unknown]
    problems += [f"{name}: '{references[name]}' is not NAME@sha256:DIGEST" for name in found if not found[name]]
    if problems:
        raise ValueError("; ".join(problems) + ": give NAME=REFERENCE, or `PUSH=1 make images` for our own")
    lines = [
        f"  - name: {IN_MANIFESTS[name]}\n    newName: {match['name']}\n    digest: {match['digest']}\n"
        for name, match in found.items()
        if match
    ]
    return _HEADER + "".join(lines)


def main(arguments: list[str]) -> None:
    pairs = (argument.partition("=") for argument in arguments)
    text = component({name: reference for name, _, reference in pairs})
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(text, encoding="utf-8")
    print(f"wrote {OUTPUT}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
