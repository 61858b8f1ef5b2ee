"""A tiny hybrid model with nothing at its neutral value, a byte-level tokenizer, and their export."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from flashslm.config import ExportConfig
from flashslm.models.architecture import Architecture


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def architecture() -> Architecture:
    return Architecture(
        operators="DFMFAFM",
        hidden_size=32,
        num_heads=4,
        num_kv_heads=2,
        ffn_size=128,
        mamba_state=8,
        mamba_head_dim=8,
        mamba_expand=2,
        vocab_size=270,
        num_meta_tokens=5,
        max_position_embeddings=256,
        rope_theta=500.0,
        rope_type="ntk",
        original_max_position_embeddings=64,
        qk_norm=True,
        norm_eps=1e-6,
    )


@pytest.fixture(scope="session")
def make_model():
    """Build a HybridLM whose every parameter is random, so that a swapped or forgotten one shows in the logits."""
    from flashslm.models.hybrid import HybridLM

    def make(architecture: Architecture, seed: int = 0) -> HybridLM:
        model = HybridLM.build(architecture, device="cpu", dtype=torch.float32, seed=seed).eval()
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * (0.2 if parameter.ndim == 1 else 0.1))
        return model

    return make


@pytest.fixture(scope="session")
def model(make_model, architecture):
    return make_model(architecture)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> Path:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = AddedToken("<|end|>", special=True, normalized=False)
    trainer = trainers.BpeTrainer(
        vocab_size=265, special_tokens=[end], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the cat and the hat and the bat"] * 4, trainer)
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(directory / "tokenizer.json"))
    # As transformers 5 writes it: a class 4.57 does not know, extra tokens as a list, no special_tokens_map.json.
    config = {
        "backend": "tokenizers",
        "tokenizer_class": "TokenizersBackend",
        "eos_token": "<|end|>",
        "extra_special_tokens": ["<|end|>"],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def export(tokenizer_dir, tmp_path_factory):
    """Export a model to a new directory and return it."""
    from flashslm.export.huggingface import export_huggingface

    def run(model, **settings) -> Path:
        directory = tmp_path_factory.mktemp("export") / "model"
        export_huggingface(model, tokenizer_dir, directory, ExportConfig.model_construct(**settings))
        return directory

    return run


@pytest.fixture(scope="session")
def exported_dir(export, model) -> Path:
    return export(model, dtype="float32")


@pytest.fixture
def directory(exported_dir, tmp_path) -> Path:
    """A copy of the export, to be damaged."""
    return shutil.copytree(exported_dir, tmp_path / "copy")


@pytest.fixture(scope="session")
def load():
    """Load a directory with transformers, its code in a module cache of its own that lasts for the session."""
    from flashslm.export.parity import reloaded

    with ExitStack() as stack:
        yield lambda directory: stack.enter_context(reloaded(directory))


@pytest.fixture(scope="session")
def exported(load, exported_dir):
    return load(exported_dir)


@pytest.fixture
def tokens_BT() -> torch.Tensor:
    return torch.randint(1, 270, (2, 19), generator=torch.Generator().manual_seed(7))
