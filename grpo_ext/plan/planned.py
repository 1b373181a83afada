"""A config worked out: its batch, its memory, and what would stop the run or make it wrong."""

import argparse
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from grpo_ext.cli import layered, unknown_flag
from grpo_ext.config import GRPOExtConfig
from grpo_ext.doctor.environment import machine
from grpo_ext.plan.advice import Case, advise
from grpo_ext.plan.batch import Batch, batch_of, in_words, nearest
from grpo_ext.plan.memory import Load, estimate, gigabytes, peak, weights
from grpo_ext.plan.shape import Shape, find_shape
from grpo_ext.recipes.arguments import DEFAULTS, RecipeArguments

UNITS = {"": 1e9, "GB": 1e9, "MB": 1e6, "GIB": 2**30, "MIB": 2**20}


@dataclass
class Plan:
    """What a config comes to.

    Attributes:
        batch: lines about completions, passes, tokens and steps.
        memory: bytes by part, empty where the model's sizes are not known.
        available: bytes of the device.
        device: the device, for people.
        stops: what would stop the run or make it wrong.
        notes: what to look at.
        shape: of the model, or None.
    """

    batch: list[str] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)
    available: float = 0.0
    device: str = ""
    stops: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shape: Shape | None = None


def memory_size(text: str) -> float:
    """Bytes of "16GB", "16", "512MB" or "15.5GiB".

    Args:
        text: a number with or without a unit; gigabytes without.

    Raises:
        ValueError: it is none of these.
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([a-z]*)\s*", text, re.IGNORECASE)
    if found is None or found.group(2).upper() not in UNITS or found.group(1).count(".") > 1:
        raise ValueError(f"`--memory` is {text!r}; write it as 16GB, 15.5GiB or 512MB.")
    return float(found.group(1)) * UNITS[found.group(2).upper()]


def read_values(argv: Sequence[str], processes: int) -> tuple[dict[str, Any], str | None]:
    """Fields of recipe and config from a command line, and what the config itself refuses.

    Args:
        argv: the recipe's words.
        processes: number of processes.

    Returns:
        The fields, as they are before the config completes them, and a sentence or None.
    """
    reader, rest = layered(RecipeArguments, argv, DEFAULTS, GRPOExtConfig)
    known, unknown = reader.parse_known_args(rest)
    values = vars(known)
    if unknown:
        raise ValueError(unknown_flag(unknown[0], values, "`plan` or of the recipe"))
    # One process that has the rows of all stands for them
    whole = ["--per_device_train_batch_size", str(values["per_device_train_batch_size"] * processes)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            reader.parse_args_into_dataclasses(args=[*rest, *whole, "--output_dir", folder])
        except (ValueError, ImportError) as error:
            return values, " ".join(str(error).split())
    return values, None


def _engine(values: Mapping[str, Any], shape: Shape | None, device: str, available: float) -> float:
    """Bytes of vLLM in this process: its share of a GPU, or on a CPU weights and space for the KV cache."""
    if device == "cuda":
        return values["vllm_gpu_memory_utilization"] * available
    # vLLM's own variable, and its default in GiB
    space = float(os.environ.get("VLLM_CPU_KVCACHE_SPACE") or 4) * 2**30
    return space + (0 if shape is None else 2 * (shape.linear + shape.other))


def load_of(
    values: Mapping[str, Any],
    batch: Batch,
    args: argparse.Namespace,
    shape: Shape | None,
    device: str,
    available: float,
) -> Load:
    """What one process holds and computes under a config.

    Args:
        values: the config's fields.
        batch: their arithmetic.
        args: plan's own flags.
        shape: sizes of the model, or None.
        device: "cpu" or "cuda".
        available: bytes of the device.
    """
    tree = values["scoring"] == "tree" or (values["scoring"] == "auto" and device == "cpu")
    inside = values["use_vllm"] and values["vllm_mode"] == "colocate" and not values["vllm_server_urls"]
    load = Load(
        dtype=values["dtype"],
        four_bit=values["load_in_4bit"],
        rank=values["lora_r"],
        optimizer=str(values["optim"]),
        reference=batch.reference_pass,
        # Without fp16 and bf16 TRL trains in bf16
        autocast=bool(values["fp16"]) or values["bf16"] is not False,
        micro=batch.micro,
        accumulation=batch.accumulation,
        group=batch.group,
        generated=batch.micro * batch.parts,
        prompt_tokens=args.prompt_tokens,
        completion_tokens=args.completion_tokens or batch.completion_tokens,
        tree=tree,
        scoring_tokens=values["scoring_tokens"],
        checkpointing=bool(values["gradient_checkpointing"]),
        shares=batch.processes == 1,
        engine=_engine(values, shape, device, available) if inside else 0.0,
        generates=not values["use_vllm"],
        device=device,
    )
    if values["fast_inference"] and load.engine and shape is not None:
        # The policy's weights lie in the engine's share
        return replace(load, engine=max(load.engine - weights(shape, load), 0.0))
    return load


def passes_of(batch: Batch, load: Load) -> dict[str, str]:
    """The forward passes of an optimiser step on one process, for people.

    Args:
        batch: the arithmetic.
        load: what the process computes.
    """
    count, tokens = load.packs
    padded = f"{batch.accumulation} of {load.padded_tokens:,} tokens each when rows are padded"
    packed = f"{count} of {tokens:,} tokens at most over the tree"
    again = f"all {load.generated} rows, once for each generation"
    found = {"policy, with backward": f"{packed} ({padded})" if load.tree else padded}
    if batch.reference_pass:
        found["reference"] = again
    if batch.old_pass:
        found["old policy"] = again
    return found


def make_plan(args: argparse.Namespace, argv: Sequence[str]) -> Plan:
    """Work a config out.

    Args:
        args: plan's own flags.
        argv: the recipe's words.

    Raises:
        OSError: a file cannot be read.
        ValueError: a key that is no field, or numbers that mean nothing.
    """
    plan = Plan()
    values, refused = read_values(argv, args.processes)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    plan.available = memory_size(args.memory) if args.memory else _here(device)
    plan.device = f"{gigabytes(plan.available)} of {'memory' if device == 'cpu' else 'GPU memory'}"
    batch = batch_of(values, args.processes)
    try:
        plan.shape = find_shape(args.model or values["model_name_or_path"], args.from_hub)
    except OSError as error:
        plan.notes.append(f"No estimate of memory. {error}")
    stops, notes = advise(Case(values, batch, plan.shape, args.prompt_tokens, device))
    plan.notes += notes
    if not batch.divides:
        stops.insert(
            0,
            f"A generation of {batch.generated} completions does not divide into groups of {batch.group}. Nearest "
            f"that fit: {'; '.join(nearest(batch, values))}.",
        )
    elif refused is not None and not _is_told(refused, stops):
        stops.append(refused)
    plan.stops += stops
    load = load_of(values, batch, args, plan.shape, device, plan.available)
    if batch.divides:
        plan.batch = list(in_words(batch, passes_of(batch, load)))
    if plan.shape is not None:
        plan.memory = estimate(plan.shape, load)
        if plan.available and peak(plan.memory) > plan.available:
            plan.stops.append(_too_large(plan.memory, plan.available))
    return plan


def _is_told(sentence: str, others: Sequence[str]) -> bool:
    """Whether another sentence is about the field that this one begins with."""
    found = re.match(r"`\w+`", sentence)
    return found is not None and any(found.group() in other for other in others)


def _here(device: str) -> float:
    if device == "cuda" and torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(machine()["memory"]) if device == "cpu" else 0.0


def _too_large(parts: Mapping[str, float], available: float) -> str:
    """That it does not fit, with what makes the largest part smaller."""
    remedies = {
        "training pass": "lower per_device_train_batch_size (raise gradient_accumulation_steps for it) or "
        "scoring_tokens, or set gradient_checkpointing=true",
        "generation": "lower per_device_train_batch_size or steps_per_generation, or use vLLM servers",
        "weights": "load_in_4bit=true or a smaller model",
        "optimiser": "lora_r=16, which trains an adapter alone",
        "gradients": "lora_r=16, which trains an adapter alone",
        "vLLM": "lower vllm_gpu_memory_utilization",
    }
    largest = max((name for name in parts if name in remedies), key=lambda name: parts[name])
    return (
        f"An estimated {gigabytes(peak(dict(parts)))} do not fit into {gigabytes(available)}; the largest part is "
        f"{largest} with {gigabytes(parts[largest])}: {remedies[largest]}."
    )
