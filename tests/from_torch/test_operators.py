"""Modules of many operators: equal to torch in values, gradients and products, or refused by the operator's name."""

import pytest

from hyprax.torch._check import TOLERANCE, differences
from hyprax.torch._export import exported

torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install "hyprax[torch]"')
from torch import nn  # noqa: E402
from torch.nn import functional as f  # noqa: E402

pytestmark = pytest.mark.slow


class Of(nn.Module):
    """A function of four weights, of parts and of inputs, as a module."""

    def __init__(self, function, *parts):
        super().__init__()
        self.w, self.function, self.parts = nn.Parameter(torch.randn(4)), function, nn.ModuleList(parts)

    def forward(self, *inputs):
        return self.function(self.w, *self.parts, *inputs)


def masked(w, x):
    y = x * w
    y[y < 0] = 0.1
    y[:, 1:3] = w[:2]
    y[0] += 1
    return y


def with_a_first_state(w, lstm, x):
    zeros = torch.zeros(1, x.shape[1], 4)
    return lstm(x * w[:3], (zeros, zeros))


def resampled(w, x):
    plain = [f.interpolate(x * w, scale_factor=1.7, mode=mode) for mode in ("nearest", "nearest-exact", "bilinear")]
    return [*plain, f.interpolate(x * w, size=(5, 7), mode="bilinear", align_corners=True)]


FOUR = (3, 4)
CASES = {
    "convolutions": (
        lambda w, *parts_and_x: [part(parts_and_x[-1] * w) for part in parts_and_x[:-1]],
        [
            nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, dilation=2, groups=2),
            nn.Conv2d(2, 3, 3, padding="same", dilation=2),
            nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
            nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
        ],
        [(2, 2, 5, 4)],
    ),
    "norms": (
        lambda w, *parts_and_x: [part(parts_and_x[-1] * w) for part in parts_and_x[:-1]],
        [
            nn.GroupNorm(2, 4),
            nn.InstanceNorm2d(4, track_running_stats=True),
            nn.BatchNorm2d(4, affine=False),
            nn.BatchNorm2d(4, track_running_stats=False),
            nn.LocalResponseNorm(2),
            nn.PReLU(4),
        ],
        [(3, 4, 2, 4)],
    ),
    "weight norm": (lambda w, part, x: part(x * w), [nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))], [FOUR]),
    "spectral norms": (
        lambda w, *parts_and_x: [part(parts_and_x[-1] * w) for part in parts_and_x[:-1]],
        [
            nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)),
            nn.utils.spectral_norm(nn.Linear(4, 3)),
        ],
        [FOUR],
    ),
    "attention": (
        lambda w, attention, x: attention(x, x, x, attn_mask=torch.triu(torch.ones(5, 5, dtype=torch.bool), 1))[0],
        [nn.MultiheadAttention(8, 2, batch_first=True)],
        [(3, 5, 8)],
    ),
    "gru": (lambda w, gru, x: gru(x), [nn.GRU(3, 4, 2, bidirectional=True, batch_first=True)], [(2, 5, 3)]),
    "lstm": (with_a_first_state, [nn.LSTM(3, 4)], [(5, 2, 3)]),
    "masked assignment": (masked, [], [FOUR]),
    "straight through": (lambda w, x: x * w + (torch.round(x * w) - x * w).detach(), [], [FOUR]),
    "resampling": (resampled, [], [(2, 2, 3, 4)]),
    "pooling": (
        lambda w, x: [
            f.adaptive_max_pool2d(x * w, (3, 2)),
            f.avg_pool2d(x * w, 2, divisor_override=3),
            f.lp_pool2d(x * w, 2, 2),
        ],
        [],
        [(2, 3, 5, 4)],
    ),
    "cumulative": (
        lambda w, x: [
            torch.cumsum(x * w, 1),
            torch.cumprod(x * w, 1),
            torch.logcumsumexp(x * w, 1),
            torch.median(x * w, 1)[0],
            torch.kthvalue(x * w, 2)[0],
            torch.median(x * w),
            (x * w).unfold(1, 2, 1),
        ],
        [],
        [FOUR],
    ),
    "lengths": (
        lambda w, x: (
            [torch.linalg.vector_norm(x * w, order, dim=1) for order in (0.5, 1, 2, 3, float("inf"))]
            + [torch.linalg.vector_norm(0 * x * w, dim=1)]
        ),
        [],
        [FOUR],
    ),
    "indices": (
        lambda w, x: [
            (x * w)[:, [2, 0]] + w[torch.tensor([1, -1])],
            torch.index_add(x, 1, torch.tensor([1, 1, 0]), (x * w)[:, :3]),
            torch.zeros(3, 4).scatter_reduce(1, torch.tensor([[0, 1, 1]]), (x * w)[:1, :3], "mean", include_self=False),
            torch.einsum("bi,bj,j->b", x, x, w),
        ],
        [],
        [FOUR],
    ),
    "whole numbers": (
        lambda w, x: w[torch.div((5 * x).long(), 2, rounding_mode="trunc") % 4] + w[(5 * x).long() // 2 % 4],
        [],
        [FOUR],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_module_is_translated_in_both_modes(name):
    function, parts, shapes = CASES[name]
    torch.manual_seed(0)
    module, example = Of(function, *parts), tuple(torch.randn(*shape) for shape in shapes)
    for train in (False, True):
        found = differences(module, exported(module, example, train), example, train)
        assert max(found.values()) < TOLERANCE, found


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda w, x: (x * w)[x > 0], "a mask in brackets"),
        (lambda w, x: f.max_pool1d(x * w, 2, return_indices=True), "result 2 of aten.max_pool"),
        (lambda w, x: f.grid_sample(x[None, None], torch.tanh(x * w)[None, :, :2, None]), "grid_sampler|torch.export"),
        (lambda w, x: torch.linalg.matrix_exp(torch.outer(w, w)), "matrix_exp"),
        (lambda w, x: torch.cond(x.sum() > 0, lambda z: z * w, lambda z: z + w, (x,)), "cond"),
    ],
)
def test_what_has_no_translation_is_named(function, operator):
    module, example = Of(function), (torch.randn(3, 4),)
    with pytest.raises(ValueError, match=operator):
        differences(module, exported(module, example, False), example, False)
