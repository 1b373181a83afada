"""Short runs on stock TRL, or on the trainer class that Unsloth generates for GPUs, made without one.

`python generated_runs.py stock|generated FOLDER` trains every case and writes what was seen into a JSON file of the
side's name. Unsloth changes a process for good and writes source into the working directory, so each side is a process
of its own in a folder of its own.
"""

import json
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from grpo_ext.presets import PRESETS

YAML_FOLDERS = ("gsm8k", "math", "cmath", "deepseekmath")
TRL_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
# Ratios leave the clip range in the second step on the same completions
OFF_POLICY = {"num_iterations": 2, "learning_rate": 0.3, "epsilon": 0.02}

# What Unsloth's own loss computes
NATIVE: dict[str, dict[str, Any]] = {
    **{
        f"{loss}_{level}": {
            "loss_type": loss,
            "importance_sampling_level": level,
            **({"epsilon_high": 1.1} if loss == "cispo" else {}),
        }
        for loss in TRL_LOSSES
        for level in ("token", "sequence")
    },
    "second_step": {"loss_type": "grpo", **OFF_POLICY},
    "plain_k3": {"loss_type": "grpo", "use_bias_correction_kl": False, **OFF_POLICY},
    "two_sided": {"loss_type": "grpo", "delta": 1.05, **OFF_POLICY},
    "entropy_bonus": {"entropy_coef": 0.01},
    "truncated": {"mask_truncated_completions": True},
    "temperature": {"temperature": 0.7},
    "leave_one_out": {"advantage_baseline": "leave_one_out"},
    "ranks": {"advantage_baseline": "rank", "scale_rewards": "none"},
    "topics": {"group_by": "topic"},
    "rounds": {"num_rounds": 2, "steps_per_round": 2},
    "beams_unweighted": {"group_generation": "beam", "num_beams": 4},
}
# What only our loss computes, on our forward pass
OWN: dict[str, dict[str, Any]] = {
    **{
        f"surrogate_{name}": {"surrogate": name, **OFF_POLICY}
        for name in ("clip", "none", "reinforce", "geometric", "soft")
    },
    "surrogate_cispo": {"surrogate": "cispo", "epsilon_high": 1.02, **OFF_POLICY},
    # Powers of a ratio, which make roundings larger
    "surrogate_gamma": {"surrogate": "gamma", **OFF_POLICY, "learning_rate": 0.03},
    **{
        f"aggregation_{name}": {"aggregation": name}
        for name in (
            "token_mean",
            "part_token_mean",
            "seq_mean_token_mean",
            "seq_mean_token_sum",
            "seq_mean_token_sum_norm",
            "group_sum",
        )
    },
    **{
        f"ratio_{name}": {"importance_sampling_level": name, **OFF_POLICY}
        for name in ("sequence_token", "sequence_sum")
    },
    **{f"kl_{name}": {"kl_estimator": name} for name in ("k2", "k3", "k3_corrected")},
    "kl_to_old": {"kl_against": "old", **OFF_POLICY},
    "kl_in_reward": {"kl_in": "reward", "kl_estimator": "k1"},
    "ratio_to_reference": {"ratio_against": "reference"},
    "adaptive_kl": {"kl_controller": "ppo", "kl_target": 0.001, "kl_estimator": "k3"},
    "high_entropy": {"top_entropy_quantile": 0.5},
    "process": {"process_reward": "calculations", "process_answer_step": "outcome"},
    "dynamic_sampling": {"resampling": "dynamic_sampling"},
    "stochastic_beams": {"group_generation": "stochastic_beam", "scale_rewards": "none"},
}
PRESET_CASES = {
    f"preset_{name}": {**row, "beta": row.get("beta", 0.0) or 0.04, "learning_rate": 0.1}
    for name, row in PRESETS.items()
}
CASES = NATIVE | OWN | PRESET_CASES


def use_generated_class() -> None:
    """Put Unsloth's generated classes in the place of TRL's on a machine without a GPU."""
    # Its sharing of prompts is checked against itself to 5 % only, so it stays off where equality is the question
    os.environ.update(UNSLOTH_ALLOW_CPU="1", UNSLOTH_GRPO_PREFIX_GROUPER="0", TORCHDYNAMO_DISABLE="1")
    import unsloth

    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    from unsloth.models.rl import PatchFastRL

    PatchFastRL(FastLanguageModel=unsloth.FastLanguageModel)


def policy_for_unsloth(folder: Path) -> Any:
    """The tiny policy with a warmed-up adapter, and the two switches that Unsloth's loader puts on a model."""
    from tiny_runs import policy

    model = policy(folder, lora=True)
    model.for_training = lambda *args, **kwargs: model.train()
    model.for_inference = lambda *args, **kwargs: model.eval()
    model._unsloth_user_float32 = True
    return model


def run(side: str, folder: Path, name: str) -> dict[str, Any]:
    """Train one case for four steps.

    Returns:
        Loss of each micro-batch, gradient norm of each step, the effective config, and which loss ran.
    """
    from datasets import Dataset
    from tiny_runs import PROMPTS, QUIET, early_letters, policy

    from grpo_ext import GRPOExtConfig, GRPOExtTrainer
    from grpo_ext.models import tiny_tokenizer

    losses: list[float] = []

    class Seen(GRPOExtTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    tokenizer = tiny_tokenizer()
    config = GRPOExtConfig(
        output_dir=str(folder / side),
        **{**QUIET, "learning_rate": 0.3, "max_steps": 4, "max_completion_length": 24, "beta": 0.04, **CASES[name]},
        # A random policy samples the pad token too, which Unsloth's loss leaves out
        generation_kwargs={"suppress_tokens": [tokenizer.pad_token_id]},
    )
    topics = ["one", "two"] * (len(PROMPTS) // 2)
    trainer = Seen(
        model=policy_for_unsloth(folder / "tiny") if side == "generated" else policy(folder / "tiny", lora=True),
        reward_funcs=early_letters,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS, "topic": topics, "answer": ["1"] * len(PROMPTS)}),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = trainer.state.log_history
    return {
        "losses": losses,
        "norms": [row["grad_norm"] for row in logged if "grad_norm" in row],
        "lengths": [row["completions/min_length"] for row in logged if "completions/min_length" in row],
        "config": {spec.name: repr(getattr(trainer.args, spec.name)) for spec in fields(config)},
        "attributes": {
            key: repr(getattr(trainer, key))
            for key in ("beta", "temperature", "epsilon_low", "epsilon_high", "loss_type", "scale_rewards", "top_k")
        },
        "side": trainer.processing_class.padding_side,
        "fused": trainer.fuses_loss,
    }


def mistakes(folder: Path) -> dict[str, str]:
    """What each run that must not go on says, by name; "passed" where it goes on."""
    import torch
    from peft import LoraConfig
    from tiny_runs import QUIET, early_letters, policy, prompts

    from grpo_ext import GRPOExtConfig, GRPOExtTrainer
    from grpo_ext.models import tiny_tokenizer

    calls: list[str] = []

    class Bypassed(GRPOExtTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return sum(weight.sum() for weight in model.parameters() if weight.requires_grad) * 0.0

    class Detached(GRPOExtTrainer):
        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
            with torch.no_grad():
                return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    class PickedUp(GRPOExtTrainer):
        def _get_per_token_logps(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError

    class Honoured(GRPOExtTrainer):
        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            calls.append("called")
            return super()._compute_loss(model, inputs)

    def attempt(cls: type[GRPOExtTrainer] = GRPOExtTrainer, **changes: Any) -> str:
        arguments: dict[str, Any] = {
            "model": policy_for_unsloth(folder / "tiny"),
            "processing_class": tiny_tokenizer(),
            "reward_funcs": early_letters,
            "train_dataset": prompts(),
        }
        settings = {**QUIET, "max_steps": 1, **changes.pop("fields", {})}
        try:
            config = GRPOExtConfig(output_dir=str(folder / "mistakes"), **settings)
            cls(**{**arguments, "args": config, **changes}).train()
        except (ValueError, TypeError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        return "passed"

    ends_with_pad = tiny_tokenizer()
    ends_with_pad.pad_token = ends_with_pad.eos_token
    with_engine = policy_for_unsloth(folder / "tiny")
    with_engine.vllm_engine = object()
    found = {
        "fine": attempt(),
        "bypassed": attempt(Bypassed),
        "bypassed_own": attempt(Bypassed, fields={"surrogate": "geometric"}),
        "detached": attempt(Detached),
        "picked_up": attempt(PickedUp),
        "honoured": attempt(Honoured),
        "name": attempt(model=str(folder / "tiny")),
        "peft_config": attempt(peft_config=LoraConfig(task_type="CAUSAL_LM")),
        "stock_model": attempt(model=policy(folder / "tiny", lora=True)),
        "pad_is_eos": attempt(processing_class=ends_with_pad),
        "tree": attempt(fields={"scoring": "tree"}),
        "engine": attempt(model=with_engine),
    }
    return found | {"honoured_calls": str(len(calls))}


def read_yamls(folder: Path) -> dict[str, dict[str, str]]:
    """Every config file of the project as the trainer's config: field to value."""
    from grpo_ext.cli import parse
    from grpo_ext.recipes import grpo

    found = {}
    for path in sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml")):
        if path.parent.name in YAML_FOLDERS:
            words = ["--config", str(path), "--output_dir", str(folder / "run"), "--use_cpu", "--bf16", "False"]
            _, config = parse(grpo.RecipeArguments, words, grpo.DEFAULTS)
            found[path.name] = {spec.name: repr(getattr(config, spec.name)) for spec in fields(config)}
    return found


def main(side: str, folder: Path) -> None:
    """Everything of one side, as JSON."""
    if side == "generated":
        use_generated_class()
    from tiny_runs import save_policy

    home = folder / side
    home.mkdir(parents=True)
    save_policy(home / "tiny")
    found: dict[str, Any] = {"runs": {name: run(side, home, name) for name in CASES}, "yamls": read_yamls(home)}
    if side == "generated":
        found["mistakes"] = mistakes(home)
    (folder / f"{side}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
