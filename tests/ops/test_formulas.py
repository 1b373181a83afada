"""Every formula of the loss against numbers computed by hand, gradients beside values."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from grpo_ext.ops.aggregation import AGGREGATIONS, Window
from grpo_ext.ops.kl import KL_CONTROLLERS, KL_ESTIMATORS
from grpo_ext.ops.ratios import RATIO_LEVELS
from grpo_ext.ops.surrogates import SURROGATES, Clipping, Terms

NAN = math.nan


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(found: Tensor, expected: object, atol: float = 1e-9) -> None:
    torch.testing.assert_close(found.detach(), tensor(expected), rtol=0, atol=atol)


# Ratio levels: log w is [0.5, 0.1, -0.3] for the first row and [0.2, 0.4] for the second

LEVELS = {
    "token": ([[0.5, 0.1, -0.3], [0.2, 0.4, NAN]], [[2.0, 2.0, 2.0], [-4.0, -4.0, NAN]]),
    "sequence": ([[0.1], [0.3]], [[2 / 3, 2 / 3, 2 / 3], [-2.0, -2.0, NAN]]),
    "sequence_token": ([[0.1, 0.1, 0.1], [0.3, 0.3, NAN]], [[2.0, 2.0, 2.0], [-4.0, -4.0, NAN]]),
    "sequence_sum": ([[0.3], [0.6]], [[2.0, 2.0, 2.0], [-4.0, -4.0, NAN]]),
}


@pytest.mark.parametrize("level", RATIO_LEVELS)
def test_ratio_levels(level: str) -> None:
    values, gradient = (tensor(part) for part in LEVELS[level])
    logps = tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, -9.0]]).requires_grad_()
    base = tensor([[-1.5, -2.1, -2.7], [-1.2, -1.4, -2.0]])
    found = RATIO_LEVELS[level](logps, base, torch.tensor([[1, 1, 1], [1, 1, 0]]))
    (found * tensor([[2.0], [-4.0]])).sum().backward()
    # A NaN of the table is a masked position, whose value is free
    assert found.shape == values.shape
    known = ~values.isnan()
    torch.testing.assert_close(found.detach()[known], values[known], rtol=0, atol=1e-12)
    known = ~gradient.isnan()
    torch.testing.assert_close(logps.grad[known], gradient[known], rtol=0, atol=1e-12)


# Surrogates: (name, clipping, advantage, ratios, losses, gradients); log-probabilities are -0.5, -1 and -2

CLIP = Clipping(epsilon=0.2, epsilon_high=0.3)
DELTA = Clipping(epsilon=0.2, epsilon_high=0.3, delta=1.4)
SOFT = Clipping(tau_pos=1.0, tau_neg=2.0)
GEOMETRIC = Clipping(epsilon=0.4, epsilon_high=0.4)
LOGPS = [-0.5, -1.0, -2.0]
RATIOS = [0.5, 1.0, 1.5]
TOKEN_CASES = [
    # A good token is clipped above only, a bad one below only; a clipped token has no gradient
    ("clip", CLIP, 2.0, RATIOS, [-1.0, -2.0, -2.6], [-1.0, -2.0, 0.0]),
    ("clip", CLIP, -2.0, RATIOS, [1.6, 2.0, 3.0], [0.0, 2.0, 3.0]),
    ("clip", CLIP, 2.0, [0.81, 1.29, 1.31], [-1.62, -2.58, -2.6], [-1.62, -2.58, 0.0]),
    ("clip", CLIP, -2.0, [0.79, 0.81, 1.31], [1.6, 1.62, 2.62], [0.0, 1.62, 2.62]),
    # delta caps the ratio of a bad token, 3.0 above becomes 2.8
    ("clip", DELTA, -2.0, RATIOS, [1.6, 2.0, 2.8], [0.0, 2.0, 0.0]),
    ("clip", DELTA, 2.0, RATIOS, [-1.0, -2.0, -2.6], [-1.0, -2.0, 0.0]),
    ("none", CLIP, 2.0, RATIOS, [-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0]),
    ("none", CLIP, -2.0, RATIOS, [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
    ("reinforce", CLIP, 2.0, RATIOS, [1.0, 2.0, 4.0], [-2.0, -2.0, -2.0]),
    ("reinforce", CLIP, -2.0, RATIOS, [-1.0, -2.0, -4.0], [2.0, 2.0, 2.0]),
    # The weight of the third token is capped at 1.3, whatever the sign, and keeps its gradient
    ("cispo", Clipping(epsilon_high=1.3), 2.0, RATIOS, [0.5, 2.0, 5.2], [-1.0, -2.0, -2.6]),
    ("cispo", Clipping(epsilon_high=1.3), -2.0, RATIOS, [-0.5, -2.0, -5.2], [1.0, 2.0, 2.6]),
    # sigmoid(0) = 0.5 with slope 0.25; sigmoid(0.5) = 0.6224593312, sigmoid(1) = 0.7310585786
    ("soft", SOFT, 2.0, [1.0, 1.0, 1.5], [-4.0, -4.0, -4.9796746496], [-2.0, -2.0, -2.8200445464]),
    ("soft", SOFT, -2.0, [1.0, 1.5, 1.0], [2.0, 2.9242343145, 2.0], [2.0, 2.3593431990, 2.0]),
    ("soft", SOFT, 0.0, RATIOS, [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    # W = 4 * 0.5 * 1 = 2; phi = 2^2 e^-3 for A > 0 and 2^3 e^-2 for A < 0
    ("gamma", CLIP, 2.0, [4.0, 0.5, 1.0], [0.1991482735, 0.3982965469, 0.7965930939], [-0.3982965469] * 3),
    ("gamma", CLIP, -2.0, [4.0, 0.5, 1.0], [-1.0826822659, -2.1653645318, -4.3307290635], [2.1653645318] * 3),
    ("gamma", CLIP, 2.0, [2.0, 0.5, 1.0], [1.0, 2.0, 4.0], [-2.0, -2.0, -2.0]),
]


def run(name: str, clipping: Clipping, terms: Callable[[Tensor], Terms]) -> tuple[Tensor, Tensor]:
    logps = tensor([LOGPS]).requires_grad_()
    losses = SURROGATES[name].loss(terms(logps), clipping)
    return losses.detach(), torch.autograd.grad(losses.sum(), logps)[0]


def token_terms(logps: Tensor, ratios: list[float], advantage: object, mask: object = None, **extra: Tensor) -> Terms:
    log_ratio = logps - (logps.detach() - torch.log(tensor([ratios])))
    advantages_ = tensor(advantage) if isinstance(advantage, list) else tensor([[advantage]])
    mask = torch.ones_like(logps) if mask is None else tensor(mask)
    return Terms(log_ratio, log_ratio, logps, advantages_, mask, **extra)


@pytest.mark.parametrize("name, clipping, advantage, ratios, losses, gradient", TOKEN_CASES)
def test_surrogates(
    name: str, clipping: Clipping, advantage: float, ratios: list[float], losses: list[float], gradient: list[float]
) -> None:
    found, grad = run(name, clipping, lambda logps: token_terms(logps, ratios, advantage))
    same(found, [losses])
    same(grad, [gradient])


def test_every_surrogate_is_in_a_table() -> None:
    assert {case[0] for case in TOKEN_CASES} | {"geometric"} == set(SURROGATES)
    assert set(LEVELS) == set(RATIO_LEVELS)


@pytest.mark.parametrize(
    "advantage, loss, gradient",
    [
        # log w = 0.9, 0.1, -0.6. Good: kept are 0.4, 0.1, -0.6, mean -1/30; the mean of all three would be 0.4/3
        (2.0, -2 * math.exp(-1 / 30), [0.0, -2 / 3 * math.exp(-1 / 30), -2 / 3 * math.exp(-1 / 30)]),
        # Bad: kept are 0.9, 0.1, -0.4, mean 0.2
        (-2.0, 2 * math.exp(0.2), [2 / 3 * math.exp(0.2), 2 / 3 * math.exp(0.2), 0.0]),
    ],
)
def test_geometric_clips_before_the_mean(advantage: float, loss: float, gradient: list[float]) -> None:
    ratios = [math.exp(0.9), math.exp(0.1), math.exp(-0.6)]
    found, grad = run("geometric", GEOMETRIC, lambda logps: token_terms(logps, ratios, advantage))
    same(found, [[loss]])
    same(grad, [gradient])


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("name", ["clip", "geometric"])
def test_the_logged_region_is_where_the_gradient_is_zero(name: str, advantage: float) -> None:
    clipping = Clipping(epsilon=0.2, epsilon_high=0.3)
    ratios = [0.5, 0.81, 0.79, 1.0, 1.29, 1.31, 1.34, 1.36, 3.0]
    logps = torch.linspace(-3, -0.1, len(ratios), dtype=torch.float64)[None].requires_grad_()
    terms = token_terms(logps, ratios, advantage)
    (gradient,) = torch.autograd.grad(SURROGATES[name].loss(terms, clipping).sum(), logps)
    logged = SURROGATES[name].metrics(terms, clipping)
    same(logged["clip_ratio/region"].double(), (gradient == 0).double().tolist())
    one, other = ("high", "low") if advantage > 0 else ("low", "high")
    assert logged[f"clip_ratio/{one}"].equal(logged["clip_ratio/region"]) and not logged[f"clip_ratio/{other}"].any()
    assert 0 < logged["clip_ratio/region"].sum() < len(ratios)


def test_geometric_leaves_masked_tokens_out_and_has_two_bounds() -> None:
    ratios = [math.exp(0.9), math.exp(0.1), math.exp(5.0)]
    wider = Clipping(epsilon=0.4, epsilon_high=0.7)
    found, grad = run("geometric", wider, lambda logps: token_terms(logps, ratios, 2.0, mask=[[1.0, 1.0, 0.0]]))
    same(found, [[-2 * math.exp(0.4)]])
    same(grad, [[0.0, -math.exp(0.4), 0.0]])


def test_gamma_takes_the_sampler_into_its_weight() -> None:
    terms = {"ratios": [4.0, 0.5, 1.0], "advantage": 2.0}
    for ratio in ([[0.5]], [[0.5, 2.0, 0.5]]):
        # W = 2 * 0.5 = 1, phi = 1
        found, grad = run("gamma", CLIP, lambda logps, r=ratio: token_terms(logps, **terms, sampling_ratio=tensor(r)))
        same(found, [[1.0, 2.0, 4.0]])
        same(grad, [[-2.0, -2.0, -2.0]])


def test_gamma_is_bounded() -> None:
    for exponent, phi in ((-60.0, 1e-16 * math.exp(3.0)), (60.0, 0.0)):
        ratios = [math.exp(exponent), 1.0, 1.0]
        _, grad = run("gamma", CLIP, lambda logps, r=ratios: token_terms(logps, r, 1.0))
        torch.testing.assert_close(grad, tensor([[-phi] * 3]), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("name", ["clip", "none", "soft"])
def test_a_ratio_of_the_sequence_gives_one_loss_an_output(name: str) -> None:
    losses = {"clip": -2.6, "none": -3.0, "soft": -4.9796746496}
    slopes = {"clip": 0.0, "none": -1.0, "soft": -0.9400148488}

    def terms(logps: Tensor) -> Terms:
        mean_log = (logps - logps.detach()).mean(1, keepdim=True) + math.log(1.5)
        return Terms(mean_log, logps - logps.detach(), logps, tensor([[2.0]]), torch.ones_like(logps))

    found, grad = run(name, CLIP, terms)
    same(found, [[losses[name]]])
    same(grad, [[slopes[name]] * 3])


# KL: values and gradients at x = 0.5 and x = -1

KL_NUMBERS = {
    "k1": ([0.5, -1.0], [1.0, 1.0]),
    "k2": ([0.125, 0.5], [0.5, -1.0]),
    "k3": ([0.1065306597, 0.7182818285], [0.3934693403, -1.7182818285]),
    # The weight is 2 and has the gradient of its logarithm, so the derivative is w x
    "k3_corrected": ([0.2130613194, 1.4365636569], [1.0, -2.0]),
}


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_kl_estimators(name: str) -> None:
    values, gradient = KL_NUMBERS[name]
    x = tensor([[0.5, -1.0]]).requires_grad_()
    found = KL_ESTIMATORS[name](x, 2 * torch.exp(x - x.detach()))
    found.sum().backward()
    same(found, [values])
    same(x.grad, [gradient])


def expectation(name: str) -> tuple[float, Tensor, float, Tensor, Tensor]:
    """Mean of an estimator and of its gradient over a softmax of three tokens, on policy, by enumeration."""
    theta = tensor([0.3, -0.8, 0.5]).requires_grad_()
    log_pi, log_ref = torch.log_softmax(theta, 0), torch.log_softmax(tensor([-0.4, 0.9, 0.1]), 0)
    x = log_pi - log_ref
    estimate = (log_pi.exp().detach() * KL_ESTIMATORS[name](x, torch.exp(log_pi - log_pi.detach()))).sum()
    forward = (log_pi.exp() * x).sum()
    backward = (log_ref.exp() * -x).sum()
    grads = [torch.autograd.grad(part, theta, retain_graph=True)[0] for part in (estimate, forward, backward)]
    return estimate.item(), grads[0], forward.item(), grads[1], grads[2]


def test_expected_values_of_the_estimators() -> None:
    for name in ("k1", "k3", "k3_corrected"):
        value, _, kl, _, _ = expectation(name)
        assert value == pytest.approx(kl, abs=1e-12)
    value, _, kl, _, _ = expectation("k2")
    assert abs(value - kl) > 1e-3
    assert kl > 0.3


def test_expected_gradients_of_the_estimators() -> None:
    _, grad, _, to_reference, from_reference = expectation("k1")
    same(grad, [0.0, 0.0, 0.0], atol=1e-14)
    assert (to_reference - from_reference).abs().max() > 0.05
    same(expectation("k2")[1], to_reference.tolist(), atol=1e-14)
    same(expectation("k3_corrected")[1], to_reference.tolist(), atol=1e-14)
    same(expectation("k3")[1], from_reference.tolist(), atol=1e-14)


@pytest.mark.parametrize(
    "name, kl, expected",
    [
        ("fixed", 9.0, 0.1),
        ("ziegler", 0.55, 0.101),
        ("ziegler", 0.45, 0.099),
        ("ziegler", 9.0, 0.102),
        ("ziegler", 0.0, 0.098),
        ("ppo", 0.33, 0.05),
        ("ppo", 0.34, 0.1),
        ("ppo", 0.74, 0.1),
        ("ppo", 0.76, 0.2),
    ],
)
def test_controllers(name: str, kl: float, expected: float) -> None:
    assert KL_CONTROLLERS[name](0.1, kl, 0.5) == pytest.approx(expected, rel=1e-12)


# Aggregations: value, then the gradient of each loss; NaN stands at the masked position

AGGREGATED = {
    "token_mean": (15 / 12, [[1 / 12] * 3, [1 / 12, 1 / 12, 0.0]], 14 / 12, [[3 / 12], [2 / 12]]),
    "part_token_mean": (1.5, [[0.1] * 3, [0.1, 0.1, 0.0]], 1.4, [[0.3], [0.2]]),
    "seq_mean_token_mean": (1.625, [[1 / 12] * 3, [1 / 8, 1 / 8, 0.0]], 1.5, [[0.25], [0.25]]),
    "seq_mean_token_sum": (3.75, [[0.25] * 3, [0.25, 0.25, 0.0]], 3.5, [[0.75], [0.5]]),
    "seq_mean_token_sum_norm": (0.46875, [[1 / 32] * 3, [1 / 32, 1 / 32, 0.0]], 0.4375, [[3 / 32], [2 / 32]]),
    "group_sum": (3.25, [[1 / 6] * 3, [1 / 4, 1 / 4, 0.0]], 3.0, [[0.5], [0.5]]),
}


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_aggregations(name: str) -> None:
    window = Window(rows=4, tokens=12, parts=2, group_size=2, max_completion_length=8)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    value, gradient, row_value, row_gradient = AGGREGATED[name]
    for losses, expected, slopes in (
        ([[1.0, 2.0, 3.0], [4.0, 5.0, NAN]], value, gradient),
        ([[2.0], [4.0]], row_value, row_gradient),
    ):
        leaf = tensor(losses).requires_grad_()
        found = AGGREGATIONS[name](leaf, mask, window)
        found.backward()
        same(found, expected, atol=1e-12)
        same(leaf.grad, slopes, atol=1e-12)
