"""Fine-tuning within the study ``asr-fusion``: one encoder per fold and seed, its predictions, and what became of its layers.

The trained encoder of seed 0 is kept per fold in ``checkpoints/fine-tuned/<fold>`` of the run, in the layout of transformers:
``hyfuse extract --model hf:fine-tuned/<fold> --weights-dir RUN/checkpoints`` makes a store of it. A fold's encoder has learned from
that fold's training speakers: embeddings of all speakers by it belong in no other comparison.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import pipelines
from pipelines.corpora.manifest import Manifest
from pipelines.corpora.protocols import Split
from pipelines.errors import ManifestError
from pipelines.evaluation.similarity import compare_views, prepare_view
from pipelines.extraction.fine_tuning import FineTuneConfig, FineTuneResult, FineTuneWork, encoder_digest, fine_tune
from pipelines.fusion.frames.catalogue import ALONE, build_frame_head
from pipelines.fusion.frames.sequences import Frames
from pipelines.fusion.stacked import head_generators
from pipelines.studies.asr_fusion_findings import LayerChanges, System
from pipelines.studies.frame_runs import (
    FrameRecord,
    described_key,
    frame_code_digest,
    load_part,
    number,
    run_in_processes,
    save_part,
)
from pipelines.training.ctc import Alphabet, ctc_loss
from pipelines.training.frame_data import FrameDataset, batches_by_length
from pipelines.training.frame_trainer import FrameConfig, FrameSystem, chosen_rows
from pipelines.training.losses import concordance_loss
from pipelines.training.trainer import HeadTask, Scaler, fit_scaler, head_seed

__all__ = ["Tuning", "tune_encoder"]

_CODE = (
    "encoders/trainable.py",
    "encoders/ssl.py",
    "encoders/ssl_front_end.py",
    "encoders/ssl_layers.py",
    "encoders/ssl_loading.py",
    "extraction/fine_tuning.py",
)

FOLDER = Path("checkpoints") / "fine-tuned"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is fine-tuned, and how.

    Attributes:
        encoder: name.
        config: layers and hyper-parameters.
        weights: ``pretrained`` or ``random``.
        weights_dir: looked in first.
        ctc_weight: λ.
    """

    encoder: str
    config: FineTuneConfig
    weights: str
    weights_dir: Path | None
    ctc_weight: float

    @property
    def system(self) -> System:
        """Its row of the table."""
        return System(
            frames=FrameSystem(streams=("acoustic",), ctc_weight=self.ctc_weight),
            sources={},
            names={"acoustic": self.encoder},
            transcripts="none",
            fine_tuned=self.config.layers,
        )


class _TunedHead(nn.Module):
    """The head on one stream, as fine-tuning calls it: with frames [B, T, D] and a mask [B, T]."""

    def __init__(self, dim: int, *, num_outputs: int, train: FrameConfig) -> None:
        super().__init__()
        self.head = build_frame_head(
            ALONE,
            dims={"acoustic": dim},
            num_outputs=num_outputs,
            hidden_dim=train.hidden_dim,
            attention_heads=train.attention_heads,
            dropout=train.dropout,
        )

    def forward(self, values: Tensor, valid: Tensor) -> Tensor:
        """[B, C or K]."""
        outputs: Tensor = self.head({"acoustic": Frames(values, valid)})
        return outputs


def _class_loss(outputs: Tensor, truth: Tensor, *, label_smoothing: float) -> Tensor:
    return F.cross_entropy(outputs, truth, label_smoothing=label_smoothing)


def _value_loss(outputs: Tensor, truth: Tensor) -> Tensor:
    return concordance_loss(outputs[None], truth[None])[0]


def tune_encoder(
    manifest: Manifest,
    dataset: FrameDataset,
    split: Split,
    tuning: Tuning,
    *,
    train: FrameConfig,
    frames: NDArray[np.int64],
    seeds: int,
    run_dir: Path,
    workers: int,
    device: str,
    progress: Callable[[int, int, str], None],
) -> tuple[dict[str, Any], tuple[FrameRecord, ...], LayerChanges]:
    """Fine-tune an encoder on every fold under every seed, as far as the run does not hold it already.

    Args:
        manifest: the corpus, with its recordings.
        dataset: the utterances.
        split: folds.
        tuning: what and how.
        train: sizes of the head, label smoothing, and which rows train (epochs are those of the tuning; none is selected).
        frames: int64 [n], lengths by which batches are made.
        seeds: number of seeds.
        run_dir: the run.
        workers: processes; on a GPU it is always this one.
        device: where.
        progress: called with (done, in all, what).

    Returns:
        What the numbers depend on, one record per fold and seed, and how the layers changed.

    Raises:
        ManifestError: where the recordings are is not known.
        HyfuseError: recordings, weights or disk do not allow it.
    """
    paths = dict(zip(manifest.utterance_ids, manifest.audio_paths(), strict=True))
    absent = [name for name in dataset.utterance_ids if not paths[name].is_file()]
    if absent:
        raise ManifestError(
            f"Fine-tuning needs the recordings of {dataset.corpus!r}, and {len(absent)} are not there, for instance"
            f" {paths[absent[0]]}. Name their folder with `hyfuse corpora prepare {dataset.corpus} --data-root DIR`, or leave"
            " --fine-tune out."
        )
    description = _description(dataset, split, tuning, train)
    key = described_key(description)
    tasks = [
        HeadTask(fold=fold.name, seed=seed, train=fold.train, validation=fold.validation, test=fold.test)
        for fold in split.folds
        for seed in range(seeds)
    ]
    missing = [
        task
        for task in tasks
        if load_part(run_dir, key, task.fold, task.seed) is None
        or (task.seed == 0 and not (run_dir / FOLDER / _plain(task.fold) / "config.json").is_file())
    ]
    prepared = [
        _prepare(dataset, tuning, task, train, frames, [paths[name] for name in dataset.utterance_ids], device, run_dir)
        for task in missing
    ]
    done = len(tasks) - len(missing)
    progress(done, len(tasks), "")
    on_gpu = device.startswith("cuda")
    for position, result in run_in_processes(
        fine_tune, [work for work, _, _ in prepared], workers=1 if on_gpu else workers
    ):
        _, alphabet, scaler = prepared[position]
        _save(run_dir, key, missing[position], result, alphabet, scaler)
        done += 1
        progress(done, len(tasks), tuning.system.title)
    parts = [load_part(run_dir, key, task.fold, task.seed) for task in tasks]
    found = [part for part in parts if part is not None]
    arrays = [extra for _, extra in found]
    changes = LayerChanges(
        encoder=tuning.encoder,
        trained=tuning.config.layers,
        layers=tuple(found[0][0].row["layers"]),
        cka=np.mean([extra["extra_cka"] for extra in arrays], axis=0),
        pwcca=np.mean([extra["extra_pwcca"] for extra in arrays], axis=0),
        checkpoints=tuple(str(FOLDER / _plain(fold.name)) for fold in split.folds),
    )
    return description, tuple(record for record, _ in found), changes


def _plain(fold: str) -> str:
    """A fold's name as part of a model's name."""
    return "fold-" + "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in fold).strip("-")


def _description(dataset: FrameDataset, split: Split, tuning: Tuning, train: FrameConfig) -> dict[str, Any]:
    digest = hashlib.sha256()
    root = Path(pipelines.__file__).parent
    for name in _CODE:
        digest.update((root / name).read_bytes())
    spoken = "\n".join(dataset.transcripts) if tuning.ctc_weight else ""
    return {
        "study": "asr-fusion",
        "corpus": dataset.corpus,
        "manifest_digest": dataset.manifest_digest,
        "protocol": split.protocol,
        "speaker_independent": split.speaker_independent,
        "split_digest": split.digest,
        "target": dataset.target,
        "classes": list(dataset.classes),
        "dimensions": list(dataset.dimensions),
        "utterances_digest": hashlib.sha256("\n".join(dataset.utterance_ids).encode()).hexdigest(),
        "truth_digest": hashlib.sha256(dataset.truth.tobytes()).hexdigest(),
        "spoken_digest": hashlib.sha256(spoken.encode()).hexdigest(),
        "encoder": tuning.encoder,
        "weights_digest": encoder_digest(tuning.encoder, weights=tuning.weights, weights_dir=tuning.weights_dir),
        "fine_tuning": asdict(tuning.config),
        "ctc_weight": tuning.ctc_weight,
        "hyper_parameters": asdict(train),
        "code_version": pipelines.__version__,
        "code_digest": hashlib.sha256(f"{frame_code_digest()} {digest.hexdigest()}".encode()).hexdigest(),
    }


def _prepare(
    dataset: FrameDataset,
    tuning: Tuning,
    task: HeadTask,
    train: FrameConfig,
    frames: NDArray[np.int64],
    paths: Sequence[Path],
    device: str,
    run_dir: Path,
) -> tuple[FineTuneWork, Alphabet, Scaler | None]:
    """The work of one model, and what its outputs are read with."""
    config, rows = tuning.config, chosen_rows(task, train)
    stream = head_generators([head_seed(task.fold, task.seed)], "fine-tuning batches")[0]
    alphabet = Alphabet.of(dataset.transcripts[row] for row in rows) if tuning.ctc_weight else Alphabet(())
    targets: Mapping[int, NDArray[np.int64]] = {}
    letters: tuple[str, ...] = ()
    if tuning.ctc_weight:
        targets = {int(row): alphabet.encode(dataset.transcripts[row]) for row in rows}
        letters = ("<pad>", *("|" if letter == " " else letter for letter in alphabet.characters))
    truth, scaler = dataset.truth, None
    loss: Callable[[Tensor, Tensor], Tensor] = partial(_class_loss, label_smoothing=train.label_smoothing)
    if dataset.dimensions:
        scaler = fit_scaler(torch.from_numpy(dataset.values), rows)
        truth = ((dataset.values - scaler.mean.numpy()) / scaler.std.numpy()).astype(np.float32)
        loss = _value_loss
    work = FineTuneWork(
        encoder=tuning.encoder,
        weights=tuning.weights,
        weights_dir=tuning.weights_dir,
        config=config,
        paths=tuple(paths),
        truth=truth,
        targets=targets,
        letters=letters,
        ctc_weight=tuning.ctc_weight,
        batches=tuple(
            tuple(batches_by_length(rows, frames, batch_size=config.batch_size, stream=stream))
            for _ in range(config.epochs)
        ),
        test_batches=tuple(batches_by_length(task.test, frames, batch_size=config.batch_size)),
        make_head=partial(_TunedHead, num_outputs=dataset.num_outputs, train=train),
        emotion_loss=loss,
        ctc_loss=ctc_loss,
        seed=head_seed(task.fold, task.seed) % 2**63,
        device=device,
        save_to=run_dir / FOLDER / _plain(task.fold) if task.seed == 0 else None,
    )
    return work, alphabet, scaler


def _save(
    run_dir: Path, key: str, task: HeadTask, result: FineTuneResult, alphabet: Alphabet, scaler: Scaler | None
) -> None:
    raw = torch.from_numpy(np.stack([result.outputs[int(row)] for row in task.test]))
    outputs = (torch.softmax(raw, dim=-1) if scaler is None else raw * scaler.std + scaler.mean).numpy()
    spoken = [alphabet.decode(result.symbols[int(row)].tolist()) for row in task.test] if result.symbols else []
    layers = list(result.before)
    before = [prepare_view(result.before[name]) for name in layers]
    after = [prepare_view(result.after[name]) for name in layers]
    cka = np.array([[compare_views(one, other).cka_debiased for other in before] for one in after])
    pwcca = np.array([compare_views(one, other).pwcca for one, other in zip(after, before, strict=True)])
    losses = np.array(result.losses)
    row = {
        "train_utterances": len(task.train),
        "validation_utterances": len(task.validation),
        "test_utterances": len(task.test),
        "best_epoch": len(losses),
        "parameters": result.parameters,
        "unsayable": None,  # its frames are not those of the acoustic stream, and known only while training
        "layers": layers,
        "curves": {
            name: [number(value) for value in losses[:, place]]
            for place, name in enumerate(("train_loss", "emotion_loss", "ctc_loss"))
        },
    }
    save_part(
        run_dir,
        key,
        task=task,
        row=row,
        outputs=outputs,
        shuffled={},
        hypotheses=spoken,
        arrays={"extra_cka": cka, "extra_pwcca": pwcca},
    )
