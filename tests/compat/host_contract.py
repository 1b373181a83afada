"""What our subclass and `grpo_ext.compat` rely on in TRL's and transformers' private code, checked on source text.

A host is a mapping from a path inside its package to the text of that file, so that an unpacked wheel serves as
well as an installation. Each violation is one readable line.
"""

import ast
import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Host = Mapping[str, str]


@dataclass(frozen=True)
class Needed:
    """A function or class that must exist.

    Attributes:
        file: path inside the host's package.
        name: dotted name inside the file.
        takes: parameters that are passed by us or by the host's own calls that we answer.
    """

    file: str
    name: str
    takes: tuple[str, ...] = ()


GRPO = "trainer/grpo_trainer.py"
VLLM = "generation/vllm_generation.py"
CONFIG = "trainer/grpo_config.py"

# Overridden or called by GRPOExtTrainer and its bases.
TRL_NEEDED = (
    Needed(GRPO, "GRPOTrainer._calculate_rewards", ("inputs", "prompts", "completions", "completion_ids_list")),
    Needed(GRPO, "GRPOTrainer._compute_loss", ("model", "inputs")),
    Needed(GRPO, "GRPOTrainer._generate", ("prompts",)),
    Needed(GRPO, "GRPOTrainer._generate_and_score_completions", ("inputs",)),
    Needed(GRPO, "GRPOTrainer._generate_single_turn", ("prompt_ids", "images")),
    Needed(GRPO, "GRPOTrainer._get_eval_sampler", ("eval_dataset",)),
    Needed(GRPO, "GRPOTrainer._get_train_sampler", ("dataset",)),
    Needed(
        GRPO,
        "GRPOTrainer._get_per_token_logps_and_entropies",
        (
            "model",
            "input_ids",
            "attention_mask",
            "logits_to_keep",
            "batch_size",
            "compute_entropy",
            "compute_aux_loss",
        ),
    ),
    Needed(GRPO, "GRPOTrainer._prepare_inputs", ("generation_batch",)),
    Needed(GRPO, "GRPOTrainer._save_checkpoint", ("model", "trial")),
    Needed(GRPO, "GRPOTrainer._tokenize_prompts", ("prompts",)),
    Needed(GRPO, "GRPOTrainer.compute_loss", ("model", "inputs", "return_outputs", "num_items_in_batch")),
    Needed(GRPO, "GRPOTrainer.get_high_entropy_mask", ("entropies", "mask", "threshold")),
    Needed(
        GRPO,
        "GRPOTrainer.get_off_policy_mask",
        ("advantages", "per_token_logps", "sampling_per_token_logps", "mask", "off_policy_threshold"),
    ),
    # grpo_ext.compat
    Needed("trainer/utils.py", "nanmax", ("tensor",)),
    Needed("trainer/utils.py", "nanmin", ("tensor",)),
    Needed("distributed.py", "DistributedBackend.__init__", ("accelerator",)),
    Needed(VLLM, "VLLMGeneration._iter_named_params"),
    Needed(VLLM, "VLLMGeneration.sync_weights"),
    Needed(VLLM, "VLLMGeneration.generate", ("prompts", "images", "num_generations", "profiler")),
)
# Read or set on the trainer.
TRL_ATTRIBUTES = {
    (GRPO, "GRPOTrainer"): (
        "_buffered_inputs", "_last_world_entropy", "_logs", "_metrics", "_step", "aux_loss_enabled", "beta",
        "entropy_coef", "environment_factories", "eos_token_ids", "max_completion_length", "min_p",
        "multi_objective_aggregation", "num_generations", "num_generations_eval", "num_iterations",
        "off_policy_mask_threshold", "ref_model", "repetition_penalty", "reward_func_names", "reward_funcs",
        "reward_weights", "rollout_func", "router_aux_loss_coef", "scale_rewards", "temperature", "tools",
        "top_entropy_quantile", "top_k", "top_p", "use_adaptive_entropy", "use_transformers_continuous_batching",
        "use_vllm", "vllm_generation", "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min",
        "vllm_importance_sampling_correction", "vllm_importance_sampling_mode",
    ),
    (VLLM, "VLLMGeneration"): ("_dist", "model", "accelerator"),
}  # fmt: skip
# Columns that `_generate_and_score_completions` makes.
TRL_COLUMNS = (
    "advantages", "completion_ids", "completion_mask", "importance_sampling_ratio", "num_items_in_batch",
    "old_per_token_logps", "prompt_ids", "prompt_mask", "ref_per_token_logps", "sampling_per_token_logps", "tool_mask",
)  # fmt: skip
# Keyword arguments of TRL's one call of VLLMGeneration, which our own back end is made from.
TRL_KEYWORDS = (
    "model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_completion_length",
    "generation_kwargs", "structured_outputs_regex", "gpu_memory_utilization", "max_model_length", "max_num_seqs",
    "model_impl", "trust_remote_code",
)  # fmt: skip
# Fields of GRPOConfig that we read and that came late.
TRL_FIELDS = (
    "cast_lm_head_to_fp32", "delta", "entropy_coef", "multi_objective_aggregation", "off_policy_mask_threshold",
    "sapo_temperature_neg", "sapo_temperature_pos", "steps_per_generation", "top_entropy_quantile",
    "use_adaptive_entropy", "use_bias_correction_kl", "use_transformers_continuous_batching", "vespo_k_neg",
    "vespo_k_pos", "vespo_lambda_neg", "vespo_lambda_pos", "vllm_enable_sleep_mode",
    "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min", "vllm_importance_sampling_correction",
    "vllm_importance_sampling_mode", "vllm_structured_outputs_regex",
)  # fmt: skip

TRANSFORMERS_NEEDED = (
    # grpo_ext.scoring.attention; there is no public name for what a model's layers attend with
    Needed("configuration_utils.py", "PreTrainedConfig._attn_implementation"),
    Needed("trainer.py", "Trainer._load_optimizer_and_scheduler", ("checkpoint",)),
    Needed("trainer.py", "Trainer._save_checkpoint", ("model", "trial")),
    Needed("trainer.py", "Trainer._get_output_dir", ("trial",)),
    Needed("trainer.py", "Trainer._push_from_checkpoint", ("checkpoint_folder",)),
    Needed("trainer.py", "Trainer._get_train_sampler"),
    Needed("trainer.py", "Trainer._get_eval_sampler", ("eval_dataset",)),
    Needed("trainer.py", "Trainer._get_grad_norm", ("model", "grad_norm")),
    Needed("trainer.py", "Trainer._prepare_inputs", ("inputs",)),
    Needed("trainer.py", "Trainer.training_step", ("model", "inputs", "num_items_in_batch")),
)
TRANSFORMERS_ATTRIBUTES = {
    ("trainer.py", "Trainer"): (
        "_globalstep_last_logged", "_total_loss_scalar", "_tr_loss", "accelerator", "args",
        "callback_handler", "control", "current_flos", "current_gradient_accumulation_steps", "eval_dataset",
        "is_deepspeed_enabled", "is_fsdp_enabled", "model", "model_wrapped", "processing_class", "state",
        "train_dataset",
    )
}  # fmt: skip


def wheel(name: str, version: str, folder: Path) -> Path:
    """The wheel of a release without its dependencies, from the package index that pip is set up for."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "-q"]
    done = subprocess.run([*command, "-d", str(folder), f"{name}=={version}"], capture_output=True, text=True)
    assert done.returncode == 0, f"pip cannot fetch {name} {version}: {done.stderr.strip().splitlines()[-1:]}"
    return next(folder.glob(f"{name}-{version}-*.whl"))


def from_wheel(wheel: Path, package: str) -> dict[str, str]:
    """The Python files of a package inside a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(f"{package}/") and name.endswith(".py")]
        return {name.removeprefix(f"{package}/"): archive.read(name).decode("utf-8") for name in names}


def installed(package: str, files: set[str]) -> dict[str, str]:
    """Some files of an installed package; those that do not exist are left out."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    return {name: (folder / name).read_text(encoding="utf-8") for name in files if (folder / name).is_file()}


def files_of(needed: tuple[Needed, ...], attributes: Mapping[tuple[str, str], tuple[str, ...]]) -> set[str]:
    return {one.file for one in needed} | {file for file, _ in attributes} | {CONFIG}


def definition(tree: ast.AST, name: str) -> ast.AST | None:
    """The class or function with a dotted name."""
    for part in name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef)
        found = [node for node in ast.iter_child_nodes(tree) if isinstance(node, kinds) and node.name == part]
        if not found:
            return None
        tree = found[0]
    return tree


def _refused(function: ast.FunctionDef, names: tuple[str, ...]) -> list[str]:
    """Parameters that a function does not take; one with *args and **kwargs takes all."""
    given = function.args
    known = {one.arg for one in [*given.posonlyargs, *given.args, *given.kwonlyargs]}
    return [] if given.vararg and given.kwarg else [name for name in names if name not in known]


def set_on_self(tree: ast.AST) -> set[str]:
    targets = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    return {node.attr for node in targets if isinstance(node.value, ast.Name) and node.value.id == "self"}


def _columns(function: ast.AST | None) -> set[str]:
    """Keys of the dict `output` that a function makes."""
    found: set[str] = set()
    for node in ast.walk(function or ast.Module([], [])):
        match node:
            case ast.Assign(targets=[ast.Name(id="output")], value=ast.Dict(keys=keys)):
                found |= {key.value for key in keys if isinstance(key, ast.Constant)}
            case ast.Subscript(value=ast.Name(id="output"), slice=ast.Constant(value=str(key)), ctx=ast.Store()):
                found.add(key)
    return found


def violations(
    host: Host,
    needed: tuple[Needed, ...],
    attributes: Mapping[tuple[str, str], tuple[str, ...]],
    keywords: tuple[str, ...] = (),
    fields: tuple[str, ...] = (),
    columns: tuple[str, ...] = (),
) -> Iterator[str]:
    """One line for each thing that a host lacks."""
    trees = {file: ast.parse(host[file]) for file in files_of(needed, attributes) if file in host}
    for one in needed:
        found = definition(trees[one.file], one.name) if one.file in trees else None
        if found is None:
            yield f"{one.file} has no {one.name}"
        elif isinstance(found, ast.FunctionDef) and (missing := _refused(found, one.takes)):
            yield f"{one.name} takes no {', '.join(missing)}"
    for (file, owner), names in attributes.items():
        tree = definition(trees[file], owner) if file in trees else None
        held = set() if tree is None else set_on_self(tree)
        yield from (f"{owner} does not set {name}" for name in names if name not in held)
    if keywords:
        passed = {word.arg for call in _calls(trees[GRPO], "VLLMGeneration") for word in call.keywords}
        yield from (f"GRPOTrainer makes VLLMGeneration without {name}" for name in keywords if name not in passed)
    if columns:
        made = _columns(definition(trees[GRPO], "GRPOTrainer._generate_and_score_completions"))
        yield from (f"_generate_and_score_completions makes no column {name}" for name in columns if name not in made)
    if fields:
        config = definition(trees[CONFIG], "GRPOConfig")
        own = {node.target.id for node in ast.walk(config or ast.Module([], [])) if isinstance(node, ast.AnnAssign)
               and isinstance(node.target, ast.Name)}  # fmt: skip
        yield from (f"GRPOConfig has no field {name}" for name in fields if name not in own)


def _calls(tree: ast.AST, name: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


def trl_violations(host: Host) -> list[str]:
    return list(violations(host, TRL_NEEDED, TRL_ATTRIBUTES, TRL_KEYWORDS, TRL_FIELDS, TRL_COLUMNS))


def transformers_violations(host: Host) -> list[str]:
    return list(violations(host, TRANSFORMERS_NEEDED, TRANSFORMERS_ATTRIBUTES))
