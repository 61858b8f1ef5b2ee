"""Small changes to the files of an export."""

import json

from safetensors.torch import load_file, save_file


def change_tensors(directory, change):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def change_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
