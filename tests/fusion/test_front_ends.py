"""The convolutional front end against torch's own layers, and the dense layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipelines.errors import ConfigError
from pipelines.fusion.catalogue import FUSIONS, SINGLE, build_head
from pipelines.fusion.front_ends import StackedCnn, StackedDense, make_front_end
from pipelines.fusion.stacked import StackedLinear

SEEDS = (5, 6, 7)


@pytest.mark.parametrize("width", [10, 11, 12, 13, 40, 57])
def test_cnn_equals_torch(width: int) -> None:
    front = make_front_end("cnn", width, 16, head_seeds=SEEDS, name="left")
    assert isinstance(front, StackedCnn)
    x = torch.randn(3, 32, width, generator=torch.Generator().manual_seed(0))
    ours = front(x)
    for h in range(3):
        oracle = nn.Sequential(
            nn.Conv1d(1, 64, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(64, 128, 3), nn.ReLU(), nn.MaxPool1d(2)
        )
        with torch.no_grad():
            for mine, theirs in zip(front.convolutions, (oracle[0], oracle[3]), strict=True):
                kernel = mine.weight[h].reshape(3, -1, mine.weight.shape[2])  # [kernel, in channels, out channels]
                theirs.weight.copy_(kernel.permute(2, 1, 0))
                theirs.bias.copy_(mine.bias[h, 0])
        frames = oracle(x[h].unsqueeze(1))  # [B, 128, T]
        flat = frames.transpose(1, 2).flatten(1)
        torch.testing.assert_close(ours[h], flat @ front.project.weight[h] + front.project.bias[h, 0])


def test_cnn_starts_as_torch_does() -> None:
    front = StackedCnn(40, 16, head_seeds=SEEDS, name="left")
    for layer, fan_in in ((front.convolutions[0], 3), (front.convolutions[1], 192), (front.project, 8 * 128)):
        assert isinstance(layer, StackedLinear)
        assert layer.weight.shape[1] == fan_in
        assert layer.weight.abs().max() <= fan_in**-0.5
        assert layer.weight.abs().max() > 0.95 * fan_in**-0.5


def test_short_representations() -> None:
    with pytest.raises(
        ConfigError, match=r"'cnn' needs .* at least 10 features, but the right one has 9.*front_end=linear"
    ):
        make_front_end("cnn", 9, 16, head_seeds=SEEDS, name="right")


def test_linear_front_end_is_the_layer_itself() -> None:
    front = make_front_end("linear", 9, 16, head_seeds=SEEDS, name="left")
    assert isinstance(front, StackedLinear)
    assert torch.equal(front.weight, StackedLinear(9, 16, head_seeds=SEEDS, name="left").weight)


def test_bits_of_the_cnn_do_not_depend_on_the_stack() -> None:
    x = torch.randn(3, 32, 37, generator=torch.Generator().manual_seed(0))
    direction = torch.randn(3, 32, 16, generator=torch.Generator().manual_seed(1))

    def compute(heads: slice) -> list[torch.Tensor]:
        front = StackedCnn(37, 16, head_seeds=SEEDS[heads], name="left")
        result = front(x[heads].clone())
        return [result.detach(), *torch.autograd.grad(result, list(front.parameters()), direction[heads].clone())]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = compute(slice(None))
        for heads in (slice(0, 1), slice(1, 2), slice(2, 3), slice(1, 3)):
            for ours, expected in zip(compute(heads), whole, strict=True):
                assert torch.equal(ours, expected[heads])
    finally:
        torch.set_num_threads(threads)


def test_dense() -> None:
    layer = StackedDense(8, 24, head_seeds=SEEDS)
    assert layer.out_features == 24
    assert layer.layer is not None
    x = torch.randn(3, 32, 8)
    for h in range(3):
        torch.testing.assert_close(layer(x)[h], (x[h] @ layer.layer.weight[h] + layer.layer.bias[h, 0]).relu())
    none = StackedDense(8, 0, head_seeds=SEEDS)
    assert none.out_features == 8
    assert none(x) is x
    assert not list(none.parameters())


@pytest.mark.parametrize("name", [*FUSIONS, SINGLE])
def test_every_head_takes_them(name: str) -> None:
    right_dim = None if name == SINGLE else 12
    inputs = [torch.randn(3, 32, 20)] + ([] if right_dim is None else [torch.randn(3, 32, 12)])
    head = build_head(
        name,
        left_dim=20,
        right_dim=right_dim,
        num_classes=5,
        head_seeds=SEEDS,
        hidden_dim=16,
        options={"front_end": "cnn", "dense_dim": 24},
    )
    shapes = {key: tuple(parameter.shape) for key, parameter in head.named_parameters()}
    assert shapes["left_project.convolutions.1.weight"] == (3, 192, 128)
    dense = next(key for key in shapes if key.endswith("dense.layer.weight"))
    classify = next(key for key in shapes if key.endswith("classify.weight"))
    assert shapes[dense][2] == shapes[classify][1] == 24
    assert head(*inputs).shape == (3, 32, 5)
