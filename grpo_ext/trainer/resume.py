"""Checkpoints that a run goes on from as if it had never stopped.

transformers keeps weights, optimizer, schedule, random states, its own state and the place in the data. What is kept
here is the rest of a GRPO run: the place in the generation block, its completions, groups that wait, the order of
prompts, beta, and the numbers that are logged as means over several steps.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable
from inspect import unwrap
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import IterableDataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_ext import compat
from grpo_ext.checkpoints import Stateful, copied, pack, unpack
from grpo_ext.rollouts.resampling import Group, PromptStream
from grpo_ext.trainer.iterations import IterativeTrainer
from grpo_ext.trainer.resampled import COLUMNS

logger = logging.getLogger("grpo_ext")

STATE_FILE = "grpo_ext_state.json"
SYNCED_FILE = "synced_reference.safetensors"
# Fields that say what a micro-batch is; completions of a run with others cannot be gone on with
LAYOUT = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "num_iterations",
    "num_generations",
)


class _Moments(TrainerCallback):
    """Tells the trainer of two moments that it has no method for."""

    def __init__(self, begin: Callable[[], None], epoch: Callable[[], None]) -> None:
        self._begin, self._epoch = begin, epoch

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._begin()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._epoch()


class ResumableTrainer(IterativeTrainer):
    """Saves all of a run's state with each checkpoint, and takes it up again.

    Parts whose state only they know (a reward function, a process reward, a callback) are kept with the run where they
    have `state_dict` and `load_state_dict`.
    """

    def __init__(self, model: Any, reward_funcs: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, reward_funcs, *args, **kwargs)
        self._sampler: Any = None
        self._sampler_at_epoch: Tensor | None = None
        self._losses_left: dict[str, float] | None = None
        self.add_callback(_Moments(self._take_up_losses, self._note_sampler))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._losses_left = None
        return super().train(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self._save_state(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}")

    # Data and losses

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        self._sampler = super()._get_train_sampler(*args, **kwargs)
        return self._sampler

    def _sampler_state(self) -> Tensor | None:
        """TRL's sampler draws an order an epoch, from a generator of its own that a new trainer begins anew."""
        generator = getattr(self._sampler, "generator", None)
        return None if generator is None else generator.get_state()

    def _note_sampler(self) -> None:
        self._sampler_at_epoch = self._sampler_state()

    def _take_up_losses(self) -> None:
        if self._losses_left is not None:
            compat.set_losses(self, self._losses_left)
            self._losses_left = None

    # What is saved

    def _state_path(self, folder: Path) -> Path:
        index = self.accelerator.process_index
        return folder / (STATE_FILE if index == 0 else STATE_FILE.replace(".json", f"_{index}.json"))

    def _layout(self) -> dict[str, int]:
        layout = {name: getattr(self.args, name) for name in LAYOUT}
        return {"processes": self.accelerator.num_processes, **layout}

    def _save_state(self, folder: Path) -> None:
        tensors: dict[str, Tensor] = {}
        state: dict[str, Any] = {"beta": self.beta, "step": self._step, "layout": self._layout(), "lost": {}}
        for name, (give, _) in self._parts_of_state().items():
            try:
                state[name] = pack(give(), tensors)
            except TypeError as error:
                state["lost"][name] = str(error)
        # With `save_only_model` transformers makes the folder on the main process alone
        folder.mkdir(parents=True, exist_ok=True)
        path = self._state_path(folder)
        save_file(tensors, path.with_suffix(".safetensors"))
        path.write_text(json.dumps(state), encoding="utf-8")
        if self._keeps_reference() and self.args.should_save:
            held = {name: weight.detach().cpu().contiguous() for name, weight in self._reference().items()}
            save_file(held, folder / SYNCED_FILE)

    def _parts_of_state(self) -> dict[str, tuple[Callable[[], Any], Callable[[Any], None]]]:
        """Name of a part to what gives its state, which later steps leave as it is, and what takes it up."""
        return {
            "completions": (self._block, self._take_up_block),
            "groups that wait": (self._waiting_groups, self._take_up_groups),
            "order of resampled prompts": (self._order, self._take_up_order),
            "order of prompts": (self._epoch_order, self._take_up_epoch_order),
            "metrics since the last log": (lambda: copied(self._metrics), self._take_up_metrics),
            "generated tokens": (lambda: self.generated_tokens, self._take_up_generated_tokens),
            "skipped steps": (lambda: (self.skipped_steps, self._skipped_in_a_row), self._take_up_skipped),
            "losses since the last log": (lambda: compat.losses(self), self._take_up_later),
            "table of completions": (self._table, self._take_up_table),
            "state of rewards and callbacks": (self._own_states, self._take_up_own_states),
        }

    def _block(self) -> list[dict[str, Any]] | None:
        """Completions that later steps train on; none at the end of a generation block."""
        ended = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        # A forward pass may add to a micro-batch
        return None if ended or self._buffered_inputs is None else [dict(part) for part in self._buffered_inputs]

    def _waiting_groups(self) -> list[tuple[Any, ...]]:
        return [(dict(group.rows), group.live, group.carried) for group in self._carried]

    def _order(self) -> dict[str, Any] | None:
        return None if self._stream is None else self._stream.state_dict()

    def _epoch_order(self) -> Tensor | None:
        # A whole number of epochs: the next one draws its own
        between = float(self.state.epoch or 0).is_integer()
        return self._sampler_state() if between else self._sampler_at_epoch

    def _table(self) -> dict[str, Any]:
        table: dict[str, Any] = {"rewards": {}, "extra": {}}
        for (*kind, name), column in self._logged_columns().items():
            (table[kind[0]] if kind else table)[name] = list(column)
        return table

    def _own_parts(self) -> dict[str, Stateful]:
        """What has a state of its own. Weights of a reward model are its own file's, and rounds save themselves."""
        found = {f"reward {i}": unwrap(function) for i, function in enumerate(self.reward_funcs)}
        found["process reward"] = self._process_reward
        met: Counter[str] = Counter()
        for callback in self.callback_handler.callbacks:
            name = type(callback).__name__
            met[name] += 1
            found[name if met[name] == 1 else f"{name} {met[name]}"] = callback
        return {
            name: part
            for name, part in found.items()
            if isinstance(part, Stateful) and not isinstance(part, torch.nn.Module | type)
        }

    def _own_states(self) -> dict[str, Any]:
        return {name: copied(part.state_dict()) for name, part in self._own_parts().items()}

    def _keeps_reference(self) -> bool:
        return self.args.sync_ref_model and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    # What is taken up

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        lost = self._take_up(Path(checkpoint))
        if lost:
            logger.warning(
                "Resume: at step %d of %s without %s, so from here on the run may differ from an uninterrupted one.",
                self.state.global_step,
                checkpoint,
                "; ".join(lost),
            )

    def _take_up(self, folder: Path) -> list[str]:
        """Restore what a checkpoint holds; returns what it does not."""
        path, first = self._state_path(folder), folder / STATE_FILE
        own = path.is_file()
        # Completions of some processes alone would leave them waiting for the others
        whole = all(gather_object([own]))
        # What all processes share is in each file, and a further process has none
        path = path if own else first
        if not path.is_file():
            return ["the state of the generation block, of which it has no file for this process"]
        state = json.loads(path.read_text(encoding="utf-8"))
        self.beta = state["beta"]
        if "layout" not in state:
            return ["the state of the generation block, which an earlier version did not save"]
        changed = {name: old for name, old in state["layout"].items() if self._layout()[name] != old}
        lost = [f"{name} ({reason})" for name, reason in state["lost"].items()]
        parts = self._parts_of_state()
        if changed or not whole:
            reasons = [f"because `{name}` was {old}" for name, old in changed.items()]
            lost += [f"its completions, {why}" for why in reasons or ["of which a process has no file"]]
            parts = {name: part for name, part in parts.items() if name not in ("completions", "groups that wait")}
        else:
            self._step = self._window_start = state["step"]
        tensors = load_file(path.with_suffix(".safetensors"))
        for name, (_, take_up) in parts.items():
            if name in state and state[name] is not None:
                take_up(unpack(state[name], tensors))
        if self._keeps_reference():
            saved = load_file(folder / SYNCED_FILE)
            with torch.no_grad():
                for name, weight in self._reference().items():
                    weight.copy_(saved[name])
        return lost + self._beyond_us()

    def _beyond_us(self) -> list[str]:
        """Parts of this run whose state is kept elsewhere."""
        streamed = isinstance(self.train_dataset, IterableDataset)
        parts = {
            # transformers does not know how long a pass was
            "its place in a streamed dataset, which had begun again": streamed and (self.state.epoch or 0) >= 1,
            "vLLM's random state": self.use_vllm,
            "what `rollout_func` keeps": self.rollout_func is not None,
            "what tools and environments keep": bool(self.tools) or self.environment_factories is not None,
            "the reference of `sync_ref_model`, which is sharded": self.args.sync_ref_model
            and not self._keeps_reference(),
        }
        return [name for name, is_there in parts.items() if is_there]

    def _take_up_block(self, block: list[dict[str, Any]]) -> None:
        self._buffered_inputs = _on(self.accelerator.device, block)

    def _take_up_groups(self, groups: list[tuple[Any, ...]]) -> None:
        self._carried = [Group(_on(self.accelerator.device, rows), *marks) for rows, *marks in groups]

    def _take_up_order(self, state: dict[str, Any]) -> None:
        self._stream = PromptStream(len(self.train_dataset), seed=0)
        self._stream.load_state_dict(state)

    def _take_up_epoch_order(self, state: Tensor) -> None:
        self._sampler.generator.set_state(state)

    def _take_up_metrics(self, metrics: dict[str, dict[str, list[float]]]) -> None:
        for mode, values in metrics.items():
            self._metrics[mode].clear()
            self._metrics[mode].update(values)

    def _take_up_generated_tokens(self, count: int) -> None:
        self.generated_tokens = count

    def _take_up_skipped(self, counts: tuple[int, int]) -> None:
        self.skipped_steps, self._skipped_in_a_row = counts

    def _take_up_later(self, losses: dict[str, float]) -> None:
        # transformers sets them to zero after this
        self._losses_left = losses

    def _take_up_table(self, table: dict[str, Any]) -> None:
        columns = [(self._logs[name], table[name]) for name in COLUMNS]
        for kind in ("rewards", "extra"):
            columns += [(self._logs[kind][name], rows) for name, rows in table[kind].items()]
        for column, rows in columns:
            column.clear()
            column.extend(rows)

    def _take_up_own_states(self, states: dict[str, Any]) -> None:
        for name, part in self._own_parts().items():
            if name in states:
                part.load_state_dict(states[name])


def _on(device: torch.device, value: Any) -> Any:
    tensors: dict[str, Tensor] = {}
    return unpack(pack(value, tensors), tensors, device)
