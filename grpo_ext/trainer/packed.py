"""Passes over a tree: the budget of a pack, one pass for the micro-batches of a step, dead rows without gradient."""

import logging
import math
from typing import Any

import torch
from torch import Tensor

from grpo_ext.scoring.check import check_tree
from grpo_ext.scoring.head import Head
from grpo_ext.scoring.tree import rows_of, token_tree
from grpo_ext.trainer.scored import ScoredTrainer, Scores
from grpo_ext.trainer.shared import SharedForward

logger = logging.getLogger("grpo_ext")


class PackedTrainer(ScoredTrainer):
    """Scores rows in packs over a tree where the run takes one, and a step's micro-batches in as few as fit."""

    # Set by TRL; declared because its assignments carry no type
    _buffered_inputs: list[dict[str, Any]] | None
    beta: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shared: SharedForward | None = None
        self._checked: set[int] = set()
        self._window_start = 0

    def _score_rows(
        self, model: Any, head: Head, ids: Tensor, mask: Tensor, keep: int, size: int, entropy: bool
    ) -> Scores:
        if self._scorer == "tree" and id(self._bare(model)) not in self._checked:
            self._check_tree(model, head, ids, mask, keep)
        if self._scorer == "tree":
            if torch.is_grad_enabled() and self.model.training:
                return self._score_shared(model, head, ids, mask, keep)
            size = self._rows_in_pack(ids, mask, keep, size)
        return super()._score_rows(model, head, ids, mask, keep, size, entropy)

    # Packs

    def _packed(self, ids: Tensor, mask: Tensor, keep: int) -> int:
        """Tokens of the rows as one tree."""
        return len(token_tree(*rows_of(ids, mask, keep), keep))

    def _budget(self, padded_tokens: int) -> int:
        """Tokens that a pack may hold: by default a quarter more than a padded micro-batch, which saves its logits."""
        return self.args.scoring_tokens or padded_tokens + padded_tokens // 4

    def _rows_in_pack(self, ids: Tensor, mask: Tensor, keep: int, size: int) -> int:
        """Rows of a pass without gradient: as few packs as the budget asks for, whole groups where they fit."""
        packs = math.ceil(self._packed(ids, mask, keep) / self._budget(size * ids.size(1)))
        group = self._group_size
        rows = math.ceil(len(ids) / max(packs, 1))
        return math.ceil(rows / group) * group if rows >= group else rows

    def _check_tree(self, model: Any, head: Head, ids: Tensor, mask: Tensor, keep: int) -> None:
        # A micro-batch may be a single row; with those that follow there are rows that share a prompt
        parts = (self._coming(ids) if self.model.training else []) or [{"ids": ids, "mask": mask}]
        ids, mask = _column(parts, "ids"), _column(parts, "mask")
        # Not through DDP, which broadcasts buffers in a pass: a process without a completion compares nothing
        bare = self.accelerator.unwrap_model(model)
        try:
            with self.accelerator.autocast():
                compared = check_tree(bare, head, ids, mask, keep, self.args.scoring_attention)
        except NotImplementedError as error:
            self._leave_tree(str(error))
            return
        if not compared:
            return
        packed = self._packed(ids, mask, keep)
        if not self._checked:
            saved = ids.numel() / max(packed, 1)
            logger.info("Scoring: tree, %s tokens for the %s of padded rows (%.1fx).", packed, ids.numel(), saved)
        self._checked.add(id(self._bare(model)))

    # One pass for a step

    def _score_shared(self, model: Any, head: Head, ids: Tensor, mask: Tensor, keep: int) -> Scores:
        """The policy's own pass, shared by as many of the coming micro-batches as the budget allows."""
        if self._shared is None or not self._shared.is_next(ids):
            self._finish_shared()
            self._shared = self._forward_ahead(model, head, ids, mask, keep)
        values, others = self._shared.take()
        return values[0], (values + others)[1]

    def _forward_ahead(self, model: Any, head: Head, ids: Tensor, mask: Tensor, keep: int) -> SharedForward:
        parts = self._coming(ids) or [{"ids": ids, "mask": mask}]
        budget = self._budget(ids.numel())
        packs = math.ceil(self._packed(_column(parts, "ids"), _column(parts, "mask"), keep) / budget)
        parts = parts[: math.ceil(len(parts) / max(packs, 1))]
        ids, mask = _column(parts, "ids"), _column(parts, "mask")
        differentiated = self.entropy_coef != 0.0 or self.use_adaptive_entropy
        if "advantages" in parts[0] and not differentiated and self._dead_rows_are_idle():
            advantages = _column(parts, "advantages")
            alive = advantages.reshape(len(advantages), -1).any(1)
        else:
            alive = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        logps, entropies = self._score_alive(model, head, ids, mask, keep, alive, differentiated)
        if differentiated:
            return SharedForward(ids, [logps, entropies], [], len(parts))
        return SharedForward(ids, [logps], [entropies], len(parts))

    def _dead_rows_are_idle(self) -> bool:
        """Whether a row whose advantages are all 0 has no gradient: no KL term, and no loss but TRL's and ours."""
        losses = (self._compute_loss, self.compute_loss)
        return self.beta == 0.0 and all(loss.__module__.split(".")[0] in ("grpo_ext", "trl") for loss in losses)

    def _score_alive(
        self, model: Any, head: Head, ids: Tensor, mask: Tensor, keep: int, alive: Tensor, differentiated: bool
    ) -> tuple[Tensor, Tensor]:
        """Scores of all rows, with gradients where `alive`; the others are scored for the metrics alone."""
        found: list[tuple[Tensor, Tensor]] = []
        for rows, gradient in ((alive, True), (~alive, False)):
            if rows.any():
                # DDP broadcasts buffers in each forward, and processes differ in which rows are dead
                scored_by = model if gradient else self.accelerator.unwrap_model(model)
                with torch.set_grad_enabled(gradient):
                    logps, entropies = self._score(
                        "tree", scored_by, head, ids[rows], mask[rows], keep, True, differentiated
                    )
                assert entropies is not None
                found.append((logps, entropies))
        order = torch.cat([alive.nonzero(), (~alive).nonzero()]).squeeze(1).argsort()
        logps, entropies = (torch.cat(column)[order] for column in zip(*found, strict=True))
        if not alive.any():
            # Nothing to score, yet connected to the model, as the backward pass asks for
            zeros, _ = self._score("padded", model, head, ids[:1], torch.zeros_like(mask[:1]), keep)
            logps = logps + zeros.sum()
        return logps, entropies

    def _coming(self, ids: Tensor) -> list[dict[str, Tensor]]:
        """This micro-batch and those that follow in the optimiser step, from the same generation; or nothing."""
        if self._buffered_inputs is None:
            return []
        at = self._step % self.args.steps_per_generation
        left = self.current_gradient_accumulation_steps - (self._step - self._window_start)
        # DDP reduces gradients in the pass whose forward it saw last, so there each micro-batch keeps its own
        if self.accelerator.sync_gradients or self.accelerator.num_processes > 1:
            left = 1
        found = [_rows(part) for part in self._buffered_inputs[at : at + max(left, 1)]]
        return found if found and torch.equal(found[0]["ids"], ids) else []

    def _finish_shared(self) -> None:
        if self._shared is not None and self._shared.pending:
            self._shared = None
            raise RuntimeError(
                "A forward pass that several micro-batches share was left before the last of them, so gradients would "
                "be lost; where micro-batches change between their forward passes, use scoring='padded'."
            )
        self._shared = None

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self._window_start = self._step
            self._finish_shared()
        return loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._shared, self._window_start = None, self._step
        return super().train(*args, **kwargs)


def _rows(part: dict[str, Any]) -> dict[str, Tensor]:
    return {
        "ids": torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1),
        "mask": torch.cat([part["prompt_mask"], part["completion_mask"]], dim=1),
        "advantages": part["advantages"],
    }


def _column(parts: list[dict[str, Tensor]], name: str) -> Tensor:
    return torch.cat([part[name] for part in parts])
