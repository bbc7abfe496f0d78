"""Heads on frames against plain loops over single sequences, torch's own attention, and their promise: padding is not felt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipelines.errors import ConfigError, UnknownNameError
from pipelines.fusion.frames.catalogue import FRAME_HEADS, STREAMS, build_frame_head, frame_head_options
from pipelines.fusion.frames.sequences import (
    Attention,
    CoAttention,
    Frames,
    SelfAttentionLayer,
    joined,
    positions,
    statistics_pool,
)

DIMS = {"acoustic": 12, "asr": 10, "text": 6}
LENGTHS = {"acoustic": (9, 4, 1, 7), "asr": (3, 8, 5, 1), "text": (1, 2, 6, 3)}


def _sequences(dim: int, lengths: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(length, dim) for length in lengths]


def _head(name: str, streams: tuple[str, ...], **options: str) -> nn.Module:
    torch.manual_seed(3)
    head = build_frame_head(
        name,
        dims={stream: DIMS[stream] for stream in streams},
        num_outputs=5,
        hidden_dim=16,
        attention_heads=4,
        dropout=0.1,
        options=options,
    )
    return head.eval()


CASES = [
    *(("alone", (stream,), {}) for stream in STREAMS),
    *((name, streams, {}) for name in ("early", "cross", "hierarchical")
      for streams in (("acoustic", "asr", "text"), ("acoustic", "asr"), ("acoustic", "text"))),
    ("hierarchical", ("acoustic", "asr", "text"), {"order": "text-asr"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "streams", "options"), CASES)
def test_padding_is_not_felt(name: str, streams: tuple[str, ...], options: dict[str, str]) -> None:
    head = _head(name, streams, **options)
    torch.manual_seed(4)
    sequences = {stream: _sequences(DIMS[stream], LENGTHS[stream]) for stream in streams}
    batch = {stream: Frames.of(parts) for stream, parts in sequences.items()}
    for frames in batch.values():  # what lies beyond a sequence is nobody's business
        frames.values[~frames.valid] = 1e3
    with torch.no_grad():
        together = head(batch)
        alone = torch.cat([head({s: Frames.of([parts[row]]) for s, parts in sequences.items()}) for row in range(4)])
    assert together.shape == (4, 5)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "streams", "options"), CASES)
def test_every_stream_matters_and_every_parameter_learns(
    name: str, streams: tuple[str, ...], options: dict[str, str]
) -> None:
    head = _head(name, streams, **options)
    values = {stream: Frames.of(_sequences(DIMS[stream], LENGTHS[stream])) for stream in streams}
    for frames in values.values():
        frames.values.requires_grad_()
    head(values).square().sum().backward()
    for frames in values.values():
        gradient = frames.values.grad
        assert gradient is not None
        assert bool((gradient.abs().sum(dim=-1)[frames.valid] > 0).all())
        assert not gradient[~frames.valid].any()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in head.parameters())


def _as_torch(attention: Attention) -> nn.MultiheadAttention:
    """torch's module with the same parameters."""
    dim = attention.join.in_features
    oracle = nn.MultiheadAttention(dim, attention.attention_heads, batch_first=True).eval()
    with torch.no_grad():
        parts = (attention.query, attention.key, attention.value)
        oracle.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        oracle.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        oracle.out_proj.weight.copy_(attention.join.weight)
        oracle.out_proj.bias.copy_(attention.join.bias)
    return oracle


def test_co_attention_equals_a_loop_over_torchs_attention() -> None:
    torch.manual_seed(0)
    block = CoAttention(16, attention_heads=4, dropout=0.3).eval()
    oracle = _as_torch(block.attention)
    left, right = _sequences(16, (5, 2, 7)), _sequences(16, (1, 6, 3))
    with torch.no_grad():
        to_left, to_right = block(Frames.of(left), Frames.of(right))
        for row, (one, other) in enumerate(zip(left, right, strict=True)):
            for found, norm, query, memory in (
                (to_left, block.left_norm, one, other),
                (to_right, block.right_norm, other, one),
            ):
                expected = norm(query + oracle(query[None], memory[None], memory[None])[0][0])
                torch.testing.assert_close(found.values[row, : len(query)], expected, rtol=1e-5, atol=1e-5)


def test_self_attention_layer_equals_torchs_encoder_layer() -> None:
    torch.manual_seed(0)
    layer = SelfAttentionLayer(16, attention_heads=4, dropout=0.3).eval()
    oracle = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True, norm_first=True).eval()
    oracle.self_attn = _as_torch(layer.attention)
    oracle.norm1, oracle.norm2 = layer.attention_norm, layer.feed_forward_norm
    oracle.linear1, oracle.linear2 = layer.widen, layer.narrow
    sequences = _sequences(16, (5, 2, 7))
    with torch.no_grad():
        found = layer(Frames.of(sequences)).values
        for row, one in enumerate(sequences):
            torch.testing.assert_close(found[row, : len(one)], oracle(one[None])[0], rtol=1e-5, atol=1e-5)


def test_hierarchical_equals_a_loop_over_stages() -> None:
    """Stage 2 sees what stage 1 made of both its sequences, one after the other."""
    head = _head("hierarchical", ("acoustic", "asr", "text"))
    row = {stream: torch.randn(1, 4, DIMS[stream]) for stream in DIMS}
    whole = torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        a, h, t = (head.project[stream](row[stream])[0] for stream in DIMS)
        first, second = (_as_torch(stage.attention) for stage in head.stages)

        def look(oracle: nn.MultiheadAttention, norm: nn.Module, query: Tensor, memory: Tensor) -> Tensor:
            return norm(query + oracle(query[None], memory[None], memory[None])[0][0])

        stage = head.stages[0]
        a, h = look(first, stage.left_norm, a, h), look(first, stage.right_norm, h, a)
        both, stage = torch.cat([a, h]), head.stages[1]
        both, t = look(second, stage.left_norm, both, t), look(second, stage.right_norm, t, both)
        pooled = torch.cat([statistics_pool(Frames(one[None], whole)) for one in (both[:4], both[4:], t)], dim=-1)
        expected = head.classify(pooled)
        found = head({stream: Frames(values, whole) for stream, values in row.items()})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_orders_differ_only_with_two_streams_to_join() -> None:
    torch.manual_seed(1)
    values = {stream: Frames.of(_sequences(DIMS[stream], LENGTHS[stream])) for stream in DIMS}
    three = [_head("hierarchical", STREAMS, order=order)(values) for order in ("asr-text", "text-asr")]
    assert not torch.allclose(*three, atol=1e-3)
    two = [_head("hierarchical", ("acoustic", "text"), order=order)(values) for order in ("asr-text", "text-asr")]
    torch.testing.assert_close(*two)


def test_statistics_pool_equals_numpy() -> None:
    sequences = _sequences(6, (5, 1, 3))
    found = statistics_pool(Frames.of(sequences)).numpy()
    for row, one in enumerate(sequences):
        values = one.double().numpy()
        expected = [*values.mean(axis=0), *(values.var(axis=0) + 1e-5) ** 0.5]
        assert found[row] == pytest.approx(expected, abs=1e-6)


def test_joined_sequences_keep_their_masks() -> None:
    parts = [Frames.of(_sequences(4, (2, 1))), Frames.of(_sequences(4, (1, 3)))]
    whole = joined(parts)
    assert whole.values.shape == (2, 5, 4)
    assert whole.valid.tolist() == [[True, True, True, False, False], [True, False, True, True, True]]
    assert statistics_pool(whole)[0, :4].tolist() == pytest.approx(whole.values[0, :3].mean(dim=0).tolist(), abs=1e-6)


def test_positions_differ_and_do_not_depend_on_the_length() -> None:
    short, long = positions(5, 8, torch.device("cpu")), positions(400, 8, torch.device("cpu"))
    assert torch.equal(short, long[:5])
    assert torch.cdist(long, long).fill_diagonal_(1.0).min() > 0.01
    assert long[0].tolist() == [0.0, 1.0] * 4


def test_mistakes_are_named() -> None:
    with pytest.raises(UnknownNameError, match="hierarchical"):
        frame_head_options("hierarchicle")
    with pytest.raises(UnknownNameError, match="value of order 'asr'"):
        frame_head_options("hierarchical", {"order": "asr"})
    with pytest.raises(UnknownNameError, match="option of early 'order'"):
        frame_head_options("early", {"order": "asr-text"})
    with pytest.raises(ConfigError, match="'cross' takes the acoustic stream and one or two others, not asr, text"):
        _head("cross", ("asr", "text"))
    with pytest.raises(ConfigError, match="'alone' takes one stream, not acoustic, asr"):
        _head("alone", ("acoustic", "asr"))
    with pytest.raises(ConfigError, match="16 cannot be divided into 5"):
        Attention(16, attention_heads=5)
    assert frame_head_options("hierarchical") == {"order": "asr-text"}
    assert list(FRAME_HEADS) == ["alone", "early", "cross", "hierarchical"]
