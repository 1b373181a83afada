"""What the recipes that learn from a policy's own solutions share: which problems, which policy, how it samples."""

from dataclasses import dataclass, field
from typing import Any

from grpo_ext.checks import at_least, one_of
from grpo_ext.data.arithmetic import DIFFICULTIES
from grpo_ext.models import load_policy, resolve_model
from grpo_ext.recipes.problems import TRAINED_ON, load_problems
from grpo_ext.recipes.warm_up import warm_up
from grpo_ext.rewards import REWARDS

WARM_UP_ROWS = 16


@dataclass
class SampledArguments:
    """Problems that a policy solves several times each."""

    model_name_or_path: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Policy, and base of the classifier."}
    )
    base_model: str | None = field(default=None, metadata={"help": "Base of the classifier; unset: the policy."})
    check: str = field(
        default="correct_final", metadata={"help": "Whether a solution is right.", "choices": list(REWARDS)}
    )
    dataset: str = field(default="arithmetic", metadata={"help": "Problems.", "choices": list(TRAINED_ON)})
    difficulty: str = field(
        default="two_step", metadata={"help": "Of the built-in arithmetic.", "choices": list(DIFFICULTIES)}
    )
    answer_format: str = field(default="hash", metadata={"help": "Format the prompt asks for."})
    system_prompt: str | None = field(default=None, metadata={"help": "System message of the prompts."})
    problems: int = field(default=256, metadata={"help": "Problems whose solutions are learned from."})
    held_out: int = field(default=64, metadata={"help": "Further problems that measure the model."})
    solutions: int = field(default=4, metadata={"help": "Solutions of a problem."})
    max_completion_length: int = field(default=64, metadata={"help": "Tokens of a solution at most."})
    temperature: float = field(default=1.0, metadata={"help": "Of everything that the policy draws."})
    sft_steps: int = field(default=0, metadata={"help": "Supervised warm-up steps of the policy, in memory."})
    epochs: int = field(default=2, metadata={"help": "Passes over what is learned from."})
    batch_size: int = field(default=16, metadata={"help": "Rows an optimiser step."})
    learning_rate: float = field(default=2e-5, metadata={"help": "Of AdamW; DeepSeekMath sec. 4.2: 2e-5."})
    seed: int = field(default=0, metadata={"help": "Of everything that is drawn."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Let code that comes with the policy run; with the classifier's, never."}
    )

    def check_sampled(self, *chosen: str) -> None:
        """Refuse counts below one and names that are no choice.

        Args:
            chosen: further fields with choices.

        Raises:
            ValueError: in one sentence.
        """
        for name in ("problems", "held_out", "solutions", "epochs", "batch_size", "max_completion_length"):
            at_least(name, getattr(self, name))
        for name in ("check", "dataset", "difficulty", *chosen):
            one_of(name, getattr(self, name), self.__dataclass_fields__[name].metadata["choices"])


def open_sampler(args: SampledArguments) -> tuple[Any, Any]:
    """The policy in evaluation mode, warmed up in memory where that is asked for, and its tokenizer."""
    path, trust = resolve_model(args.model_name_or_path), args.trust_remote_code
    policy, tokenizer = load_policy(path, dtype="float32", lora_r=0, trust_remote_code=trust)
    if args.sft_steps:
        worked = load_problems(args, "train", args.sft_steps * WARM_UP_ROWS, seed=1000 + args.seed)
        warm_up(policy, tokenizer, worked, args.sft_steps, WARM_UP_ROWS, 3e-4)
    return policy.eval(), tokenizer
