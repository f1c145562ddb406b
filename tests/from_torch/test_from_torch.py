"""Modules of torch as functions of JAX: equal to the original in value and derivatives, or refused."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
from compilations import compilations
from hyprax.torch import arrays
from hyprax.torch._check import differences

torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install "hyprax[torch]"')
from torch import nn  # noqa: E402


class Net(nn.Module):
    """A little of everything that has a state, a tie, a frozen weight or dropout."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.5)
        self.first = nn.Linear(8, 8, bias=False)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).flatten(1)
        return self.second(self.drop(torch.tanh(self.first(x))))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    module = Net().double()
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    module(x)  # statistics that are not those of the start
    return module, x, hx.from_torch(module, x[:3])


def test_it_is_the_module_in_eval_mode_for_any_number_of_examples(net):
    module, x, f = net
    module.eval()
    for n in (1, 3, 5):
        np.testing.assert_allclose(f(f.params, x[:n]), module(x[:n]).detach().numpy(), rtol=1e-12, atol=1e-14)
    single = jax.vmap(lambda x: f(f.params, x[None])[0])(jnp.asarray(x.numpy()))
    np.testing.assert_allclose(single, module(x).detach().numpy(), rtol=1e-12, atol=1e-14)
    assert module.training is False


def test_names_ties_and_frozen_weights(net):
    module, _, f = net
    assert set(f.params) == {name for name, p in module.named_parameters() if p.requires_grad}
    assert "second.weight" not in f.params  # it is first.weight
    assert set(f.buffers) == {
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "second.bias"
    }  # fmt: skip


def test_train_mode_moves_the_running_statistics_as_torch_does(net):
    module, x, f = net
    twin = Net().double()
    twin.load_state_dict(module.state_dict())
    twin.train()(x)
    outputs, buffers = f.train(f.params, x, key=jax.random.key(0))
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
        np.testing.assert_allclose(buffers[name], twin.state_dict()[name].numpy(), rtol=1e-12)
    assert outputs.shape == (5, 8)
    with pytest.raises(ValueError, match="key must be a JAX random key, since the module draws"):
        f.train(f.params, x)


def test_dropout_drops_the_part_that_it_says_and_keeps_the_mean():
    f = hx.from_torch(nn.Sequential(nn.Dropout(0.25)).double(), torch.ones(2, 3, dtype=torch.float64))
    one, two = (f.train({}, jnp.ones((4000, 3)), key=jax.random.key(seed))[0] for seed in (0, 1))
    assert set(np.unique(one)) == {0.0, 1 / 0.75}
    assert abs(float(jnp.mean(one == 0)) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 12000)
    assert bool(jnp.any(one != two))
    np.testing.assert_array_equal(f({}, jnp.ones((2, 3))), 1.0)


def test_the_state_dict_goes_back(net):
    _, x, f = net
    moved = {name: p + 0.5 for name, p in f.params.items()}
    twin = Net().double()
    twin.load_state_dict(f.to_torch(moved))
    assert twin.first.weight is twin.second.weight
    np.testing.assert_allclose(f(moved, x), twin.eval()(x).detach().numpy(), rtol=1e-12, atol=1e-14)


def test_an_array_of_the_model_does_not_follow_the_module(net):
    module, _, f = net
    before = np.array(f.params["first.weight"])
    with torch.no_grad():
        module.first.weight.add_(1.0)
        module.first.weight.sub_(1.0 - 1e-3)
    np.testing.assert_array_equal(f.params["first.weight"], before)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_is_refused_with_the_reason(net):
    module, x, f = net

    class Sorts(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)

    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class Draws(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    with pytest.raises(ValueError, match=r"svd"):
        hx.from_torch(Sorts(), x[:, 0])
    with pytest.raises(ValueError, match=r"torch\.export can read in eval mode"):
        hx.from_torch(Branches(), x)
    with pytest.raises(ValueError, match=r"aten\.randn_like\.default"):
        hx.from_torch(Draws(), x)
    with pytest.raises(ValueError, match=r"module must be a torch\.nn\.Module; got"):
        hx.from_torch(lambda x: x, x)
    with pytest.raises(ValueError, match="example must be a tensor or a tuple of tensors; got"):
        hx.from_torch(module, x.numpy())
    with pytest.raises(ValueError, match="input 0 must be float64, as in the example; got float32"):
        f(f.params, x.float())
    with pytest.raises(ValueError, match=r"input 0 must have the shape \(any, 1, 4, 4\)"):
        f(f.params, x[:, :, 1:])
    with pytest.raises(ValueError, match="params must be a dictionary of"):
        f({}, x)
    with pytest.raises(ValueError, match=r"params\['conv.bias'\] must be float64\[2\]; got float32\[2\]"):
        f({**f.params, "conv.bias": jnp.zeros(2, jnp.float32)}, x)


def test_a_wrong_translation_is_found_on_conversion(monkeypatch):
    from hyprax.torch import _graph

    monkeypatch.setitem(_graph.TABLE, "aten.tanh.default", lambda call, x: jnp.tanh(x) + 1e-4 * jnp.sin(x))
    with pytest.raises(ValueError, match=r"must agree with the original .* differs by"):
        hx.from_torch(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), torch.ones(2, 2))
    monkeypatch.setitem(_graph.TABLE, "aten.tanh.default", lambda call, x: jnp.tanh(x) * jnp.nan)
    with pytest.raises(ValueError, match=r"must agree with the original .* differs by inf"):
        hx.from_torch(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), torch.ones(2, 2))


def test_the_weights_are_those_of_a_training(net):
    """The derivative of two steps of gradient descent in the rate, beside torch's own."""
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    f = hx.from_torch(module, x)

    def loss(params, hyper, data):
        return jnp.mean(jnp.square(f(params, data[0]) - data[1]))

    data = arrays(torch.utils.data.TensorDataset(x, y))
    training = hx.Training(
        loss,
        init=lambda hyper, key: f.params,
        optimizer=lambda hyper: hx.unroll.MomentumSGD(hyper["rate"], 0.9, form="polyak"),
        batches=hx.FullBatch(data),
        steps=2,
    )
    objective = hx.UnrolledObjective(training, loss, data, key=jax.random.key(0))
    answer, _ = hx.hypergradient(objective, {"rate": jnp.asarray(0.1)})

    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    weights = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    momenta = {name: torch.zeros_like(p) for name, p in weights.items()}

    def theirs():
        return torch.mean((torch.func.functional_call(module, weights, (x,)) - y) ** 2)

    for _ in range(2):
        grads = torch.autograd.grad(theirs(), list(weights.values()), create_graph=True)
        momenta = {name: 0.9 * momenta[name] + g for name, g in zip(weights, grads, strict=True)}
        weights = {name: p - rate * momenta[name] for name, p in weights.items()}
    value = theirs()
    np.testing.assert_allclose(answer.value, value.item(), rtol=1e-12)
    np.testing.assert_allclose(answer.grad["rate"], torch.autograd.grad(value, rate)[0].item(), rtol=1e-10)

    compiled: list[int] = []
    with compilations() as found:
        hx.tune(
            objective,
            {"rate": jnp.asarray(0.1)},
            search=hx.search.Optax(optax.adam(1e-3)),
            steps=50,
            stop=hx.search.Stopping(gradient=0, patience=None),
            callbacks=[lambda step: compiled.append(len(found))],
            progress=False,
        )
    assert len(compiled) == 50
    assert compiled[0] == compiled[-1]


class Still(nn.Module):
    """What torch holds still while it differentiates, in the three ways there are."""

    def __init__(self):
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        h = self.first(x) * self.scale
        with torch.no_grad():
            size = (h**2).mean() + self.scale.sum()
        return h / size + (torch.round(h) - h).detach()


def test_what_torch_holds_still_takes_no_derivative():
    module = Still().double()
    x = torch.randn(5, 3, dtype=torch.float64)
    f = hx.from_torch(module, x)  # compares gradients and products in both modes
    module.eval()
    theirs = torch.autograd.grad(torch.sin(module(x)).sum(), module.scale)[0]
    ours = jax.grad(lambda params: jnp.sum(jnp.sin(f(params, x))))(f.params)["scale"]
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12, atol=1e-14)


def test_an_index_outside_of_a_table_gives_no_neighbour():
    f = hx.from_torch(nn.Embedding(4, 2).double(), torch.tensor([[0, 3], [1, 2]]))
    rows = f(f.params, jnp.asarray([[0, 3], [4, 1]]))
    assert np.isnan(rows[1, 0]).all()
    assert np.isfinite(rows).sum() == 6


class Rich(nn.Module):
    """Operators beyond those of the benchmark's models."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.norms = nn.Sequential(nn.GroupNorm(2, 6), nn.InstanceNorm2d(6, affine=True), nn.ELU())
        self.holes = nn.Conv2d(6, 6, 3, dilation=2, groups=3)
        self.table = nn.Embedding(5, 3, padding_idx=1)
        self.drop = nn.Dropout2d(0.5)

    def forward(self, x, i):
        f = nn.functional
        h = self.drop(self.holes(self.norms(self.up(x))))
        h = f.avg_pool2d(h, 3, 2, 1, ceil_mode=True, count_include_pad=False) + f.avg_pool2d(h, 3, 2, 1, ceil_mode=True)
        h = f.softplus(f.hardtanh(f.leaky_relu(f.adaptive_avg_pool2d(h, (2, 3)))))
        rest = f.silu(h).std(dim=(1, 2, 3), unbiased=False)[:, None] ** 3 + h.clamp(0.1, 0.9).amax((1, 2, 3))[:, None]
        return {"a": h.flatten(1).softmax(1).log(), "b": f.mish(self.table(i)).norm(dim=-1) + rest}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.rnn = nn.GRU(2, 3, 2, dropout=0.1), nn.RNN(3, 2, bidirectional=True)

    def forward(self, x):
        return self.rnn(self.gru(x)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shapes"),
    [(Rich, [(3, 4, 5, 5)]), (Recurrent, [(4, 2, 2)]), (lambda: nn.TransformerEncoderLayer(8, 2, 16), [(2, 5, 8)])],
    ids=["rich", "recurrent", "transformer"],
)
def test_more_operators_in_both_modes(make, shapes):
    from hyprax.torch._export import exported

    torch.manual_seed(1)
    module = make()
    example = tuple(torch.randn(*shape) for shape in shapes)
    if make is Rich:
        example += (torch.randint(0, 5, (3, 4)),)
    for train in (False, True):
        found = differences(module, exported(module, example, train), example, train)
        assert max(found.values()) < 1e-12, found


# Resident memory in MiB after outer steps 100 and 500 of a tuning: a process of its own, as a user has it.
LONG = """
import jax, jax.numpy as jnp, optax, resource, torch
import hyprax as hx

torch.manual_seed(0)
x = torch.randn(40, 3)
net = hx.from_torch(torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)), x)
data = (jnp.asarray(x.numpy()), jnp.sin(jnp.asarray(x.numpy()).sum(1, keepdims=True)))

def loss(params, hyper, batch):
    return jnp.mean((net(params, batch[0]) - batch[1]) ** 2)

training = hx.Training(
    loss, lambda hyper, key: net.params, lambda hyper: hx.unroll.MomentumSGD(hyper["rate"], 0.9),
    hx.Minibatches(data, 10, key=jax.random.key(0)), 5,
)
objective = hx.UnrolledObjective(training, loss, data, key=jax.random.key(1))

def memory(step):
    if step.step in (100, 500):
        print(int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20)

hx.tune(
    objective, {"rate": hx.Positive(jnp.asarray(0.05))}, search=hx.search.Optax(optax.adam(1e-3)), steps=501,
    stop=hx.search.Stopping(gradient=0, patience=None), callbacks=[memory], progress=False,
)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say how much memory is used")
def test_memory_is_flat_over_five_hundred_outer_steps():
    source = str(Path(hx.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
    said = subprocess.run([sys.executable, "-c", LONG], env=env, capture_output=True, text=True, check=True).stdout
    early, late = map(float, said.split())
    assert late - early < 8, (early, late)
