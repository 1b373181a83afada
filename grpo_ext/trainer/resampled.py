"""Groups without spread drawn anew, or completions moved to the prompts whose rewards disagree."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from datasets import IterableDataset
from torch import Tensor

from grpo_ext.rollouts.resampling import (
    Group,
    PromptStream,
    Rows,
    groups_to_draw,
    has_spread,
    loss_mask,
    merged,
    shares,
    split_rows,
    tokens,
)
from grpo_ext.trainer.process import ProcessTrainer

logger = logging.getLogger("grpo_ext")

Inputs = list[dict[str, Any]]
COLUMNS = ("prompt", "completion", "advantages")


class ResampledTrainer(ProcessTrainer):
    """Calls TRL's generation once a round, and hands over as many rows as the config says.

    Metrics of TRL and of reward functions are those of the first round, whose prompts the data loader gave. What
    stands under `resampling/` is about all rounds.
    """

    num_generations: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._carried: list[Group] = []
        self._stream: PromptStream | None = None
        self._told_shortfall = False
        if self.args.resampling is not None:
            self._check_rows()

    def _check_rows(self) -> None:
        name = f"`resampling` is {self.args.resampling!r}, but"
        if self.environment_factories is not None:
            raise ValueError(
                f"{name} an `environment_factory` decides what a row asks, so rows of the dataset cannot be drawn in "
                "its place; leave `resampling` unset."
            )
        if (images := self._images()) is not None:
            raise ValueError(f"{name} the dataset has images (column {images!r}), which it cannot merge.")
        if self.args.resampling == "dynamic_sampling" and isinstance(self.train_dataset, IterableDataset):
            raise ValueError(
                f"{name} a streaming `train_dataset` has no rows to draw from at will; load it without streaming=True."
            )
        if self.args.resampling == "adaptive_group_size" and self.rollout_func is not None:
            raise ValueError(
                f"{name} a `rollout_func` is given groups of `num_generations`; use resampling='dynamic_sampling'."
            )

    def _generate_and_score_completions(self, inputs: Inputs) -> dict[str, Any]:
        if self.args.resampling is None or not self.model.training:
            return super()._generate_and_score_completions(inputs)
        make = {"dynamic_sampling": self._with_new_prompts, "adaptive_group_size": self._with_more_rows}
        return make[self.args.resampling](inputs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        # What an earlier run left is older than a generation
        self._carried = []
        return super().train(*args, **kwargs)

    # The two ways

    def _with_new_prompts(self, inputs: Inputs) -> dict[str, Any]:
        """Groups without spread replaced by groups of other prompts (DAPO 2503.14476, sec. 3.2, eq. 11)."""
        here, columns = len(inputs) // self.num_generations, list(inputs[0])
        batch = self._groups_from(inputs)
        before = self._metric_lengths()
        dead = [place for place, group in enumerate(batch) if not group.live]
        spare, self._carried = self._carried, []
        for group in spare:
            group.carried = True
        unused: list[Group] = []
        live, seen, rounds = here - len(dead), here, 0
        while rounds < self.args.resampling_rounds:
            # Every process takes part in every round with as many rows, because rewards are gathered
            state = torch.tensor([[len(dead) - len(spare), live, seen]], device=self.accelerator.device)
            everywhere = self.accelerator.gather(state)
            missing = int(everywhere[:, 0].max())
            if missing <= 0:
                break
            all_live, all_seen = everywhere[:, 1:].sum(0).tolist()
            count = groups_to_draw(missing, all_live, all_seen, here)
            drawn = self._groups_from(self._new_inputs(count, columns))
            spare += [group for group in drawn if group.live]
            unused += [group for group in drawn if not group.live]
            live, seen, rounds = live + sum(group.live for group in drawn), seen + count, rounds + 1
        for place, group in zip(dead, spare, strict=False):
            unused.append(batch[place])
            batch[place] = group
        self._keep(spare[len(dead) :], unused)
        carried = [group for group in batch if group.carried]
        if carried:
            self._date(batch, carried)
        replaced = min(len(dead), len(spare))
        return self._finished(
            batch, before, rounds=rounds, replaced=replaced, carried=len(carried), unused=self._tokens(unused)
        )

    def _with_more_rows(self, inputs: Inputs) -> dict[str, Any]:
        """Each prompt begins with a few completions; those whose rewards disagree get the rest of the rows."""
        whole, first = self.num_generations, self.args.first_group_size
        starts = range(0, len(inputs), whole)
        batch = self._groups_from([inputs[start + i] for start in starts for i in range(first)], [first] * len(starts))
        before = self._metric_lengths()
        given = shares(len(inputs) - first * len(starts), [group.live for group in batch])
        more = [inputs[start + i % whole] for start, count in zip(starts, given, strict=True) for i in range(count)]
        parts = split_rows(self._round(more, 1), given)
        grown = [
            merged([group.rows, part], self._pad()) if count else group.rows
            for group, part, count in zip(batch, parts, given, strict=True)
        ]
        sizes = [first + count for count in given]
        metrics = self._metrics["train"]
        metrics["resampling/budget"].append(float(sum(given)))
        metrics["resampling/groups_grown"].append(float(sum(count > 0 for count in given)))
        metrics["resampling/group_size_min"].append(float(min(sizes)))
        metrics["resampling/group_size_max"].append(float(max(sizes)))
        return self._finished(
            [Group(rows, alive) for rows, alive in zip(grown, self._alive(grown), strict=True)], before, rounds=1
        )

    # Rounds

    def _round(self, inputs: Inputs, size: int) -> Rows:
        """TRL's generation and scoring of rows in groups of `size`, with what the final advantages need."""
        for column in self._logged_columns().values():
            column.clear()
        whole, self.num_generations = self.num_generations, size
        try:
            rows = super()._generate_and_score_completions(inputs)
        finally:
            self.num_generations = whole
        local = self._local(len(inputs))
        assert self._rewards_per_func is not None
        rows["rewards_per_func"] = self._rewards_per_func[local]
        if self._kl_penalty is not None:
            rows["kl_penalty"] = self._kl_penalty[local]
        columns = {name: list(column)[local] for name, column in self._logged_columns().items() if column}
        rows["logged"] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return rows

    def _groups_from(self, inputs: Inputs, sizes: Sequence[int] | None = None) -> list[Group]:
        """A round's groups, of `num_generations` rows each unless told."""
        sizes = sizes or [self.num_generations] * (len(inputs) // self.num_generations)
        parts = split_rows(self._round(inputs, sizes[0]), sizes)
        return [Group(rows, alive) for rows, alive in zip(parts, self._alive(parts), strict=True)]

    def _new_inputs(self, count: int, columns: list[str]) -> Inputs:
        """Rows of prompts of our own choice, as TRL's data loader hands them over."""
        if self._stream is None:
            # A resumed run goes on with another order instead of the prompts that it has seen
            seed = self.args.seed + 1 + self.state.global_step
            self._stream = PromptStream(len(self.train_dataset), seed)
        everyone = self._stream.take(count * self.accelerator.num_processes)
        chosen = [index for index in everyone[self._local(count)] for _ in range(self.num_generations)]
        rows = [{name: row[name] for name in columns} for row in (self.train_dataset[index] for index in chosen)]
        return send_to_device(rows, self.accelerator.device)

    def _alive(self, parts: Sequence[Rows]) -> list[bool]:
        sizes = torch.tensor([len(part["prompt_ids"]) for part in parts])
        groups = torch.arange(len(parts)).repeat_interleave(sizes).to(self.accelerator.device)
        rewards = torch.cat([part["rewards_per_func"] for part in parts])
        if self.multi_objective_aggregation == "normalize_then_sum":
            rewards = rewards[:, self.reward_weights.to(rewards.device) != 0]
        else:
            rewards = self._total(rewards)
        in_loss = torch.cat([loss_mask(part).any(1) for part in parts])
        return has_spread(rewards, groups, in_loss).tolist()

    # Groups that wait for the next generation

    def _keep(self, left: list[Group], unused: list[Group]) -> None:
        """Groups that were not needed serve the next generation, and only that one."""
        kept = [group for group in left if not group.carried]
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            # Sharded weights are gathered by all processes at once, which have different numbers of groups to score
            kept = []
        self._give("old_per_token_logps", self.model, [g for g in kept if "old_per_token_logps" not in g.rows])
        unused += [group for group in left if all(group is not other for other in kept)]
        self._carried = kept

    def _date(self, batch: list[Group], carried: list[Group]) -> None:
        """True log-probabilities of the policy that made each row, because TRL takes None for the present policy."""
        self._give("old_per_token_logps", self.model, [g for g in batch if "old_per_token_logps" not in g.rows])
        if self.args.sync_ref_model:
            self._give("ref_per_token_logps", self.ref_model, carried)

    def _give(self, name: str, model: Any, groups: list[Group]) -> None:
        if not groups:
            return
        logps = self._logps(model, merged([group.rows for group in groups], self._pad()))
        for group, values in zip(groups, logps.split([len(g.rows["prompt_ids"]) for g in groups]), strict=True):
            group.rows[name] = values[:, : group.rows["completion_ids"].size(1)]

    # The batch that is trained on

    def _finished(
        self,
        batch: list[Group],
        before: dict[str, int],
        rounds: int,
        replaced: int = 0,
        carried: int = 0,
        unused: int = 0,
    ) -> dict[str, Any]:
        output = merged([group.rows for group in batch], self._pad())
        sizes = torch.tensor([len(group.rows["prompt_ids"]) for group in batch])
        places = torch.arange(len(batch)) + len(batch) * self.accelerator.process_index
        output["group_ids"] = places.repeat_interleave(sizes).to(self.accelerator.device)
        gather = self.accelerator.gather
        output["num_items_in_batch"] = gather(output["num_items_in_batch"]).sum()
        rewards = gather(output.pop("rewards_per_func"))
        penalty = gather(output.pop("kl_penalty")) if "kl_penalty" in output else None
        everyone = self._advantages(rewards, penalty, gather(output["group_ids"]))
        output["advantages"] = everyone[self._local(len(output["prompt_ids"]))]
        self._log_rows(gather_object(output.pop("logged")), everyone)
        live = sum(group.live for group in batch)
        used = self._tokens(batch)
        counts = torch.tensor([[live, len(batch) - live, replaced, carried, used, unused]], device=everyone.device)
        self._record_rounds(before, rounds, gather(counts).sum(0).tolist(), self._total(rewards).nanmean().item())
        return output

    def _record_rounds(self, before: dict[str, int], rounds: int, counts: list[int], reward: float) -> None:
        metrics = self._metrics["train"]
        for name, values in metrics.items():
            # TRL sets the number of tokens anew each time; it counts all rounds
            if name != "num_tokens" and not name.startswith("resampling/"):
                del values[before.get(name, 0) :]
        live, short, replaced, carried, used, unused = counts
        # Whole names, which every logged row shares
        for name, value in {
            "resampling/rounds": rounds,
            "resampling/live_groups": live,
            "resampling/shortfall": short,
            "resampling/groups_replaced": replaced,
            "resampling/carried": carried,
            "resampling/tokens_trained": used,
            "resampling/tokens_discarded": unused,
            "resampling/reward": reward,
        }.items():
            metrics[name].append(float(value))
        if short and self.args.resampling == "dynamic_sampling" and not self._told_shortfall:
            self._told_shortfall = True
            logger.warning(
                "Resampling: after %d more rounds %d of %d groups are still without spread and teach nothing; see "
                "resampling/shortfall, which is not told again.",
                rounds,
                short,
                live + short,
            )

    def _metric_lengths(self) -> dict[str, int]:
        return {name: len(values) for name, values in self._metrics["train"].items()}

    def _logged_columns(self) -> dict[tuple[str, ...], Any]:
        """Columns of the table of completions by name; TRL fills each with the rows of all processes."""
        columns: dict[tuple[str, ...], Any] = {(name,): self._logs[name] for name in COLUMNS}
        for kind in ("rewards", "extra"):
            columns |= {(kind, name): column for name, column in self._logs[kind].items()}
        return columns

    def _log_rows(self, logged: list[dict[tuple[str, ...], Any]], advantages: Tensor) -> None:
        """The table holds the rows that are trained on, with the advantages that they are trained with."""
        columns = self._logged_columns()
        for name, column in columns.items():
            column.clear()
            column.extend(row.get(name) for row in logged)
        columns[("advantages",)].clear()
        columns[("advantages",)].extend(advantages.tolist())

    def _pad(self) -> int:
        return self._plain_tokenizer.pad_token_id

    def _tokens(self, groups: list[Group]) -> int:
        return sum(tokens(group.rows, self._pad()) for group in groups)
