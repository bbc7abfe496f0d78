"""The fusion heads by name: what they are and which options they take, without importing torch.

Adding a head is one file with one class (see ``concat.py`` for the shape of it) and one entry of
:data:`FUSIONS`. Other packages add heads by entry points (``pipelines.plugins``, docs/own-fusion.md): :func:`fusion_names`,
:func:`fusion_spec` and :func:`build_head` know those as well.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipelines.errors import ConfigError, PluginError, unknown_name
from pipelines.plugins import FUSIONS as FUSION_GROUP
from pipelines.plugins import Plugin, blamed, find_plugin, fix_of, load_entry, plugin_code, plugin_problems, plugins

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "FUSIONS",
    "SINGLE",
    "FusionOption",
    "FusionSpec",
    "OptionValue",
    "applicable_options",
    "build_head",
    "fusion_code",
    "fusion_names",
    "fusion_options",
    "fusion_plugin",
    "fusion_plugin_problems",
    "fusion_plugins",
    "fusion_spec",
]

OptionValue = str | int | float


@dataclass(frozen=True)
class FusionOption:
    """One option of a fusion head."""

    default: OptionValue
    """The value when nothing is given; its type is the type of the option."""
    about: str
    """What it does, in one line."""
    choices: tuple[str, ...] = ()
    """The valid values of a text option."""
    minimum: float = float("-inf")
    """Smallest valid number."""
    maximum: float = float("inf")
    """Largest valid number."""


@dataclass(frozen=True)
class FusionSpec:
    """What is known of a fusion head before it is built."""

    name: str
    """The name on the command line."""
    summary: str
    """One line for lists."""
    module: str
    """Where the class is."""
    class_name: str
    """The ``torch.nn.Module`` to build."""
    source: str
    """The paper that the operator comes from."""
    commutative: bool
    """Whether exchanging the two inputs gives the same function class; where not, both orders must be
    shown."""
    options: Mapping[str, FusionOption] = field(default_factory=lambda: MappingProxyType({}))
    """Options by name."""
    inputs: int = 2
    """How many representations it takes."""


_FRONT: dict[str, FusionOption] = {
    "front_end": FusionOption(
        default="linear",
        about="from a representation to the hidden dimensions: an affine map, or two convolutions and an affine map",
        choices=("linear", "cnn"),
    ),
    "dense_dim": FusionOption(
        default=0,
        about="width of a dense ReLU layer between fusion and output layer; 0 for none",
        minimum=0,
        maximum=4096,
    ),
}
"""Options of every head, the baseline included."""

_PAIR: dict[str, FusionOption] = {
    **_FRONT,
    "modality_dropout": FusionOption(
        default=0.0,
        about="share of training utterances that one of the two inputs is hidden from",
        minimum=0.0,
        maximum=0.99,
    ),
}
"""Options of every fusion."""

_ORDER: dict[str, FusionOption] = {
    "order": FusionOption(
        default="left-right",
        about="which representation is the first operand of the Möbius addition",
        choices=("left-right", "right-left"),
    ),
}

_BALL: dict[str, FusionOption] = {
    "curvature": FusionOption(
        default=1.0,
        about="c of the ball of curvature -c; where it is learned, its start",
        minimum=0.001,
        maximum=10.0,
    ),
    "learn_curvature": FusionOption(
        default="no",
        about="whether each head learns c, within a factor of ten of its start",
        choices=("no", "yes"),
    ),
    "classifier": FusionOption(
        default="dense",
        about="output layer: affine on the tangent vector at the origin, or multinomial logistic regression in the ball",
        choices=("dense", "mlr"),
    ),
}
"""Options of every fusion in the ball."""

_RADIUS: dict[str, FusionOption] = {
    "max_radius": FusionOption(
        default=0.5,
        about="upper bound of the learned tangent length of each stream before the lift",
        minimum=0.01,
        maximum=3.0,
    ),
}


FUSIONS: dict[str, FusionSpec] = {
    spec.name: spec
    for spec in (
        FusionSpec(
            name="concat",
            summary="both projections side by side, one output layer (the Euclidean baseline)",
            module="pipelines.fusion.concat",
            class_name="ConcatHead",
            source="common practice; the baseline of HYFuse (arXiv 2506.03403)",
            commutative=True,
            options=MappingProxyType(_PAIR),
        ),
        FusionSpec(
            name="gated",
            summary="a gate per dimension mixes the two projections",
            module="pipelines.fusion.gated",
            class_name="GatedHead",
            source="gated multimodal unit, Arevalo et al. 2017 (arXiv 1702.01992)",
            commutative=True,
            options=MappingProxyType(_PAIR),
        ),
        FusionSpec(
            name="attention",
            summary="multi-head attention over the two projections as a sequence of two tokens",
            module="pipelines.fusion.attention",
            class_name="AttentionHead",
            source="Vaswani et al. 2017 (arXiv 1706.03762), post-norm encoder layer without the feed-forward part",
            commutative=True,
            options=MappingProxyType(
                {
                    "attention_heads": FusionOption(
                        default=4,
                        about="parallel attentions, each over an equal part of the hidden dimensions",
                        minimum=1,
                    ),
                    **_PAIR,
                }
            ),
        ),
        FusionSpec(
            name="bilinear",
            summary="products of the two projections through a low-rank bilinear form, first-order terms kept",
            module="pipelines.fusion.bilinear",
            class_name="BilinearHead",
            source="low-rank multimodal fusion, Liu et al. 2018 (arXiv 1806.00064)",
            commutative=True,
            options=MappingProxyType(
                {
                    "rank": FusionOption(
                        default=64,
                        about="number of products",
                        minimum=1,
                        maximum=4096,
                    ),
                    **_PAIR,
                }
            ),
        ),
        FusionSpec(
            name="hyperbolic",
            summary="Möbius addition of the two projections in the Poincaré ball, at a controlled radius (the default)",
            module="pipelines.fusion.hyperbolic",
            class_name="HyperbolicHead",
            source="HYFuse (arXiv 2506.03403) with the operators of Ganea et al. 2018; radius control: hyfuse",
            commutative=False,
            options=MappingProxyType({**_ORDER, **_BALL, **_RADIUS, **_PAIR}),
        ),
        FusionSpec(
            name="mobius",
            summary="Möbius addition as published, without control of the radius: its second operand hardly counts",
            module="pipelines.fusion.mobius",
            class_name="MobiusHead",
            source="HYFuse (arXiv 2506.03403) with the operators of Ganea et al. 2018 (arXiv 1805.09112)",
            commutative=False,
            options=MappingProxyType({**_ORDER, **_BALL, **_PAIR}),
        ),
        FusionSpec(
            name="midpoint",
            summary="the point halfway between the two projections in the Poincaré ball, at a controlled radius",
            module="pipelines.fusion.midpoint",
            class_name="MidpointHead",
            source="gyromidpoint, Ungar 2008; HNN++, Shimizu et al. 2021 (arXiv 2006.08210)",
            commutative=True,
            options=MappingProxyType({**_BALL, **_RADIUS, **_PAIR}),
        ),
        FusionSpec(
            name="beta-concat",
            summary="concatenation in the Poincaré ball, both projections at a controlled radius",
            module="pipelines.fusion.beta_concat",
            class_name="BetaConcatHead",
            source="HNN++, Shimizu et al. 2021 (arXiv 2006.08210)",
            commutative=True,
            options=MappingProxyType({**_BALL, **_RADIUS, **_PAIR}),
        ),
        FusionSpec(
            name="barycentre",
            summary="as midpoint, but each head learns how much either projection weighs",
            module="pipelines.fusion.barycentre",
            class_name="BarycentreHead",
            source="weighted gyromidpoint, Ungar 2008; HNN++, Shimizu et al. 2021 (arXiv 2006.08210)",
            commutative=True,
            options=MappingProxyType({**_BALL, **_RADIUS, **_PAIR}),
        ),
    )
}
"""The fusions a user can ask for."""

SINGLE = "single"
"""Name of the baseline that every fusion is compared with; not a fusion, so not listed among them."""

_BASELINE = FusionSpec(
    name=SINGLE,
    summary="one representation alone, with the front end and the output layer of the fusions (baseline)",
    module="pipelines.fusion.single",
    class_name="SingleHead",
    source="baseline",
    commutative=True,
    options=MappingProxyType(_FRONT),
    inputs=1,
)


_RESERVED = frozenset({*FUSIONS, SINGLE, "logistic", "ridge", "all", "none", "both"})
"""Names that no other package can give to a fusion: of fusions, of baselines, and words of the command line."""


def fusion_names() -> list[str]:
    """Names of all fusions, those of other packages last. Imports no plug-in."""
    return [*FUSIONS, *(plugin.name for plugin in fusion_plugins())]


def fusion_plugins() -> list[Plugin]:
    """The fusions that other packages offer; none of them is imported."""
    return plugins(FUSION_GROUP, reserved=_RESERVED)


def fusion_plugin_problems() -> list[str]:
    """A sentence for every fusion of another package whose name cannot be used."""
    return plugin_problems(FUSION_GROUP, reserved=_RESERVED)


def fusion_plugin(name: str) -> Plugin | None:
    """The entry point of a fusion of another package; None for all other names.

    Raises:
        PluginError: two packages offer that name, or it is malformed.
    """
    return find_plugin(FUSION_GROUP, name, reserved=_RESERVED)


def fusion_code(name: str) -> dict[str, dict[str, str]]:
    """What the results of a fusion depend on beyond hyfuse's own code, for result rows: nothing, unless it is a plug-in's.

    Returns:
        Empty, or ``plugin`` to its package, version and the sha256 of its code.
    """
    if (plugin := fusion_plugin(name)) is None:
        return {}
    return {"plugin": {"package": plugin.package, "version": plugin.version, "code_digest": plugin_code(plugin)}}


def fusion_spec(name: str) -> FusionSpec:
    """Look up a fusion, or the baseline ``single``.

    Args:
        name: one of :func:`fusion_names`, or "single".

    Returns:
        Its entry.

    Raises:
        UnknownNameError: no such fusion; the message lists those that exist.
        PluginError: a fusion of another package cannot be imported, or its entry makes no sense.
    """
    if name == SINGLE:
        return _BASELINE
    if name in FUSIONS:
        return FUSIONS[name]
    if (plugin := fusion_plugin(name)) is not None:
        return _plugin_spec(plugin)
    raise unknown_name("fusion", name, fusion_names())


def _plugin_spec(plugin: Plugin) -> FusionSpec:
    """A plug-in's entry, checked, with the options that every fusion has."""
    spec = load_entry(plugin, FusionSpec)
    assert isinstance(spec, FusionSpec)
    with blamed(plugin, "its catalogue entry was read"):
        wrong = [name for name, option in spec.options.items() if not isinstance(option, FusionOption)]
        common = [name for name in _OF_STREAMS if name in spec.options]
    if spec.inputs != 2 or wrong or common:
        what = (
            f"it takes {spec.inputs} inputs; a fusion takes 2"
            if spec.inputs != 2
            else f"its options {', '.join(wrong)} are no FusionOption"
            if wrong
            else f"its options {', '.join(common)} have names of settings of training"
        )
        raise PluginError(
            f"The catalogue entry of the fusion {plugin.name!r}, by the package {plugin.made_by}, makes no sense: {what}."
            f" {fix_of(plugin)}"
        )
    return spec


_OF_STREAMS = ("left_dim", "right_dim", "num_classes", "head_seeds", "hidden_dim", "input_dropout", "dropout")
"""What every head is built with beside its options."""


def fusion_options(name: str, given: Mapping[str, object] | None = None) -> dict[str, OptionValue]:
    """Complete and check the options of a fusion.

    Args:
        name: the fusion.
        given: options by name; text is converted to the option's type, so that a command line can pass it on.

    Returns:
        Every option of the fusion with its value, in the catalogue's order.

    Raises:
        UnknownNameError: no such fusion or no such option.
        ConfigError: a value of the wrong type, outside its range, or not among the choices.
    """
    spec = fusion_spec(name)
    given = dict(given or {})
    for key in given:
        if key not in spec.options:
            raise unknown_name(f"option of fusion {name!r}", key, spec.options)
    return {
        key: _checked(name, key, option, given[key]) if key in given else option.default
        for key, option in spec.options.items()
    }


def applicable_options(name: str, given: Mapping[str, object]) -> dict[str, object]:
    """Those of some options that a fusion has: for options meant for several fusions at once, as a recipe's are.

    Args:
        name: the fusion, or "single".
        given: options by name.

    Returns:
        The options that the fusion has, unchecked, in the order given.

    Raises:
        UnknownNameError: no such fusion, or an option that no fusion has.
    """
    own = fusion_spec(name).options
    known = {*own, *(key for spec in (*FUSIONS.values(), _BASELINE) for key in spec.options)}
    for key in given:
        if key not in known:
            raise unknown_name("option of the fusions", key, known)
    return {key: value for key, value in given.items() if key in own}


def build_head(
    name: str,
    *,
    left_dim: int,
    right_dim: int | None,
    num_classes: int,
    head_seeds: Sequence[int],
    hidden_dim: int = 120,
    input_dropout: float = 0.0,
    dropout: float = 0.0,
    options: Mapping[str, object] | None = None,
) -> nn.Module:
    """Build a stack of H heads of one fusion.

    Args:
        name: the fusion, or "single".
        left_dim: Dl, features of the left representation.
        right_dim: Dr, features of the right one; None for "single".
        num_classes: C.
        head_seeds: H seeds; each head's initial values and dropout masks follow from its own seed alone.
        hidden_dim: width of each stream after its projection.
        input_dropout: share of input features dropped in training.
        dropout: share of fused features dropped in training, before the output layer.
        options: options of the fusion, see :func:`fusion_options`.

    Returns:
        A module ``(left [H, B, Dl], right [H, B, Dr], record=None) -> logits [H, B, C]`` ("single": no right
        input). If ``record`` is a dict, the head puts named quantities [H, B] into it (attention weights,
        norms in the ball, …).

    Raises:
        UnknownNameError: no such fusion or option.
        ConfigError: an option or width that makes no sense, or a number of inputs that does not fit.
        PluginError: a fusion of another package cannot be built; its head raises the same when it fails or returns another shape.
    """
    spec = fusion_spec(name)
    if (right_dim is None) != (spec.inputs == 1):
        raise ConfigError(
            f"Fusion {name!r} takes {spec.inputs} representation(s), but {1 if right_dim is None else 2} came. "
            f"A representation alone is trained by 'single'; a pair by one of {', '.join(FUSIONS)}."
        )
    widths = {"left_dim": left_dim} if right_dim is None else {"left_dim": left_dim, "right_dim": right_dim}
    complete = fusion_options(name, options)

    def build() -> nn.Module:
        head_class = getattr(importlib.import_module(spec.module), spec.class_name)
        head: nn.Module = head_class(
            **widths,
            num_classes=num_classes,
            head_seeds=head_seeds,
            hidden_dim=hidden_dim,
            input_dropout=input_dropout,
            dropout=dropout,
            **complete,
        )
        return head

    plugin = None if name in FUSIONS or name == SINGLE else fusion_plugin(name)
    if plugin is None:
        return build()
    with blamed(plugin, "being built"):
        head = build()
    return _watched(head, plugin, head_count=len(head_seeds), num_classes=num_classes)


def _watched(head: nn.Module, plugin: Plugin, *, head_count: int, num_classes: int) -> nn.Module:
    """A plug-in's head that says whose mistake it is when it fails; what it computes stays what it is."""
    import torch

    def mistake(what: str) -> PluginError:
        return PluginError(
            f"The fusion {plugin.name!r} of the package {plugin.made_by} breaks its contract: {what}. Its author finds all such"
            f" mistakes with `hyfuse fusions check {plugin.name}`. {fix_of(plugin)}"
        )

    if not isinstance(head, torch.nn.Module):
        raise mistake(f"its class made a {type(head).__name__}; expected a torch.nn.Module")
    for name, tensor in head.named_parameters():
        if tensor.ndim < 2 or tensor.shape[0] != head_count or tensor.dtype != torch.float32:
            raise mistake(
                f"the parameter {name!r} of {head_count} heads is {tensor.dtype} {list(tensor.shape)}; expected torch.float32 that"
                f" begins with [{head_count}, …] (pipelines.fusion.stacked has layers that do)"
            )
    last = getattr(getattr(head, "classify", None), "weight", None)
    if last is None or last.ndim != 3 or last.shape[2] != num_classes:
        raise mistake(f"its output layer must be a StackedLinear named `classify` with {num_classes} outputs")
    inner = head.forward

    @functools.wraps(inner)
    def forward(*inputs: Tensor, record: dict[str, Tensor] | None = None) -> Tensor:
        with blamed(plugin, "fusing"):
            outputs: Tensor = inner(*inputs, record=record)
        expected = (head_count, inputs[0].shape[1], num_classes)
        if not isinstance(outputs, torch.Tensor) or outputs.shape != expected or outputs.dtype != torch.float32:
            what = (
                f"{outputs.dtype} {list(outputs.shape)}"
                if isinstance(outputs, torch.Tensor)
                else type(outputs).__name__
            )
            raise mistake(f"it returned {what}; expected logits, torch.float32 [H, B, C] = {list(expected)}")
        for name, values in (record or {}).items():
            if values.shape != expected[:2]:
                raise mistake(f"it recorded {name!r} as {list(values.shape)}; expected [H, B] = {list(expected[:2])}")
        return outputs

    head.forward = forward
    return head


def _checked(name: str, key: str, option: FusionOption, value: object) -> OptionValue:
    kind = type(option.default)
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        converted = kind(value)
        if kind is int and float(value) != converted:
            raise ValueError
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise ConfigError(
            f"Option {key!r} of fusion {name!r} is {value!r}, but {expected} is expected: {option.about}."
        ) from None
    if isinstance(converted, str):
        if converted not in option.choices:
            raise unknown_name(f"{key} of fusion {name!r}", converted, option.choices)
    elif not option.minimum <= converted <= option.maximum:
        raise ConfigError(
            f"Option {key!r} of fusion {name!r} is {converted}, but must lie between {option.minimum:g} and "
            f"{option.maximum:g}: {option.about}."
        )
    return converted
