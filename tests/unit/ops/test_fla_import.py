"""flash-linear-attention is imported without what is not used of it; a package with its structure stands in for it."""

import importlib
import sys

import pytest

from flashslm.ops.fused.linear_attention import import_fla

OPTIONAL = """
import importlib
for name in ("fla.layers", "fla.models"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
"""
REQUIRED = "import fla.layers, fla.models"


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Makes the package of a root module's text, and imports it as the operators do."""

    def make(root):
        for part in ("layers", "models", "ops"):
            (tmp_path / "fla" / part).mkdir(parents=True)
            (tmp_path / "fla" / part / "__init__.py").touch()
        (tmp_path / "fla" / "ops" / "__init__.py").write_text(
            "from fla.ops import gla\nfrom fla.ops.delta_rule import f"
        )
        (tmp_path / "fla" / "ops" / "delta_rule.py").write_text("def f(): pass")
        (tmp_path / "fla" / "ops" / "gla.py").write_text("def g(): pass")
        (tmp_path / "fla" / "__init__.py").write_text(root)
        monkeypatch.syspath_prepend(tmp_path)
        import_fla.__wrapped__()

    modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "fla"}
    for name in modules:
        monkeypatch.delitem(sys.modules, name)
    yield make
    for name in [name for name in sys.modules if name.split(".")[0] == "fla"]:
        del sys.modules[name]


def test_layers_and_models_are_left_out_until_they_are_asked_for(imported):
    imported(OPTIONAL)
    assert "fla" in sys.modules and not {"fla.layers", "fla.models"} & set(sys.modules)
    assert importlib.import_module("fla.models").__name__ == "fla.models"


def test_operators_are_imported_when_they_are_asked_for(imported):
    imported(OPTIONAL)
    assert importlib.import_module("fla.ops.delta_rule").f
    from fla import ops

    assert not hasattr(ops, "__reduce_of_a_pickler__")
    assert "fla.ops.gla" not in sys.modules
    from fla.ops import f

    assert f is ops.delta_rule.f and sys.modules["fla.ops.gla"] is ops.gla
    with pytest.raises(ImportError):
        from fla.ops import h  # noqa: F401


@pytest.mark.parametrize("root", [REQUIRED, "import a_package_that_is_not_there"])
def test_a_package_that_needs_more_is_left_to_the_import_that_follows(imported, root):
    imported(root)
    assert not {"fla", "fla.layers", "fla.models"} & set(sys.modules)
    if root == REQUIRED:
        importlib.import_module("fla.ops")
        assert {"fla.layers", "fla.models"} <= set(sys.modules)
