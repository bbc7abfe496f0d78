"""Predictions of an exported model on recordings: the very path by which the model was evaluated, from file to probabilities.

    from pipelines.deployment.predict import load_model

    model = load_model("my-model")
    for found in model.predict(["one.wav", "two.wav"]):
        print(found.path, found.label, found.scores)

A recording is decoded, encoded by the model's own encoders and pooled as an extraction does it, one recording at a time, then
standardised and judged by the model's heads, whose outputs are averaged. What comes out for a recording depends on that recording
alone. It equals what the evaluation stored to the precision of the encoders' promise (``encoders.base``): 1e-5 of the embedding.
No condition is applied: recordings are taken as they are, also by a model that was trained on noisy ones, and a transcript is to be
made as those of its training were.

The weights of the encoders must be those the model was trained with: their digests are compared.

A recording is in memory once, at the rate of each encoder: 38 MB per 10 minutes at 16 kHz, and as much again while it is resampled;
its parts are encoded a few hundred at a time. Above two hours it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.audio.decode import SILENCE_PEAK, Waveform, decode
from pipelines.deployment.fused_map import place
from pipelines.deployment.model_folder import ModelFolder, ModelInput, read_model
from pipelines.encoders.base import Encoder
from pipelines.encoders.catalogue import load_encoder
from pipelines.errors import AudioError, ConfigError, HyfuseError, ModelError, ProvenanceError
from pipelines.extraction.decoding import LONGEST_S, DecodedClip
from pipelines.extraction.single_files import embed_files, embed_text
from pipelines.extraction.worker import encode_clips
from pipelines.training.applied import apply_heads

__all__ = ["EMOTION", "Inside", "Model", "Prediction", "load_model", "segments"]

EMOTION = "emotion"

_AT_ONCE = 32  # recordings between two looks at the heads
_PARTS_AT_ONCE = 256  # of a recording; of 13 layers of 768 numbers they take 20 MB
_RINGING_S = 0.02


@dataclass(frozen=True)
class Prediction:
    """What a model says of a recording or of a part of it.

    Attributes:
        path: the recording.
        start_s: where the part begins; 0 for the whole.
        end_s: where it ends; NaN if the recording failed, or was not listened to since the model reads transcripts only.
        scores: class to probability, or dimension to value on the scale of the training corpus; empty if it failed.
        label: the most probable class; empty for dimensions and if it failed.
        failure: why there is no prediction; empty if there is one.
    """

    path: Path
    start_s: float
    end_s: float
    scores: Mapping[str, float]
    label: str
    failure: str


@dataclass(frozen=True)
class Inside:
    """What a model makes of a recording, for explanations.

    Attributes:
        outputs: float32 [C or K], averaged over heads.
        without_left: the same with the left input replaced by its mean over the training utterances, which is what a head gets of
            an input that tells it nothing.
        without_right: the same with the right input replaced; None for a single representation.
        point: float64 [2], where the first head puts it on its map (``deployment.fused_map``).
    """

    outputs: NDArray[np.float32]
    without_left: NDArray[np.float32]
    without_right: NDArray[np.float32] | None
    point: NDArray[np.float64]


@dataclass(frozen=True)
class _Features:
    """Of n recordings or parts: one matrix per input, and who failed.

    Attributes:
        matrices: per input float32 [n, D], or [n, R, D] where layers are weighted; zeros where it failed.
        duration_s: float64 [n].
        failures: n reasons, empty where there are features.
    """

    matrices: list[NDArray[np.float32]]
    duration_s: NDArray[np.float64]
    failures: list[str]


@dataclass
class Model:
    """An exported model with its encoders, ready to predict; see :func:`load_model`.

    Attributes:
        folder: what was exported.
        encoders: one per input.
    """

    folder: ModelFolder
    encoders: Sequence[Encoder] = field(repr=False)

    @property
    def takes_text(self) -> bool:
        """Whether a transcript is needed for every recording."""
        return self.folder.takes_text

    def predict(self, paths: Sequence[str | Path], *, transcripts: Sequence[str] | None = None) -> Iterator[Prediction]:
        """Predict recordings, in the order given; one that cannot be used says why and the others go on.

        Args:
            paths: the recordings.
            transcripts: of each of them; needed by models with an encoder of text, of no use to others.

        Raises:
            ConfigError: transcripts are needed and were not given, or not for every recording.
        """
        if self.takes_text and transcripts is None:
            raise ConfigError(
                "This model reads what was said: give transcripts, in the column 'transcript' of a CSV list of files."
            )
        if transcripts is not None and len(transcripts) != len(paths):
            raise ConfigError(
                f"{len(paths)} recordings came with {len(transcripts)} transcripts; one each was expected."
            )
        for start in range(0, len(paths), _AT_ONCE):
            chosen = [Path(path) for path in paths[start : start + _AT_ONCE]]
            said = None if transcripts is None else transcripts[start : start + _AT_ONCE]
            found = self._features(chosen, said)
            parts = [(0.0, float(duration)) for duration in found.duration_s]
            yield from self._predictions(chosen, parts, found)

    def predict_segments(
        self, path: str | Path, *, segment_s: float, step_s: float | None = None
    ) -> Iterator[Prediction]:
        """Predict the parts of a long recording, one prediction per part, in order.

        A part that is silent fails, as a silent recording does. If the recording cannot be read, there is a single prediction,
        which says why.

        Args:
            path: the recording.
            segment_s: seconds per part.
            step_s: seconds from one part to the next; ``segment_s`` unless given.

        Raises:
            ConfigError: lengths that make no sense, or a model that reads transcripts.
        """
        if self.takes_text:
            raise ConfigError("A model that reads transcripts judges whole recordings: leave out the segments.")
        segments(1.0, segment_s=segment_s, step_s=step_s)  # lengths that make no sense, before anything is read
        return self._predict_segments(Path(path), segment_s, step_s)

    def _predict_segments(self, path: Path, segment_s: float, step_s: float | None) -> Iterator[Prediction]:
        waveforms: dict[int, Waveform] = {}
        try:
            for rate_hz in sorted({encoder.spec.sample_rate_hz for encoder in self.encoders}):
                waveforms[rate_hz] = decode(path, rate_hz, longest_s=LONGEST_S)
        except AudioError as error:
            yield Prediction(path, 0.0, math.nan, {}, "", _reason(path, str(error)))
            return
        duration_s = next(iter(waveforms.values())).duration_s
        every = segments(duration_s, segment_s=segment_s, step_s=step_s)
        for start in range(0, len(every), _PARTS_AT_ONCE):
            parts = every[start : start + _PARTS_AT_ONCE]
            matrices, failures = [], [""] * len(parts)
            for one, encoder in zip(self.folder.inputs, self.encoders, strict=True):
                rate_hz = encoder.spec.sample_rate_hz
                made = encode_clips([_cut(waveforms[rate_hz], *part, rate_hz) for part in parts], encoder)
                matrices.append(np.nan_to_num(_chosen(made.mean, made.std, one, encoder)))
                failures = [first or second for first, second in zip(failures, made.failure, strict=True)]
            lengths = np.array([end - begin for begin, end in parts])
            yield from self._predictions([path] * len(parts), parts, _Features(matrices, lengths, failures))

    def try_heads(self) -> None:
        """Build the heads and give them an utterance of zeros: what does not fit fails here and not in the middle of a list."""
        shapes = [
            (1, len(one.representations), one.dim) if one.weighted else (1, one.dim) for one in self.folder.inputs
        ]
        self._outputs([np.zeros(shape, np.float32) for shape in shapes])

    def look_inside(self, path: str | Path, *, transcript: str | None = None) -> Inside:
        """What the model makes of one recording, and what it would make of it without either input.

        Args:
            path: the recording.
            transcript: of it, where the model reads text.

        Raises:
            AudioError: the recording cannot be used.
        """
        found = self._features([Path(path)], None if transcript is None else [transcript])
        if found.failures[0]:
            raise AudioError(found.failures[0])
        left, *right = found.matrices
        # All heads of a model were fitted on the same rows: their means are the same.
        left_mean = self.folder.heads[0].left_scaler.mean.numpy()[None]
        right_scaler = self.folder.heads[0].right_scaler
        without_right = None
        if right_scaler is not None:
            without_right = self._outputs([left, right_scaler.mean.numpy()[None]])[0]
        return Inside(
            outputs=self._outputs(found.matrices)[0],
            without_left=self._outputs([left_mean, *right])[0],
            without_right=without_right,
            point=place(
                self.folder.map,
                self.folder.heads[0],
                fusion=self.folder.fusion,
                options=self.folder.options,
                inputs=[torch.from_numpy(np.ascontiguousarray(matrix)) for matrix in found.matrices],
                config=self.folder.train,
                outputs=len(self.folder.outputs),
            )[0],
        )

    def _features(self, paths: Sequence[Path], transcripts: Sequence[str] | None) -> _Features:
        matrices, failures = [], [""] * len(paths)
        duration_s = np.full(len(paths), np.nan)
        for one, encoder in zip(self.folder.inputs, self.encoders, strict=True):
            if encoder.spec.takes_text:
                if transcripts is None:
                    raise ConfigError("This model reads what was said: give a transcript.")
                made = [embed_text(str(path), text, encoder) for path, text in zip(paths, transcripts, strict=True)]
                # An empty transcript is none, as in a manifest.
                failures = [
                    first or ("" if text else f"{path} has no transcript, which this model reads.")
                    for first, path, text in zip(failures, paths, transcripts, strict=True)
                ]
            else:
                made = list(embed_files(paths, encoder))
                duration_s = np.array([entry.duration_s for entry in made])
            mean, std = (np.stack([getattr(entry, name) for entry in made]) for name in ("mean", "std"))
            matrices.append(np.nan_to_num(_chosen(mean, std, one, encoder)))
            failures = [
                first or (_reason(path, entry.failure) if entry.failure else "")
                for first, path, entry in zip(failures, paths, made, strict=True)
            ]
        return _Features(matrices, duration_s, failures)

    def _outputs(self, matrices: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Probabilities [n, C], or values [n, K], averaged over heads."""
        left, *right = (torch.from_numpy(np.ascontiguousarray(matrix)) for matrix in matrices)
        outputs, _ = apply_heads(
            self.folder.heads,
            fusion=self.folder.fusion,
            options=self.folder.options,
            left=left,
            right=right[0] if right else None,
            rows=np.arange(len(left)),
            config=self.folder.train,
        )
        if self.folder.target == EMOTION:
            outputs = torch.softmax(torch.from_numpy(outputs), dim=-1).numpy()
        mean: NDArray[np.float32] = outputs.mean(axis=0)
        return mean

    def _predictions(
        self, paths: Sequence[Path], parts: Sequence[tuple[float, float]], found: _Features
    ) -> Iterator[Prediction]:
        outputs = self._outputs(found.matrices)
        for row, (path, (start, stop)) in enumerate(zip(paths, parts, strict=True)):
            if found.failures[row]:
                yield Prediction(path, start, stop, {}, "", found.failures[row])
                continue
            scores = dict(zip(self.folder.outputs, map(float, outputs[row]), strict=True))
            label = self.folder.outputs[int(outputs[row].argmax())] if self.folder.target == EMOTION else ""
            yield Prediction(path, start, stop, scores, label, "")


def load_model(folder: str | Path, *, device: str = "cpu", weights_dir: Path | None = None) -> Model:
    """Load an exported model and its encoders.

    Args:
        folder: of ``hyfuse export``.
        device: of the encoders.
        weights_dir: folder of their weights, before ``$HYFUSE_WEIGHTS`` and the Hub cache.

    Raises:
        ModelError: no such model, it was edited, or it is of another version.
        WeightsError: weights of an encoder are absent or do not fit.
        ProvenanceError: an encoder's weights are not those that the model was trained with.
    """
    model = read_model(Path(folder))
    encoders: list[Encoder] = []
    for one in model.inputs:
        kind = one.weights_kind if one.weights_kind != "none" else "pretrained"
        encoder = load_encoder(
            one.encoder, weights=kind, device=device, weights_dir=weights_dir, precision=one.precision
        )
        if encoder.weights.digest != one.weights_digest:
            raise ProvenanceError(
                f"The model was trained on {one.encoder} with weights {one.weights_digest[:12]} ({one.weights_source}), but those"
                f" found here are {encoder.weights.digest[:12]} ({encoder.weights.source}). Put the right ones into"
                f" $HYFUSE_WEIGHTS/{one.encoder}/."
            )
        if encoder.spec.dim * (1 + one.spread) != one.dim or not set(one.representations) <= set(
            encoder.spec.representations
        ):
            raise ModelError(
                f"The model takes {one.dim} features of {one.encoder} ({', '.join(one.representations)}), which gives others in"
                " this version of hyfuse. Export it anew with `hyfuse export`."
            )
        encoders.append(encoder)
    ready = Model(model, encoders)
    try:
        ready.try_heads()
    except (HyfuseError, RuntimeError, KeyError, ValueError) as error:
        raise ModelError(
            f"The heads of {folder} are of another version of hyfuse ({' '.join(str(error).split())[:200]}). Export it anew with"
            " `hyfuse export`."
        ) from error
    return ready


def segments(duration_s: float, *, segment_s: float, step_s: float | None = None) -> list[tuple[float, float]]:
    """Parts of a recording: of equal length, the last one ending with it; a recording that is shorter is one part.

    Args:
        duration_s: of the recording.
        segment_s: length of a part.
        step_s: from one part's start to the next; ``segment_s`` unless given.

    Raises:
        ConfigError: a length that is not positive, or steps that leave gaps.
    """
    step = segment_s if step_s is None else step_s
    if not (segment_s > 0 and 0 < step <= segment_s):
        raise ConfigError(f"Segments of {segment_s:g} s every {step:g} s make no sense: expected 0 < step <= segment.")
    if duration_s <= segment_s:
        return [(0.0, duration_s)]
    count = int(np.ceil((duration_s - segment_s) / step - 1e-9))
    starts = [index * step for index in range(count)] + [duration_s - segment_s]
    return [(start, start + segment_s) for start in starts]


def _reason(path: Path, failure: str) -> str:
    """Why a recording failed; of one that is not there, without the advice for a corpus."""
    return failure if path.exists() else f"{path} does not exist. Check its name and the folder you are in."


def _cut(waveform: Waveform, start_s: float, stop_s: float, rate_hz: int) -> DecodedClip:
    samples = waveform.samples[round(start_s * rate_hz) : round(stop_s * rate_hz)]
    # Where the recording was resampled, a sound next to this part rings into it.
    edge = round(_RINGING_S * rate_hz)
    inner = samples[edge:-edge] if len(samples) > 4 * edge else samples
    if not len(inner) or float(np.abs(inner).max()) <= SILENCE_PEAK:
        return DecodedClip(None, "This part is silent: no sample exceeds the least step of 16-bit audio.")
    return DecodedClip(replace(waveform, samples=samples, duration_s=stop_s - start_s), "")


def _chosen(
    mean: NDArray[np.float32], std: NDArray[np.float32], one: ModelInput, encoder: Encoder
) -> NDArray[np.float32]:
    """Features of an input [n, D], or [n, R, D], from pooled embeddings [n, all representations, dim]."""
    at = [encoder.spec.representations.index(name) for name in one.representations]
    arrays = {"mean": [mean], "std": [std], "mean+std": [mean, std] if one.spread else [mean]}[one.pool]
    features = np.concatenate([array[:, at] for array in arrays], axis=2)  # [n, R, D]
    return features if one.weighted else features[:, 0]
