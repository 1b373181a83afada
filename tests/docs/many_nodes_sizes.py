"""Write the tables of docs/how-to/many-nodes.md from its formulas: `python tests/docs/many_nodes_sizes.py`.

The letters are those of the page. Seconds, bytes and FLOP; a GPU, a link and the shares that are reached are
assumptions, named on the page.
"""

import math
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "many-nodes.md"
GPUS = (8, 64, 512)
LENGTHS = (1024, 4096)
ROWS = {8: 1024, 64: 4096, 512: 16384}

# One GPU of 80 GB, eight in a machine
MEMORY, PEAK, BANDWIDTH = 80e9, 989e12, 3.35e12
TRAINS, READS, HELD = 0.35, 0.5, 0.85
INSIDE, ACROSS, FILES, NETWORK = 450e9, 50e9, 2e9, 3e9
PROMPT, GROUP, MICRO, RANK, LARGEST_BATCH = 512, 64, 4, 32, 256
JSON, TEXT = 30, 4


@dataclass(frozen=True)
class Model:
    """Shape of a model; `parallel` GPUs generate with one copy of it."""

    name: str
    weights: float
    layers: int
    hidden: int
    kv: int
    mlp: int
    parallel: int

    @property
    def adapter(self) -> float:
        """A: weights of an adapter on the seven linear layers of each layer."""
        widths = 2 * (2 * self.hidden) + 2 * (self.hidden + self.kv) + 3 * (self.hidden + self.mlp)
        return RANK * self.layers * widths

    @property
    def cache(self) -> float:
        """K: bytes of keys and values of a token."""
        return 2 * 2 * self.layers * self.kv


MODELS = (
    Model("7B", 7.6e9, 28, 3584, 512, 18944, 1),
    Model("32B", 32.8e9, 64, 5120, 1024, 27648, 2),
)
# FLOP for each weight and token, with activations made again in the backward pass
WORK = {"all weights": 8, "LoRA": 6}


@dataclass(frozen=True)
class Plan:
    """One line of the tables."""

    model: Model
    method: str
    gpus: int
    length: int
    train: int
    generate: int

    @property
    def rows(self) -> int:
        return ROWS[self.gpus]

    @property
    def batch(self) -> int:
        """b: rows that one copy of the model generates at a time."""
        room = self.model.parallel * MEMORY * HELD - 2 * self.model.weights
        held = int(room / (self.model.cache * (PROMPT + self.length)))
        return min(LARGEST_BATCH, held, math.ceil(self.rows / self.copies))

    @property
    def speed(self) -> float:
        """v: tokens a second and GPU."""
        reads = 2 * self.model.weights + self.batch * self.model.cache * (PROMPT + self.length / 2)
        seconds = reads / (self.model.parallel * BANDWIDTH * READS)
        return self.batch / seconds / self.model.parallel

    @property
    def tokens(self) -> float:
        return self.rows * self.length

    @property
    def generating(self) -> float:
        return self.tokens / (self.copies * self.model.parallel * self.speed)

    @property
    def training(self) -> float:
        work = WORK[self.method] * self.model.weights * self.rows * (PROMPT + self.length)
        return work / (self.train * PEAK * TRAINS)

    @property
    def step(self) -> float:
        return self.generating + self.training

    @property
    def link(self) -> float:
        """Bytes a second between trainers, of one GPU."""
        return INSIDE if self.train <= 8 else ACROSS

    @property
    def gradients(self) -> float:
        """Bytes that a GPU sends in a step."""
        others = (self.train - 1) / self.train
        if self.method == "LoRA":
            return 2 * others * 4 * self.model.adapter
        micro_batches = math.ceil(self.rows / (self.train * MICRO))
        return micro_batches * 3 * others * 2 * self.model.weights

    @property
    def sync(self) -> float:
        """Bytes for each copy of the model that generates."""
        return 2 * (self.model.adapter if self.method == "LoRA" else self.model.weights)

    @property
    def copies(self) -> int:
        return self.generate // self.model.parallel

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds that each link is busy in a step."""
        # Adapters are read from one folder by all servers; weights are broadcast in a ring
        synced = self.sync * self.copies / FILES if self.method == "LoRA" else self.sync / ACROSS
        machines = math.ceil(self.train / 8)
        return {
            "trainers": self.gradients / self.link,
            "weight sync" if self.method != "LoRA" else "shared folder": synced,
            "HTTP": self.tokens * JSON / (machines * NETWORK),
            "rewards and texts": self.tokens * TEXT / ACROSS,
        }

    @property
    def first(self) -> str:
        """The link that is busy for the largest share of a step."""
        name = max(self.seconds, key=lambda link: self.seconds[link])
        return f"{name}, {self.seconds[name] / self.step:.1%}"


def fits(model: Model, method: str, train: int) -> bool:
    """Whether the state of training leaves a third of a GPU for activations."""
    # With LoRA each GPU holds the base, in four bits where 16 do not fit
    base = 2 if 2 * model.weights < MEMORY / 2 else 0.55
    held = base * model.weights + 16 * model.adapter if method == "LoRA" else 16 * model.weights / train
    return held < MEMORY * 2 / 3


def plan(model: Model, method: str, gpus: int, length: int) -> Plan | None:
    """The fastest split of those in which each trainer has as many whole micro-batches."""
    unit = 8 if gpus > 8 else 2
    splits = [Plan(model, method, gpus, length, train, gpus - train) for train in range(unit, gpus, unit)]
    splits = [split for split in splits if split.rows % (split.train * MICRO) == 0]
    splits = [split for split in splits if fits(model, method, split.train)]
    return min(splits, key=lambda split: split.step) if splits else None


def plans() -> list[Plan]:
    """All lines; a case that does not fit has none."""
    cases = [(m, method, gpus, length) for m in MODELS for method in WORK for gpus in GPUS for length in LENGTHS]
    return [found for case in cases if (found := plan(*case)) is not None]


def _bytes(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"


def split_table() -> str:
    """Seconds of a step and the tokens that it needs."""
    lines = [
        "| model | trains | GPUs | T | train + generate | rows | generate s | train s | step s | tokens/s generated |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.model.name} | {p.method} | {p.gpus} | {p.length} | {p.train} + {p.generate} | {p.rows} | "
        f"{p.generating:.0f} | {p.training:.0f} | {p.step:.0f} | {p.tokens / p.generating:,.0f} |"
        for p in plans()
    ]
    return "\n".join(lines)


def link_table() -> str:
    """Bytes of a step by link, and the link that is busy for the largest share."""
    lines = [
        "| model | trains | GPUs | T | between trainers, a GPU | sync, a copy | copies | completions over HTTP | "
        "rewards and texts | busiest link, share of the step |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.model.name} | {p.method} | {p.gpus} | {p.length} | {_bytes(p.gradients)} | {_bytes(p.sync)} | "
        f"{p.copies} | {_bytes(p.tokens * JSON)} | {_bytes(p.rows * 4 + p.tokens * TEXT)} | {p.first} |"
        for p in plans()
    ]
    return "\n".join(lines)


TABLES = {"split": split_table, "links": link_table}


def filled(text: str) -> str:
    """A page with its tables made anew, each between its two marks."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = before + begin + make() + "\n" + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
