"""The clean stop: an exception in a step reaches the caller after the step before it has been saved.

Between the end of a step and the fault the weights stay as they are, and the rest moves on: random states, the place
in the generation block, its completions, numbers that wait to be logged. So that rest is kept at the end of each step.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_ext import compat
from grpo_ext.checkpoints import MANIFEST, flaw
from grpo_ext.faults import Caught, RunStopped
from grpo_ext.randomness import random_states
from grpo_ext.trainer.resume import ResumableTrainer

# Of our trainer, and of transformers' state, that a step changes before its end
OWN = ("_step", "beta", "_round_now")
COUNTS = ("num_input_tokens_seen", "total_flos")
# Parts that the beginning of a round changes
OF_A_ROUND = ("completions", "groups that wait", "metrics since the last log")


@dataclass(frozen=True)
class Kept:
    """What the end of a step left.

    Attributes:
        parts: what `_parts_of_state` gave.
        attributes: attributes of the trainer.
        counts: attributes of its state.
        put_back: puts the random states back.
    """

    parts: dict[str, Any]
    attributes: dict[str, Any]
    counts: dict[str, Any]
    put_back: Callable[[], None]


class _Steps(TrainerCallback):
    """Tells the trainer when a step ends, when what follows it is done, and when the weights are about to change."""

    def __init__(self, keep: Callable[[bool], None], forget: Callable[[], None]) -> None:
        self._keep, self._forget = keep, forget
        self._epoch_has_begun = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._forget()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._keep(True)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._keep(False)
        self._epoch_has_begun = True

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The first step of an epoch begins after its order was drawn, which a resumed run draws again
        if not self._epoch_has_begun:
            self._keep(False)
        self._epoch_has_begun = False


class StoppableTrainer(ResumableTrainer):
    """Saves the last complete step when an exception ends the training, and adds a note that names the checkpoint.

    Ctrl-C is no fault: the first one saves by itself, the second one means at once. With several processes only a
    `RunStopped`, which is raised on all of them, is followed by a checkpoint, because all save it together.
    """

    # Of the last step that was completed here; None while the optimizer changes the weights
    _kept: Kept | None = None
    _gives_kept = False
    _began = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(_Steps(self._keep_step, self._forget))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._forget()
        self._gives_kept = False
        self._began = time.time()
        with ExitStack() as stack:
            stack.push(self._before_it_goes_on)
            return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        # After the step was logged
        self._keep_step(False)
        return super().evaluate(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        if self.is_deepspeed_enabled and self.model.training and self.accelerator.sync_gradients:
            # Its backward pass also updates the weights
            self._forget()
        return loss

    def _begin_round(self, number: int) -> None:
        super()._begin_round(number)
        if self._kept is None:
            return
        # What was trained for the round is not trained again; an epoch may have begun, so nothing else is kept anew
        parts = super()._parts_of_state()
        self._kept.parts.update({name: parts[name][0]() for name in OF_A_ROUND})
        self._kept.attributes["_round_now"] = self._round_now

    # The end of a step

    def _keep_step(self, complete: bool) -> None:
        """Keep what is there at the end of a step, again where more of it has been done."""
        if self._kept is None and not complete:
            return
        parts = {}
        for name, (give, _) in super()._parts_of_state().items():
            # What cannot be kept in a checkpoint is named when it is saved
            with suppress(TypeError):
                parts[name] = give()
        self._kept = Kept(
            parts,
            {**{name: getattr(self, name) for name in OWN}, **compat.step_numbers(self)},
            {name: getattr(self.state, name) for name in COUNTS},
            random_states(),
        )

    def _forget(self) -> None:
        self._kept = None

    def _parts_of_state(self) -> dict[str, tuple[Callable[[], Any], Callable[[Any], None]]]:
        parts = super()._parts_of_state()
        if self._kept is None or not self._gives_kept:
            return parts
        kept = self._kept.parts
        return {
            name: (partial(kept.get, name) if name in kept else give, take_up)
            for name, (give, take_up) in parts.items()
        }

    # The fault

    def _before_it_goes_on(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            error.add_note(self._save_last(error))
        self._forget()

    def _save_last(self, error: Exception) -> str:
        """Save the last complete step where it is not saved; the sentence that says so."""
        if self._kept is None:
            return "There is no checkpoint of the last step, because none was complete or its update had begun."
        step = self.state.global_step
        folder = Path(self._get_output_dir(None)) / f"checkpoint-{step}"
        resume = f"Resume with: --resume_from_checkpoint {folder}"
        saved = self._is_saved(folder)
        if self.accelerator.num_processes > 1:
            if not isinstance(error, RunStopped):
                return f"Step {step} is not saved, because a checkpoint is made by all processes, and others go on."
            # The others may not see the first one's disk
            saved = gather_object([saved])[0]
        if saved:
            return f"Stopped after step {step}. {resume}"
        with Caught() as caught:
            self._go_back(self._kept)
            self._save_checkpoint(self.model_wrapped, None)
        if self.accelerator.is_main_process and not self._is_saved(folder):
            return f"Step {step} could not be saved in {folder} ({caught.error})."
        return f"Stopped after step {step}, which was saved. {resume}"

    def _is_saved(self, folder: Path) -> bool:
        """Whether a whole checkpoint is there that this run has made, not one before it."""
        # Some file systems know whole seconds alone
        return flaw(folder) is None and (folder / MANIFEST).stat().st_mtime >= int(self._began)

    def _go_back(self, kept: Kept) -> None:
        self._gives_kept = True
        for owner, values in ((self, kept.attributes), (self.state, kept.counts)):
            for name, value in values.items():
                setattr(owner, name, value)
        kept.put_back()
