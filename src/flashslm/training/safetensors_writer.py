"""A rank's part of a checkpoint, written to its file from where it lies. Imported late: what it builds on is heavy."""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch.distributed.checkpoint import _hf_utils as layout
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future


class SafetensorsWriter(HuggingFaceStorageWriter):
    """torch's writer of sharded safetensors, with the same file but for how it comes to be.

    torch's own makes the whole file in memory first and holds the interpreter's lock while it copies it: seconds per GB
    in which the loop launches no kernel, and twice the memory. Here safetensors writes without either.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(directory, save_distributed=True)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """No results: nothing is made of them where each rank's file stays as it is."""
        tensors, offsets = {}, {}
        for item in plan.items:
            assert item.tensor_data is not None  # `training_tensors` has nothing else
            tensors[item.index.fqn] = planner.resolve_data(item).contiguous()  # type: ignore[union-attr]
            offsets[item.index.fqn] = {layout.SAVED_OFFSETS_KEY: item.tensor_data.chunk.offsets}
        if tensors:
            name = layout._gen_file_name(1, 1, plan.storage_data["shard_index"])
            metadata = {
                layout.CUSTOM_METADATA_KEY: json.dumps(offsets),
                layout.DCP_VERSION_KEY: str(layout.HF_DCP_VERSION),
                layout.FORMAT_KEY: layout.FORMAT_VALUE,
            }
            save_file(tensors, Path(self.path) / name, metadata)
        written: Future[list[WriteResult]] = Future()
        written.set_result([])
        return written
