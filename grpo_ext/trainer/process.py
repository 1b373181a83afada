"""Process supervision: an advantage a token, from rewards of the steps that end at it or after it."""

from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from grpo_ext.checks.rows import IMAGES
from grpo_ext.faults import Caught
from grpo_ext.ops.masking import masked_mean
from grpo_ext.ops.process import normalised_steps, summed_from_the_right
from grpo_ext.rewards import REWARDS
from grpo_ext.rewards.process import PROCESS_REWARDS, ProcessReward, RolloutReward, StepRewards, Tools
from grpo_ext.rewards.process_check import checked_steps
from grpo_ext.rewards.steps import Splitter, Step, split_steps
from grpo_ext.rollouts.continuations import Continuations
from grpo_ext.trainer.advantages import AdvantageTrainer
from grpo_ext.trainer.guarded import stop_together
from grpo_ext.trust import opened

Scored = list[list[tuple[int, float]]]


class ProcessTrainer(AdvantageTrainer):
    """Replaces (B,) advantages by (B, T) ones where steps are rewarded (DeepSeekMath 2402.03300, sec. 4.1.3).

    Args:
        process_reward: a process reward of one's own, in place of the row that the config names.
        step_splitter: a function from a text to the offsets at which its steps end, in place of the separator.
    """

    _step_rewards: StepRewards
    _steps: list[list[Step]]
    _lengths: list[int]

    def __init__(
        self,
        *args: Any,
        process_reward: ProcessReward | None = None,
        step_splitter: Splitter | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._continuations: Continuations | None = None
        self._process_reward: ProcessReward | None = None
        self._splitter = step_splitter or self.args.process_separator
        self._rolled_at = -1
        if self.args.process_reward is None:
            if process_reward is not None or step_splitter is not None:
                raise ValueError(
                    "`process_reward` or `step_splitter` was given to the trainer, but `process_reward` of the config "
                    "is unset; set it, for example to 'calculations', which a reward of one's own replaces."
                )
            return
        if self.tools or self.environment_factories is not None or self.rollout_func is not None:
            raise ValueError(
                f"`process_reward` is {self.args.process_reward!r}, but with tools, environments or a `rollout_func` "
                "some tokens of a completion are not the policy's, so its steps cannot be told; leave it unset."
            )
        self._text = self._plain_tokenizer
        self._ends = {end for end in [*self.eos_token_ids, self._text.pad_token_id] if end is not None}
        self._process_reward = process_reward or PROCESS_REWARDS[self.args.process_reward](self._tools())
        if isinstance(self._process_reward, RolloutReward):
            self._check_rollouts(self._process_reward.tools.policy_rolls_out)

    def _check_rollouts(self, of_policy: bool) -> None:
        name = f"`process_reward` is {self.args.process_reward!r}, but"
        if of_policy and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                f"{name} under FSDP and DeepSpeed the policy does not roll out on one process; name a "
                "`process_rollout_model`."
            )
        if (images := self._images()) is not None:
            raise ValueError(
                f"{name} roll-outs go on from tokens alone, and the dataset has images (column {images!r}); use "
                "'calculations' or 'model'."
            )

    def _images(self) -> str | None:
        """Column of the training set that TRL takes for images, if it has one."""
        return min(set(IMAGES).intersection(self.train_dataset.column_names or []), default=None)

    def _tools(self) -> Tools:
        return Tools(
            continue_from=self._continue_from,
            check=REWARDS[self.args.process_rollout_check],
            tokenizer=self._text,
            device=self.accelerator.device,
            max_completion_length=self.max_completion_length,
            model=self.args.process_reward_model,
            rollouts=self.args.process_rollouts,
            token_budget=self.args.process_rollout_tokens,
            policy_rolls_out=self.args.process_rollout_model is None,
        )

    def _continue_from(self, prefixes: list[list[int]], count: int, room: list[int]) -> list[list[list[int]]]:
        if self._continuations is None:
            name = self.args.process_rollout_model
            model = (
                self._bare(self.model)
                if name is None
                else opened(AutoModelForCausalLM, name, "process_rollout_model", trust_remote_code=None, dtype="auto")
            )
            self._continuations = Continuations(model.to(self.accelerator.device), self._drawing())
        return self._continuations(prefixes, count, room)

    def _drawing(self) -> GenerationConfig:
        """The distribution that completions are drawn from."""
        return GenerationConfig(
            do_sample=True,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            pad_token_id=self._text.pad_token_id,
            bos_token_id=self._text.bos_token_id,
            eos_token_id=sorted(self._ends - {self._text.pad_token_id} or self._ends),
        )

    # Rewards of steps

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._process_reward is not None:
            self._lengths = [len(ids) for ids in completion_ids_list]
            self._steps = [split_steps(ids, self._text, self._splitter, self._ends) for ids in completion_ids_list]
            if self.args.process_answer_step != "scored":
                self._steps = [row[:-1] if row and row[-1].is_answer else row for row in self._steps]
            columns = {
                name: [row[name] for row in inputs]
                for name in inputs[0]
                if name not in ("prompt", "completion", "completion_ids")
            }
            if isinstance(self._process_reward, RolloutReward):
                columns["prompt_ids"] = self._tokenize_prompts(prompts)[0]
                self._renew_estimates()
            self._reward_steps(prompts=prompts, completions=completions, completion_ids=completion_ids_list, **columns)
        return rewards

    def _reward_steps(self, **given: Any) -> None:
        assert self._process_reward is not None
        with Caught() as caught:
            found = self._process_reward(steps=self._steps, **given)
            self._step_rewards = checked_steps(self.args.process_reward, found, self._steps)
        # A process that left here alone would keep the others waiting
        name, error = self.args.process_reward, caught.error
        problem = None if error is None else f"Process reward {name!r} raised {type(error).__name__}: {error}"
        stop_together(problem, error)

    def _renew_estimates(self) -> None:
        """An estimate is of the policy that made it."""
        assert isinstance(self._process_reward, RolloutReward)
        if self._rolled_at != self.state.global_step:
            self._process_reward.forget()
            self._rolled_at = self.state.global_step

    # Advantages of tokens

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self._process_reward is None:
            return output
        mask = output["completion_mask"]
        local = self._local(len(inputs))
        scored = self._scored(local)
        process = self._from_steps(scored, self._groups(inputs), local, mask.size(1))
        weight = self.args.process_weight
        whole = output["advantages"][:, None] if weight < 1.0 else torch.zeros_like(process)
        output["advantages"] = (weight * process + (1.0 - weight) * whole) * mask
        self._log_steps(scored, output["advantages"], mask)
        return output

    def _scored(self, local: slice) -> Scored:
        """(last token, reward) of each rewarded step of each row of this process."""
        scored: Scored = [
            [(step.token, reward) for step, reward in zip(steps, rewards, strict=True) if reward is not None]
            for steps, rewards in zip(self._steps, self._step_rewards, strict=True)
        ]
        if self.args.process_answer_step == "outcome":
            assert self._rewards_per_func is not None
            outcomes = self._total(self._rewards_per_func)[local].tolist()
            for row, length, outcome in zip(scored, self._lengths, outcomes, strict=True):
                if length and outcome == outcome:
                    row.append((length - 1, outcome))
        return scored

    def _from_steps(self, scored: Scored, groups: Tensor, local: slice, num_tokens: int) -> Tensor:
        """(B, T) advantages of this process's rows; the statistics are of the steps of all processes."""
        everyone = gather_object([[reward for _, reward in row] for row in scored])
        most = max(1, *map(len, everyone))
        # On the CPU, because not every device knows float64
        rewards = torch.full((len(everyone), most), torch.nan, dtype=torch.float64)
        ends = torch.zeros(len(scored), most, dtype=torch.long)
        for row, values in enumerate(everyone):
            rewards[row, : len(values)] = torch.tensor(values, dtype=torch.float64)
        for row, steps in enumerate(scored):
            ends[row, : len(steps)] = torch.tensor([token for token, _ in steps], dtype=torch.long)
        axes = (self.args.advantage_baseline or "mean", self.args.scale_rewards, self.args.advantage_eps)
        values = normalised_steps(rewards, groups.cpu(), *axes)[local]
        return summed_from_the_right(values, ends, num_tokens).float().to(groups.device)

    def _log_steps(self, scored: Scored, advantages: Tensor, mask: Tensor) -> None:
        metrics = self._mode_metrics
        rewards = [reward for row in scored for _, reward in row]
        inside = mask.bool()
        high = advantages.masked_fill(~inside, -torch.inf).amax(1)
        low = advantages.masked_fill(~inside, torch.inf).amin(1)
        steps = sum(map(len, self._steps))
        known = sum(reward is not None for row in self._step_rewards for reward in row)
        numbers = [len(scored), len(rewards), sum(rewards), steps, known, int((high > low).sum())]
        rows, rewarded, total, steps, known, varied = self.accelerator.reduce(
            torch.tensor(numbers, dtype=torch.float32, device=self.accelerator.device), reduction="sum"
        ).tolist()
        metrics["process/steps"].append(rewarded / rows)
        metrics["process/reward"].append(total / max(rewarded, 1.0))
        metrics["process/unrewarded"].append(1.0 - known / max(steps, 1.0))
        metrics["process/varied_rows"].append(varied / rows)
        if isinstance(self._process_reward, RolloutReward):
            for name, value in self._process_reward.stats.items():
                values = self.accelerator.gather(torch.tensor([value], device=self.accelerator.device))
                metrics[f"process/{name}"].append(values.sum().item())
        # The table of completions has room for one number a row
        self._log_advantages(self.accelerator.gather(masked_mean(advantages, mask, dim=1)))
