"""Rules for Containerfiles, of the kind hadolint has, and those that our pods need."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

DIGEST = re.compile(r"^[\w./:-]+@sha256:[0-9a-f]{64}$")
SECRET = re.compile(r"PASSW|TOKEN|SECRET|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE", re.IGNORECASE)
LABELS = ("title", "description", "licenses", "version", "revision")


@dataclass(frozen=True)
class Instruction:
    """One instruction with its continuation lines joined; `stage` counts FROMs, 0 is before the first."""

    name: str
    value: str
    stage: int

    def commands(self) -> list[str]:
        return [part.strip() for part in re.split(r"&&|\|\||;|\|", self.value)]


def parse(text: str) -> list[Instruction]:
    found: list[Instruction] = []
    stage = 0
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, value = line.strip().partition(" ")
        stage += name.upper() == "FROM"
        found.append(Instruction(name.upper(), value.strip(), stage))
    return found


def _of(file: list[Instruction], *names: str) -> list[Instruction]:
    return [i for i in file if i.name in names]


def _last(file: list[Instruction]) -> list[Instruction]:
    return [i for i in file if i.stage == file[-1].stage]


def _commands(file: list[Instruction]) -> Iterator[tuple[Instruction, str]]:
    for instruction in _of(file, "RUN"):
        for command in instruction.commands():
            yield instruction, command


def _bases(file: list[Instruction]) -> Iterator[str]:
    """What the stages start from, but for other stages."""
    stages: set[str] = set()
    for instruction in _of(file, "FROM"):
        image, *rest = instruction.value.split()
        if image not in stages:
            yield image
        stages |= {rest[1]} if rest else set()


def base_is_pinned(file: list[Instruction]) -> Iterator[str]:
    """A digest, in FROM or as the default of the argument that FROM names."""
    arguments = dict(i.value.partition("=")[::2] for i in file if i.name == "ARG" and i.stage == 0)
    for image in _bases(file):
        argument = re.fullmatch(r"\$\{(\w+)\}", image)
        named = arguments.get(argument[1], "") if argument else image
        if not DIGEST.match(named):
            yield f"'{named}' is not name@sha256:digest"


def base_is_an_argument(file: list[Instruction]) -> Iterator[str]:
    """So it can be another one without editing the file."""
    yield from (image for image in _bases(file) if not image.startswith("${"))


def tag_is_not_latest(file: list[Instruction]) -> Iterator[str]:
    yield from (i.value for i in _of(file, "FROM", "ARG") if re.search(r":latest\b", i.value))


def has_stages(file: list[Instruction]) -> Iterator[str]:
    if file[-1].stage < 2:
        yield "one stage only: what builds must not ship"


def last_stage_runs_nothing(file: list[Instruction]) -> Iterator[str]:
    """So it installs nothing: no compiler, no pip, no package lists."""
    yield from (i.value for i in _last(file) if i.name == "RUN")


def nothing_is_added(file: list[Instruction]) -> Iterator[str]:
    """ADD takes URLs without a checksum and unpacks archives unasked."""
    yield from (i.value for i in _of(file, "ADD"))


def copies_are_named(file: list[Instruction]) -> Iterator[str]:
    """A whole context brings files that were not looked at."""
    for copy in _of(file, "COPY"):
        sources = [part for part in copy.value.split()[:-1] if not part.startswith("--")]
        yield from (f"COPY {copy.value}" for source in sources if source in (".", "./", "/", "*"))


def nothing_is_downloaded(file: list[Instruction]) -> Iterator[str]:
    yield from (command for _, command in _commands(file) if re.match(r"(curl|wget)\b", command))


def nothing_needs_sudo(file: list[Instruction]) -> Iterator[str]:
    yield from (command for _, command in _commands(file) if re.match(r"sudo\b", command))


def apt_leaves_nothing(file: list[Instruction]) -> Iterator[str]:
    for run in _of(file, "RUN"):
        if "apt-get install" not in run.value:
            continue
        needed = ("apt-get update", "--yes", "--no-install-recommends", "rm -rf /var/lib/apt/lists/*")
        yield from (f"no '{part}' in: {run.value}" for part in needed if part not in run.value)


def pip_keeps_no_cache(file: list[Instruction]) -> Iterator[str]:
    for _, command in _commands(file):
        if re.search(r"\bpip\b.* (install|wheel)\b", command) and "--no-cache-dir" not in command:
            yield command


def pip_is_locked(file: list[Instruction]) -> Iterator[str]:
    """Constraints for all that a stage installs, or nothing but the files named."""
    for run, command in _commands(file):
        constrained = any(i.name == "ENV" and "PIP_CONSTRAINT=" in i.value and i.stage == run.stage for i in file)
        if re.search(r"\bpip\b.* install\b", command) and not constrained and "--no-deps" not in command:
            yield command


def no_secret_is_set(file: list[Instruction]) -> Iterator[str]:
    """Both ARG and ENV stay in the image's history."""
    for instruction in _of(file, "ARG", "ENV"):
        names = re.findall(r"(?:^|\s)(\w+)(?==|\s|$)", re.sub(r'"[^"]*"', "", instruction.value))
        yield from (name for name in names if SECRET.search(name))
        yield from re.findall(r"://[^/\s]*:[^/\s]*@", instruction.value)


def user_is_a_number(file: list[Instruction]) -> Iterator[str]:
    """Kubernetes cannot tell whether a named user is root, and refuses it under runAsNonRoot."""
    last = file[-1]
    if last.name != "USER" or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", last.value):
        yield f"ends with '{last.name} {last.value}', not with USER uid:gid, neither of them 0"


def project_comes_last(file: list[Instruction]) -> Iterator[str]:
    """A changed source then changes one small layer."""
    layers = [i.value for i in _last(file) if i.name in ("COPY", "RUN", "ADD")]
    if not layers or not layers[-1].startswith("--from=build /wheel/ "):
        yield f"the last layer is '{layers[-1] if layers else 'none'}', not /wheel/ of the build stage"


def labels_are_there(file: list[Instruction]) -> Iterator[str]:
    written = " ".join(i.value for i in _last(file) if i.name == "LABEL")
    for label in LABELS:
        if not re.search(rf'org\.opencontainers\.image\.{label}="[^"]+"', written):
            yield f"no label org.opencontainers.image.{label}"


def command_is_the_pods(file: list[Instruction]) -> Iterator[str]:
    """An entry point would stay in front of the command that a step is given."""
    yield from (f"ENTRYPOINT {i.value}" for i in _of(file, "ENTRYPOINT") if i.value != "[]")


def any_engine_builds_it(file: list[Instruction]) -> Iterator[str]:
    """No here-documents, mounts or links: the classic builder and older podman know none."""
    yield from (i.value for i in _of(file, "RUN") if re.search(r"--mount=|<<", i.value))
    yield from (i.value for i in _of(file, "COPY") if re.search(r"--(link|chmod|parents)\b", i.value))


Rule = Callable[[list[Instruction]], Iterator[str]]
RULES: tuple[Rule, ...] = (
    base_is_pinned,
    base_is_an_argument,
    tag_is_not_latest,
    has_stages,
    last_stage_runs_nothing,
    nothing_is_added,
    copies_are_named,
    nothing_is_downloaded,
    nothing_needs_sudo,
    apt_leaves_nothing,
    pip_keeps_no_cache,
    pip_is_locked,
    no_secret_is_set,
    user_is_a_number,
    project_comes_last,
    labels_are_there,
    command_is_the_pods,
    any_engine_builds_it,
)


def lint(text: str) -> list[tuple[str, str]]:
    """(rule, what is wrong) for everything that a Containerfile's text breaks."""
    file = parse(text)
    return [(rule.__name__, problem) for rule in RULES for problem in rule(file)]
