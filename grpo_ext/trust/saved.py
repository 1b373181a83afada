"""Models and checkpoints from elsewhere: no code of theirs runs, and no pickle is read that could run any."""

import os
import re
from pathlib import Path
from typing import Any

import torch

# Weights as pickles; what else ends so, such as training_args.bin, is never read
_PICKLED = re.compile(r"(pytorch_model|adapter_model|model)([-_.].*)?\.(bin|pt|pth|ckpt|pkl)")
# Pickles in which transformers keeps the state of a training
_STATES = ("*.pt", "*.pth")


def opened(auto: Any, name: str, field: str, *, trust_remote_code: bool | None = False, **options: Any) -> Any:
    """`auto.from_pretrained(name)` from safetensors alone, and without the code that comes with a model.

    Args:
        auto: one of transformers' Auto classes.
        name: folder or hub name.
        field: where the name was given.
        trust_remote_code: whether that code may run; None where it never may, whatever is asked for the policy.
        options: for `from_pretrained`.

    Returns:
        What `from_pretrained` returns.

    Raises:
        OSError: there is no such model.
        ValueError: it needs code of its own, or has its weights in a pickle.
    """
    if "Model" in auto.__name__:
        refuse_pickles(name, field)
        options["use_safetensors"] = True
    try:
        return auto.from_pretrained(name, trust_remote_code=bool(trust_remote_code), **options)
    except ValueError as error:
        if trust_remote_code or "trust_remote_code" not in str(error):
            raise
        way_out = (
            "which never runs for such a model, as `trust_remote_code` is for the policy; use a model that "
            "transformers knows."
            if trust_remote_code is None
            else "which does not run because `trust_remote_code` is off; read that code, then set it to True."
        )
        raise ValueError(f"`{field}` {name!r} needs code that comes with it, {way_out}") from error


def refuse_pickles(name: str | os.PathLike[str], field: str) -> None:
    """Refuse a folder whose weights are pickles alone.

    Args:
        name: folder, or a hub name, of which nothing is known here.
        field: where the name was given.

    Raises:
        ValueError: with the file and the way out.
    """
    folder = Path(name)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickled = next((path.name for path in sorted(folder.iterdir()) if _PICKLED.fullmatch(path.name)), None)
    if pickled is not None:
        raise ValueError(
            f"`{field}` {str(name)!r} holds its weights in {pickled}, a pickle, which can run code when it is read; "
            "save the model again with `save_pretrained`, which writes safetensors."
        )


def refuse_unsafe_states(checkpoint: Path, field: str) -> None:
    """Refuse a checkpoint whose optimizer, schedule or random states are more than numbers.

    transformers reads them with `weights_only=True`, so nothing would run; here a sentence says it before. What the
    pickles name is listed without unpickling anything.

    Args:
        checkpoint: folder.
        field: where it was given.

    Raises:
        ValueError: with the file and what it names.
    """
    from transformers.trainer_pt_utils import safe_globals

    refuse_pickles(checkpoint, field)
    for path in sorted(path for pattern in _STATES for path in checkpoint.glob(pattern)):
        try:
            with safe_globals():
                named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except (ValueError, RuntimeError):
            named = ["what `torch.save` does not write"]
        if named:
            raise ValueError(
                f"`{field}` {str(checkpoint)!r}: its {path.name} holds {', '.join(sorted(named))}, which could run "
                "code when it is read; resume from a checkpoint that a trainer of yours has written."
            )
