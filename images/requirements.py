"""Print what the named extras of pyproject.toml need, one requirement a line; `-NAME` leaves a package out."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = [name for name in sys.argv[1:] if not name.startswith("-")]
left_out = {name[1:] for name in sys.argv[1:] if name.startswith("-")}
wanted = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
print(*(line for line in wanted if re.split(r"[^\w-]", line)[0] not in left_out), sep="\n")
