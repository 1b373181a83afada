"""Several solutions of each of many problems, drawn from a policy in this process, outside of any trainer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from transformers import GenerationConfig

from grpo_ext.rewards.rows import Completion, prompt_text
from grpo_ext.rollouts.continuations import Continuations
from grpo_ext.rollouts.local import undecodable


@dataclass(frozen=True)
class Solutions:
    """What was drawn, the solutions of a problem one after another.

    Attributes:
        rows: for each solution the number of its problem.
        ids: token ids of each solution, the end token included.
        texts: text of each solution without special tokens.
        asked: token ids of each problem's prompt.
        ends: tokens that end a solution.
        draw: goes on from any beginning in the same way.
    """

    rows: list[int]
    ids: list[list[int]]
    texts: list[str]
    asked: list[list[int]]
    ends: list[int]
    draw: Continuations


def draw_solutions(
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[Completion],
    count: int,
    max_completion_length: int,
    temperature: float = 1.0,
) -> Solutions:
    """Draw solutions with torch's global random state.

    Args:
        policy: causal language model, with or without an adapter.
        tokenizer: its tokenizer.
        prompts: P prompts, text or messages.
        count: G solutions of each.
        max_completion_length: tokens of a solution at most.
        temperature: of the draws.

    Returns:
        P*G solutions.
    """
    model = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    own = model.generation_config.eos_token_id
    ends = sorted({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})
    config = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=0, pad_token_id=tokenizer.pad_token_id, eos_token_id=ends
    )
    draw = Continuations(model, config, share=undecodable(model) is None)
    asked = [
        list(tokenizer(prompt_text(prompt, tokenizer), add_special_tokens=False)["input_ids"]) for prompt in prompts
    ]
    groups = draw(asked, count, [max_completion_length] * len(asked))
    ids = [completion for group in groups for completion in group]
    rows = [row for row in range(len(asked)) for _ in range(count)]
    return Solutions(rows, ids, tokenizer.batch_decode(ids, skip_special_tokens=True), asked, ends, draw)
