"""Whatever changes a pixel model's call changes its likelihoods and samples, or is refused."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import fastrnn
from fastrnn.kernels import contract, cpu_pixels
from fastrnn.tasks import pixel_models, pixel_steps, pixels
from fastrnn.tasks.models import PixelModel
from tests import oracle

LAYERS, HIDDEN = 2, 8


def _model(cell="GRU", layers=LAYERS):
    torch.manual_seed(0)
    model = PixelModel(cell, HIDDEN, layers)
    for weight in model.parameters():
        weight.data.mul_(2)  # far from what it is without state or head
    return model.eval()


def _images(count=5, size=12):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(count, size, generator=generator) < 0.4).to(torch.uint8)


def _uniforms(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def _called(model, images):
    """Logits [B, P] of the pixel after each, by a call of the model itself."""
    return model(images.t()[:, :, None].to(next(model.parameters()).dtype)).t()


def _likelihoods(model, images):
    logits = _called(model, images)[:, :-1].double()
    signs = 2 * images[:, 1:].double() - 1
    return nn.functional.logsigmoid(signs * logits).sum(1)


def _close(found, wanted, tolerance=1e-5):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance, check_dtype=False)


def _require_agreement(model, tolerance=1e-5):
    """score, advance and sample give what a call of the model gives."""
    images, lengths = _images(), torch.tensor([3, 12, 1, 7, 7])
    logits = _called(model, images)
    _close(pixels.score(model, images), _likelihoods(model, images), tolerance)
    _close(pixels.advance(model, images)[0], logits, tolerance)
    first, state = pixels.advance(model, images[:, :4])
    second, _ = pixels.advance(model, images[:, 4:], state)
    _close(torch.cat([first, second], 1), logits, tolerance)
    known = torch.arange(12) < lengths[:, None]
    _close(pixels.advance(model, images, lengths=lengths)[0], logits * known, tolerance)
    drawn, found = pixels.sample(model, images, 6, _uniforms(5, 2, 6))
    whole = torch.cat([images.repeat_interleave(2, 0), drawn.flatten(0, 1)], 1)
    _close(found.flatten(0, 1), _called(model, whole)[:, 11:-1], tolerance)


def _replace_layers(model, kind=None, **options):
    old = model.recurrent
    kind = kind or type(old)
    model.recurrent = kind(1, HIDDEN, old.num_layers, **options)


class _Scaled(nn.Module):
    """Mixed into a layer: a forward of its own."""

    def forward(self, input, hx=None):
        output, state = super().forward(input, hx)
        return 2 * output + input, state


class ScaledLSTM(_Scaled, fastrnn.LSTM):
    pass


class ScaledGRU(_Scaled, fastrnn.GRU):
    pass


class StartingGRU(fastrnn.GRU):
    """Starts from a state of its own."""

    def __init__(self, *args):
        super().__init__(*args)
        self.start = nn.Parameter(torch.ones(self.num_layers, 1, HIDDEN))

    def forward(self, input, hx=None):
        if hx is None:
            hx = self.start.expand(-1, input.shape[1], -1).contiguous()
        return super().forward(input, hx)


def _own_layers(model):
    _replace_layers(model, {"LSTM": ScaledLSTM, "GRU": ScaledGRU}[model.recurrent.mode])


def _forward_of_an_instance(place):
    def change(model):
        module = getattr(model, place)
        forward = module.forward

        def own(*args):
            result = forward(*args)
            return 3 * result if torch.is_tensor(result) else (3 * result[0], result[1])

        module.forward = own

    return change


def _hook(place):
    def change(model):
        def hook(module, args, result):
            return 3 * result if torch.is_tensor(result) else (3 * result[0], result[1])

        module = model if place == "model" else getattr(model, place)
        module.register_forward_hook(hook)

    return change


def _pre_hook(place):
    def change(model):
        module = model if place == "model" else getattr(model, place)
        module.register_forward_pre_hook(lambda module, args: (3 * args[0], *args[1:]))

    return change


def _weight_norm_hook(model):
    for name in ("weight_hh_l0", "weight_ih_l1"):
        nn.utils.weight_norm(model.recurrent, name)
    nn.utils.weight_norm(model.head)
    model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()})


def _parametrization(function, **options):
    def change(model):
        function(model.recurrent, "weight_hh_l0", **options)
        function(model.head, "weight", **options)
        model.eval()

    return change


def _pruned(model):
    prune.l1_unstructured(model.recurrent, "weight_hh_l1", 0.5)
    prune.l1_unstructured(model.head, "weight", 0.5)
    model.head.weight_orig.data.mul_(3)


def _head(*modules):
    def change(model):
        own = copy.deepcopy(modules)  # for each model
        model.head = own[0] if len(own) == 1 else nn.Sequential(*own)

    return change


def _plain_tensor(model):
    weight = model.recurrent.weight_hh_l0.detach()
    del model.recurrent.weight_hh_l0
    model.recurrent.weight_hh_l0 = 2 * weight


def _new_weights(model):
    weight = model.recurrent.weight_hh_l0.detach()
    model.recurrent.weight_hh_l0 = nn.Parameter(2 * weight)


def _strided_weights(model):
    for weight in model.parameters():
        weight.data = torch.stack([weight.data, weight.data], -1)[..., 0]


def _negative_view(model):
    weight = torch.complex(torch.zeros(HIDDEN), model.head.weight.detach()[0]).conj().imag
    model.head.weight = nn.Parameter(weight[None])
    assert model.head.weight.is_neg()


def _subclass(model):
    model.__class__ = type("Named", (PixelModel,), {})


CHANGES = {
    "hook-on-the-model": _hook("model"),
    "hook-on-the-layers": _hook("recurrent"),
    "hook-on-the-head": _hook("head"),
    "pre-hook-on-the-model": _pre_hook("model"),
    "pre-hook-on-the-layers": _pre_hook("recurrent"),
    "pre-hook-on-the-head": _pre_hook("head"),
    "weight-norm-by-hook": _weight_norm_hook,
    "weight-norm": _parametrization(parametrizations.weight_norm),
    "spectral-norm": _parametrization(parametrizations.spectral_norm),
    "pruned": _pruned,
    "own-layers": _own_layers,
    "own-forward-of-the-layers": _forward_of_an_instance("recurrent"),
    "own-forward-of-the-head": _forward_of_an_instance("head"),
    "no-biases": lambda model: _replace_layers(model, bias=False),
    "torch-rnn": lambda model: _replace_layers(model, nn.RNN),
    "head-without-bias": _head(nn.Linear(HIDDEN, 1, bias=False)),
    "head-of-two-layers": _head(nn.Linear(HIDDEN, 5), nn.Tanh(), nn.Linear(5, 1)),
    "plain-tensor-for-a-weight": _plain_tensor,
    "negative-view": _negative_view,
    "subclass-of-the-model": _subclass,
}
UNCHANGED = {
    "as-built": lambda model: None,
    "torch-layers": lambda model: _replace_layers(model, type(model.recurrent).torch_class),
    "no-gradients": lambda model: model.requires_grad_(False),
    "strided-weights": _strided_weights,
    "new-weights": _new_weights,
    "removed-hook": lambda model: model.register_forward_hook(lambda *args: 1 / 0).remove(),
    "dropout-in-evaluation": lambda model: setattr(model.recurrent, "dropout", 0.5),
}


@pytest.mark.parametrize("cell", oracle.CELLS)
class TestChanges:
    @pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_of_a_call_change_everything(self, cell, change):
        model = _model(cell)
        change(model)
        assert pixel_models.native_weights(model) is None
        _require_agreement(model)

    @pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_in_float64_are_exact(self, cell, change):
        model = _model(cell)
        change(model)
        model.double()
        if isinstance(vars(model.recurrent).get("weight_hh_l0"), torch.Tensor):
            model.recurrent.weight_hh_l0 = model.recurrent.weight_hh_l0.double()
        _require_agreement(model, 1e-12)

    @pytest.mark.parametrize("change", UNCHANGED.values(), ids=UNCHANGED)
    def test_that_are_none_keep_the_native_loop(self, cell, change):
        model = _model(cell)
        change(model)
        assert pixel_models.native_weights(model) is not None
        _require_agreement(model)

    @pytest.mark.parametrize("backend", ["torch", "reference"])
    def test_on_other_backends(self, cell, backend):
        model = _model(cell)
        for change in (_hook("model"), _own_layers):
            change(model)
            with fastrnn.backend(backend):
                _require_agreement(model)

    def test_by_global_hooks(self, cell):
        model, seen = _model(cell), []

        def hook(module, args, result):
            seen.append(type(module))
            return result if isinstance(result, tuple) else 2 * result

        register = nn.modules.module.register_module_forward_hook
        with register(hook):
            _require_agreement(model)
        assert set(seen) == {PixelModel, type(model.recurrent), nn.Linear}

        def pre_hook(module, args):
            return (2 * args[0], *args[1:])

        with nn.modules.module.register_module_forward_pre_hook(pre_hook):
            _require_agreement(model)
        assert pixel_models.native_weights(model) is not None

    def test_dropout_in_training(self, cell):
        model = _model(cell)
        model.recurrent.dropout = 0.5
        model.train()
        torch.manual_seed(3)
        found = pixels.score(model, _images())
        torch.manual_seed(3)
        _close(found, _likelihoods(model, _images()))
        assert not torch.equal(found, pixels.score(model, _images()))
        assert pixels.sample(model, _images(), 3, _uniforms(5, 2, 3))[1].isfinite().all()

    def test_autocast(self, cell):
        model = _model(cell)
        with torch.autocast("cpu", torch.bfloat16):
            assert pixel_models.native_weights(model) is None
            assert _called(model, _images()).dtype == torch.bfloat16
            _require_agreement(model, 0.05)  # the states are rounded between calls
            found, wanted = pixels.score(model, _images()), _likelihoods(model, _images())
        _close(found, wanted, 1e-5)
        exact = pixels.score(model, _images())
        assert not torch.equal(found, exact)
        _close(found, exact, 0.05)

    def test_bfloat16(self, cell):
        _require_agreement(_model(cell).bfloat16(), 0.05)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("place", ["recurrent", "head"])
    def test_mixed_dtypes_raise_what_a_call_raises(self, cell, dtype, place):
        model = _model(cell)
        getattr(model, place).to(dtype)
        with pytest.raises(RuntimeError) as wanted:
            _called(model, _images())
        for call in (
            lambda: pixels.score(model, _images()),
            lambda: pixels.advance(model, _images()),
            lambda: pixels.sample(model, _images(), 3, _uniforms(5, 2, 3)),
        ):
            with pytest.raises(RuntimeError) as found:
                call()
            assert str(found.value) == str(wanted.value)

    def test_one_weight_of_another_dtype(self, cell):
        model = _model(cell)
        weight = model.recurrent.weight_hh_l1
        weight.data = weight.data.double()
        for call in (_called, pixels.score):
            with pytest.raises((RuntimeError, ValueError), match=r"(?i)dtype|double|float64"):
                call(model, _images())

    def test_a_head_of_another_dtype_that_converts(self, cell):
        class Converting(nn.Linear):
            def forward(self, input):
                return super().forward(input.double())

        model = _model(cell)
        model.head = Converting(HIDDEN, 1, dtype=torch.float64)
        _require_agreement(model)
        assert pixels.advance(model, _images())[0].dtype == torch.float64

    @pytest.mark.filterwarnings("ignore")  # by torch itself
    def test_compiled_layers(self, cell):
        model = _model(cell)
        model.recurrent = torch.compile(model.recurrent, backend="eager", dynamic=True)
        _close(pixels.score(model, _images()), _likelihoods(model, _images()))
        _, state = pixels.advance(model, _images()[:, :4])
        found = pixels.score(model, _images()[:, 4:], state)
        _close(found, _likelihoods(model, _images()))

    def test_compiled_in_place(self, cell):
        model = _model(cell)
        model.compile(backend="eager")
        _hook("head")(model)
        _require_agreement(model)

    def test_a_compiled_model_is_scored_by_calls(self, cell):
        model = _model(cell)
        compiled: Any = torch.compile(model, backend="eager")
        _close(pixels.score(compiled, _images()), _likelihoods(model, _images()))
        with pytest.raises(ValueError, match="OptimizedModule with a forward of its own given"):
            pixels.advance(compiled, _images())


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_projections():
    model = _model("LSTM")
    _replace_layers(model, proj_size=3)
    model.head = nn.Linear(3, 1)
    _require_agreement(model)
    state = pixels.advance(model, _images())[1]
    assert state.h.shape == (LAYERS, 5, 3)
    assert state.c is not None
    assert state.c.shape == (LAYERS, 5, HIDDEN)


def test_layers_start_from_a_state_of_their_own():
    model = _model()
    model.recurrent = StartingGRU(1, HIDDEN, LAYERS)
    _require_agreement(model)


def test_blocks_of_steps_continue(monkeypatch):
    model = _model()
    model.recurrent = StartingGRU(1, HIDDEN, LAYERS)
    monkeypatch.setattr(pixel_steps, "_VALUES", 3 * 5 * HIDDEN)
    _require_agreement(model)


def test_reset_before_the_product_has_hooks():
    model = _model("GRU-RESET-BEFORE")
    _hook("recurrent")(model)
    _require_agreement(model)


def test_a_class_with_a_new_forward(monkeypatch):
    model, forward = _model(), fastrnn.GRU.forward
    monkeypatch.setattr(
        fastrnn.GRU, "forward", lambda *args: (3 * forward(*args)[0], forward(*args)[1])
    )
    assert pixel_models.native_weights(model) is None
    _require_agreement(model)


def test_a_hook_sees_the_model_s_layers():
    model, seen = _model(), []
    model.register_forward_hook(lambda module, *_: seen.append(module.recurrent.hidden_size))
    pixels.score(model, _images())
    assert seen == [HIDDEN]


def test_the_model_is_left_as_it_was():
    model = _model()
    _hook("model")(model)
    before = dict(vars(model))
    pixels.sample(model, _images(), 3, _uniforms(5, 2, 3))
    assert vars(model) == before


def test_strided_thresholds_draw_the_same():
    uniforms = _uniforms(1, 6, 4).transpose(1, 2)
    found = pixels.sample(_model(), _images(1), 6, uniforms)
    wanted = pixels.sample(_model(), _images(1), 6, uniforms.contiguous())
    assert torch.equal(found[0], wanted[0])


class Tilted(PixelModel):
    """A forward of its own: each pixel's position counts."""

    def forward(self, x):
        return super().forward(x) + torch.arange(len(x))[:, None]


class TestOwnForward:
    @pytest.fixture(params=["class", "instance"])
    def model(self, request):
        model = _model()
        model.__class__ = Tilted
        if request.param == "instance":
            model.forward = lambda x: 2 * Tilted.forward(model, x)
        return model

    def test_is_scored_by_calls(self, model, monkeypatch):
        wanted = _likelihoods(model, _images())
        _close(pixels.score(model, _images()), wanted)
        monkeypatch.setattr(pixels, "_CALLED_ROWS", 2)
        _close(pixels.score(model, _images()), wanted)
        lengths = torch.tensor([3, 12, 1, 7, 7])
        alone = [_likelihoods(model, i[None, :n]) for i, n in zip(_images(), lengths, strict=True)]
        _close(pixels.score(model, _images(), lengths=lengths), torch.cat(alone))
        assert pixels.score(model, _images(0)).shape == (0,)

    def test_cannot_be_continued(self, model):
        _, state = pixels.advance(_model(), _images())
        for call in (
            lambda: pixels.advance(model, _images()),
            lambda: pixels.score(model, _images(), state),
            lambda: pixels.sample(model, _images(), 3, _uniforms(5, 2, 3)),
        ):
            with pytest.raises(ValueError, match=r"Tilted with a forward .* use model\(x\)"):
                call()

    def test_has_checked_arguments(self, model):
        with pytest.raises(ValueError, match="2 given, only 0 and 1 expected"):
            pixels.score(model, _images() + 1)
        with pytest.raises(ValueError, match="1 to 13 given, 1 to 12 expected"):
            pixels.score(model, _images(2), lengths=torch.tensor([1, 13]))


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda m: _replace_layers(m, bidirectional=True), "bidirectional GRU given, one dir"),
            (lambda m: _replace_layers(m, batch_first=True), "batch_first=True given"),
            (_head(nn.Linear(HIDDEN, 2)), r"gave \[\d+, \d+, 2\], one logit per step"),
            (
                lambda m: setattr(m, "recurrent", nn.Sequential(m.recurrent)),
                "Sequential without num_layers given",
            ),
        ],
        ids=["bidirectional", "batch_first", "two-outputs", "sequential"],
    )
    def test_what_has_no_next_pixel(self, change, message):
        model = _model()
        change(model)
        if getattr(model.recurrent, "bidirectional", False):
            model.head = nn.Linear(2 * HIDDEN, 1)
        for call in (
            lambda: pixels.score(model, _images()),
            lambda: pixels.advance(model, _images()),
            lambda: pixels.sample(model, _images(), 3, _uniforms(5, 2, 3)),
        ):
            with pytest.raises(ValueError, match=message):
                call()

    def test_weights_of_other_shapes(self):
        model = _model()
        model.recurrent.weight_hh_l1.data = torch.zeros(3, 3)
        assert pixel_models.native_weights(model) is None
        with pytest.raises((RuntimeError, ValueError)):
            pixels.score(model, _images())

    def test_weights_without_memory(self):
        model = _model()
        model.recurrent.weight_hh_l1.data.untyped_storage().resize_(0)
        with fastrnn.backend("cpu"), pytest.raises(RuntimeError, match="without memory given"):
            pixels.score(model, _images())


class TestNativeLoop:
    """kernels.cpu_pixels reads no tensor that is not what it expects."""

    @staticmethod
    def arguments(cell="LSTM"):
        model = _model(cell)
        *weights, head_weight, head_bias = (w.detach() for w in model.parameters())
        state = torch.zeros(LAYERS, 5, HIDDEN)
        return {
            "cell": contract.CELLS[cell.lower()],
            "weights": weights,
            "head_weight": head_weight,
            "head_bias": head_bias,
            "h": state,
            "c": state.clone() if cell == "LSTM" else None,
            "logit": torch.zeros(5),
            "pixels": _images(),
            "lengths": torch.full((5,), 12),
            "thresholds": torch.zeros(5, 12),
        }

    @pytest.mark.parametrize("cell", oracle.CELLS)
    def test_runs_what_it_expects(self, cell):
        assert cpu_pixels.run(**self.arguments(cell)).shape == (5, 12)

    @pytest.mark.parametrize("change", ["dtype", "shape", "strides", "device"])
    @pytest.mark.parametrize(
        "name", ["head_weight", "head_bias", "h", "c", "logit", "pixels", "lengths", "thresholds"]
    )
    def test_refuses_others(self, name, change):
        arguments = self.arguments()
        tensor = arguments[name]
        others = {
            "dtype": tensor.double(),
            "shape": tensor[..., :0],
            "strides": torch.stack([tensor, tensor], -1)[..., 0],
            "device": tensor.to("meta"),
        }
        arguments[name] = others[change]
        if others[change].shape == (1,) and change == "strides":
            cpu_pixels.run(**arguments)  # one element is always contiguous
            return
        with pytest.raises(RuntimeError, match=r"given.*expected"):
            cpu_pixels.run(**arguments)

    @pytest.mark.parametrize("index", range(8))
    def test_names_the_weight(self, index):
        for other in (torch.zeros(3), torch.zeros(3).double()):
            arguments = self.arguments()
            arguments["weights"][index] = other
            with pytest.raises(RuntimeError, match=rf"weights\[{index}\]: .* \(3,\) .* given; .*"):
                cpu_pixels.run(**arguments)

    def test_counts_weights_and_states(self):
        arguments = self.arguments()
        with pytest.raises(RuntimeError, match="weights: 4 given, four for each of 2 layers"):
            cpu_pixels.run(**{**arguments, "weights": arguments["weights"][:4]})
        with pytest.raises(RuntimeError, match="c: none given, one expected for lstm"):
            cpu_pixels.run(**{**arguments, "c": None})
