"""Models in several GGUF files, `NAME-00001-of-00003.gguf`: any part stands for the set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from swarm.base.errors import ModelError
from swarm.model.files.gguf_file import GGUFHeader, GGUFTensor, read_header

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
MAX_PARTS = 1000


def part_names(name: str) -> list[str]:
    """The file names of the set that `name` belongs to, in order; `name` alone when it is whole. Raises ModelError."""
    found = _PART.fullmatch(name)
    if found is None:
        return [name]
    count = int(found.group(3))
    if not 1 <= int(found.group(2)) <= count <= MAX_PARTS:
        raise ModelError(f"{name} calls itself part {int(found.group(2))} of {count}; fetch it again")
    return [f"{found.group(1)}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]


def read_set(path: Path) -> GGUFHeader:
    """The header of a GGUF file, or of the whole set where `path` is a part: metadata of the first part, tensors of
    all. Raises ModelError naming the parts that are missing."""
    names = part_names(path.name)
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{path} is one of {len(names)} files of a model, and {', '.join(missing[:5])} "
            f"{'is' if len(missing) == 1 else 'are'} not beside it: copy the whole set"
        )
    files = [path.parent / name for name in names]
    return join_parts(files, [read_header(file) for file in files])


def join_parts(files: Sequence[Path], headers: Sequence[GGUFHeader]) -> GGUFHeader:
    """One header out of those of all files of a model, in order. Raises ModelError for parts that do not fit."""
    path = files[0]
    stated = headers[0].metadata.get("split.count", 1)
    if stated not in (0, len(files)):
        raise ModelError(
            f"{path} is part of a model in {stated} files, which are known by their names "
            f"NAME-00001-of-{int(stated):05d}.gguf; give the files their names back"
            if isinstance(stated, int)
            else f"{path} has a damaged split.count; fetch it again"
        )
    tensors: dict[str, GGUFTensor] = {}
    for number, (file, header) in enumerate(zip(files, headers, strict=True)):
        if len(files) > 1 and header.metadata.get("split.no", number) != number:
            raise ModelError(f"{file} says it is another part of its model; fetch it again")
        for key in ("split.count", "split.tensors.count", "general.architecture"):
            own, first = header.metadata.get(key), headers[0].metadata.get(key)
            if own is not None and own != first:
                raise ModelError(
                    f"{file} is of another model: its {key} is {own}, that of {path} {first}; fetch it again"
                )
        twice = tensors.keys() & header.tensors.keys()
        if twice:
            raise ModelError(f"{file} repeats tensor {min(twice)} of an earlier part; fetch it again")
        tensors |= header.tensors
    total = headers[0].metadata.get("split.tensors.count", len(tensors))
    if len(files) > 1 and total != len(tensors):
        raise ModelError(f"{path} and its other parts hold {len(tensors)} tensors, expected {total}; fetch them again")
    return GGUFHeader(headers[0].metadata, tensors)
