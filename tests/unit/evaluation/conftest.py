from pathlib import Path

import lm_eval.tasks
import pytest
import torch

from flashslm.evaluation import task_index
from flashslm.models.hybrid import HybridLM
from tests.unit.data.corpora import make_texts, prepare
from tests.unit.tiny_hybrid import tiny_hybrid


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 documents of random words, vocabulary 300."""
    directory = tmp_path_factory.mktemp("dataset") / "d"
    prepare(directory, make_texts(150))
    return directory


@pytest.fixture(scope="session")
def model() -> HybridLM:
    """An untrained hybrid of every operator, its weights enlarged: the initial ones only ever repeat the last token."""
    architecture = tiny_hybrid(
        hidden_size=16,
        num_heads=2,
        num_kv_heads=1,
        ffn_size=32,
        mamba_state=8,
        vocab_size=300,
        num_meta_tokens=3,
        max_position_embeddings=67,  # 64 of them for text
    )
    built = HybridLM.build(architecture, seed=0)
    with torch.no_grad():
        built.embedding.weight *= 20
        for name, parameter in built.named_parameters():
            if name.endswith("_proj.weight"):
                parameter *= 10
    return built.eval()


@pytest.fixture
def few_harness_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of lm_eval's own tasks only these: to index all of them takes seconds."""
    own = Path(lm_eval.tasks.__file__).parent
    directories = [own / name for name in ("piqa", "arc", "mmlu/default", "gsm8k", "hellaswag", "humaneval", "mbpp")]
    index = lm_eval.tasks.TaskManager(include_path=directories, include_defaults=False).task_index
    monkeypatch.setattr(task_index, "index_of", lambda names: dict(index))
