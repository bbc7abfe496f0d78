"""The wav2vec2-like encoders: wav2vec 2.0, XLS-R, MMS, HuBERT, DistilHuBERT, UniSpeech, UniSpeech-SAT, data2vec audio, WavLM.

The family is one network up to details that its configuration names: strided convolutions over the waveform (400 samples in, one
frame every 320 samples), a projection, a positional convolution, transformer layers. transformers names the parts of all of
them alike, so one class serves them all. ``ssl_loading.py`` reads checkpoints, ``ssl_front_end.py`` runs up to the transformer,
``ssl_layers.py`` the transformer, and ``wavlm.py`` holds what only WavLM has.

``layer_00`` is the input of the first transformer layer and ``layer_NN`` the output of layer NN, transformers'
``hidden_states``. In the architectures with ``do_stable_layer_norm`` (all large sizes) the last one has passed the final layer
normalisation and the inner ones have not: it is transformers' ``last_hidden_state``.

What breaks the promise of ``base.py`` upstream, and the cure here:

* Checkpoints with ``feat_extract_norm="group"`` (all base sizes) normalise over time, padding included. Here each clip is
  normalised by the statistics of its own frames.
* Waveform normalisation (``do_normalize`` of the checkpoint's feature extractor) is over the clip's own samples.
* Frames beyond the clip are zero before the positional convolution, as its padding is for a clip alone, and keys for no query.

**bf16** keeps waveforms, the first convolution, all statistics and normalisations, the residual stream, softmax and what is handed
out in float32; the other convolutions, the linear layers and the products of attention are bfloat16. Measured at full size with
random weights, 5 clips of 3 s of ``tests.encoders.batches.speechlike``, one thread of an AMD EPYC (family 26) whose other core was
busy, CPU time, least of nine (``python -m tests.oracles.ssl_bench wavlm hubert``):

| | float32 | bf16 | upstream, one by one, float32 |
|---|---|---|---|
| wavlm | 15.4 x real time | 29.3 x (1.91 x float32) | 7.5 x |
| hubert | 15.7 x real time | 29.9 x (1.90 x float32) | 7.5 x |

The instructions of this processor do exactly twice as many multiplications in bfloat16, and float32 runs near its best here
(256 GFLOP/s against 517 in bfloat16, table in ``cpu_linear.py``), so 2 x is the most that bf16 can give: front end 331 to 183 ms,
positional convolution 31 to 20 ms, layers 630 to 328 ms (wavlm). On a processor without such instructions bf16 is right but slow.

Error of bf16, relative to float32, of the pooled values over these clips, all layers: mean 4.0e-3 to 5.3e-3, std 8e-4 to 1.0e-3.
A clip's frames, batched and alone, differ by at most 1.3e-6 (wavlm) to 2.6e-6 (xls-r) in float32; in bf16, where another order of
adding flips the last of 8 bits, by at most 4.6e-3 to 8.2e-3, which is bf16's own error. Padding reaches no result in either.

**Long recordings.** Windows change frames: attention and, in base sizes, the normalisation behind the first convolution see the
window instead of the recording. With random weights, 75 s in one piece against two windows of 60 s and less with 2 s of context
(``python -m tests.oracles.ssl_bench --windows wavlm hubert-large``), relative difference in the last layer:

| | mean | std | frames, median | frames, worst |
|---|---|---|---|---|
| wavlm, speech-like | 8.0e-3 | 9.6e-4 | 1.5e-2 | 6.4e-2 |
| wavlm, noise | 3.6e-3 | 4.3e-4 | 6.6e-3 | 2.5e-2 |
| hubert-large, speech-like | 4.0e-3 | 1.0e-3 | 6.4e-3 | 2.8e-2 |
| hubert-large, noise | 3.9e-3 | 1.1e-3 | 6.8e-3 | 2.5e-2 |

Trained weights, whose attention is not near uniform, will behave otherwise. A piece of 60 s takes 209 MB beside the model in
float32 (wavlm; wavlm-large 224 MB), 77 MB in bf16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.padding import pad_batch, valid_mask
from pipelines.encoders.ssl_front_end import FrontEnd, normalise_waveforms, output_frames, receptive_field
from pipelines.encoders.ssl_layers import BatchFrames, run_layers
from pipelines.encoders.ssl_loading import LoadedModel, load_model
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.wavlm import GatedPositionBias
from pipelines.encoders.weights import Progress

__all__ = ["SSLEncoder"]


class SSLEncoder(Encoder):
    """A wav2vec2-like encoder of any architecture and size; one frame every 320 samples, each of 400, unless configured else."""

    def __init__(
        self, *, spec: EncoderSpec, device: torch.device, loaded: LoadedModel, precision: str = "float32"
    ) -> None:
        super().__init__(spec=spec, weights=loaded.weights, device=device, precision=precision)
        self.model: Any = loaded.model
        self.do_normalize = loaded.do_normalize
        self.min_samples = receptive_field(self.model.config)
        self.front_end = FrontEnd(self.model, dtype=loaded.dtype)
        self._dtype = loaded.dtype

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None,
        progress: Progress | None,
        precision: str = "float32",
    ) -> SSLEncoder:
        """Load (``pretrained``) or initialise (``random``) the model; see :func:`pipelines.encoders.ssl_loading.load_model`."""
        ensure_torchaudio_importable()
        loaded = load_model(
            spec=spec,
            weights_kind=weights_kind,
            device=device,
            weights_dir=weights_dir,
            progress=progress,
            precision=precision,
        )
        return cls(spec=spec, device=device, loaded=loaded, precision=precision)

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip, at least 1."""
        return int(output_frames(self.model.config, max(num_samples, self.min_samples)))

    @torch.inference_mode()
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """See :meth:`Encoder.encode_padded`."""
        waveforms, lengths = pad_batch(batch, min_samples=self.min_samples, device=self.device)
        if self.do_normalize:
            waveforms = normalise_waveforms(waveforms, lengths)
        in_pieces = self.device.type == "cpu"
        features = self.front_end.convolve(waveforms, lengths, in_pieces=in_pieces)  # [B, T, C]
        num_frames = output_frames(self.model.config, lengths)
        valid = valid_mask(num_frames, features.shape[1])
        frames = BatchFrames([self.num_frames(clip.numel()) for clip in batch], valid)
        hidden = self.front_end.embed(features, valid)  # [B, T, D]
        bias = GatedPositionBias(self.model, valid.shape[1]) if self.model.config.model_type == "wavlm" else None
        layers = run_layers(self.model, hidden, frames, dtype=self._dtype, bias=bias)
        for name, output in zip(self.spec.representations, layers, strict=True):
            yield PaddedRepresentation(name=name, frames=output, num_frames=num_frames)
