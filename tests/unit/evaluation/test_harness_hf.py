"""The adapter gives what lm-evaluation-harness' own hf model gives for the same weights as exported."""

import json
from pathlib import Path

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from flashslm.config import ExportConfig
from flashslm.data.tokenizer import load_tokenizer
from flashslm.evaluation.harness import Asked, run_tasks
from flashslm.evaluation.task_results import task_results
from flashslm.export.huggingface import export_huggingface
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from tests.unit.data.corpora import make_texts
from tests.unit.evaluation.choice_task import write_choice_task
from tests.unit.training.tiny import SIZES

ROLLING = """task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {directory}/pages.jsonl}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{page}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Forty questions, and pages of more than two windows of the model's 64 text tokens."""
    write_choice_task(tmp_path, 40, "acc", "acc_norm")
    pages = "".join(json.dumps({"page": text}) + "\n" for text in make_texts(6, words=90))
    (tmp_path / "pages.jsonl").write_text(pages)
    (tmp_path / "rolling.yaml").write_text(ROLLING.format(directory=tmp_path))
    return tmp_path


def test_the_harness_s_hf_model_gives_the_same_digits(dataset: Path, tasks: Path, tmp_path: Path) -> None:
    sizes = SIZES.model_copy(update={"max_position_embeddings": 68})  # 64 for text beside 4 meta tokens
    model = HybridLM.build(build_architecture("DFMFAF", 32, sizes, 300), seed=0).eval()
    with torch.no_grad():
        model.embedding.weight *= 20
    exported = tmp_path / "huggingface"
    export_huggingface(model, dataset / "tokenizer", exported, ExportConfig(dtype="float32"))
    hf = HFLM(
        pretrained=str(exported), trust_remote_code=True, device="cpu", dtype="float32", batch_size=1, prefix_token_id=0
    )
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    expected = {}
    for task in ("choice", "rolling"):
        hf.add_bos_token = None if task == "choice" else False  # else it predicts the token that it puts before a page
        outcome = lm_eval.simple_evaluate(hf, tasks=[task], task_manager=manager, bootstrap_iters=1000)
        expected |= task_results(outcome)
    asked = Asked(["choice", "rolling"], include_path=tasks)
    found, _ = run_tasks(model, load_tokenizer(dataset / "tokenizer"), asked)
    for metric in ("acc", "acc_norm", "acc_stderr", "samples", "version", "shots"):
        assert found["choice"].get(metric) == expected["choice"].get(metric), metric
    assert 0 < found["choice"]["acc"] < 1
    for metric in ("word_perplexity", "bits_per_byte"):
        assert found["rolling"][metric] == pytest.approx(expected["rolling"][metric], rel=1e-5)
