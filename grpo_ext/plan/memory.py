"""An estimate of the peak memory of one process, from the shape of the model and the batch.

What is held all the time (weights, adapter, its gradients and optimiser) and, on top, the larger of two phases: one
training pass, or one generation. Counted are the tensors that torch keeps, in the type they are kept in. How far off
it was where it was compared with a measurement is in docs/how-to/doctor.md.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from grpo_ext.plan.shape import Shape
from grpo_ext.scoring.head import CHUNK_LOGITS

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
# NF4 with double quantisation: half a byte, a byte for each 64 weights, four for each 64 x 256
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
# Moments of the optimiser per trained weight, as multiples of the weight's own size; AdamW where nothing else is said
MOMENTS = {"8bit": 0.5, "sgd": 0.0, "adafactor": 0.01, "lion": 1.0}
# Logits in two steps of their making, and their softmax
HEAD_COPIES = 3
# On a CPU glibc leaves holes between tensors below 32 MB, measured as this share of what a pass without checkpointing
# keeps, with checkpointing too. Without glibc's heap (MALLOC_MMAP_THRESHOLD_=131072) there are none.
HOLES = {"cpu": 0.8, "cuda": 0.0}
# Python, torch and the hosts before a model is loaded; on a GPU the context of CUDA
RUNTIME = {"cpu": 0.5e9, "cuda": 0.5e9}


@dataclass(frozen=True)
class Load:
    """What one process holds and computes.

    Attributes:
        dtype: type of the weights.
        four_bit: whether the linear layers are NF4.
        rank: of the adapter; 0 trains all weights.
        optimizer: TRL's `optim`.
        reference: whether there is a reference policy.
        autocast: whether activations are 16-bit while the adapter is float32.
        micro: rows of a micro-batch.
        accumulation: micro-batches of an optimiser step.
        group: completions of a prompt.
        generated: rows that are generated at a time.
        prompt_tokens: length of a prompt.
        completion_tokens: length of a completion.
        tree: whether a pass is a pack of shared beginnings.
        scoring_tokens: tokens of a pack; None is 1.25 times a padded micro-batch.
        checkpointing: whether activations are made again in the backward pass.
        shares: whether the micro-batches of a step may share a pass (one process).
        engine: bytes that vLLM takes on this device.
        generates: whether this process generates with transformers.
        device: "cpu" or "cuda".
    """

    dtype: str = "bfloat16"
    four_bit: bool = False
    rank: int = 16
    optimizer: str = "adamw_torch"
    reference: bool = False
    autocast: bool = True
    micro: int = 8
    accumulation: int = 1
    group: int = 8
    generated: int = 8
    prompt_tokens: int = 200
    completion_tokens: int = 256
    tree: bool = True
    scoring_tokens: int | None = None
    checkpointing: bool = False
    shares: bool = True
    engine: float = 0.0
    generates: bool = True
    device: str = "cpu"

    @property
    def padded_tokens(self) -> int:
        """Tokens of a padded micro-batch."""
        return self.micro * (self.prompt_tokens + self.completion_tokens)

    @property
    def packs(self) -> tuple[int, int]:
        """Passes of an optimiser step, and tokens of the largest one."""
        if not self.tree:
            return self.accumulation, self.padded_tokens
        if not self.shares:
            prompts = math.ceil(self.micro / self.group)
            return self.accumulation, prompts * self.prompt_tokens + self.micro * self.completion_tokens
        rows = self.micro * self.accumulation
        packed = math.ceil(rows / self.group) * self.prompt_tokens + rows * self.completion_tokens
        budget = self.scoring_tokens or self.padded_tokens + self.padded_tokens // 4
        parts = math.ceil(self.accumulation / max(math.ceil(packed / budget), 1))
        return math.ceil(self.accumulation / parts), math.ceil(packed * parts / self.accumulation)

    @property
    def scored(self) -> int:
        """Completion tokens of the largest pass."""
        packs, tokens = self.packs
        if not self.tree:
            return self.micro * self.completion_tokens
        return min(tokens, math.ceil(self.micro * self.accumulation / packs) * self.completion_tokens)


def weights(shape: Shape, load: Load) -> float:
    """Bytes of the policy's weights, without an adapter."""
    size = BYTES[load.dtype]
    return shape.other * size + shape.linear * (NF4 if load.four_bit else size)


def trained(shape: Shape, load: Load) -> dict[str, float]:
    """Bytes of what is trained beside the weights: adapter, gradients, moments of the optimiser, reference."""
    # peft keeps adapters in float32
    count, size = (shape.adapter(load.rank), 4) if load.rank else (shape.linear + shape.other, BYTES[load.dtype])
    moments = next((share for word, share in MOMENTS.items() if word in load.optimizer), 2.0)
    found = {"adapter": float(count * size)} if load.rank else {}
    found |= {"gradients": float(count * size), "optimiser": count * size * moments}
    if load.reference:
        # A second adapter, or a second model
        found["reference"] = float(count * size)
    return {name: value for name, value in found.items() if value}


def _layer(shape: Shape, load: Load) -> float:
    """Bytes that one layer keeps of one token for the backward pass."""
    casts = load.autocast or load.dtype != "float32"
    low = 2 if casts else 4
    norms = 2 * 4 * shape.hidden
    # Queries, keys, values and the result of attention; activation, its input and the other branch of the gate
    attention, gate = low * (2 * shape.query + 2 * shape.keys), low * 3 * shape.feed_forward
    # The input of a linear layer is kept where its weight, or an adapter beside it, has a gradient. Queries, keys and
    # values read the same one, but each adapter makes a 16-bit copy of its own
    inputs = low * ((5 * shape.hidden + shape.query) if casts else 2 * shape.hidden) + low * shape.feed_forward
    return norms + attention + gate + inputs + low * 7 * load.rank


def training(shape: Shape, load: Load) -> float:
    """Bytes of one pass with its backward: activations, and the head's chunk of logits."""
    tokens = load.packs[1]
    low = 2 if load.autocast or load.dtype != "float32" else 4
    whole = tokens * shape.layers * _layer(shape, load)
    # With checkpointing the inputs of all layers, and one layer whole
    kept = tokens * shape.layers * low * shape.hidden + whole / shape.layers if load.checkpointing else whole
    # The derivative of log π by the hidden state is kept for each scored token
    head = load.scored * shape.hidden * low + HEAD_COPIES * 4 * min(CHUNK_LOGITS, load.scored * shape.vocabulary)
    # A backward pass unpacks the largest 4-bit layer
    unpacked = shape.hidden * shape.feed_forward * BYTES[load.dtype] * load.four_bit
    return kept + whole * HOLES[load.device] + head + unpacked


def generation(shape: Shape, load: Load) -> float:
    """Bytes of the keys and values of all rows, and of the logits of one token."""
    if not load.generates:
        return 0.0
    rows, prompts = load.generated, math.ceil(load.generated / load.group)
    # Decoding over a tree keeps a prompt once
    tokens = rows * load.completion_tokens + (prompts if load.tree else rows) * load.prompt_tokens
    return tokens * shape.layers * 2 * shape.keys * BYTES[load.dtype] + 3 * 4 * rows * shape.vocabulary


def estimate(shape: Shape, load: Load) -> dict[str, float]:
    """Bytes by part, the two phases last.

    Args:
        shape: sizes of the model.
        load: what one process computes.
    """
    found = {"weights": weights(shape, load), **trained(shape, load), "runtime": RUNTIME[load.device]}
    if load.engine:
        found["vLLM"] = load.engine
    return found | {"training pass": training(shape, load), "generation": generation(shape, load)}


def peak(parts: dict[str, float]) -> float:
    """The largest sum of what exists at the same time.

    Args:
        parts: from `estimate`.
    """
    phases = ("training pass", "generation")
    return sum(value for name, value in parts.items() if name not in phases) + max(parts[name] for name in phases)


def in_words(parts: dict[str, float], device: str, available: float) -> Iterator[str]:
    """The estimate as lines of text.

    Args:
        parts: from `estimate`.
        device: what it is compared with, for people.
        available: its bytes; 0 where unknown.
    """
    for name, value in parts.items():
        yield f"{name:16}{gigabytes(value):>10}"
    total = peak(parts)
    later = "" if not available else f": {'fits' if total <= available else 'does not fit'} {device}"
    yield f"{'at most at once':16}{gigabytes(total):>10}  (training and generation take turns){later}"


def gigabytes(value: float) -> str:
    """Bytes as text, "1.23 GB"."""
    return f"{value / 1e9:.2f} GB"
