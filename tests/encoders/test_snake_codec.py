"""The network that DAC and SNAC share: pieces, padded batches, what a frame sees, kernels in parts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.encoders import snake_codec
from pipelines.encoders.causal import prepare
from pipelines.encoders.snake_codec import SnakeCodec, fold_weight_norm, initialise_codec, reach
from tests.encoders.batches import TOLERANCE, relative_error, speechlike

# Even and odd strides, both last layers, with and without depthwise convolutions and shared codes.
_DAC = {"strides": (2, 4, 5, 8), "last_kernel": 3, "last_snake": True, "depthwise": False, "codebook_strides": (1, 1)}
_SNAC = {
    "strides": (2, 4, 8, 8),
    "last_kernel": 7,
    "last_snake": False,
    "depthwise": True,
    "codebook_strides": (4, 2, 1),
}
_ODD = {"strides": (3, 2, 5), "last_kernel": 1, "last_snake": True, "depthwise": True, "codebook_strides": (3,)}
_KINDS = pytest.mark.parametrize("kind", [_DAC, _SNAC, _ODD], ids=["dac", "snac", "odd"])


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        yield


def _codec(kind: dict[str, object]) -> SnakeCodec:
    """With biases and alphas of all kinds, so that zeros do not stay zero."""
    codec = SnakeCodec(channels=4, codebook_size=32, codebook_dim=4, **kind)  # type: ignore[arg-type]
    initialise_codec(codec, latent_scale=0.5)
    for name, parameter in codec.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0.0, 0.1)
        elif name.endswith("alpha"):
            parameter.normal_(1.0, 0.5)
    prepare(codec, torch.device("cpu"))
    return codec


def _hop(kind: dict[str, object]) -> int:
    return int(torch.tensor(kind["strides"]).prod())


def _plain(codec: SnakeCodec, waveform: Tensor) -> Tensor:
    """Latents [T, D] of one clip: the formula of each layer over [1, C, T], one after another."""

    def snake(maps: Tensor, name: str) -> Tensor:
        alpha = parameters[f"{name}.alpha"]
        return maps + (alpha + 1e-9).reciprocal() * torch.sin(alpha * maps) ** 2

    def convolve(maps: Tensor, name: str, padding: int, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = parameters[f"{name}.weight"]
        groups = maps.shape[1] // weight.shape[1]
        return F.conv1d(maps, weight, parameters[f"{name}.bias"], stride, padding, dilation, groups)

    parameters = dict(codec.encoder.named_parameters())
    maps = convolve(waveform[None, None], "conv1", 3)
    for index, block in enumerate(codec.encoder.block):
        for unit, dilation in enumerate((1, 3, 9), start=1):
            name = f"block.{index}.res_unit{unit}"
            inner = convolve(snake(maps, f"{name}.snake1"), f"{name}.conv1", 3 * dilation, dilation=dilation)
            maps = maps + convolve(snake(inner, f"{name}.snake2"), f"{name}.conv2", 0)
        stride = int(str(block.stride))
        maps = snake(maps, f"block.{index}.snake1")
        maps = convolve(maps, f"block.{index}.conv1", -(-stride // 2), stride=stride)
    if codec.encoder.snake1 is not None:
        maps = snake(maps, "snake1")
    return convolve(maps, "conv2", codec.encoder.conv2.kernel_size[0] // 2)[0].T


@_KINDS
@pytest.mark.parametrize("piece_bytes", [1, 3000, 40_000, 4 * 2**20])
def test_pieces_of_any_size_are_the_plain_network(
    kind: dict[str, object], piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snake_codec, "_PIECE_BYTES", piece_bytes)
    codec, hop = _codec(kind), _hop(kind)
    for frames in (1, 2, 9) if piece_bytes == 1 else (1, 2, 9, 33):
        clip = speechlike(frames * hop, seed=frames)
        found = codec.latent(clip[None], torch.tensor([frames * hop]))[0]
        assert relative_error(found, _plain(codec, clip)) <= TOLERANCE


@_KINDS
def test_one_padded_pass_is_the_clips_one_by_one(kind: dict[str, object]) -> None:
    """What other devices than the CPU do."""
    codec, hop = _codec(kind), _hop(kind)
    lengths = torch.tensor([12, 1, 30, 12, 25]) * hop
    clips = [speechlike(int(length), seed=index) for index, length in enumerate(lengths)]
    waveforms = nn.utils.rnn.pad_sequence(clips, batch_first=True)
    alone = codec.latent(waveforms, lengths)
    padded = codec.encoder(waveforms, lengths)
    without = codec.encoder(waveforms, torch.full_like(lengths, waveforms.shape[1]))
    for row, length in enumerate((lengths // hop).tolist()):
        assert relative_error(padded[row, :length], alone[row, :length]) <= TOLERANCE
        # The zeroing is what does it.
        assert length == 30 or relative_error(without[row, :length], alone[row, :length]) > 100 * TOLERANCE


@_KINDS
def test_a_frame_sees_what_reach_says(kind: dict[str, object]) -> None:
    codec, hop = _codec(kind), _hop(kind)
    before, behind = reach(kind["strides"], last_kernel=int(str(kind["last_kernel"])))  # type: ignore[arg-type]
    frames = 2 * max(before, behind) // hop + 5
    middle = frames // 2
    clip = speechlike(frames * hop, seed=1)
    lengths = torch.tensor([frames * hop])
    expected = codec.latent(clip[None], lengths)[0, middle]
    first, last = middle * hop - before, (middle + 1) * hop - 1 + behind
    for sample, seen in ((first - 1, False), (first, True), (last, True), (last + 1, False)):
        changed = clip.clone()
        changed[sample] += 1e4
        assert bool((codec.latent(changed[None], lengths)[0, middle] != expected).any()) == seen, sample


def test_codebooks_see_the_mean_of_as_many_frames_as_share_a_code() -> None:
    codec = _codec(_SNAC)
    latent = torch.randn(2, 12, 64)
    found = codec.quantized(latent, torch.tensor([12, 8]))
    for row, length in ((0, 12), (1, 8)):
        residual = latent[row, :length].clone()
        for codebook, stride in zip(codec.quantizer.quantizers, (4, 2, 1), strict=True):
            for start in range(0, length, stride):
                mean = residual[start : start + stride].mean(0)
                projected = codebook.in_proj(mean[:, None])[:, 0]
                similarity = F.cosine_similarity(projected[None], codebook.codebook.weight)
                residual[start : start + stride] -= codebook.out_proj(
                    codebook.codebook.weight[similarity.argmax(), :, None]
                ).T
        assert relative_error(found[row, :length], latent[row, :length] - residual) <= TOLERANCE
    assert not found[1, 8:].any()


def test_kernels_in_parts_are_put_together() -> None:
    plain = nn.Conv1d(6, 4, 3)
    with torch.inference_mode(False):
        newer = nn.utils.parametrizations.weight_norm(nn.Conv1d(6, 4, 3)).state_dict()
    older = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in newer.items()
    }
    assert set(older) == {"bias", "weight_g", "weight_v"}
    for parts in (newer, older):
        state = {f"a.b.{name}": value for name, value in parts.items()} | {"c.weight": plain.weight}
        folded = fold_weight_norm(state)
        assert set(folded) == {"a.b.bias", "a.b.weight", "c.weight"}
        expected = torch._weight_norm(older["weight_v"], older["weight_g"], 0)
        weight = folded["a.b.weight"]
        assert isinstance(weight, Tensor)
        assert relative_error(weight, expected) <= 1e-6
        assert folded["c.weight"] is plain.weight
    for broken in (
        {"a.weight_g": older["weight_g"]},
        {"a.weight_v": older["weight_v"]},
        {"a.weight_g": older["weight_g"][:2], "a.weight_v": older["weight_v"]},
        {"a.weight_g": "text", "a.weight_v": older["weight_v"]},
    ):
        assert fold_weight_norm(broken) == broken
