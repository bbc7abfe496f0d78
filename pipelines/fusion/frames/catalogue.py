"""The heads on frames: names, what they take, options. Importable without torch.

Adding one is one entry here and one file. A head is called with a mapping from stream to :class:`Frames` and gives [B, outputs].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from pipelines.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ALONE", "FRAME_HEADS", "STREAMS", "FrameHeadSpec", "build_frame_head", "frame_head_options"]

ALONE = "alone"

STREAMS = ("acoustic", "asr", "text")
"""Acoustic frames (behind the shared stack), hidden frames of a recogniser, tokens of a text; in this order everywhere."""


@dataclass(frozen=True)
class FrameHeadSpec:
    """One head.

    Attributes:
        title: one line.
        factory: ``module:class``.
        streams: fewest and most streams it takes.
        options: name to the values that it may have, the default first.
    """

    title: str
    factory: str
    streams: tuple[int, int]
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


FRAME_HEADS: dict[str, FrameHeadSpec] = {
    ALONE: FrameHeadSpec("one stream", "pipelines.fusion.frames.alone:AloneHead", (1, 1)),
    "early": FrameHeadSpec("early concatenation", "pipelines.fusion.frames.early:EarlyHead", (2, 3)),
    "cross": FrameHeadSpec("cross-attention", "pipelines.fusion.frames.cross:CrossHead", (2, 3)),
    "hierarchical": FrameHeadSpec(
        "hierarchical co-attention",
        "pipelines.fusion.frames.hierarchical:HierarchicalHead",
        (2, 3),
        {"order": ("asr-text", "text-asr")},
    ),
}


def frame_head_options(name: str, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Every option of a head, with the values given.

    Raises:
        UnknownNameError: no such head, option or value.
    """
    if name not in FRAME_HEADS:
        raise unknown_name("head on frames", name, FRAME_HEADS)
    known = FRAME_HEADS[name].options
    for option, value in (given or {}).items():
        if option not in known:
            raise unknown_name(f"option of {name}", option, known)
        if value not in known[option]:
            raise unknown_name(f"value of {option}", value, known[option])
    return {option: (given or {}).get(option, values[0]) for option, values in known.items()}


def build_frame_head(
    name: str,
    *,
    dims: Mapping[str, int],
    num_outputs: int,
    hidden_dim: int,
    attention_heads: int,
    dropout: float,
    options: Mapping[str, str] | None = None,
) -> nn.Module:
    """Make a head; its parameters are drawn from torch's generator.

    Args:
        name: one of :data:`FRAME_HEADS`.
        dims: stream to its features, in the order of :data:`STREAMS`.
        num_outputs: C classes or K dimensions.
        hidden_dim: width D.
        attention_heads: parallel attentions.
        dropout: share dropped in training.
        options: of the head.

    Raises:
        UnknownNameError: no such head, stream, option or value.
        ConfigError: more or fewer streams than the head takes, or a width that the attentions do not divide.
    """
    chosen = frame_head_options(name, options)
    spec = FRAME_HEADS[name]
    for stream in dims:
        if stream not in STREAMS:
            raise unknown_name("stream", stream, STREAMS)
    fewest, most = spec.streams
    if not fewest <= len(dims) <= most or (fewest > 1 and "acoustic" not in dims):
        wanted = "one stream" if most == 1 else "the acoustic stream and one or two others"
        raise ConfigError(f"The head {name!r} takes {wanted}, not {', '.join(dims) or 'none'}.")
    module, _, kind = spec.factory.partition(":")
    head: nn.Module = getattr(import_module(module), kind)(
        dims={stream: dims[stream] for stream in STREAMS if stream in dims},
        num_outputs=num_outputs,
        hidden_dim=hidden_dim,
        attention_heads=attention_heads,
        dropout=dropout,
        **chosen,
    )
    return head
