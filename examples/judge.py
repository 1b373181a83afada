"""A judge as the reward: any OpenAI-compatible endpoint reads each completion and gives it a number.

Verdicts are kept on disk, so a run that is started again asks for nothing twice; a verdict that is not to be had is
`None`, and `max_requests` is what the run may cost. The key comes from OPENAI_API_KEY. Run it, with a server of yours:
python examples/judge.py http://localhost:8000/v1 Qwen/Qwen3-4B
"""

import sys
from typing import Any

from datasets import Dataset

from grpo_ext import GRPOExtConfig, GRPOExtTrainer, load_policy
from grpo_ext.rewards.judge import judge_reward

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEMPLATE = """How kind and how true is this answer? Question: {prompt} Answer: {completion}
End with a line "Score: N" where N is a number from {low} (neither) to {high} (both)."""


def main(model: str = NAME, size: int = 64, url: str = "", judge: str = "", **fields: Any) -> GRPOExtTrainer:
    """Train towards what the judge likes."""
    settings = {
        "output_dir": "runs/judge",
        "per_device_train_batch_size": 16,
        "max_completion_length": 64,
        "max_steps": 10,
        "logging_steps": 1,
        "report_to": "none",
    }
    settings |= fields
    questions = [f"Why do people like the number {number}?" for number in range(size)]
    policy, tokenizer = load_policy(model, lora_r=32)
    trainer = GRPOExtTrainer(
        model=policy,
        reward_funcs=judge_reward(url, judge, TEMPLATE, cache=f"{settings['output_dir']}/verdicts", max_requests=5000),
        args=GRPOExtConfig(**settings),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in questions]}),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main(url=sys.argv[1], judge=sys.argv[2])
