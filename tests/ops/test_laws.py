"""Laws that hold for every row of every axis; a new row is picked up from its dict."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo_ext.objective import Batch, Objective
from grpo_ext.ops.aggregation import AGGREGATIONS, Window
from grpo_ext.ops.kl import KL_ESTIMATORS
from grpo_ext.ops.masking import masked_mean, masked_sum
from grpo_ext.ops.ratios import RATIO_LEVELS
from grpo_ext.ops.surrogates import SURROGATES

MAX_LENGTH = 9
# TRL's `bnpo` divides by the tokens of a micro-batch, so it depends on the split by definition.
SPLITTABLE = [name for name in AGGREGATIONS if name != "part_token_mean"]
AXES = [
    *({"surrogate": name} for name in SURROGATES),
    *({"surrogate": name, "ratio_level": "sequence"} for name in SURROGATES),
    *({"aggregation": name} for name in AGGREGATIONS),
    *({"ratio_level": name} for name in RATIO_LEVELS),
    *({"ratio_level": name, "kl_estimator": "k3_corrected"} for name in RATIO_LEVELS),
    *({"kl_estimator": name} for name in KL_ESTIMATORS),
    {"ratio_against": "reference"},
    {"kl_against": "old"},
    {"entropy_coef": 0.05},
]
SEEDS = st.integers(0, 2**31)


def label(fields: dict[str, object]) -> str:
    return "-".join(map(str, fields.values()))


def make_batch(seed: int, rows: int, tokens: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    logps = -torch.rand(rows, tokens, generator=draw, dtype=torch.float64) * 3
    lengths = torch.randint(0, tokens + 1, (rows, 1), generator=draw)
    lengths[0] = tokens  # at least one row is not empty
    return {
        "logps": logps,
        "old_logps": logps + 0.4 * normal(rows, tokens),
        "ref_logps": logps + 0.4 * normal(rows, tokens),
        "entropies": torch.rand(rows, tokens, generator=draw, dtype=torch.float64),
        "advantages": normal(rows),
        "mask": (torch.arange(tokens) < lengths).long(),
    }


def make_window(batch: dict[str, Tensor], parts: int = 1) -> Window:
    return Window(
        rows=len(batch["mask"]),
        tokens=batch["mask"].sum().double(),
        parts=parts,
        group_size=4,
        max_completion_length=MAX_LENGTH,
    )


def loss_and_gradients(
    objective: Objective, batch: dict[str, Tensor], window: Window
) -> tuple[Tensor, Tensor, Tensor]:
    logps, entropies = (batch[name].clone().requires_grad_() for name in ("logps", "entropies"))
    loss, _ = objective(Batch(**{**batch, "logps": logps, "entropies": entropies}), window, beta=0.1)
    grads = torch.autograd.grad(loss, (logps, entropies), allow_unused=True)
    return loss.detach(), *(torch.zeros_like(logps) if grad is None else grad for grad in grads)


def assert_same(left: tuple[Tensor, ...], right: tuple[Tensor, ...], atol: float = 1e-12) -> None:
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=atol)


@pytest.mark.parametrize("fields", AXES, ids=label)
@pytest.mark.parametrize("garbage", ["numbers", "nan", "inf"])
@settings(max_examples=8)
@given(seed=SEEDS, rows=st.integers(1, 5), tokens=st.integers(1, 6))
def test_masked_positions_never_matter(
    fields: dict[str, str], garbage: str, seed: int, rows: int, tokens: int
) -> None:
    objective, batch = Objective(**fields), make_batch(seed, rows, tokens)
    masked = batch["mask"] == 0
    found = loss_and_gradients(objective, batch, make_window(batch))
    assert torch.isfinite(found[0]) and all((grad[masked] == 0).all() for grad in found[1:])
    fill = {"numbers": 20.0 * torch.rand(rows, tokens).double(), "nan": torch.nan, "inf": torch.inf}[garbage]
    for name in ("logps", "old_logps", "ref_logps", "entropies"):
        # Infinite log-probabilities minus each other are NaN; both arrive at masked positions in practice
        spoilt = {**batch, name: torch.where(masked, torch.as_tensor(fill).double(), batch[name])}
        assert_same(loss_and_gradients(objective, spoilt, make_window(batch)), found)


@pytest.mark.parametrize("fields", AXES, ids=label)
@settings(max_examples=8)
@given(seed=SEEDS, rows=st.integers(2, 6), tokens=st.integers(1, 6))
def test_order_of_rows_changes_nothing(fields: dict[str, str], seed: int, rows: int, tokens: int) -> None:
    objective, batch = Objective(**fields), make_batch(seed, rows, tokens)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    shuffled = {name: value[order] for name, value in batch.items()}
    loss, *grads = loss_and_gradients(objective, batch, make_window(batch))
    assert_same(loss_and_gradients(objective, shuffled, make_window(batch)), (loss, *(grad[order] for grad in grads)))


@pytest.mark.parametrize("aggregation", SPLITTABLE)
@pytest.mark.parametrize("level", RATIO_LEVELS)
@settings(max_examples=10)
@given(seed=SEEDS, ranks=st.integers(1, 3), parts=st.integers(1, 3), rows=st.integers(1, 3), tokens=st.integers(1, 6))
def test_micro_batches_and_ranks_add_up_to_the_whole_batch(
    aggregation: str, level: str, seed: int, ranks: int, parts: int, rows: int, tokens: int
) -> None:
    objective = Objective(aggregation=aggregation, ratio_level=level)
    batch = make_batch(seed, ranks * parts * rows, tokens)
    loss, gradient, _ = loss_and_gradients(objective, batch, make_window(batch))
    # A rank's window holds its own rows and an even share of all tokens; ranks are averaged, as in data parallel
    window = Window(
        rows=parts * rows,
        tokens=batch["mask"].sum().double() / ranks,
        parts=parts,
        group_size=4,
        max_completion_length=MAX_LENGTH,
    )
    pieces = [
        loss_and_gradients(objective, {name: value[i : i + rows] for name, value in batch.items()}, window)
        for i in range(0, ranks * parts * rows, rows)
    ]
    total = sum(piece[0] for piece in pieces) / ranks
    assert_same((total, torch.cat([piece[1] for piece in pieces]) / ranks), (loss, gradient))


def test_part_token_mean_alone_depends_on_the_split() -> None:
    losses, mask = torch.tensor([[1.0, 1.0], [4.0, 0.0]]), torch.tensor([[1, 1], [1, 0]])
    values = {}
    for name, aggregate in AGGREGATIONS.items():
        whole = aggregate(losses, mask, Window(2, 3, 1, 2, MAX_LENGTH))
        split = sum(aggregate(losses[i : i + 1], mask[i : i + 1], Window(2, 3, 2, 2, MAX_LENGTH)) for i in (0, 1))
        values[name] = torch.allclose(whole, split, rtol=1e-6, atol=0.0)
    assert [name for name, same in values.items() if not same] == ["part_token_mean"]


@pytest.mark.parametrize("level", RATIO_LEVELS)
@pytest.mark.parametrize("surrogate", ["clip", "none", "soft"])
@settings(max_examples=10)
@given(seed=SEEDS, rows=st.integers(1, 5), tokens=st.integers(1, 6))
def test_on_policy_all_levels_agree(level: str, surrogate: str, seed: int, rows: int, tokens: int) -> None:
    batch = {**make_batch(seed, rows, tokens), "old_logps": None}
    window = make_window(batch)
    # The unnormalised product has |o| times the gradient of the mean, so its peer is the sum over tokens of the
    # token's ratio; its value counts once an output, its gradient once a token.
    if level == "sequence_sum":
        token = Objective(surrogate=surrogate, aggregation="seq_mean_token_sum", kl_in_loss=False)
        product = Objective(
            surrogate=surrogate, aggregation="seq_mean_token_mean", ratio_level=level, kl_in_loss=False
        )
        assert_same(loss_and_gradients(product, batch, window)[1:], loss_and_gradients(token, batch, window)[1:])
        return
    token = Objective(surrogate=surrogate, aggregation="seq_mean_token_mean")
    other = Objective(surrogate=surrogate, aggregation="seq_mean_token_mean", ratio_level=level)
    assert_same(loss_and_gradients(other, batch, window), loss_and_gradients(token, batch, window))


@given(seed=SEEDS, rows=st.integers(1, 4), tokens=st.integers(1, 6))
def test_masked_sums_equal_indexing(seed: int, rows: int, tokens: int) -> None:
    batch = make_batch(seed, rows, tokens)
    values, mask = batch["logps"], batch["mask"]
    picked = [row[kept.bool()] for row, kept in zip(values, mask, strict=True)]
    sums = torch.stack([row.sum() for row in picked])
    torch.testing.assert_close(masked_sum(values, mask, dim=1), sums)
    torch.testing.assert_close(masked_sum(values, mask), sums.sum())
    means = torch.stack([row.mean() if len(row) else row.sum() for row in picked])
    torch.testing.assert_close(masked_mean(values, mask, dim=1), means)
    torch.testing.assert_close(masked_mean(values, mask), torch.cat(picked).mean())


def test_empty_selection_is_zero_and_stays_in_the_graph() -> None:
    values = torch.full((2, 3), torch.nan, requires_grad=True)
    mean = masked_mean(values, torch.zeros(2, 3))
    assert mean.item() == 0.0
    mean.backward()
    assert values.grad.tolist() == [[0.0] * 3] * 2
