"""`GRPOExtConfig`: TRL's `GRPOConfig` with the axes that TRL does not have; None means TRL's own."""

import math
import os
from dataclasses import dataclass, field
from typing import Any

import torch

from grpo_ext.checks import check_company, check_limits, check_types, choice
from grpo_ext.objective import TRL_LOSS_TYPES, Objective
from grpo_ext.ops.advantages import BASELINES, SCALES
from grpo_ext.ops.aggregation import AGGREGATIONS
from grpo_ext.ops.kl import KL_CONTROLLERS, KL_ESTIMATORS
from grpo_ext.ops.ratios import RATIO_LEVELS
from grpo_ext.ops.surrogates import SURROGATES, Clipping
from grpo_ext.rewards.fault_options import RewardFaultOptions
from grpo_ext.rewards.process_options import ProcessOptions
from grpo_ext.rollouts.options import RolloutOptions
from grpo_ext.scoring.attention import BACKENDS

# What TRL itself takes in the two fields that we extend.
TRL_LEVELS = ("token", "sequence")
TRL_SCALES = ("group", "batch", "none")
POLICIES = ("old", "reference")


@dataclass
class GRPOExtConfig(RewardFaultOptions, ProcessOptions, RolloutOptions):
    """Everything of `trl.GRPOConfig`, and one field for each axis of the objective.

    An own field left at None leaves that choice to TRL's fields (`loss_type`, `scale_rewards`, ...). When no own
    field is set, TRL's own loss runs.

    Raises:
        ValueError: a value outside its choices, or a combination that means nothing, in one sentence.
    """

    importance_sampling_level: str = choice("token", RATIO_LEVELS, "Level at which the importance ratio is formed.")
    scale_rewards: str = choice("group", SCALES, "What the advantages are divided by.")
    advantage_baseline: str | None = choice(None, BASELINES, "What a reward is compared with; unset: TRL's mean.")
    advantage_eps: float = field(
        default=1e-4, metadata={"help": "Added to the divisor of the advantages; TRL's value is 1e-4."}
    )
    group_by: str | None = field(
        default=None,
        metadata={"help": "Dataset column whose equal values form a group of the advantages, instead of the prompt."},
    )
    surrogate: str | None = choice(None, SURROGATES, "Surrogate objective; unset: that of `loss_type`.")
    aggregation: str | None = choice(None, AGGREGATIONS, "Reduction of token losses; unset: that of `loss_type`.")
    ratio_against: str | None = choice(None, POLICIES, "Denominator of the importance ratio; unset: old.")
    kl_estimator: str | None = choice(
        None, KL_ESTIMATORS, "Estimator of the KL divergence; unset: k3 or its correction by `use_bias_correction_kl`."
    )
    kl_against: str | None = choice(None, POLICIES, "Policy to which the KL holds; unset: reference.")
    kl_in: str | None = choice(None, ("loss", "reward"), "Where beta times the KL enters; unset: loss.")
    kl_controller: str | None = choice(None, KL_CONTROLLERS, "How beta follows the measured KL; unset: fixed.")
    kl_target: float | None = field(
        default=None, metadata={"help": "Wished KL in nats a token, for the ziegler and ppo controllers."}
    )
    num_rounds: int = field(
        default=1,
        metadata={
            "help": "Rounds of DeepSeekMath's Algorithm 1; at the start of each the reference becomes the policy."
        },
    )
    steps_per_round: int | None = field(
        default=None, metadata={"help": "Optimizer steps of a round; unset: `max_steps` / `num_rounds`."}
    )
    scoring: str = choice(
        "auto", ("auto", "tree", "padded"), "Forward pass: shared beginnings once (tree) or row by row (padded)."
    )
    scoring_attention: str | None = choice(
        None, BACKENDS, "Attention over a tree; unset: flex on a GPU, sdpa elsewhere."
    )
    scoring_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens that one packed pass may hold; unset: 1.25 times those of a padded micro-batch."},
    )
    max_skipped_steps: int = field(
        default=3,
        metadata={
            "help": "Optimizer steps in a row that are skipped when the loss or the gradient is not finite; one more "
            "stops the run."
        },
    )
    max_memory_halvings: int | None = field(
        default=None,
        metadata={
            "help": "Times that the rows of a pass are halved when memory runs out; unset: down to one, 0: never."
        },
    )
    max_failed_saves: int = field(
        default=2,
        metadata={"help": "Checkpoints in a row that cannot be written, for want of room; one more stops the run."},
    )

    def __post_init__(self) -> None:
        check_types(self)
        spellings: dict[Any, str] = {True: "group", False: "none"}  # TRL takes booleans too
        self.scale_rewards = spellings.get(self.scale_rewards, self.scale_rewards)
        # Without an accelerator nothing else can be meant, and transformers would refuse TRL's default of bfloat16
        config: Any = self  # a field of TRL's config
        config.use_cpu = config.use_cpu or not torch.accelerator.is_available()
        self._check_choices()
        check_limits(self)
        self._check_batch()
        self._share_steps()
        super().__post_init__()
        self._check_combinations()

    def _check_choices(self) -> None:
        # argparse checks choices of flags alone; values from a YAML file arrive here unchecked
        native = {"loss_type": list(TRL_LOSS_TYPES)}
        own = {
            name: spec.metadata["choices"]
            for name, spec in self.__dataclass_fields__.items()
            if "choices" in spec.metadata
        }
        for name, choices in {**own, **native}.items():
            value = getattr(self, name)
            optional = self.__dataclass_fields__[name].default is None
            if value not in choices and not (value is None and optional):
                raise ValueError(f"`{name}` is {value!r}; it must be one of: {', '.join(map(str, choices))}.")

    def _check_batch(self) -> None:
        if self.num_generations < 2:
            raise ValueError(
                f"`num_generations` is {self.num_generations}; a group needs at least 2 completions to compare, "
                "8 is a usual number."
            )
        if self.steps_per_generation is not None or self.generation_batch_size is not None:
            return
        # TrainingArguments.world_size exists only after its own __post_init__
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        rows = self.per_device_train_batch_size * self.gradient_accumulation_steps * processes
        size = self.num_generations
        if rows % size:
            per_step = self.per_device_train_batch_size * processes
            fitting = [n for n in range(2, min(rows, 4096) + 1) if rows % n == 0]
            unit = size // math.gcd(size, per_step)
            steps = -(-self.gradient_accumulation_steps // unit) * unit
            raise ValueError(
                f"The generation batch of {rows} completions (per_device_train_batch_size "
                f"{self.per_device_train_batch_size} x gradient_accumulation_steps {self.gradient_accumulation_steps} "
                f"x {processes} processes) is not divisible by `num_generations` {size}; "
                f"gradient_accumulation_steps={steps} would fit, or num_generations in {fitting or 'no number'}."
            )

    def _share_steps(self) -> None:
        """Fill in whichever of `max_steps` and `steps_per_round` follows from the other."""
        config: Any = self  # fields of TRL's config
        rounds, steps, total = self.num_rounds, self.steps_per_round, config.max_steps
        if rounds < 1:
            raise ValueError(f"`num_rounds` is {rounds}; it must be at least 1, which is a run without rounds.")
        if rounds == 1:
            if steps is not None:
                raise ValueError(f"`steps_per_round` is {steps}, but `num_rounds` is 1; set num_rounds to 2 or more.")
            return
        if steps is None and total > 0 and total % rounds == 0:
            self.steps_per_round = steps = total // rounds
        if steps is None or steps < 1 or total not in (-1, rounds * steps):
            raise ValueError(
                f"`num_rounds` {rounds}, `steps_per_round` {steps} and `max_steps` {total} do not fit together; give "
                "steps_per_round alone, or a max_steps that is num_rounds times as much."
            )
        config.max_steps = rounds * steps

    def _check_rounds(self) -> None:
        if self.num_rounds == 1 or self.steps_per_round is None:
            return
        if self.sync_ref_model:
            raise ValueError(
                f"`sync_ref_model` is True, but with `num_rounds` {self.num_rounds} the reference is renewed once a "
                "round; leave one of the two unset."
            )
        passes = self.steps_per_generation * self.num_iterations
        if self.steps_per_round * self.gradient_accumulation_steps % passes:
            raise ValueError(
                f"`steps_per_round` {self.steps_per_round} ends within a generation, which lasts for "
                f"{passes / self.gradient_accumulation_steps:g} optimizer steps; use a multiple of it."
            )

    def _check_combinations(self) -> None:
        self._check_rounds()
        self.check_groups()
        self.check_resampling()
        self.check_vllm()
        self.check_process()
        self.check_reward_faults(self.world_size, self.ddp_timeout)
        check_company(self)
        self._check_stated()
        if self.advantage_baseline == "none" and self.scale_rewards != "none":
            raise ValueError(
                "`advantage_baseline` is 'none', so equal rewards would be divided by almost 0 under `scale_rewards` "
                f"{self.scale_rewards!r}; set scale_rewards='none'."
            )
        objective = self.objective()
        if objective.kl_estimator == "k1" and objective.kl_in_loss and self.beta != 0.0:
            raise ValueError(
                "`kl_estimator` 'k1' has zero expected gradient as a loss; use k2 or k3, or kl_in='reward'."
            )
        if objective.ratio_against == "reference" and self.beta == 0.0:
            raise ValueError(
                "`ratio_against` is 'reference', but with `beta` 0 TRL keeps no reference; set beta=1e-6 or more."
            )
        if self.kl_controller not in (None, "fixed") and (self.kl_target is None or self.beta == 0.0):
            raise ValueError(
                f"`kl_controller` {self.kl_controller!r} needs `kl_target` > 0 and `beta` > 0 to start from; found "
                f"kl_target={self.kl_target}, beta={self.beta}."
            )
        if self.kl_in == "reward":
            self._check_kl_in_reward()
        if not self.uses_own_objective:
            return
        if self.use_adaptive_entropy:
            raise ValueError(
                "`use_adaptive_entropy` belongs to TRL's own losses and does not act on an objective of grpo_ext; "
                "use a fixed `entropy_coef`."
            )

    def _check_stated(self) -> None:
        for name, words in SURROGATES[self.surrogate].stated.items() if self.surrogate else ():
            if getattr(self, name) is None:
                raise ValueError(f"`surrogate` is {self.surrogate!r}, but `{name}` is unset; it is {words}.")

    def _check_kl_in_reward(self) -> None:
        if self.kl_estimator == "k3_corrected":
            raise ValueError("`kl_estimator` 'k3_corrected' corrects a gradient; in the reward use k1, k2 or k3.")
        if self.beta == 0.0:
            raise ValueError("`kl_in` is 'reward', but with `beta` 0 TRL keeps no reference; set beta above 0.")
        if self.kl_against == "old":
            raise ValueError(
                "`kl_against` is 'old', but a sample is drawn from that policy, so its KL in the reward is 0; use "
                "kl_against='reference' or kl_in='loss'."
            )
        if self.multi_objective_aggregation == "normalize_then_sum":
            raise ValueError(
                "`kl_in` is 'reward', but `multi_objective_aggregation` 'normalize_then_sum' has no single reward to "
                "take the KL from; use sum_then_normalize or kl_in='loss'."
            )

    @property
    def uses_own_objective(self) -> bool:
        """Whether the loss is one that TRL cannot express, so that ours runs."""
        own = (self.surrogate, self.aggregation, self.ratio_against, self.kl_estimator, self.kl_against, self.kl_in)
        return (
            self.importance_sampling_level not in TRL_LEVELS
            or self.has_inclusion_weights
            or any(value is not None for value in own)
            # TRL's loss measures the KL as a mean of means of micro-batches, which moves with their number
            or self.kl_controller not in (None, "fixed")
        )

    @property
    def uses_own_advantages(self) -> bool:
        """Whether advantages are ours; TRL's are left alone when nothing was asked for."""
        return (
            self.advantage_baseline is not None
            or self.group_by is not None
            or self.scale_rewards not in TRL_SCALES
            or self.advantage_eps != 1e-4
            or self.kl_in == "reward"
            or self.has_inclusion_weights
        )

    def objective(self) -> Objective:
        """The objective that the fields describe, TRL's own included, as a plain value.

        Returns:
            The composed objective; `beta` stays outside because a controller may move it.
        """
        row = TRL_LOSS_TYPES[self.loss_type]
        trl_estimator = "k3_corrected" if self.use_bias_correction_kl and self.kl_in != "reward" else "k3"
        return Objective(
            surrogate=self.surrogate or row["surrogate"],
            aggregation=self.aggregation or row["aggregation"],
            ratio_level=self.importance_sampling_level,
            ratio_against=self.ratio_against or "old",
            kl_estimator=self.kl_estimator or trl_estimator,
            kl_against=self.kl_against or "reference",
            kl_in_loss=self.kl_in != "reward",
            entropy_coef=self.entropy_coef,
            clipping=Clipping(
                epsilon=self.epsilon,
                epsilon_high=self.epsilon if self.epsilon_high is None else self.epsilon_high,
                delta=self.delta,
                tau_pos=self.sapo_temperature_pos,
                tau_neg=self.sapo_temperature_neg,
                gamma=(self.vespo_k_pos, self.vespo_lambda_pos, self.vespo_k_neg, self.vespo_lambda_neg),
            ),
        )
