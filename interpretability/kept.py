"""What was worked out before, in files: an interrupted study goes on from there."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from networks.files import write_atomically
from networks.taps import Edit
from networks.weights import hash_tensors


class Kept:
    """What has been worked out before, in a folder of files; an interrupted study finds it again.

    Args:
        root: folder of all studies' files.
        description: everything that decides the outcome; its hash names the folder.
    """

    def __init__(self, root: str | Path, description: dict[str, Any]) -> None:
        text = json.dumps(description, sort_keys=True, default=str)
        self.folder = Path(root) / hashlib.sha256(text.encode()).hexdigest()[:16]

    def numbers(self, name: str, compute: Callable[..., dict[str, list[int]]], *given: object) -> dict[str, list[int]]:
        """The lists of numbers of that name, worked out of what is given at the first time."""
        path = self.folder / f"{name}.json"
        if path.exists():
            found: dict[str, list[int]] = json.loads(path.read_text())
            return found
        made = compute(*given)
        write_atomically(path, lambda partial: partial.write_text(json.dumps(made)))
        return made

    def arrays(self, name: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays of that name, worked out at the first time."""
        path = self.folder / f"{name}.safetensors"
        if path.exists():
            return load_file(path)
        made = compute()
        write_atomically(path, lambda partial: save_file(made, partial))
        return made

    def forget(self) -> None:
        """Keep nothing any longer."""
        shutil.rmtree(self.folder, ignore_errors=True)


def edit_hashes(edits: Sequence[Edit]) -> list[list[str]]:
    """What tells edits apart: of each its tap, its kind and its tensors' hash."""
    return [[tap, type(edit).__name__, hash_tensors(edit.state_dict())] for tap, edit in edits]
