"""The position bias of WavLM against transformers' own."""

from __future__ import annotations

import pytest
import torch

from pipelines.encoders.wavlm import GatedPositionBias
from tests.encoders.ssl_checkpoints import checkpoint_spec, random_model


@pytest.mark.parametrize("length", [1, 2, 49, 1000])
def test_windows_are_the_biases_of_all_pairs(length: int) -> None:
    model = random_model(checkpoint_spec("wavlm"))
    with torch.inference_mode():
        windows = GatedPositionBias(model, length).windows
        expected = model.encoder.layers[0].attention.compute_bias(length, length)
    assert windows.shape == (4, length, length)
    assert torch.equal(windows.flip(1), expected)  # the queries of the windows descend
    assert windows.untyped_storage().nbytes() == 4 * 4 * (2 * length - 1)
