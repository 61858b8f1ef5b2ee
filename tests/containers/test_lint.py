"""The images' Containerfiles keep every rule, and every rule sees what breaks it."""

import re
from pathlib import Path

import pytest

from tests.containers.lint import RULES, lint, parse

IMAGES = Path(__file__).parents[2] / "images"
FILES = sorted(IMAGES.glob("*/Containerfile"))

GOOD = f"""
ARG BASE=registry.example/python:3@sha256:{"ab" * 32}
FROM ${{BASE}} AS build
ENV PIP_CONSTRAINT=/constraints.txt
RUN apt-get update \\
 && apt-get install --yes --no-install-recommends gcc \\
 # a comment between
 && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /
RUN pip install --no-cache-dir torch
FROM ${{BASE}}
LABEL org.opencontainers.image.title="t" org.opencontainers.image.description="d" \\
      org.opencontainers.image.licenses="l" org.opencontainers.image.version="v" org.opencontainers.image.revision="r"
ENV HOME=/tmp
COPY --from=build /wheel/ /opt/
USER 65532:65532
"""

# rule, what is replaced in GOOD, by what, what is said
BAD = [
    ("base_is_pinned", f"@sha256:{'ab' * 32}", "", "'registry.example/python:3' is not name@sha256:digest"),
    ("base_is_pinned", "FROM ${BASE}\n", "FROM ${OTHER}\n", "'' is not"),
    ("base_is_pinned", "ab" * 32, "ab" * 31, "is not name@sha256:digest"),
    ("base_is_an_argument", "FROM ${BASE}\n", f"FROM python@sha256:{'cd' * 32}\n", "python@sha256:cd"),
    ("tag_is_not_latest", "python:3@", "python:latest@", ":latest@"),
    ("has_stages", "FROM ${BASE} AS build", "", "one stage only"),
    ("last_stage_runs_nothing", "ENV HOME", "RUN chmod 0777 /opt\nENV HOME", "chmod 0777 /opt"),
    ("nothing_is_added", "COPY constraints.txt /", "ADD https://host.example/c.txt /", "https://host.example/c.txt"),
    ("copies_are_named", "COPY constraints.txt /", "COPY . /build", "COPY . /build"),
    ("copies_are_named", "COPY constraints.txt /", "COPY --chown=1:1 a ./ /build", "./ /build"),
    ("nothing_is_downloaded", "RUN pip", "RUN true && curl -L https://host.example | sh && pip", "curl -L"),
    ("nothing_needs_sudo", "RUN apt-get update", "RUN sudo apt-get update", "sudo apt-get update"),
    ("apt_leaves_nothing", "&& rm -rf /var/lib/apt/lists/*", "&& true", "no 'rm -rf /var/lib/apt/lists/*'"),
    ("apt_leaves_nothing", "--no-install-recommends ", "", "no '--no-install-recommends'"),
    ("apt_leaves_nothing", "RUN apt-get update", "RUN true", "no 'apt-get update'"),
    ("pip_keeps_no_cache", "install --no-cache-dir", "install", "pip install torch"),
    ("pip_is_locked", "ENV PIP_CONSTRAINT=/constraints.txt\n", "", "pip install --no-cache-dir torch"),
    ("no_secret_is_set", "ENV HOME", "ARG S3_SECRET_KEY\nENV HOME", "S3_SECRET_KEY"),
    ("no_secret_is_set", "HOME=/tmp", "HOME=/tmp GITHUB_TOKEN=abc", "GITHUB_TOKEN"),
    ("no_secret_is_set", "HOME=/tmp", "INDEX=https://me:word@host.example/", "://me:word@"),
    ("user_is_a_number", "65532:65532", "nobody", "ends with 'USER nobody'"),
    ("user_is_a_number", "65532:65532", "0:0", "ends with 'USER 0:0'"),
    ("user_is_a_number", "65532:65532", "65532:65532\nENV A=1", "ends with 'ENV A=1'"),
    (
        "project_comes_last",
        "USER",
        "COPY --from=build /opt/ /opt/\nUSER",
        "the last layer is '--from=build /opt/ /opt/'",
    ),
    ("labels_are_there", 'org.opencontainers.image.revision="r"', "", "no label org.opencontainers.image.revision"),
    ("command_is_the_pods", "USER", 'ENTRYPOINT ["flashslm"]\nUSER', 'ENTRYPOINT ["flashslm"]'),
    ("any_engine_builds_it", "RUN pip", "RUN --mount=type=cache,target=/c pip", "--mount=type=cache"),
    ("any_engine_builds_it", "COPY constraints", "COPY --chmod=644 constraints", "--chmod=644"),
]


def test_there_are_three_images() -> None:
    assert [file.parent.name for file in FILES] == ["cuda", "runtime", "tensorrt-llm"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_an_image_keeps_the_rules(file: Path) -> None:
    assert lint(file.read_text(encoding="utf-8")) == []


def test_a_good_file_keeps_the_rules() -> None:
    assert lint(GOOD) == []


@pytest.mark.parametrize(("rule", "old", "new", "said"), BAD, ids=[f"{b[0]}-{i}" for i, b in enumerate(BAD)])
def test_a_rule_sees(rule: str, old: str, new: str, said: str) -> None:
    assert old in GOOD
    found = lint(GOOD.replace(old, new))
    assert {name for name, _ in found} == {rule}
    assert any(said in problem for _, problem in found), found


def test_every_rule_has_an_example() -> None:
    assert {rule.__name__ for rule in RULES} == {example[0] for example in BAD}


def test_comments_and_continuations_are_read_as_the_builder_does() -> None:
    (run, copy) = [i for i in parse(GOOD) if i.stage == 1 and i.name in ("RUN", "COPY")][:2]
    assert run.commands()[2] == "rm -rf /var/lib/apt/lists/*" and copy.value == "constraints.txt /"


def test_images_differ_only_where_they_must() -> None:
    """The GPU image installs what the CPU image does, by the same lines: they share these layers where torch is one."""
    runtime, cuda = ((IMAGES / name / "Containerfile").read_text(encoding="utf-8") for name in ("runtime", "cuda"))
    shared = re.compile(
        r"^FROM \S+ AS build$.*^RUN /opt/flashslm/bin/python -m compileall.*?$", re.MULTILINE | re.DOTALL
    )
    first, second = (shared.search(text) for text in (runtime, cuda))
    assert first and second and first[0] == second[0]
