"""Models, weights and checkpoints of a stranger, who would leave a mark where anything of theirs ran."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

OWN_CODE = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


class Executes:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def with_code(base: Path, folder: Path, mark: Path, tokenizer: bool = False) -> Path:
    """A copy of a model that needs code of its own: for its architecture, or for its tokenizer."""
    shutil.copytree(base, folder)
    (folder / "own.py").write_text(OWN_CODE.format(mark=str(mark)))
    if tokenizer:
        edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]})
        edit(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer")
    else:
        kinds = ("CausalLM", "SequenceClassification", "TokenClassification")
        auto_map = {"AutoConfig": "own.OwnConfig", **{f"AutoModelFor{kind}": "own.OwnModel" for kind in kinds}}
        edit(folder / "config.json", model_type="own", auto_map=auto_map)
    return folder


def with_pickled_weights(base: Path, folder: Path, mark: Path) -> Path:
    """A copy of a model whose weights are a pickle that runs something."""
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    torch.save(Executes(mark), folder / "pytorch_model.bin")
    return folder


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def by_torch(path: Path, mark: Path) -> None:
    torch.save({"state": Executes(mark)}, path)


def by_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Executes(mark)))


def by_old_torch(path: Path, mark: Path) -> None:
    torch.save({"state": Executes(mark)}, path, _use_new_zipfile_serialization=False)
