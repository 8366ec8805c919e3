"""How big a saved model is."""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

_NUMBER_FORMATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_INDEX = "model.safetensors.index.json"


def weight_files(source: str) -> list[Path]:
    """The ``.safetensors`` files of a model's weights.

    Args:
        source: a folder, or the id of a Hub model, whose files are then looked for in the local
            cache.

    Returns:
        The files; none if the model is not stored as safetensors.
    """
    folder = Path(source)
    if folder.is_dir():
        return sorted(folder.glob("*.safetensors"))
    index = try_to_load_from_cache(source, _INDEX)
    names = {"model.safetensors"}
    if isinstance(index, str):
        names = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    found = (try_to_load_from_cache(source, name) for name in sorted(names))
    return [Path(path) for path in found if isinstance(path, str)]


def stored_as(files: list[Path]) -> str | None:
    """The number format of most weights, from the files' headers; ``None`` without files."""
    counts: Counter[str] = Counter()
    for path in files:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                counts[tensor["dtype"]] += end - begin
    if not counts:
        return None
    most = counts.most_common(1)[0][0]
    return _NUMBER_FORMATS.get(most, most)
