"""What a step finds in the files of its inputs: manifests and sections that were read before."""

import json
from pathlib import Path

import pytest

from flashslm.infra.storage.tree import ArtifactFile, Manifest, Origins
from flashslm.steps.inputs import read_inputs


def manifest(content: str) -> Manifest:
    sha256 = content * 64
    return Manifest(kind="dataset", uri=f"s3://bucket/cas/{sha256}", sha256=sha256, bytes=1)


def test_a_manifest_is_read_back_without_its_origins(tmp_path: Path) -> None:
    origins = Origins(manifests={"dataset": manifest("b")}, sections={"seed": 3})
    file = manifest("a").write(tmp_path / "latency_table.json", origins)
    assert Manifest.read(file) == manifest("a") and type(Manifest.read(file)) is Manifest
    assert ArtifactFile.model_validate_json(file.read_bytes()).origins == origins


def test_files_of_earlier_versions_have_no_origins(tmp_path: Path) -> None:
    (file := tmp_path / "dataset.json").write_text(manifest("a").model_dump_json())
    assert Manifest.read(file) == manifest("a")


def test_one_input_brings_what_it_was_made_of(tmp_path: Path) -> None:
    dataset = manifest("a").write(tmp_path / "dataset", Origins(sections={"seed": 3, "data": {}}))
    sections = {"model": {"window": 8}, "kernels": {}, "profiling": {}, "latency": {"context": 8}}
    profiled = read_inputs("profile_latency", json.dumps(sections), {"dataset": str(dataset)})
    assert profiled.manifests == {"dataset": manifest("a")}
    table = manifest("b").write(tmp_path / "latency_table", profiled.origins)

    fitted = read_inputs("fit_scaling_law", '{"scaling": {}}', {"latency_table": str(table)})
    assert fitted.manifests == {"dataset": manifest("a"), "latency_table": manifest("b")}
    assert json.loads(fitted.config) == {"seed": 3, "scaling": {}} | sections, "not the section data"


def test_what_a_step_is_given_goes_before_what_came_with_it(tmp_path: Path) -> None:
    old = Origins(manifests={"dataset": manifest("a")}, sections={"kernels": {"gla": "fla"}, "model": {}})
    paths = {
        "architecture": str(manifest("b").write(tmp_path / "architecture", old)),
        "dataset": str(manifest("c").write(tmp_path / "dataset")),
    }
    read = read_inputs("pretrain", '{"training": {}, "kernels": {}}', paths)
    assert read.manifests == {"dataset": manifest("c"), "architecture": manifest("b")}
    assert json.loads(read.config)["kernels"] == {}


def test_collected_inputs_bring_what_they_have_in_common(tmp_path: Path) -> None:
    origins = Origins(manifests={"architecture": manifest("a")}, sections={"training": {"steps": 5}})
    paths = [str(manifest(digit).write(tmp_path / digit, origins)) for digit in "12"]
    read = read_inputs("compare_weight_norm", "{}", {"checkpoints": paths})
    assert read.manifests == {"checkpoints": [manifest("1"), manifest("2")]}
    assert json.loads(read.config) == {"training": {"steps": 5}}
    assert read.origins.manifests == {"architecture": manifest("a")}


def test_a_section_that_neither_arguments_nor_inputs_bring_is_an_error(tmp_path: Path) -> None:
    dataset = str(manifest("a").write(tmp_path / "dataset"))
    missing = r"step 'profile_latency' has no section kernels, profiling, latency: .*\(dataset\)"
    with pytest.raises(ValueError, match=missing):
        read_inputs("profile_latency", '{"model": {}}', {"dataset": dataset})
