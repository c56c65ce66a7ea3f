"""Tools that work with torch.nn's layers work with fastrnn's, or with a model that was reverted."""

from __future__ import annotations

import copy
import io
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import fastrnn
from tests import documents, peers

pytestmark = pytest.mark.usefixtures("one_thread")

cells = pytest.mark.parametrize("name", ["LSTM", "GRU"])
of_other_libraries = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


class Classifier(nn.Module):
    def __init__(self, name: str = "LSTM", **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = getattr(fastrnn, name)(3, 5, batch_first=True, **options)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rnn(x)[0][:, -1])
        return logits


def inputs() -> Tensor:
    return torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(1))


def batches(**options: Any) -> DataLoader[Any]:
    x = torch.randn(16, 6, 3, generator=torch.Generator().manual_seed(2))
    return DataLoader(TensorDataset(x, torch.arange(16) % 2), batch_size=4, **options)


def reverted(model: nn.Module) -> nn.Module:
    """A copy with torch.nn's layers."""
    return fastrnn.revert(copy.deepcopy(model))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))


def weights_changed(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(not torch.equal(t, before[name]) for name, t in model.state_dict().items())


# ---- graphs


@of_other_libraries
@cells
def test_script(name: str) -> None:
    model, file = Classifier(name).eval(), io.BytesIO()
    scripted = torch.jit.script(model)
    torch.jit.save(scripted, file)
    file.seek(0)
    x = torch.cat([inputs()] * 2)
    torch.testing.assert_close(torch.jit.load(file)(x), model(x))
    # torch puts what it scripts into the model that was given.
    assert isinstance(model.rnn, getattr(nn, name))
    assert isinstance(fastrnn.convert(model).rnn, getattr(fastrnn, name))
    torch.testing.assert_close(model(x), scripted(x))


@cells
def test_fx(name: str) -> None:
    model = Classifier(name)
    traced = torch.fx.symbolic_trace(model)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == ["rnn", "head"]
    torch.testing.assert_close(traced(inputs()), model(inputs()))


# ---- tools that look for torch.nn's exact classes


@of_other_libraries
@cells
def test_quantize_dynamic(name: str) -> None:
    model = Classifier(name).eval()
    kinds = {nn.LSTM, nn.GRU, nn.Linear}
    quantized = torch.ao.quantization.quantize_dynamic(reverted(model), kinds)
    assert type(quantized.rnn).__module__.startswith("torch.ao.nn.quantized.dynamic")
    torch.testing.assert_close(quantized(inputs()), model(inputs()), rtol=0.1, atol=0.1)


@of_other_libraries
@cells
def test_thop(name: str) -> None:
    import thop
    from thop import rnn_hooks

    model = Classifier(name)
    wanted = thop.profile(reverted(model), (inputs(),), verbose=False)
    hook = {"LSTM": rnn_hooks.count_lstm, "GRU": rnn_hooks.count_gru}[name]
    custom = {getattr(fastrnn, name): hook}
    assert thop.profile(model, (inputs(),), custom_ops=custom, verbose=False) == wanted
    assert wanted[0] > 1000


@of_other_libraries
@cells
def test_opacus(name: str) -> None:
    from opacus import PrivacyEngine
    from opacus.validators import ModuleValidator

    model = Classifier(name)
    private: Any = ModuleValidator.fix(fastrnn.revert(model))
    assert type(private.rnn).__name__ == f"DP{name}"
    torch.testing.assert_close(private(inputs()), model(inputs()))
    optimiser: Any = torch.optim.SGD(private.parameters(), 0.1)
    private, optimiser, loader = PrivacyEngine().make_private(
        module=private, optimizer=optimiser, data_loader=batches(),
        noise_multiplier=1.0, max_grad_norm=1.0,
    )  # fmt: skip
    before = copy.deepcopy(private.state_dict())
    for x, labels in loader:
        optimiser.zero_grad()
        nn.functional.cross_entropy(private(x), labels).backward()
        optimiser.step()
    assert weights_changed(private, before)


def zero_exact_types(module: nn.Module) -> None:
    if type(module) in (nn.LSTM, nn.GRU):
        for parameter in module.parameters():
            nn.init.zeros_(parameter)


def zero_instances(module: nn.Module) -> None:
    if isinstance(module, nn.RNNBase):
        for parameter in module.parameters():
            nn.init.zeros_(parameter)


@cells
def test_initialisers(name: str) -> None:
    model = Classifier(name)
    model.apply(zero_exact_types)
    assert model.rnn.weight_hh_l0.any()  # it does not know fastrnn's class
    fastrnn.convert(fastrnn.revert(model).apply(zero_exact_types))
    assert not model.rnn.weight_hh_l0.any()
    other = Classifier(name).apply(zero_instances)
    assert not other.rnn.weight_hh_l0.any()


# ---- counting


@pytest.mark.parametrize("layers", [1, 2])
@cells
def test_flop_counter(name: str, layers: int) -> None:
    """The counts are those of torch.nn in float64, which has a formula for each product."""
    counts = []
    for library in (fastrnn, nn):
        layer = getattr(library, name)(3, 5, layers, dtype=torch.float64)
        x = torch.randn(6, 4, 3, dtype=torch.float64)
        with FlopCounterMode(display=False) as counter:
            layer(x)[0].sum().backward()
        counts.append(counter.get_total_flops())
    gates = 4 if name == "LSTM" else 3
    rows, products = 6 * 4, gates * 5 * (3 + 5)
    backward = products + gates * 5 * 5  # x needs no gradient
    expected = 2 * rows * (products + backward)
    if layers == 2:
        expected += 2 * rows * 3 * gates * 5 * 10
    assert counts[0] == expected
    # torch.nn's first step reads zeros and its last one passes no gradient on
    assert counts[1] == pytest.approx(expected, rel=0.2)


# ---- training


def test_accelerate() -> None:
    from accelerate import Accelerator, init_empty_weights

    with init_empty_weights():
        assert {p.device.type for p in Classifier().parameters()} == {"meta"}
    accelerator = Accelerator(cpu=True)
    model = Classifier()
    before = copy.deepcopy(model.state_dict())
    prepared, optimiser, loader = accelerator.prepare(
        model, torch.optim.Adam(model.parameters()), batches()
    )
    for x, labels in loader:
        optimiser.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(prepared(x), labels))
        accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
        optimiser.step()
    assert weights_changed(model, before)


@of_other_libraries
def test_lightning(tmp_path: Any) -> None:
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Task(lightning.LightningModule):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.model = Classifier()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    task = Task()
    before = copy.deepcopy(task.state_dict())
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        default_root_dir=tmp_path, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(task, batches())
    assert weights_changed(task, before)
    saved = next((tmp_path / "checkpoints").glob("*.ckpt"))
    Task.load_from_checkpoint(saved, weights_only=False)


class _Encoded(torch.utils.data.Dataset[Tensor]):
    """Reads its samples through a layer, in the workers."""

    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        self.layer, self.x = layer, x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            y: Tensor = self.layer(self.x[index])[0]
        return y


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@cells
def test_data_loader_workers(name: str) -> None:
    layer, x = getattr(fastrnn, name)(3, 5), torch.randn(8, 6, 3)
    wanted = layer(x.transpose(0, 1))[0].transpose(0, 1)
    loader = DataLoader(
        _Encoded(layer, x), batch_size=4, num_workers=2, multiprocessing_context="fork"
    )
    torch.testing.assert_close(torch.cat(list(loader)), wanted.detach())


@pytest.mark.parametrize("reentrant", [False, True], ids=["default", "reentrant"])
@cells
def test_activation_checkpointing(name: str, reentrant: bool) -> None:
    model = Classifier(name, num_layers=2, dropout=0.5)
    results = []
    for wrap in (False, True):
        torch.manual_seed(3)
        x = inputs().requires_grad_()
        y: Any = checkpoint(model, x, use_reentrant=reentrant) if wrap else model(x)
        y.square().sum().backward()
        results.append([y, x.grad, *[p.grad for p in model.parameters()]])
        model.zero_grad()
    torch.testing.assert_close(*results)


@cells
def test_chunks_of_steps_have_the_gradients_of_a_whole_call(name: str) -> None:
    page = documents.ROOT / "docs/layers.md"
    [block] = [b for b in documents.blocks(page) if b.section == "Long sequences"]
    shown: dict[str, Any] = {"torch": torch, "fastrnn": fastrnn}
    documents.run_python(block, shown)
    torch.manual_seed(0)
    layer = getattr(fastrnn, name)(3, 5, num_layers=2, dtype=torch.float64)
    leaves = [torch.randn(n, 4, h, dtype=torch.float64) for n, h in ((11, 3), (2, 5), (2, 5))]
    x, *states = [leaf.requires_grad_() for leaf in leaves[: 3 if name == "LSTM" else 2]]
    given = tuple(states) if name == "LSTM" else states[0]
    found = []
    for results in (layer(x, given), shown["in_chunks"](layer, x, given, steps=4)):
        loss = peers.loss(peers.tensors(results))
        found.append(torch.autograd.grad(loss, [x, *states, *layer.parameters()]))
    torch.testing.assert_close(*found)


@of_other_libraries  # of torch, about the switch
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@cells
def test_expanded_weights(name: str, dtype: torch.dtype) -> None:
    """Without oneDNN: in float32, torch.nn.LSTM calls an op that ExpandedWeights do not know."""
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    found = []
    for library in (fastrnn, nn):
        torch.manual_seed(0)
        layer = getattr(library, name)(3, 5, batch_first=True, dtype=dtype)
        with torch.backends.mkldnn.flags(enabled=dtype == torch.float64):
            y = call_for_per_sample_grads(layer)(inputs().to(dtype))[0]
            y.square().sum().backward()
        found.append([p.grad_sample for p in layer.parameters()])
    torch.testing.assert_close(*found)


@cells
def test_saved_tensors_hooks(name: str) -> None:
    model, x, packed = Classifier(name), inputs(), []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = gradients(model, x)
    assert len(packed) > 4
    with torch.autograd.graph.save_on_cpu():
        torch.testing.assert_close(gradients(model, x), found)
    torch.testing.assert_close(gradients(model, x), found)


@cells
def test_deterministic_algorithms(name: str) -> None:
    model, x = Classifier(name), inputs()
    torch.use_deterministic_algorithms(True)
    try:
        for found, again in zip(gradients(model, x), gradients(model, x), strict=True):
            assert torch.equal(found, again)
    finally:
        torch.use_deterministic_algorithms(False)


@cells
def test_clipped_gradients(name: str) -> None:
    model = Classifier(name)
    norms = []
    for one in (model, reverted(model)):
        one(inputs()).square().sum().backward()
        norms.append(nn.utils.clip_grad_norm_(one.parameters(), 0.01))
        norms.append(nn.utils.get_total_norm([p.grad for p in one.parameters()]))  # type: ignore[misc]
    torch.testing.assert_close(norms[:2], norms[2:])


@cells
def test_averaged_model(name: str) -> None:
    model = Classifier(name)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    average.update_parameters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    average.update_parameters(model)
    averages = torch.stack([p.mean() for p in average.module.parameters()])
    torch.testing.assert_close(averages + 0.5, torch.stack([p.mean() for p in model.parameters()]))
    assert not torch.equal(average(inputs()), model(inputs()))


@cells
def test_weights_only_files_go_both_ways(name: str) -> None:
    model = Classifier(name)
    for source, target in ((model, reverted(model)), (reverted(model), model)):
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=True))
        torch.testing.assert_close(target(inputs()), source(inputs()))


# ---- derivatives


@cells
def test_double_backward(name: str) -> None:
    model = Classifier(name).double()
    results = []
    for one in (model, reverted(model)):
        x = inputs().double().requires_grad_()
        first = torch.autograd.grad(one(x).square().sum(), x, create_graph=True)[0]
        results.append(torch.autograd.grad(first.square().sum(), list(one.parameters())))
    torch.testing.assert_close(*results)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@cells
def test_hessian(name: str) -> None:
    model, x = Classifier(name).double(), inputs()[:1, :2].double()

    def loss(x: Tensor, model: nn.Module = model) -> Tensor:
        y: Tensor = model(x)
        return y.square().sum()

    wanted = torch.autograd.functional.hessian(lambda x: loss(x, reverted(model)), x)
    torch.testing.assert_close(torch.func.hessian(loss)(x), wanted)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(loss))(x), wanted)


@cells
def test_vmap_over_an_ensemble_of_weights(name: str) -> None:
    models = [Classifier(name) for _ in range(3)]
    for index, model in enumerate(models):
        for parameter in model.parameters():
            parameter.data += 0.1 * index
    weights, buffers = torch.func.stack_module_state(models)

    def one(weights: Any, buffers: Any, x: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(models[0], (weights, buffers), (x,))
        return y

    found = torch.func.vmap(one, in_dims=(0, 0, None))(weights, buffers, inputs())
    torch.testing.assert_close(found, torch.stack([model(inputs()) for model in models]))
