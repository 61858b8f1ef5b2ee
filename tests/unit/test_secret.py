"""Secrets of a recipe: shown as stars wherever it is written, refused where they do not belong."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from flashslm.config import PromotionHook, RunConfig, from_step_json
from flashslm.config.file import ConfigError, dump, load
from flashslm.config.secret import SECRET_FIELDS, STARS, Secret, holds_secret, leaves, without_secrets
from flashslm.launch.compiling import pipeline_arguments

URL = "https://deploy.test/promoted?token=t0psecret"


def write(directory: Path, **gate: Any) -> Path:
    file = directory / "recipe.yaml"
    file.write_text(yaml.safe_dump({"name": "x", "gate": gate}))
    return file


def secret_fields(model: type[BaseModel], where: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if kind is Secret:
            found.append(f"{where}{name}")
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            found += secret_fields(kind, f"{where}{name}.")
    return found


STEP = """
import logging, sys
from flashslm.steps.run import run_step
from flashslm.config import RunConfig
recipe = RunConfig.model_validate({"name": "x", "data": {"source": "files", "paths": sys.argv[1:]}})
try:
    run_step("plan_data", config=recipe.for_step("plan_data"), outputs={"plan": "x.json"})
except ValueError:
    logging.getLogger("any").exception("given %s", sys.argv[1])
    raise
"""


@pytest.mark.parametrize("configured", [True, False])
def test_a_steps_log_holds_no_value_of_a_secret_variable(configured: bool, tmp_path: Path) -> None:
    """Neither in its traceback nor in what it logs, whoever set logging up. The services need not be there."""
    secrets = {"HF_TOKEN": "token-of-no-known-form", "FLASHSLM_HOOK_URL": "https://deploy.test/path-with-a-key"}
    secrets |= {"AWS_SECRET_ACCESS_KEY": "another+secret/value", "MLFLOW_TRACKING_PASSWORD": "pass word"}
    services = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1", "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}
    services |= {"AWS_ACCESS_KEY_ID": "id", "FLASHSLM_BUCKET": "b", "FLASHSLM_SPOOL": str(tmp_path / "spool")}
    code = "import logging; logging.basicConfig(format='%(message)s')\n" + STEP if configured else STEP
    step = subprocess.run(
        [sys.executable, "-c", code, " ".join(secrets.values()) + "/*.txt"],
        env=os.environ | secrets | services | {"FLASHSLM_PATIENCE_S": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    printed = step.stdout + step.stderr + next((tmp_path / "spool").glob("*.jsonl")).read_text()
    assert step.returncode == 1 and printed.count("Traceback") == 2 and "matches no file" in printed
    assert f"given {STARS}" in printed and [value for value in secrets.values() if value in printed] == []


def test_values_of_secret_fields_are_hidden_in_messages() -> None:
    hook = PromotionHook(url=Secret("https://deploy.test/of-no-known-form"))
    assert hook.url and without_secrets("POST https://deploy.test/of-no-known-form failed") == f"POST {STARS} failed"
    assert without_secrets("a short word stays") == "a short word stays"


def test_the_list_of_secret_fields_is_that_of_the_type() -> None:
    assert tuple(secret_fields(RunConfig)) == SECRET_FIELDS


def test_a_secret_is_in_no_form_of_the_recipe_that_is_written_or_sent(tmp_path: Path) -> None:
    config = load(write(tmp_path, promotion_hook={"url": URL}))
    forms = [dump(config), repr(config), str(config), config.model_dump_json(), str(config.model_dump())]
    forms += [config.for_step("register_model"), json.dumps(pipeline_arguments(config, "code", "source"))]
    assert all("t0psecret" not in form and "deploy.test" not in form for form in forms)
    assert STARS in forms[0]
    assert config.gate.promotion_hook.environment({}) == {"FLASHSLM_HOOK_URL": URL}
    assert config.gate.promotion_hook.address({"FLASHSLM_HOOK_URL": "other"}) == URL


def test_what_has_only_the_stars_takes_the_address_from_the_environment(tmp_path: Path) -> None:
    written = tmp_path / "written.yaml"
    written.write_text(dump(load(write(tmp_path, promotion_hook={"url": URL}))))
    again = load(written).gate.promotion_hook
    step = from_step_json("register_model", load(written).for_step("register_model")).gate.promotion_hook
    for hook in (again, step):
        assert hook.url and hook.address({"FLASHSLM_HOOK_URL": URL}) == URL and hook.address({}) == ""
        assert hook.environment({"FLASHSLM_HOOK_URL": URL}) == {"FLASHSLM_HOOK_URL": URL}
        with pytest.raises(ValueError, match=r"set \$FLASHSLM_HOOK_URL to the address"):
            hook.environment({})
    assert PromotionHook().environment({}) == {} and not PromotionHook().url


@pytest.mark.parametrize(
    "hook",
    [
        *({"url": wrong} for wrong in ("ftp://t0psecret", ["t0psecret"], {"t0psecret": 1}, "https://t0psecret x")),
        {"url": URL, "command": ["true"]},
        {"url": URL, "attempts": "t0psecret?token=t0psecret"},
    ],
)
def test_a_message_about_a_wrong_secret_does_not_quote_it(hook: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gate\.promotion_hook") as refused:
        load(write(tmp_path, promotion_hook=hook))
    assert "token=t0psecret" not in str(refused.value)
    assert "attempts" in hook or "t0psecret" not in str(refused.value)


def test_broken_yaml_does_not_quote_it(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"name: x\ngate: {{promotion_hook: {{url: '{URL}', attempts: [}}}}\n")
    with pytest.raises(ConfigError, match="not valid YAML") as refused:
        load(file)
    assert "t0psecret" not in str(refused.value)


@pytest.mark.parametrize(
    "override",
    [
        f"gate.promotion_hook.url={URL}",
        f" gate.promotion_hook.url ={URL}",
        f"gate.promotion_hook={{url: '{URL}'}}",
        f"gate={{promotion_hook: {{url: '{URL}'}}}}",
    ],
)
def test_a_secret_is_not_taken_from_the_command_line(override: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="every user of the machine sees") as refused:
        load(write(tmp_path), [override])
    assert "t0psecret" not in str(refused.value)


SECRETS = [
    "AKIA" + "ABCDEFGHIJKLMNOP",
    "hf_" + "a" * 34,
    "ghp_" + "a" * 36,
    "github_pat_" + "a" * 40,
    "glpat-" + "a" * 20,
    "xoxb-" + "1" * 12,
    "sk-" + "a" * 40,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "-----BEGIN RSA PRIVATE KEY-----",
    "Authorization: Bearer abcdef0123456789",
    "https://hooks.slack.com/services/T000/B000/XXXX",
    "https://discord.com/api/webhooks/1/abc",
    "postgresql+psycopg2://user:word@host/db",
    "redis://:word@host",
    "https://x.test/?token=abc",
    "https://x.test/?a=1&access_token=abc",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_what_looks_like_a_secret_is_refused_in_every_other_field(secret: str, tmp_path: Path) -> None:
    assert holds_secret(secret) and STARS in without_secrets(f"before {secret} after")
    places = [
        ({"data": {"paths": [secret]}}, "data.paths.0"),
        ({"data": {"dataset": secret}}, "data.dataset"),
        ({"gate": {"promotion_hook": {"command": ["curl", secret]}}}, "gate.promotion_hook.command.1"),
        ({"platform": {"gpu_types": {"x": {"node_selector": {"k": secret}}}}}, "platform.gpu_types.x.node_selector.k"),
    ]
    for values, where in places:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({"name": "x"} | values))
        with pytest.raises(ConfigError) as refused:
            load(file)
        assert f"{where}: this looks like a token or a password" in str(refused.value)
        assert without_secrets(secret) in str(refused.value) or secret not in str(refused.value)
    with pytest.raises(ConfigError, match=r"data\.dataset: this looks like"):
        load(write(tmp_path), [f"data.dataset='{secret}'"])


ORDINARY = [
    "s3://bucket/key/*.jsonl",
    "image@sha256:abcdef",
    "http://user@host/x",
    "a:b@c",
    "tokenizer=hf",
    "task-sk-x",
]


@pytest.mark.parametrize("text", [*ORDINARY, "HuggingFaceFW/fineweb-edu", "flashslm-s3", "python-stdlib"])
def test_ordinary_text_is_no_secret(text: str) -> None:
    assert not holds_secret(text) and without_secrets(text) == text


def test_what_aliases_repeat_is_looked_at_once() -> None:
    bomb: Any = ["x"]
    for _ in range(60):
        bomb = [bomb, bomb]
    assert list(leaves(bomb)) != [] and sum(1 for _ in leaves(bomb)) == 1
