"""DeepSeekMath's outer loop (2402.03300, Algorithm 1): rounds that each begin with a renewed reference.

A round is `steps_per_round` optimizer steps. Before its first one the reference becomes a copy of the policy, and what
hangs on `round_update` is called, such as further training of a reward model. The rounds are one training run: the
optimizer's moments and the learning-rate schedule go on over all of them, for the paper names no restart.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from grpo_ext.compat import load_trained_adapter
from grpo_ext.models.reference import REFERENCE, reference_weights, renew_reference
from grpo_ext.randomness import random_states_kept
from grpo_ext.trainer.resampled import ResampledTrainer

logger = logging.getLogger("grpo_ext")

ROUND_FILE = "round.json"
REFERENCE_FILE = "reference.safetensors"


class RoundUpdate(Protocol):
    """What is done at the start of each round beside renewing the reference, and can be taken up again."""

    def begin(self, number: int, trainer: Any) -> dict[str, float]:
        """Do it for round `number`, from 0, and return numbers for the log. Random states are put back afterwards."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep, as JSON."""
        ...

    def restore(self, state: dict[str, Any], trainer: Any) -> None:
        """Take up what `state` gave."""
        ...


@contextmanager
def undisturbed(accelerator: Accelerator) -> Iterator[None]:
    """Put back random states and accelerate's flag of the step, so that a run goes on as if nothing had happened.

    Another trainer that runs inside a step would draw from the same generators and leave its own flag.
    """
    sync = accelerator.gradient_state.sync_gradients
    try:
        with random_states_kept():
            yield
    finally:
        accelerator.gradient_state.sync_gradients = sync


class IterativeTrainer(ResampledTrainer):
    """Begins a round where one is due, and saves the state of the loop with each checkpoint.

    Attributes:
        round_update: begun with each round, the first one included, which is the whole of a run without rounds; None:
            the reference alone is renewed.
    """

    round_update: RoundUpdate | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._round_now = -1
        if self.args.num_rounds > 1:
            self._check_rounds()
            self._add_reference()

    def _check_rounds(self) -> None:
        name = f"`num_rounds` is {self.args.num_rounds}, but"
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(f"{name} under FSDP and DeepSpeed the policy is not copied; use DDP or one process.")

    def _add_reference(self) -> None:
        """A new adapter has the base model for its reference, which cannot be renewed; so it gets one of its own."""
        policy = self.accelerator.unwrap_model(self.model)
        if isinstance(policy, PeftModel) and self.beta != 0.0 and REFERENCE not in policy.peft_config:
            renew_reference(policy, policy.active_adapter)

    @property
    def _in_rounds(self) -> bool:
        return self.args.num_rounds > 1 or self.round_update is not None

    # The reference

    def _reference(self) -> dict[str, Tensor]:
        """Weights of the reference by name: those of its adapter, or of its model; none where beta is 0."""
        policy = self.accelerator.unwrap_model(self.model)
        if isinstance(policy, PeftModel):
            return reference_weights(policy)
        return {} if self.ref_model is None else dict(self.accelerator.unwrap_model(self.ref_model).named_parameters())

    @torch.no_grad()
    def renew_reference(self) -> None:
        """Make the reference a copy of the policy, and forget completions that were scored by the old one."""
        policy, reference = self.accelerator.unwrap_model(self.model), self._reference()
        if isinstance(policy, PeftModel) and reference:
            renew_reference(policy, policy.active_adapter)
        elif reference:
            for name, weight in policy.named_parameters():
                reference[name].copy_(weight)
        self._buffered_inputs = None
        self._carried = []

    # Rounds

    def _due(self) -> int:
        """Number of the round that the next optimizer step belongs to, from 0."""
        steps = self.args.steps_per_round
        return 0 if steps is None else min(self.state.global_step // steps, self.args.num_rounds - 1)

    def _begin_round(self, number: int) -> None:
        self._round_now = number
        if self.args.num_rounds > 1:
            logger.info("Round %d of %d: the reference is the policy of now.", number + 1, self.args.num_rounds)
            self.renew_reference()
        with undisturbed(self.accelerator):
            found = {} if self.round_update is None else self.round_update.begin(number, self)
        for name, value in found.items():
            self._metrics["train"][f"rounds/{name}"].append(value)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._in_rounds:
            if self._due() > self._round_now:
                self._begin_round(self._due())
            self._metrics["train"]["rounds/round"].append(float(self._round_now + 1))
        return super().training_step(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if self.args.num_rounds > 1 and self.beta == 0.0 and self.round_update is None:
            raise ValueError(
                f"`num_rounds` is {self.args.num_rounds}, but with `beta` 0 there is no reference to renew, and "
                "nothing else is done between rounds; set beta above 0, or `round_update` of the trainer."
            )
        self._round_now = -1
        return super().train(*args, **kwargs)

    # State

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if not self._in_rounds or not self.args.should_save:
            return
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        reference = self._reference() if self.args.num_rounds > 1 else {}
        held = {name: weight.detach().cpu().contiguous() for name, weight in reference.items()}
        save_file(held, folder / REFERENCE_FILE)
        state = {
            "round": self._round_now,
            "steps_per_round": self.args.steps_per_round,
            "update": None if self.round_update is None else self.round_update.state(),
        }
        (folder / ROUND_FILE).write_text(json.dumps(state, indent=1))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        load_trained_adapter(self.accelerator.unwrap_model(self.model), checkpoint)
        if self._in_rounds:
            self._restore_round(Path(checkpoint))

    def _restore_round(self, folder: Path) -> None:
        if not (folder / ROUND_FILE).is_file():
            raise ValueError(
                f"`num_rounds` is {self.args.num_rounds}, but {folder} has no {ROUND_FILE}, so it is of a run without "
                "rounds and updates; resume a checkpoint of a run with them, or start anew."
            )
        state = json.loads((folder / ROUND_FILE).read_text())
        if state["steps_per_round"] != self.args.steps_per_round:
            raise ValueError(
                f"`steps_per_round` is {self.args.steps_per_round}, but {folder} is of a run with "
                f"{state['steps_per_round']}; set that number, or start anew."
            )
        saved = load_file(folder / REFERENCE_FILE)
        with torch.no_grad():
            for name, weight in (self._reference() if saved else {}).items():
                weight.copy_(saved[name])
        self._round_now = state["round"]
        if self.round_update is not None and state["update"] is not None:
            self.round_update.restore(state["update"], self)
