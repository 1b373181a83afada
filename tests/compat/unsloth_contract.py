"""What we rely on in Unsloth, checked on source text like the contract with TRL in `host_contract`.

Unsloth writes part of its code from templates, so beside functions and their parameters there are pieces of text that
must be somewhere in a file, each with what of ours stops working without it.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from host_contract import Host, definition

from grpo_ext.backends import COMPILE_FOLDER
from grpo_ext.compat import UNSLOTH_FIELDS
from grpo_ext.scoring.scorer import UNSLOTH_SWITCH


@dataclass(frozen=True)
class Takes:
    """A function that takes these parameters by name, not as part of **kwargs."""

    file: str
    name: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Holds:
    """A pattern that a file must match, and what of ours needs it."""

    file: str
    pattern: str
    reason: str


LOADS = (
    "model_name", "max_seq_length", "dtype", "load_in_4bit", "revision", "trust_remote_code", "fast_inference",
    "use_gradient_checkpointing",
)  # fmt: skip
ADAPTS = (
    "r", "target_modules", "lora_alpha", "lora_dropout", "bias", "use_gradient_checkpointing", "random_state",
    "max_seq_length",
)  # fmt: skip
ON_A_GPU = ("use_exact_model_name", "gpu_memory_utilization", "max_lora_rank", "device_map")
GENERATOR, REPLACEMENTS = "models/rl.py", "models/rl_replacements.py"

# Package -> what must be in it.
UNSLOTH: dict[str, tuple[Takes | Holds, ...]] = {
    "unsloth": (
        Takes("models/loader.py", "FastLanguageModel.from_pretrained", (*LOADS, *ON_A_GPU)),
        Takes("models/llama.py", "FastLlamaModel.get_peft_model", ADAPTS),
        Takes(GENERATOR, "PatchFastRL", ("FastLanguageModel",)),
        Takes("save.py", "unsloth_save_pretrained_merged", ("save_directory", "tokenizer", "save_method")),
        Takes("save.py", "unsloth_save_pretrained_gguf", ("save_directory", "tokenizer", "quantization_method")),
        Takes(
            REPLACEMENTS,
            "grpo_trainer__get_per_token_logps_and_entropies._get_per_token_logps_and_entropies",
            ("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy",
             "compute_efficient"),
        ),
        Holds("_cpu_init.py", r'^DEVICE_TYPE = "cpu"', "on_cpu_back_end tells the two back ends apart by it"),
        Holds("models/llama.py", r"\.vllm_engine = ", "load_policy sees by it that fast_inference was honoured"),
        Holds(GENERATOR, r"class Unsloth\{RLTrainer_name\}\(_Unsloth\{", "compat.GENERATED looks for these classes"),
        Holds("save.py", r"model\.save_pretrained_merged = ", "save_format merged_16bit calls it on the model"),
        Holds("save.py", r"model\.save_pretrained_gguf = ", "save_format gguf calls it on the model"),
        Holds("save.py", r'f"\{save_directory\}_gguf"', "save_format gguf finds the files there"),
        *(Holds(GENERATOR, rf"self\.{name} = {name}", "compat.UNSLOTH_FIELDS sets it") for name in UNSLOTH_FIELDS),
        *(
            Holds("models/llama.py", rf"def {name}\(", "the trainer switches the model with it")
            for name in ("for_training", "for_inference")
        ),
    ),
    "unsloth_zoo": (
        Takes("cpu/loader.py", "FastCPUModel.from_pretrained", LOADS),
        Takes("cpu/loader.py", "FastCPUModel.get_peft_model", ADAPTS),
        Holds("compiler.py", rf'"{COMPILE_FOLDER}"', "backends.compile_folder is where generated source goes"),
        Holds("compiler.py", UNSLOTH_SWITCH, "score_left_aligned asks for hidden states with it"),
        Holds("cpu/loader.py", r"_disable_bnb_cpu_weight_packing\(model\)", "4-bit gradients stay true on a CPU"),
    ),
}  # fmt: skip


def _parameters(function: ast.FunctionDef) -> set[str]:
    given = function.args
    return {one.arg for one in [*given.posonlyargs, *given.args, *given.kwonlyargs]}


def unsloth_violations(package: str, host: Host) -> Iterator[str]:
    """One line for each thing that a package of Unsloth lacks."""
    trees: dict[str, ast.Module] = {}
    for one in UNSLOTH[package]:
        if one.file not in host:
            yield f"{package} has no {one.file}"
        elif isinstance(one, Holds):
            if re.search(one.pattern, host[one.file], re.MULTILINE) is None:
                yield f"{package}/{one.file} has nothing like {one.pattern}: {one.reason}"
        else:
            tree = trees.setdefault(one.file, ast.parse(host[one.file]))
            found = definition(tree, one.name)
            if not isinstance(found, ast.FunctionDef):
                yield f"{package}/{one.file} has no {one.name}"
            elif missing := [name for name in one.parameters if name not in _parameters(found)]:
                yield f"{package}: {one.name} takes no {', '.join(missing)}"


def unsloth_files(package: str) -> set[str]:
    return {one.file for one in UNSLOTH[package]}
