"""What is known to go wrong with a config, each as one function that yields sentences."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from grpo_ext.plan.batch import Batch
from grpo_ext.plan.shape import Shape
from grpo_ext.rollouts.vllm.adapters import ENGINE_RANKS

# A policy that solves so many problems is where groups without any spread are common.
SOLVE_RATE = 0.1
# Below half the distance of neighbouring bfloat16 weights near 0.01, and of float16 weights near 0.1
SMALL_STEPS = 1e-5


@dataclass(frozen=True)
class Case:
    """What the advice looks at.

    Attributes:
        values: fields of the recipe and of `GRPOExtConfig`.
        batch: their arithmetic.
        shape: sizes of the model, or None where they are not known.
        prompt_tokens: length of a prompt that is planned for.
        device: "cpu" or "cuda".
    """

    values: Mapping[str, Any]
    batch: Batch
    shape: Shape | None
    prompt_tokens: int
    device: str


def rank(case: Case) -> Iterator[str]:
    """Adapters wider than vLLM serves."""
    found, limit = case.values["lora_r"], ENGINE_RANKS[-1]
    if case.values["vllm_sync"] == "adapter" and found > limit:
        yield f"`lora_r` is {found}, and vLLM serves ranks up to {limit}; set lora_r={limit}, or unset `vllm_sync`."
    if case.values["vllm_sync"] == "adapter" and found == 0:
        yield "`vllm_sync` is 'adapter', but `lora_r` 0 trains all weights; set lora_r=16 or leave `vllm_sync` unset."


def four_bit(case: Case) -> Iterator[str]:
    """4-bit weights that cannot be trained or merged."""
    values = case.values
    if not values["load_in_4bit"]:
        return
    if values["use_vllm"] and values["vllm_sync"] != "adapter":
        yield (
            "`load_in_4bit` with TRL's own vLLM sync merges the adapter into 4-bit weights, which loses most of it; "
            "set vllm_sync='adapter'."
        )
    if not values["lora_r"]:
        yield "`load_in_4bit` needs an adapter, because 4-bit weights cannot be trained; set lora_r=16."


def beams(case: Case) -> Iterator[str]:
    """A correction that has no distribution to correct to."""
    values = case.values
    searched = values["group_generation"] != "sampling"
    if searched and values["use_vllm"] and values["vllm_importance_sampling_correction"]:
        yield (
            f"`group_generation` is {values['group_generation']!r}, whose beams are no samples, so "
            "`vllm_importance_sampling_correction` has nothing to weigh them against; set it to false."
        )


def sampler(case: Case) -> Iterator[str]:
    """A correction for vLLM's rounding that would be biased, or that drops rows."""
    values = case.values
    if not (values["use_vllm"] and values["vllm_importance_sampling_correction"]):
        return
    plain = {"top_p": (1.0, None), "top_k": (0, -1, None), "min_p": (None, 0.0)}
    cut = [f"{name}={values[name]}" for name, usual in plain.items() if values[name] not in usual]
    if cut:
        yield (
            f"{', '.join(cut)} draws from a truncated distribution, against which the importance-sampling correction "
            "is biased; leave it out, or set vllm_importance_sampling_correction=false."
        )
    if values["vllm_importance_sampling_mode"] == "sequence_mask":
        yield (
            "`vllm_importance_sampling_mode` 'sequence_mask' leaves out long completions first, whose product of "
            "ratios strays furthest; 'token_truncate' keeps them."
        )


def _scattered(case: Case) -> tuple[str, list[int]] | None:
    """The beginning of a sentence about groups that lie on several processes, and group sizes that do not; or None."""
    batch = case.batch
    if not (batch.straddles and batch.divides):
        return None
    local = batch.micro * batch.parts
    text = f"Each of {batch.processes} processes has {local} completions, not whole groups of {batch.group}"
    return text, [n for n in range(2, local + 1) if local % n == 0]


def _needs_whole_groups(case: Case) -> bool:
    return case.values["group_generation"] != "sampling" or case.values["resampling"] is not None


def whole_groups(case: Case) -> Iterator[str]:
    """Groups on several processes that are made or replaced as a whole."""
    found = _scattered(case)
    if found is not None and _needs_whole_groups(case):
        yield f"{found[0]}, which a search and resampling need; num_generations in {found[1]} would fit."


def processes(case: Case) -> Iterator[str]:
    """Groups on several processes, which share less."""
    found = _scattered(case)
    if found is not None and not _needs_whole_groups(case):
        yield f"{found[0]}: prompts are forwarded on several; num_generations in {found[1]} keeps groups together."


def lengths(case: Case) -> Iterator[str]:
    """Sequences that do not fit the model or the engine."""
    prompt, completion = case.prompt_tokens, case.batch.completion_tokens
    windows = {f"`{name}`": case.values[name] for name in ("vllm_max_model_length", "max_seq_length")}
    if case.shape is not None:
        windows[f"the window of {case.shape.name}"] = case.shape.window
    for name, window in windows.items():
        if window is not None and prompt + completion > window:
            yield (
                f"Prompts of {prompt} tokens and completions of {completion} make {prompt + completion}, and {name} "
                f"is {window}; use max_completion_length={max(window - prompt, 1)} or less."
            )


def spread(case: Case) -> Iterator[str]:
    """Groups too small to learn from."""
    group = case.batch.group
    share = 1 - (1 - SOLVE_RATE) ** group - SOLVE_RATE**group
    if case.values["scale_rewards"] == "group" and group == 2:
        yield (
            "With `num_generations` 2 and `scale_rewards` 'group' every advantage is the same number or its negative: "
            "how far apart two rewards are does not count; use more completions, or scale_rewards=none."
        )
    if case.values["resampling"] is None and share < 0.5:
        yield (
            f"Of groups of {group} completions, {share:.0%} have any spread while {SOLVE_RATE:.0%} of completions are "
            "right; the others teach nothing. num_generations=8 gives "
            f"{1 - (1 - SOLVE_RATE) ** 8 - SOLVE_RATE**8:.0%}, and resampling=dynamic_sampling draws them anew."
        )


def padding(case: Case) -> Iterator[str]:
    """A pad token that is the end token."""
    if case.shape is not None and case.shape.pad_is_end:
        yield (
            f"The tokenizer of {case.shape.name} pads with its end token, which a loss that rebuilds its mask from "
            "pad ids (Unsloth's) would never teach; load_policy takes a free token, your own tokenizer needs one."
        )


def dataset(case: Case) -> Iterator[str]:
    """Fewer prompts than one generation takes."""
    prompts = case.batch.generated // case.batch.group
    if case.batch.divides and case.batch.problems < prompts:
        yield (
            f"A generation takes {prompts} prompts and the dataset has {case.batch.problems}, so there is no step at "
            f"all; use {case.batch.problems * case.batch.group} completions a generation or fewer."
        )


def unsloth(case: Case) -> Iterator[str]:
    """What Unsloth has not, or what it alone has."""
    values = case.values
    if values["backend"] != "unsloth":
        for name, unsaid in (("max_seq_length", None), ("fast_inference", False)):
            if values[name] != unsaid:
                yield f"`{name}` is {values[name]}, an option of Unsloth alone; set backend=unsloth, or leave it out."
        return
    if not values["lora_r"]:
        yield "`lora_r` is 0, which trains all weights, but backend 'unsloth' is for adapters; set lora_r=16."
    if case.device == "cpu":
        if values["fast_inference"]:
            yield (
                "`fast_inference` needs a GPU, where vLLM shares the policy's weights; on a CPU set use_vllm=true and "
                "vllm_sync=adapter."
            )
        return
    if values["fast_inference"] and not (values["use_vllm"] and values["vllm_sync"] == "adapter"):
        yield (
            "`fast_inference` starts a vLLM engine that is given the adapter; set use_vllm=true and vllm_sync=adapter."
        )
    if values["scoring"] == "tree":
        yield "`scoring` is 'tree', but Unsloth's own forward pass shares prompts in its own way; leave it on 'auto'."


def saving(case: Case) -> Iterator[str]:
    """What could not be written after the last step."""
    formats, values = case.values["save_format"] or [], case.values
    if "adapter" in formats and not values["lora_r"]:
        yield "`save_format` 'adapter' needs an adapter, and `lora_r` 0 trains all weights; use 'model'."
    if "gguf" in formats and (values["backend"] != "unsloth" or case.device == "cpu"):
        yield (
            "`save_format` 'gguf' is Unsloth's, on a GPU; save 'merged_16bit' and convert that folder with "
            "llama.cpp's convert_hf_to_gguf.py."
        )


def rounding(case: Case) -> Iterator[str]:
    """Updates that are smaller than the distance of two weights."""
    values = case.values
    low = values["dtype"] in ("bfloat16", "float16") and not values["lora_r"]
    if low and values["learning_rate"] < SMALL_STEPS:
        yield (
            f"`lora_r` 0 trains {values['dtype']} weights, to which most updates of `learning_rate` "
            f"{values['learning_rate']:g} are rounded away; set dtype=float32, with which passes run in 16 bits "
            "all the same, or train an adapter."
        )


def scoring(case: Case) -> Iterator[str]:
    """A path that has to be asked for."""
    if case.device == "cuda" and case.values["scoring"] == "auto" and case.values["backend"] != "unsloth":
        yield "On a GPU rows are padded unless scoring=tree is set: each prompt is forwarded once per completion."


# True where the run would stop or be wrong, False where it works less well than it could.
ADVICE: dict[Callable[[Case], Iterator[str]], bool] = {
    rank: True,
    four_bit: True,
    beams: True,
    lengths: True,
    dataset: True,
    whole_groups: True,
    unsloth: True,
    saving: True,
    processes: False,
    sampler: False,
    spread: False,
    padding: False,
    rounding: False,
    scoring: False,
}


def advise(case: Case) -> tuple[list[str], list[str]]:
    """Everything that is known to go wrong.

    Args:
        case: the config.

    Returns:
        What would stop the run or make it wrong, and what to look at.
    """
    found: dict[bool, list[str]] = {True: [], False: []}
    for function, stops in ADVICE.items():
        found[stops] += list(function(case))
    return found[True], found[False]
