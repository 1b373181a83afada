"""Passes that run out of memory, run again in parts with the gradient of the whole.

The rows of a pass are independent of each other, and the loss sees only their log-probabilities. So passes over fewer
rows change no number of the loss, whatever it divides by. The parts run under activation checkpointing: each is
forwarded once for its log-probabilities, and once more in its own backward pass.
"""

import logging
from typing import Any, NoReturn

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grpo_ext.faults import RunStopped, first_line
from grpo_ext.scoring.head import Head
from grpo_ext.trainer.packed import PackedTrainer
from grpo_ext.trainer.scored import Scores

logger = logging.getLogger("grpo_ext")

# Metrics of a micro-batch that are logged once, however often its loss runs
ONCE = "sampling/"
# What is counted with each loss
COUNTED = ("_losses", "_kl_of_step")
# What a micro-batch found when its forward pass began: those counts, and how many values each metric had
Mark = tuple[dict[str, Any], dict[str, int]]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error is a device or the host running out of memory.

    Args:
        error: of torch.
    """
    if isinstance(error, RunStopped):
        return False
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


class FittingTrainer(PackedTrainer):
    """Halves the rows of a pass that does not fit into memory, and runs it again.

    A backward pass that fails has left a part of its gradient, so the step begins anew, from completions that are
    there. The smaller size holds for the rest of the run.

    Raises:
        RunStopped: memory runs out where rows cannot be split further.
        RuntimeError: likewise with several processes, of which one alone runs out: torch's own, with a note.
    """

    # Set by TRL; declared because its assignments carry no type
    _step: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Most rows of a pass and times they were halved, with gradients (True) and without
        self._most_rows: dict[bool, int] = {}
        self._halvings = {True: 0, False: 0}
        # Rows of the pass that may run out, which a pack has of several micro-batches
        self._tried = 0
        self._whole: str | None = None
        self._mark: Mark | None = None
        # Micro-batches of the optimizer step so far, and the one that is run again
        self._done: list[dict[str, Any] | None] = []
        self._served: dict[str, Any] | None = None

    # Forward passes

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **extra: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        gradient = torch.is_grad_enabled()
        self._whole = self._indivisible(gradient, compute_aux_loss, extra)
        if gradient:
            lengths = {name: len(values) for name, values in self._metrics["train"].items()}
            self._mark = {name: getattr(self, name) for name in COUNTED}, lengths
        rows = (model, input_ids, attention_mask, logits_to_keep)
        options = {"compute_entropy": compute_entropy, "compute_aux_loss": compute_aux_loss, **extra}
        while True:
            most = min(self._most_rows.get(gradient, len(input_ids)), len(input_ids))
            self._tried = most if gradient else min(batch_size or most, most)
            try:
                if not gradient:
                    return super()._get_per_token_logps_and_entropies(*rows, batch_size=self._tried, **options)
                if most == len(input_ids):
                    return super()._get_per_token_logps_and_entropies(*rows, batch_size=batch_size, **options)
                return *self._score_in_parts(*rows, most, compute_entropy), None
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(gradient, error)
            # Only here are the frames of the error gone, with what they held
            clear_device_cache(garbage_collection=True)

    def _score_in_parts(self, model: Any, ids: Tensor, mask: Tensor, keep: int, most: int, entropy: bool) -> Scores:
        score = super()._get_per_token_logps_and_entropies

        def part(ids: Tensor, mask: Tensor) -> Scores:
            self._tried = len(ids)
            return score(model, ids, mask, keep, compute_entropy=entropy)[:2]

        pairs = zip(ids.split(most), mask.split(most), strict=True)
        found = [checkpoint(part, *pair, use_reentrant=False) for pair in pairs]
        entropies = [values for _, values in found if values is not None]
        return torch.cat([logps for logps, _ in found]), torch.cat(entropies) if entropies else None

    def _score_shared(self, *batch: Any) -> Scores:
        scores = super()._score_shared(*batch)
        # The backward of each of its micro-batches may run out while the pack holds its activations
        self._tried = len(self._shared or scores[0])
        return scores

    def _score_alive(self, model: Any, head: Head, ids: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        self._tried = len(ids)
        return super()._score_alive(model, head, ids, *rest)

    def _rows_in_pack(self, ids: Tensor, mask: Tensor, keep: int, size: int) -> int:
        rows = super()._rows_in_pack(ids, mask, keep, size)
        self._tried = min(rows, len(ids), self._most_rows.get(torch.is_grad_enabled(), rows))
        return self._tried

    def _coming(self, ids: Tensor) -> list[dict[str, Tensor]]:
        found = super()._coming(ids)
        most = self._most_rows.get(True)
        found = found if most is None else found[: max(1, most // len(ids))]
        # The check of the tree takes from all of them
        self._tried = max(1, len(found)) * len(ids)
        return found

    # Running out

    def _indivisible(self, gradient: bool, compute_aux_loss: bool, extra: dict[str, Any]) -> str | None:
        """Why a pass cannot be run in parts, as the end of a sentence, or None."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return "under FSDP and DeepSpeed all processes run as many passes"
        if not gradient:
            return None
        if self.accelerator.num_processes > 1:
            return "with several processes each runs one backward pass a micro-batch, whose gradients are averaged"
        if compute_aux_loss:
            return "its router loss is of the whole micro-batch"
        if any(value is not None for value in extra.values()):
            return "a micro-batch of more than text is not split"
        return None

    def _halve(self, gradient: bool, error: RuntimeError) -> None:
        kind = "with" if gradient else "without"
        step, limit = self.state.global_step + 1, self.args.max_memory_halvings
        reason = self._whole
        if reason is None and self._tried <= 1:
            reason = "it holds a single completion"
        elif reason is None and limit is not None and self._halvings[gradient] >= limit:
            reason = f"`max_memory_halvings` is {limit}"
        if reason is not None:
            self._give_up(
                f"Step {step}: memory is too small for a pass {kind} gradients over {self._tried} completions, which "
                f"is not halved, because {reason}; lower `per_device_train_batch_size`, `max_completion_length` or "
                "`scoring_tokens`.",
                error,
            )
        self._halvings[gradient] += 1
        self._most_rows[gradient] = -(-self._tried // 2)
        logger.warning(
            "Step %d: memory is too small for a pass %s gradients over %d completions, so from now on one has at most "
            "%d; loss and gradient stay those of the whole.",
            step,
            kind,
            self._tried,
            self._most_rows[gradient],
        )

    def _give_up(self, sentence: str, error: RuntimeError) -> NoReturn:
        if self.accelerator.num_processes == 1:
            raise RunStopped(sentence) from error
        # The other processes go on, so this one cannot save a checkpoint with them
        error.add_note(sentence)
        raise error

    # The step again

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        return super()._prepare_inputs(generation_batch) if self._served is None else self._served

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._done = []
        return super().train(*args, **kwargs)

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        at, mark = self._step, None
        try:
            while True:
                self._mark = None
                try:
                    if mark is not None:
                        self._run_again(at, mark, model, *args, **kwargs)
                    loss = super().training_step(model, *args, **kwargs)
                    break
                except RuntimeError as error:
                    self._step = at
                    if not is_out_of_memory(error):
                        raise
                    mark = mark or self._mark
                    self._halve_step(mark, error)
                self._shared = None
                model.zero_grad()
                clear_device_cache(garbage_collection=True)
        finally:
            self._served = None
        self._done = [] if self.accelerator.sync_gradients else [*self._done, self._micro_batch(at)]
        return loss

    def _micro_batch(self, step: int) -> dict[str, Any] | None:
        """What a micro-batch of the newest generation is made of."""
        return None if self._buffered_inputs is None else self._buffered_inputs[step % self.args.steps_per_generation]

    def _halve_step(self, mark: Mark | None, error: RuntimeError) -> None:
        if mark is None:
            self._give_up(
                f"Step {self.state.global_step + 1}: memory ran out outside the policy's own passes, for example "
                f"while completions were made ({first_line(error)}); lower `per_device_train_batch_size`, "
                "`num_generations`, `max_completion_length` or `vllm_gpu_memory_utilization`.",
                error,
            )
        if self._whole is None and self.args.use_adaptive_entropy:
            self._whole = "`use_adaptive_entropy` has counted its entropy already"
        self._halve(True, error)

    def _run_again(self, at: int, mark: Mark, *args: Any, **kwargs: Any) -> None:
        """The micro-batches of the optimizer step before this one; what they log is there already."""
        gradient_state = self.accelerator.gradient_state
        last = gradient_state.sync_gradients
        gradient_state.sync_gradients = False
        try:
            for place, micro_batch in enumerate(self._done):
                self._step, self._served = at - len(self._done) + place, micro_batch
                super().training_step(*args, **kwargs)
        finally:
            gradient_state.sync_gradients = last
        self._step, self._served = at, self._micro_batch(at)
        self._cut(mark)

    def _cut(self, mark: Mark) -> None:
        counts, lengths = mark
        for name, count in counts.items():
            setattr(self, name, count)
        for name, values in self._metrics["train"].items():
            if not name.startswith(ONCE):
                del values[lengths.get(name, 0) :]
