"""Everything private of the hosts that we touch, each with its reason and the condition under which it may go."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer
from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.utils import nanmax, nanmin

# TRL logs these names with exactly this arithmetic (values of other processes, NaN where a row is empty). They may go
# when TRL exports them at top level.
__all__ = [
    "GENERATED",
    "UNSLOTH_FIELDS",
    "TRLConfig",
    "load_trained_adapter",
    "losses",
    "nanmax",
    "nanmin",
    "regroup",
    "set_losses",
    "step_numbers",
    "streamed_weights",
    "vllm_errors",
    "vllm_generation_from",
]

# On a GPU Unsloth puts a class that it has written itself in the place of `trl.GRPOTrainer`. It may go when Unsloth
# leaves TRL's class alone, as its CPU back end does.
GENERATED: bool = any(cls.__name__ == "_UnslothGRPOTrainer" for cls in GRPOTrainer.__mro__)

# Unsloth's config has the same name and other defaults: it takes `beta` from `loss_type`, `scale_rewards` from
# "dr_grpo" and the batch size from `num_generations`. TRL's own is still below it. It may go when theirs is TRL's.
TRLConfig: type[GRPOConfig] = next(cls for cls in reversed(GRPOConfig.__mro__) if cls.__name__ == "GRPOConfig")

# What Unsloth's trainer reads from the config and TRL's config does not have, at Unsloth's own defaults. It may go
# when Unsloth's trainer takes TRL's config.
UNSLOTH_FIELDS: dict[str, Any] = {
    "context_parallel_backend": "ulysses",
    "context_parallel_size": 1,
    "unsloth_grpo_mini_batch": None,
    "unsloth_logit_chunk_multiplier": None,
    "unsloth_num_chunks": -1,
    "vllm_sampling_params": None,
}


def regroup(buffered: list[dict], keys: Tensor, num_parts: int, order: Sequence[int] | None = None) -> list[dict]:
    """Put the rows of each group next to each other again after TRL's shuffle.

    TRL shuffles the rows of a generation batch before it splits them into micro-batches, which scatters each group.
    It may go when TRL keeps groups together.

    Args:
        buffered: TRL's micro-batches; tensors and lists with a row a completion, or values without rows.
        keys: (R,) group of each row over all micro-batches, in their order.
        num_parts: number of micro-batches.
        order: order of the groups; None is the shuffled order of their first rows.

    Returns:
        As many micro-batches of the same sizes with the same rows.
    """
    order_of = {key: place for place, key in enumerate(dict.fromkeys(keys.tolist() if order is None else order))}
    position = torch.tensor([order_of[key] for key in keys.tolist()])
    permutation = torch.argsort(position, stable=True)
    size = len(keys) // num_parts

    merged: dict[str, Any] = {}
    for name, value in buffered[0].items():
        column = [part[name] for part in buffered]
        if isinstance(value, Tensor) and value.dim() > 0:
            merged[name] = torch.cat(column)[permutation.to(value.device)]
        elif isinstance(value, list):
            rows = [row for part in column for row in part]
            merged[name] = [rows[i] for i in permutation.tolist()]
        else:
            merged[name] = value

    def part(value: object, index: int) -> object:
        if isinstance(value, list) or (isinstance(value, Tensor) and value.dim() > 0):
            return value[index * size : (index + 1) * size]
        return value

    return [{name: part(value, index) for name, value in merged.items()} for index in range(num_parts)]


@contextmanager
def vllm_generation_from(make: Callable[..., Any]) -> Iterator[None]:
    """Within the context, a `GRPOTrainer` that is being made gets its vLLM back end from a function.

    TRL's trainer makes a `VLLMGeneration` in its `__init__`, which starts an engine or looks for a server, and takes
    no other one. It may go when the trainer accepts a back end as an argument.

    Args:
        make: called with TRL's class and with the keyword arguments that TRL has for it.
    """
    # Unsloth's class lives in a module of its own, and wraps its `__init__` in another
    names = vars(sys.modules[GRPOTrainer.__module__])
    stock = names["VLLMGeneration"]
    names["VLLMGeneration"] = lambda *args, **kwargs: make(stock, *args, **kwargs)
    try:
        yield
    finally:
        names["VLLMGeneration"] = stock


def vllm_errors() -> tuple[type[Exception], ...]:
    """What vLLM's client of an engine raises when the engine has died; nothing where vLLM was not imported.

    vLLM exports the two nowhere above this module. It may go when it does.
    """
    module = sys.modules.get("vllm.v1.engine.exceptions")
    return () if module is None else (module.EngineDeadError, module.EngineGenerateError)


def load_trained_adapter(model: Any, checkpoint: str | Path) -> None:
    """Load the trained adapter of a checkpoint that holds the reference's adapter as well.

    transformers 5.17 then loads those in folders of their own alone, that is "ref", and the run goes on from an
    untrained adapter without a word. It may go when we ask for transformers 5.23, which loads both.

    Args:
        model: policy, not wrapped; one without a second adapter is left alone.
        checkpoint: its folder.
    """
    saved = any((Path(checkpoint) / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME))
    if saved and isinstance(model, PeftModel) and len(model.peft_config) > 1:
        model.load_adapter(str(checkpoint), "default", is_trainable=True)


def losses(trainer: Any) -> dict[str, float]:
    """What transformers' trainer adds up for the logged losses: since the last log, and over all steps.

    It sets them to zero when a run is resumed, so that the first loss logged afterwards leaves steps out. It may go
    when transformers saves them.

    Args:
        trainer: within `train`.

    Raises:
        TypeError: this version of transformers keeps them in a local variable.
    """
    if getattr(trainer, "_tr_loss", None) is None:
        raise TypeError(f"transformers {transformers.__version__} does not tell them; a newer version does")
    return {
        "since_log": trainer._tr_loss.item(),
        "logged": trainer._total_loss_scalar,
        "last_log": trainer._globalstep_last_logged,
        "first_step": getattr(trainer, "_initial_global_step", 0),
    }


def set_losses(trainer: Any, saved: dict[str, float]) -> None:
    """Go on with what `losses` gave; called when training begins, because transformers sets it shortly before.

    Args:
        trainer: within `train`.
        saved: what `losses` gave.
    """
    trainer._tr_loss = torch.full_like(trainer._tr_loss, saved["since_log"])
    trainer._total_loss_scalar = saved["logged"]
    trainer._globalstep_last_logged = saved["last_log"]
    trainer._initial_global_step = saved["first_step"]


def step_numbers(trainer: Any) -> dict[str, Any]:
    """Numbers of the hosts' trainers that a step changes before its end and that a checkpoint is made from.

    Floating-point operations since they were last added up, and TRL's adaptive entropy bonus. It may go when the hosts
    change them at the end of a step.

    Args:
        trainer: within `train`.

    Returns:
        Name of an attribute to its value.
    """
    names = ("current_flos", "entropy_coef", "_last_world_entropy")
    return {name: value for name in names if (value := getattr(trainer, name, None)) is not None}


def streamed_weights(model: Any, accelerator: Accelerator) -> Iterator[tuple[str, Tensor]]:
    """What TRL's own sync sends to vLLM: name and weight of the merged model, one after another.

    The benchmark of the sync compares with it; TRL offers it only inside a back end that has started an engine. It
    may go when TRL has a function for it.

    Args:
        model: policy, not wrapped. Its adapter is merged while the weights are walked through.
        accelerator: of the run.

    Returns:
        Names as vLLM knows them, and weights.
    """
    sender = object.__new__(VLLMGeneration)
    sender.model, sender.accelerator = model, accelerator
    sender._dist = DistributedBackend(accelerator)
    return sender._iter_named_params()
