"""The tiny tokenizer with tools, and generation that calls one, for a random policy never would."""

import json
from typing import Any

from transformers import PreTrainedTokenizerFast
from trl import GRPOTrainer

from grpo_ext.models import tiny_tokenizer

# Earlier messages read the same whatever follows, which multi-turn training needs
CHAT_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool['function']['name'] + '\\n' }}{% endfor %}"
    "{% for message in messages %}{{ bos_token + message['role'] + '\\n' + message['content'] }}"
    "{% for call in message.get('tool_calls') or [] %}"
    "{{ '<call>' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) + '</call>' }}"
    "{% endfor %}{{ eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ bos_token + 'assistant\\n' }}{% endif %}"
)
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<bos>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<call>",
            "close_pattern": r"</call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<eos>\s*", "content": "text"},
    },
}


def tool_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.response_template = RESPONSE_TEMPLATE
    return tokenizer


def calling(cls: type[GRPOTrainer], name: str, arguments: dict[str, Any]) -> type[GRPOTrainer]:
    """The trainer with every other first turn replaced by a call of the tool; all other turns are the policy's."""

    class Calling(cls):  # type: ignore[misc, valid-type]
        def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
            completion_ids, logprobs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
            call = json.dumps({"name": name, "arguments": arguments})
            ids = [*self.processing_class(f"<call>{call}</call>")["input_ids"], self.processing_class.eos_token_id]
            first = ["<call>" not in self.processing_class.decode(prompt) for prompt in prompt_ids]
            turns = [
                ids if is_first and row % 2 else made
                for row, (is_first, made) in enumerate(zip(first, completion_ids, strict=True))
            ]
            return turns, logprobs

    return Calling
