"""Notation, derived sizes, and the published parameter counts."""

import pytest

from flashslm.config import ModelConfig
from flashslm.models.accounting import state_bytes
from flashslm.models.architecture import (
    Architecture,
    InfeasibleArchitecture,
    build_architecture,
    make_architecture,
    parse_operators,
    repeat_block,
)
from flashslm.models.operator_spec import MIXERS, OPERATOR_SPECS, OPERATORS, SIZE_FIELDS

FLASH = ModelConfig(head_dim=128, kv_group=4, mamba_state=128, mamba_head_dim=64, num_meta_tokens=256)


def flash_1b() -> Architecture:
    return build_architecture("(DFMF AFMF)x2 | (DFMF)x2", 2048, FLASH, vocab_size=131_072)


@pytest.mark.parametrize(
    ("notation", "operators"),
    [
        ("DFMF", "DFMF"),
        ("(DF MF)x2 | A", "DFMFDFMFA"),
        ("((DF)x2M)x2", "DFDFMDFDFM"),
        ("(MFAFAFAFD)x2", "MFAFAFAFDMFAFAFAFD"),
    ],
)
def test_notation(notation: str, operators: str) -> None:
    assert parse_operators(notation) == operators


@pytest.mark.parametrize("notation", ["", "DFX", "(DF", "DF)x2", "dfmf", "DFx2"])
def test_bad_notation_says_what_is_allowed(notation: str) -> None:
    with pytest.raises(InfeasibleArchitecture, match="allowed are D"):
        parse_operators(notation)


def test_published_sizes() -> None:
    architecture = flash_1b()
    assert architecture.operators == "DFMFAFMF" * 2 + "DFMF" * 2
    assert (architecture.num_heads, architecture.num_kv_heads, architecture.ffn_size) == (16, 4, 6144)
    assert (architecture.mamba_inner, architecture.mamba_heads, architecture.mamba_conv_channels) == (4096, 64, 4352)


def test_published_state_sizes() -> None:
    recurrent_values = state_bytes(flash_1b(), state_bytes_per_value=1, conv_bytes_per_value=0)
    assert recurrent_values == 4 * 2048 * 128 + 6 * 4096 * 128


def test_sizes_that_do_not_fit_are_refused() -> None:
    sizes = FLASH.model_copy(update={"mamba_head_dim": 48, "head_dim": 5})
    with pytest.raises(
        InfeasibleArchitecture, match=r"^head size 5 is odd: .*; mamba inner size 100 .* of 48 \(head\)$"
    ):
        build_architecture("DF", 50, sizes, vocab_size=256)
    with pytest.raises(InfeasibleArchitecture, match=r"width 100 is not a multiple of model\.head_dim 128"):
        build_architecture("DF", 100, FLASH, vocab_size=256)
    with pytest.raises(ValueError, match="not a multiple of num_kv_heads 3"):
        Architecture.model_validate(flash_1b().model_dump() | {"num_kv_heads": 3})


def test_digest_ignores_notation_and_sees_sizes() -> None:
    plain = build_architecture("DFMFAFMF" * 2 + "DFMF" * 2, 2048, FLASH, vocab_size=131_072)
    assert plain.digest == flash_1b().digest
    assert plain.model_copy(update={"vocab_size": 5}).digest != plain.digest


@pytest.mark.parametrize(
    ("block", "depth", "operators"),
    [
        ("DFMF", 2, "DFMF"),
        ("DFMF", 6, "DFMFDFMFDFMF"),
        ("DFMF", 3, "DFMFDF"),
        ("DFMF", 1, "DF"),
        ("FD", 2, "FDFD"),
        ("DMF", 5, "DMFDMFD"),
        ("A", 3, "AAA"),
    ],
)
def test_depth_counts_mixers(block: str, depth: int, operators: str) -> None:
    assert repeat_block(block, depth) == operators
    assert sum(operator in MIXERS for operator in operators) == depth


def test_a_block_without_mixers_is_refused() -> None:
    with pytest.raises(ValueError, match="no token mixer"):
        repeat_block("FF", 3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"original_max_position_embeddings": 0}, "give the length before the extension to 33024"),
        ({"original_max_position_embeddings": 33_025}, "give the length before the extension to 33024"),
        ({"original_max_position_embeddings": 4096, "head_dim": 2}, "rope_type ntk with head size 2"),
    ],
)
def test_ntk_that_stretches_nothing_is_refused(changes: dict[str, int], reason: str) -> None:
    with pytest.raises(InfeasibleArchitecture, match=reason):
        make_architecture(**(flash_1b().model_dump() | {"rope_type": "ntk"} | changes))


def test_ntk_raises_theta() -> None:
    """The released form: theta (2·longest/original - 1)^(d/(d-2)), with d = 128."""
    ntk = {"rope_type": "ntk", "max_position_embeddings": 29_000, "original_max_position_embeddings": 4096}
    stretched = make_architecture(**(flash_1b().model_dump() | ntk))
    assert stretched.rotary_theta == pytest.approx(10_000 * (58_000 / 4096 - 1) ** (128 / 126))
    assert flash_1b().rotary_theta == 10_000


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_depends_on_the_size_that_its_row_names_and_on_no_other(operator):
    """A search of sizes measures it at the values of that one."""

    def costs(**sizes):
        a, spec = build_architecture(operator, 256, ModelConfig(qk_norm=True, **sizes), 512), OPERATOR_SPECS[operator]
        heads = {name: heads_of(a) for name, heads_of in spec.heads.items()}
        return spec.parameters(a), spec.state_shapes(a), spec.conv_channels(a), heads

    changed = {"ffn_ratio": 6.0, "mamba_state": 64, "head_dim": 32}
    assert changed.keys() == SIZE_FIELDS.keys()
    found = {name for name, value in changed.items() if costs(**{name: value}) != costs()}
    assert found == {OPERATOR_SPECS[operator].sized_by}
