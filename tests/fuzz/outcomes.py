"""A config and a dataset tried as far as they go, and what came of it: a run, our sentence or one of a host's."""

import re
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from datasets import Dataset

from grpo_ext import GRPOExtConfig, GRPOExtTrainer
from grpo_ext.faults import RunStopped
from grpo_ext.models import tiny_policy, tiny_tokenizer

# For one case; it hangs when it takes longer, whatever else the machine does
SECONDS = 60
LETTERS = list("abcdefgh")
BASE = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "optim": "sgd",
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "num_generations": 2,
    "max_completion_length": 3,
    "max_steps": 1,
}
# Sentences of the hosts that name what is wrong, and are raised before anything runs or is written
HOST_SENTENCES = {
    r"both configured at the same time": "TRL, generation_batch_size with steps_per_generation",
    r"must be divisible by": "TRL, sizes of batches that do not fit",
    r"auto_find_batch_size is not supported": "TRL",
    r"vllm_importance_sampling_clip_m": "TRL, bounds of the correction",
    r"log_completions_hub_repo is set, but": "TRL",
    r"`sync_ref_model=True` while `beta=0.0`": "TRL",
    r"You have set `args.eval_strategy`": "transformers, without an eval_dataset",
    r"--load_best_model_at_end requires": "transformers",
    r"lr_scheduler_type \w+ requires an eval": "transformers",
    r"At most one of fp16 and bf16": "transformers",
    r"--dataloader_prefetch_factor can only": "transformers",
    r"Unknown `fsdp` option": "transformers",
    r"`router_aux_loss_coef` is set": "TRL, on a model without experts",
    r"Invalid `cache_implementation`": "transformers",
    r"`args.metric_for_best_model` must be provided": "transformers, save_strategy 'best'",
    r"'deepspeed.*' distribution was not found": "transformers, deepspeed is not installed",
    r"You need to install `\w+` in order to use": "transformers, a package that an optimiser comes with",
    r"`train_dataset` must be a `Dataset`": "TRL",
    r"Number of reward weights": "TRL, reward_weights of another length than reward_funcs",
}


class Caught:
    """Keeps whatever ends the block, to be judged."""

    error: BaseException | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        self.error = error
        return not isinstance(error, KeyboardInterrupt)


class Hang(BaseException):
    """Not an Exception, so that nothing on the way takes it for a fault of the run."""


@dataclass(frozen=True)
class Outcome:
    """How far it went, and what ended it."""

    stage: str
    error: BaseException | None = None
    written: tuple[str, ...] = ()

    @property
    def frame(self) -> str:
        """File of the innermost frame."""
        assert self.error is not None
        return traceback.extract_tb(self.error.__traceback__)[-1].filename


def letters(completions: list[Any], **columns: Any) -> list[float]:
    """A reward that reads nothing."""
    return [float(len(str(completion)) % 3) for completion in completions]


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise `Hang` when the block takes longer."""

    def ring(*_: Any) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(
    folder: Path,
    given: dict[str, Any],
    dataset: Any = None,
    runs: bool = True,
    reward: Callable[..., Any] = letters,
    tokenizer: Any = None,
    **options: Any,
) -> Outcome:
    """Make a config, a trainer of the tiny policy with an adapter, and a step.

    Args:
        folder: for the output.
        given: fields.
        dataset: rows; None takes letters.
        runs: whether to go on when the config is taken.
        reward: its function.
        tokenizer: None takes the tiny one.
        options: further arguments of the trainer.
    """
    AcceleratorState._reset_state(True)
    out, caught, stage = folder / "out", Caught(), "config"
    with caught, within(SECONDS):
        config = GRPOExtConfig(**{"output_dir": str(out), **BASE, **given})
        if not runs:
            return Outcome(stage)
        stage = "trainer"
        rows = Dataset.from_dict({"prompt": LETTERS}) if dataset is None else dataset
        policy, _ = tiny_policy(lora_r=2, hidden_size=16, num_hidden_layers=1)
        options["processing_class"] = tokenizer or tiny_tokenizer()
        trainer = GRPOExtTrainer(policy, reward, config, rows, **options)
        stage = "training"
        trainer.train()
        assert trainer.state.global_step > 0 or config.num_train_epochs == 0, "trained for no step"
    if caught.error is None:
        return Outcome("ran")
    return Outcome(stage, caught.error, tuple(str(path) for path in out.rglob("*") if path.is_file()))


def verdict(found: Outcome, *names: str) -> str:
    """What an outcome is: "ran", "ours" or "host".

    Args:
        found: the outcome.
        names: of fields or columns, one of which a sentence must hold.

    Raises:
        AssertionError: it is none of these, but a traceback, a hang or half of an output.
    """
    error = found.error
    if error is None:
        return "ran"
    assert not found.written, f"half an output: {found.written}"
    text = str(error)
    told = f"{found.stage}: {type(error).__name__} from {found.frame}: {text}"
    if "/grpo_ext/" not in found.frame and any(re.search(pattern, text) for pattern in HOST_SENTENCES):
        assert isinstance(error, ValueError | TypeError | ImportError), told
        return "host"
    assert isinstance(error, ValueError | TypeError | OSError | RunStopped), told
    assert "/grpo_ext/" in found.frame, told
    assert "\n" not in text and text.rstrip().endswith((".", "?")), told
    assert any(name in text for name in names), told
    return "ours"
