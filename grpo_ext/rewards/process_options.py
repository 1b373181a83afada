"""Fields of the config that say how the steps of a completion are rewarded."""

from dataclasses import dataclass, field
from typing import Any

from grpo_ext.checks import choice
from grpo_ext.ops.surrogates import SURROGATES
from grpo_ext.rewards import REWARDS
from grpo_ext.rewards.process import ANSWER_STEPS, PROCESS_REWARDS

# Ratio of a whole completion: one number, which every token's advantage would multiply
WHOLE_LEVELS = ("sequence", "sequence_sum")


@dataclass
class ProcessOptions:
    """Process supervision (DeepSeekMath 2402.03300, sec. 4.1.3); all of it is off while `process_reward` is unset."""

    process_reward: str | None = choice(
        None, PROCESS_REWARDS, "What rewards each step of a completion; unset: outcome supervision."
    )
    process_weight: float = field(
        default=1.0,
        metadata={
            "help": "Share w of the process in A = w A_process + (1 - w) A_outcome; 1 is the paper's, process alone."
        },
    )
    process_separator: str = field(
        default="\n", metadata={"help": "What ends a step; the two characters \\n stand for a newline."}
    )
    process_answer_step: str = choice(
        "scored",
        ANSWER_STEPS,
        "The line with the final answer: a step like the others (scored), replaced by a step at the completion's end "
        "whose reward is that of `reward_funcs` (outcome), or no step (none).",
    )
    process_reward_model: str | None = field(
        default=None,
        metadata={"help": "Folder or hub name of the token or sequence classifier of process_reward=model."},
    )
    process_rollouts: int = field(default=8, metadata={"help": "Roll-outs from the end of each step."})
    process_rollout_model: str | None = field(
        default=None, metadata={"help": "Folder or hub name of the model that rolls out; unset: the policy."}
    )
    process_rollout_check: str = choice(
        "correct_final", REWARDS, "Reward that says whether a roll-out is right (above one half)."
    )
    process_rollout_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that the roll-outs of one generation batch may have at most on a process; steps beyond "
            "them, drawn at random, stay without a reward. Unset: no limit."
        },
    )

    def check_process(self) -> None:
        """Refuse numbers and combinations with which a token's advantage could not act.

        Raises:
            ValueError: in one sentence.
        """
        if self.process_reward is None:
            self._check_nothing_without_reward()
            return
        self.process_separator = self.process_separator.replace("\\n", "\n")
        if not self.process_separator:
            raise ValueError("`process_separator` is empty; a newline is usual.")
        if not 0.0 < self.process_weight <= 1.0:
            raise ValueError(
                f"`process_weight` is {self.process_weight}; it must be above 0 and at most 1, or leave "
                "`process_reward` unset."
            )
        if self.process_rollouts < 1:
            raise ValueError(f"`process_rollouts` is {self.process_rollouts}; it must be at least 1, 8 is usual.")
        if self.process_rollout_tokens is not None and self.process_rollout_tokens < 1:
            raise ValueError(f"`process_rollout_tokens` is {self.process_rollout_tokens}; it must be at least 1.")
        if (self.process_reward == "model") != (self.process_reward_model is not None):
            raise ValueError(
                f"`process_reward` is {self.process_reward!r} and `process_reward_model` "
                f"{self.process_reward_model!r}; process_reward='model' and a model go together."
            )
        self._check_objective()

    def _check_nothing_without_reward(self) -> None:
        for name, spec in ProcessOptions.__dataclass_fields__.items():
            if getattr(self, name) != spec.default:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, but without `process_reward` no step is rewarded; set "
                    f"process_reward to one of: {', '.join(PROCESS_REWARDS)}."
                )

    def _check_objective(self) -> None:
        config: Any = self  # fields of GRPOExtConfig
        name = f"`process_reward` is {self.process_reward!r}, but"
        if config.has_inclusion_weights:
            raise ValueError(
                f"{name} the weights of group_generation='stochastic_beam' hold for one reward a completion; use "
                "another `group_generation`."
            )
        if config.resampling is not None:
            raise ValueError(
                f"{name} `resampling` {config.resampling!r} looks for groups whose outcome rewards disagree, and "
                "equal outcomes may have steps that differ; leave one of the two unset."
            )
        if config.multi_objective_aggregation == "normalize_then_sum":
            raise ValueError(
                f"{name} `multi_objective_aggregation` 'normalize_then_sum' normalises each outcome reward on its own "
                "and has no place for steps; use 'sum_then_normalize'."
            )
        if config.kl_in == "reward":
            raise ValueError(
                f"{name} `kl_in` 'reward' takes the KL from the outcome reward, which steps do not have; use "
                "kl_in='loss'."
            )
        surrogate = config.objective().surrogate
        row = SURROGATES[surrogate]
        whole = row.ratio == "own" or (row.ratio == "level" and config.importance_sampling_level in WHOLE_LEVELS)
        # Without a gradient through the ratio each token keeps its own advantage
        if whole and row.ratio_has_gradient:
            axis = "surrogate" if row.ratio == "own" else "importance_sampling_level"
            value = surrogate if row.ratio == "own" else config.importance_sampling_level
            raise ValueError(
                f"{name} `{axis}` {value!r} forms one ratio of the whole completion, through which every token gets "
                "the mean of the advantages; use importance_sampling_level='token' or 'sequence_token' with a "
                "surrogate of tokens."
            )
