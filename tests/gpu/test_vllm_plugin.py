"""vLLM with the plug-in gives what the model gives: greedy text of a trained model, and its logits."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flashslm.config import ExportConfig
from flashslm.export.huggingface import export_huggingface
from flashslm.models.architecture import Architecture
from flashslm.models.hybrid import HybridLM
from flashslm.ops.gradient_check import relative_error

pytestmark = pytest.mark.gpu
VOCABULARY, TEXT_TOKENS, NEW_TOKENS = 130, 100, 24
LOGIT_TOLERANCE = 1e-2
MAX_STEPS = 1000
CACHE_BYTES = 1 << 30  # given: vLLM would measure what is free, and tests beside this one take and free memory


@pytest.fixture(autouse=True)
def ordinary_memory(poisoned_memory) -> Iterator[None]:
    """vLLM takes memory by `torch.empty` that it does not read; determinism would slow its kernels.

    An engine's memory is given back after the test: vLLM does not start where memory comes free while it measures.
    """
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    if "vllm" in sys.modules:
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


def architecture(operators: str) -> Architecture:
    return Architecture(
        operators=operators,
        hidden_size=256,
        num_heads=4,
        num_kv_heads=2,
        ffn_size=512,
        mamba_state=64,
        mamba_head_dim=64,
        mamba_expand=2,
        vocab_size=VOCABULARY,
        num_meta_tokens=7,
        max_position_embeddings=512,
        rope_theta=10000.0,
        qk_norm=True,
        norm_eps=1e-6,
    )


def texts(rows: int, seed: int) -> Tensor:
    """Each token follows from the one before by a fixed permutation, so a trained model is sure of the next."""
    follows = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(0))
    tokens = [torch.randint(VOCABULARY, (rows,), generator=torch.Generator().manual_seed(seed))]
    for _ in range(TEXT_TOKENS - 1):
        tokens.append(follows[tokens[-1]])
    return torch.stack(tokens, dim=1)


def trained(operators: str) -> HybridLM:
    """Until it is sure of every token, in float32; its weights are rounded to bfloat16 at the end."""
    model = HybridLM.build(architecture(operators), "cuda", torch.float32, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(MAX_STEPS):
        tokens_BT = texts(8, seed=step + 1).cuda()
        logits_BTV = model.logits(model(tokens_BT[:, :-1]))
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.05:
            break
    assert loss < 0.1, "the model has not learned which token follows"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model.eval()


def write_tokenizer(directory: Path) -> Path:
    from tokenizers import Tokenizer, models

    words = {"<|end|>": 0} | {f"t{index}": index for index in range(1, VOCABULARY)}
    directory.mkdir()
    Tokenizer(models.WordLevel(words, unk_token="<|end|>")).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}), encoding="utf-8")
    return directory


def log_probabilities(model: HybridLM, tokens_BT: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.logits(model(tokens_BT.cuda())).double().log_softmax(-1).cpu()


@pytest.mark.parametrize("operators", ["DFMFAF", "AF", "MFAF", "DFAFD"])
def test_greedy_text_and_logits(operators: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import vllm

    import flashslm_vllm

    flashslm_vllm.register()  # by itself where the package is installed
    model = trained(operators)
    export_huggingface(model, write_tokenizer(tmp_path / "tokenizer"), tmp_path / "export", ExportConfig())
    memory = {"gpu_memory_utilization": 0.1, "kv_cache_memory_bytes": CACHE_BYTES}
    engine = vllm.LLM(model=str(tmp_path / "export"), dtype="bfloat16", max_num_seqs=8, max_logprobs=-1, **memory)
    prompts_BT = texts(5, seed=10_000)[:, :70]
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, prompt_logprobs=-1)
    prompts = [{"prompt_token_ids": row[: 70 - 9 * index]} for index, row in enumerate(prompts_BT.tolist())]
    outputs = engine.generate(prompts, sampling)
    half = HybridLM.build(model.architecture, "cuda", torch.bfloat16)
    half.load_state_dict(model.state_dict())
    for output, prompt in zip(outputs, prompts, strict=True):
        text, found = prompt["prompt_token_ids"], output.outputs[0].token_ids
        expected = log_probabilities(model, torch.tensor([[*text, *found]]))[0]
        assert expected.argmax(-1)[len(text) - 1 : -1].tolist() == list(found)
        seen = output.prompt_logprobs[model.architecture.num_meta_tokens + 1 :]  # of all but the first text token
        actual = torch.tensor([[row[token].logprob for token in range(VOCABULARY)] for row in seen])
        ours = log_probabilities(half, torch.tensor([text]))[0]
        exact = expected[: len(text) - 1]
        error, own_error = relative_error(actual, exact), relative_error(ours[: len(text) - 1], exact)
        assert error < max(LOGIT_TOLERANCE, 1.5 * own_error), f"{error:.1e}, in this project {own_error:.1e}"
