"""An exported model: one folder that holds all it takes to predict, but for the frozen encoders' weights.

=========================== =======================================================================================
file                        content
=========================== =======================================================================================
``model.json``              what the model is: inputs with their encoders' revisions, fusion, labels, how it was trained, scores
``heads.safetensors``       parameters and scalers of its heads, ``<number>.<name>``, and the map of the first one, ``map.<name>``
``README.md``               the model card, for people and for the Hub
=========================== =======================================================================================

``model.json`` names the sha256 of the tensors and its own (``digest``, over everything else in it), so that a folder whose files
do not belong together, or that was edited by hand, is refused. The card is for people and may be edited. Nothing in a folder is
code; nothing is unpickled. Digests tell accidents apart from what was exported, not friends from enemies: they are no signature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from pipelines.deployment.fused_map import FusedMap
from pipelines.errors import HyfuseError, ModelError
from pipelines.files import write_atomically
from pipelines.training.trainer import Scaler, TrainConfig

__all__ = [
    "CARD_FILE",
    "HEADS_FILE",
    "MODEL_FILE",
    "ModelFolder",
    "ModelInput",
    "TrainedHead",
    "read_model",
    "write_model",
]

MODEL_FILE = "model.json"
HEADS_FILE = "heads.safetensors"
CARD_FILE = "README.md"

_FORMAT = 1
_SIDES = ("left", "right")
_APART = ("heads", "train", "inputs", "map")  # fields that are not written as they are
_MAP_TENSORS = ("centre", "axes", "points", "labels")


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """One side of a model: what is made of a recording before the head sees it.

    Attributes:
        encoder: catalogue name.
        family: RLR, CBR, LEX or DSP.
        representations: one name, or all layers where they are weighted.
        weighted: whether the head weights layers.
        pool: ``mean``, ``std`` or ``mean+std``.
        spread: whether a standard deviation is part of the features; utterance-level encoders have none.
        dim: features.
        sample_rate_hz: of the encoder; 0 for text.
        precision: of the encoder.
        weights_kind: ``pretrained``, ``random`` or ``none``.
        weights_source: repository, address or file.
        weights_revision: pinned revision.
        weights_digest: sha256 of the encoder's parameters; a model predicts with these only.
        weights_licence: of the encoder's weights.
    """

    encoder: str
    family: str
    representations: tuple[str, ...]
    weighted: bool
    pool: str
    spread: bool
    dim: int
    sample_rate_hz: int
    precision: str
    weights_kind: str
    weights_source: str
    weights_revision: str
    weights_digest: str
    weights_licence: str


@dataclass(frozen=True, kw_only=True)
class TrainedHead:
    """One head of a model, as ``training.applied`` takes it.

    Attributes:
        fold: that it was trained for; ``all`` for all data.
        seed: of it.
        parameters: of it, without the stack's dimension.
        left_scaler: standardisation of the left input.
        right_scaler: of the right one; None for a single representation.
        target_scaler: of the dimensions; None for emotions.
    """

    fold: str
    seed: int
    parameters: dict[str, Tensor] = field(repr=False)
    left_scaler: Scaler = field(repr=False)
    right_scaler: Scaler | None = field(repr=False)
    target_scaler: Scaler | None = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model.

    Attributes:
        name: of its cell, such as ``byols+soundstream-lyra hyperbolic``.
        target: ``emotion`` or ``dimensions``.
        outputs: classes in the order of the probabilities, or dimensions.
        fusion: name of the head.
        options: of the fusion, all of them.
        train: hyper-parameters.
        inputs: one, or left and right.
        heads: what predicts; their outputs are averaged.
        map: where the first head puts its training utterances.
        trained_on: corpus, protocol, condition, numbers of utterances and speakers (JSON values).
        scores: of the same cell in the run, on speakers that its heads had not seen (JSON values).
        warnings: what a user must not overlook.
        versions: of hyfuse and its code.
    """

    name: str
    target: str
    outputs: tuple[str, ...]
    fusion: str
    options: Mapping[str, Any]
    train: TrainConfig
    inputs: tuple[ModelInput, ...]
    heads: tuple[TrainedHead, ...] = field(repr=False)
    map: FusedMap = field(repr=False)
    trained_on: Mapping[str, Any]
    scores: Mapping[str, Any]
    warnings: tuple[str, ...]
    versions: Mapping[str, str]

    @property
    def random(self) -> tuple[str, ...]:
        """Encoders with random weights."""
        return tuple(one.encoder for one in self.inputs if one.weights_kind == "random")

    @property
    def takes_text(self) -> bool:
        """Whether a transcript is needed for every recording."""
        return any(one.family == "LEX" for one in self.inputs)

    @cached_property
    def digest(self) -> str:
        """sha256 of everything in the model: the same digest, the same predictions."""
        return _digest(_described(self, _tensor_bytes(self)))


def write_model(model: ModelFolder, folder: Path, card: str) -> None:
    """Write a model and its card.

    Args:
        model: what to write.
        folder: a new or empty folder, or one that holds a model.
        card: text of ``README.md``.

    Raises:
        ModelError: the folder holds something else.
        StorageError: it cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MODEL_FILE).is_file():
        raise ModelError(f"{folder} holds other files already. Name a new folder with --out.")
    tensors = _tensor_bytes(model)
    described = _described(model, tensors)
    text = json.dumps({**described, "digest": _digest(described)}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    for name, content in ((HEADS_FILE, tensors), (CARD_FILE, card), (MODEL_FILE, text)):  # the description last
        write_atomically(folder / name, content, option="--out")


def read_model(folder: Path) -> ModelFolder:
    """Read a model.

    Raises:
        ModelError: there is none, or it is damaged, was edited, or is of another version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / MODEL_FILE
    if not folder.is_dir():
        raise ModelError(
            f"{folder} is not {'a folder' if folder.exists() else 'there'}. Give the folder that `hyfuse export RUN` has written."
        )
    again = "Export it anew with `hyfuse export`, or fetch it again."
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        tensors = (folder / HEADS_FILE).read_bytes()
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder} is not an exported model, or not all of it: {Path(str(error.filename)).name} is not there. Models are"
            " made by `hyfuse export RUN`."
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}. {again}") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        version = found.get("format") if isinstance(found, dict) else None
        raise ModelError(f"{path} is of format {version!r}, but {_FORMAT} is read here. {again}")
    digest = found.pop("digest", None)
    if hashlib.sha256(tensors).hexdigest() != found.get("heads_sha256"):
        raise ModelError(
            f"{folder / HEADS_FILE} does not belong to {MODEL_FILE}: its sha256 is another one. One of them is damaged or was"
            f" replaced. {again}"
        )
    if _digest(found) != digest:
        raise ModelError(
            f"{path} was edited after the export: its content does not fit its digest, so its predictions could not be trusted."
            f" {again}"
        )
    try:
        return _restored(found, load(tensors))
    except (HyfuseError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise ModelError(f"{path} is of another version of hyfuse ({error}). {again}") from error


def _described(model: ModelFolder, tensors: bytes) -> dict[str, Any]:
    """``model.json`` without its digest, as it is read back."""
    content = {
        "format": _FORMAT,
        "heads_sha256": hashlib.sha256(tensors).hexdigest(),
        "heads": [{"fold": head.fold, "seed": head.seed} for head in model.heads],
        **{one.name: getattr(model, one.name) for one in fields(model) if one.name not in _APART},
        "train": asdict(model.train),
        "inputs": [asdict(one) for one in model.inputs],
        "map": {"kind": model.map.kind, "scale": model.map.scale, "share": model.map.share},
    }
    described: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
    return described


def _digest(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _restored(found: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ModelFolder:
    heads = []
    for number, entry in enumerate(found["heads"]):
        own = {
            name.partition(".")[2]: value for name, value in tensors.items() if name.partition(".")[0] == str(number)
        }
        scalers = {
            side: Scaler(mean=own.pop(f"{side}_scaler.mean"), std=own.pop(f"{side}_scaler.std"))
            for side in (*_SIDES, "target")
            if f"{side}_scaler.mean" in own
        }
        heads.append(
            TrainedHead(
                fold=entry["fold"],
                seed=entry["seed"],
                parameters=own,
                left_scaler=scalers["left"],
                right_scaler=scalers.get("right"),
                target_scaler=scalers.get("target"),
            )
        )
    lists = {name: tuple(found[name]) for name in ("outputs", "warnings")}
    drawn = {name: tensors[f"map.{name}"] for name in _MAP_TENSORS}
    plain = {name: found[name] for name in ("name", "target", "fusion", "options", "trained_on", "scores", "versions")}
    return ModelFolder(
        **plain,
        outputs=lists["outputs"],
        warnings=lists["warnings"],
        train=TrainConfig.from_mapping(found["train"]),
        inputs=tuple(
            ModelInput(**{**entry, "representations": tuple(entry["representations"])}) for entry in found["inputs"]
        ),
        heads=tuple(heads),
        map=FusedMap(**{**found["map"], **drawn}),
    )


def _tensor_bytes(model: ModelFolder) -> bytes:
    from safetensors.torch import save

    tensors = {f"map.{name}": getattr(model.map, name).contiguous() for name in _MAP_TENSORS}
    for number, head in enumerate(model.heads):
        own = dict(head.parameters)
        for side in (*_SIDES, "target"):
            scaler = getattr(head, f"{side}_scaler")
            if scaler is not None:
                own |= {f"{side}_scaler.mean": scaler.mean, f"{side}_scaler.std": scaler.std}
        tensors |= {
            f"{number}.{name}": value.detach().float().clone() for name, value in own.items()
        }  # some are shared
    return save(tensors)
