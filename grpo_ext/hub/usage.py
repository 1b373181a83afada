"""How to load what a run made, as code blocks for its card: peft or transformers, Unsloth, vLLM."""

from typing import Any

from grpo_ext.data.rows import asked
from grpo_ext.hub.run import SharedRun
from grpo_ext.rewards.formats import ANSWER_FORMATS
from grpo_ext.rollouts.vllm.adapters import engine_rank

QUESTION = "Tom has 12 apples and buys 3 bags of 8 apples each. How many apples does he have now?"
LOCAL_BASE = "PATH_OF_THE_BASE"
LONGEST_SEQUENCE = 2048

ANSWER = """inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
).to(model.device)
output = model.generate(**inputs, max_new_tokens={length}, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
PEFT = """import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}", dtype=torch.{dtype}, device_map="auto")
model = PeftModel.from_pretrained(base, "{repo_id}").eval()
tokenizer = AutoTokenizer.from_pretrained("{repo_id}")
"""
TRANSFORMERS = """import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo_id}", dtype=torch.{dtype}, device_map="auto").eval()
tokenizer = AutoTokenizer.from_pretrained("{repo_id}")
"""
UNSLOTH = """from unsloth import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained(
    "{repo_id}", max_seq_length={longest}, load_in_4bit={in_4bit}
)
FastLanguageModel.for_inference(model)
"""
VLLM_ADAPTER = """from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

llm = LLM("{base}", tokenizer="{repo_id}", enable_lora=True, max_lora_rank={rank})
outputs = llm.chat(
    messages,
    SamplingParams(temperature=0.0, max_tokens={length}),
    lora_request=LoRARequest("{name}", 1, "{repo_id}"),
)
print(outputs[0].outputs[0].text)
"""
VLLM_MODEL = """from vllm import LLM, SamplingParams

llm = LLM("{repo_id}")
outputs = llm.chat(messages, SamplingParams(temperature=0.0, max_tokens={length}))
print(outputs[0].outputs[0].text)
"""


def messages_asked(run: SharedRun) -> list[dict[str, Any]]:
    """An example question, in the words that the run's prompts had; without a format where they asked for none."""
    row = ANSWER_FORMATS.get(str(run.recipe.get("answer_format")))
    if row is None:
        return [{"role": "user", "content": QUESTION}]
    prompt = asked(QUESTION, row, run.recipe.get("system_prompt"), conversational=True)
    assert isinstance(prompt, list)
    return prompt


def usage(run: SharedRun, repo_id: str) -> dict[str, str]:
    """Python that loads the weights and answers a question, by the library that does it.

    Args:
        run: the run.
        repo_id: where its weights are, "owner/name".

    Returns:
        Title to code; each stands alone.
    """
    dtype = str(run.recipe.get("dtype") or "bfloat16")
    values = {
        "repo_id": repo_id,
        "name": repo_id.rpartition("/")[2],
        "base": run.base or LOCAL_BASE,
        "dtype": dtype if dtype != "auto" else "bfloat16",
        "in_4bit": bool(run.recipe.get("load_in_4bit")),
        "length": int((run.config or {}).get("max_completion_length") or 256),
        "longest": LONGEST_SEQUENCE,
        "rank": engine_rank(run.rank) if run.rank is not None else 0,
    }
    question = _written(messages_asked(run))
    adapter = run.kind == "adapter"
    plain = (PEFT if adapter else TRANSFORMERS).format(**values)
    return {
        "peft" if adapter else "transformers": f"{plain}\n{question}{ANSWER.format(**values)}",
        "Unsloth": f"{UNSLOTH.format(**values)}\n{question}{ANSWER.format(**values)}",
        "vLLM": _after_imports((VLLM_ADAPTER if adapter else VLLM_MODEL).format(**values), question),
    }


def served(run: SharedRun, repo_id: str) -> str:
    """The shell command that serves the weights over vLLM's OpenAI-compatible interface."""
    if run.kind == "model" or run.rank is None:
        return f"vllm serve {repo_id}"
    name = repo_id.rpartition("/")[2]
    base = run.base or LOCAL_BASE
    lora = f"--enable-lora --max-lora-rank {engine_rank(run.rank)} --lora-modules {name}={repo_id}"
    return f"vllm serve {base} --tokenizer {repo_id} {lora}"


def _written(messages: list[dict[str, Any]]) -> str:
    rows = ",\n".join(f'    {{"role": "{row["role"]}", "content": {row["content"]!r}}}' for row in messages)
    return f"messages = [\n{rows},\n]\n"


def _after_imports(code: str, question: str) -> str:
    imports, blank, rest = code.partition("\n\n")
    return f"{imports}{blank}{question}{rest}"
