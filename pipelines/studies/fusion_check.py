"""Does a fusion keep the promises that training relies on? The checks of ``hyfuse fusions check``, for any fusion.

What a head is given, what it gives back and which parameters it has is in ``docs/own-fusion.md``. Three heads with seeds of their
own are built in one stack and each alone, run on made-up inputs, and trained for two epochs.

Not checked: whether the fusion is of any use. ``hyfuse compare`` says that, beside what shuffling either input costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.errors import HyfuseError
from pipelines.fusion.catalogue import build_head, fusion_options
from pipelines.fusion.stacked import ROW_MULTIPLE
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, train_stack

__all__ = ["FusionCheck", "check_fusion"]

_SEEDS = (3, 14, 15)
_LEFT, _RIGHT, _CLASSES, _HIDDEN = 21, 13, 5, 24  # widths that leave tails in vectorised loops
_ROWS = 2 * ROW_MULTIPLE
_CORPUS = 90


@dataclass(frozen=True)
class FusionCheck:
    """One promise.

    Attributes:
        name: what was checked.
        kept: whether the promise holds.
        found: what was seen, or what is wrong.
    """

    name: str
    kept: bool
    found: str


def check_fusion(name: str, *, options: Mapping[str, object] | None = None) -> Iterator[FusionCheck]:
    """Check every promise of a fusion, one after the other.

    Args:
        name: of the fusion.
        options: where they differ from its defaults.

    Yields:
        A check, as soon as it is done; after the first that fails for want of a head or of logits, no more.

    Raises:
        UnknownNameError: no such fusion or option.
        ConfigError: an option value that makes no sense.
        PluginError: its package cannot be imported, or its catalogue entry makes no sense.
    """
    complete = fusion_options(name, options)

    def build(seeds: tuple[int, ...]) -> nn.Module:
        return build_head(
            name,
            left_dim=_LEFT,
            right_dim=_RIGHT,
            num_classes=_CLASSES,
            head_seeds=seeds,
            hidden_dim=_HIDDEN,
            options=complete,
        )

    left, right = _inputs()
    first = _guarded("shapes and types", lambda: _shapes(build, left, right))
    yield first
    if not first.kept:
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in training: a product may be split along the summed dimension otherwise
    try:
        yield _guarded("finite numbers", lambda: _finite(build, left, right))
        yield _guarded("gradients", lambda: _gradients(build, left, right))
        yield _guarded("both inputs count", lambda: _both_count(build, left, right))
        yield _guarded("alone = in a stack", lambda: _stacks(build, left, right))
        yield _guarded("trained alone = in a stack", lambda: _trained(name, complete))
    finally:
        torch.set_num_threads(threads)


def _guarded(name: str, check: Callable[[], FusionCheck]) -> FusionCheck:
    """What a check found; where the head raises, that."""
    try:
        return check()
    except HyfuseError as mistake:
        return FusionCheck(name, False, str(mistake))
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        return FusionCheck(name, False, f"raised {type(error).__name__}{': ' if said else ''}{said}")


def _inputs() -> tuple[Tensor, Tensor]:
    """Standardised inputs of three heads, [H, B, Dl] and [H, B, Dr]."""
    rng = np.random.default_rng(7)
    left, right = (rng.standard_normal((len(_SEEDS), _ROWS, width)).astype(np.float32) for width in (_LEFT, _RIGHT))
    return torch.from_numpy(left), torch.from_numpy(right)


def _shapes(build: Callable[[tuple[int, ...]], nn.Module], left: Tensor, right: Tensor) -> FusionCheck:
    head = build(_SEEDS).eval()  # what it makes and returns is looked at there
    record: dict[str, Tensor] = {}
    with torch.no_grad():
        outputs = head(left, right, record=record)
    again = build(_SEEDS)
    for (name, one), other in zip(head.named_parameters(), again.parameters(), strict=True):
        if not torch.equal(one, other):
            return FusionCheck(
                "shapes and types",
                False,
                f"the same seeds give {name!r} other initial values; draw them from pipelines.fusion.stacked.head_generators",
            )
    if any(True for _ in head.buffers()):
        names = ", ".join(name for name, _ in head.named_buffers())
        return FusionCheck(
            "shapes and types", False, f"the buffers {names} are not kept with a head; make them parameters"
        )
    count = sum(parameter[0].numel() for parameter in head.parameters())
    kept = f"; records {', '.join(record)}" if record else ""
    return FusionCheck("shapes and types", True, f"logits {list(outputs.shape)}, {count} parameters per head{kept}")


def _finite(build: Callable[[tuple[int, ...]], nn.Module], left: Tensor, right: Tensor) -> FusionCheck:
    head = build(_SEEDS).eval()
    cases = {"ordinary": 1.0, "zero": 0.0, "tiny": 1e-20, "a hundred deviations": 100.0}
    for what, scale in cases.items():
        head.zero_grad()
        outputs = head(scale * left, scale * right)
        outputs.square().mean().backward()
        gradients = [parameter.grad for parameter in head.parameters() if parameter.grad is not None]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (outputs, *gradients)):
            return FusionCheck("finite numbers", False, f"logits or gradients for {what} inputs hold NaN or infinity")
    return FusionCheck("finite numbers", True, f"logits and gradients of {', '.join(cases)} inputs")


def _gradients(build: Callable[[tuple[int, ...]], nn.Module], left: Tensor, right: Tensor) -> FusionCheck:
    head = build(_SEEDS).train()
    head(left, right)[0].square().sum().backward()  # of the first head alone
    without = [name for name, parameter in head.named_parameters() if parameter.grad is None]
    if without:
        return FusionCheck("gradients", False, f"the loss does not reach the parameters {', '.join(without)}")
    mixed = [
        name
        for name, parameter in head.named_parameters()
        if parameter.grad is not None and bool(parameter.grad[1:].any())
    ]
    if mixed:
        return FusionCheck("gradients", False, f"the loss of one head changes {', '.join(mixed)} of the others")
    return FusionCheck("gradients", True, "reach every parameter of a head and none of its neighbours")


def _both_count(build: Callable[[tuple[int, ...]], nn.Module], left: Tensor, right: Tensor) -> FusionCheck:
    head = build(_SEEDS).eval()
    with torch.no_grad():
        straight = head(left, right)
        size = straight.std()
        moved = {"left": head(left.roll(1, dims=1), right), "right": head(left, right.roll(1, dims=1))}
    shares = {side: float((outputs - straight).std() / size) for side, outputs in moved.items()}
    deaf = [side for side, share in shares.items() if share == 0.0]
    if deaf:
        return FusionCheck("both inputs count", False, f"exchanging the {' and the '.join(deaf)} input changes nothing")
    text = ", ".join(f"{side} {share:.3f}" for side, share in shares.items())
    return FusionCheck(
        "both inputs count", True, f"change of untrained logits when one input is exchanged, in deviations: {text}"
    )


def _stacks(build: Callable[[tuple[int, ...]], nn.Module], left: Tensor, right: Tensor) -> FusionCheck:
    name = "alone = in a stack"
    with torch.no_grad():
        together = build(_SEEDS).eval()(left, right)
        for index, seed in enumerate(_SEEDS):
            alone = build((seed,)).eval()(left[index : index + 1], right[index : index + 1])
            if not torch.equal(alone[0], together[index]):
                off = float((alone[0] - together[index]).abs().max())
                return FusionCheck(
                    name, False, f"head {index} is off by {off:.1e}; see the rules of pipelines/fusion/stacked.py"
                )
    return FusionCheck(name, True, f"the same bits, {len(_SEEDS)} heads")


def _trained(name: str, options: Mapping[str, object]) -> FusionCheck:
    title = "trained alone = in a stack"
    rng = np.random.default_rng(0)
    left, right = (torch.from_numpy(rng.standard_normal((_CORPUS, width))).float() for width in (_LEFT, _RIGHT))
    labels = torch.from_numpy(rng.integers(0, _CLASSES, _CORPUS))
    rows = rng.permutation(_CORPUS)
    tasks = [
        HeadTask(fold=f"{cut}", seed=seed, train=rows[:cut], validation=rows[cut:60], test=rows[60 : 60 + cut - 20])
        for cut, seed in ((40, 0), (45, 1), (50, 0))
    ]

    def train(chosen: list[HeadTask]) -> list[HeadResult]:
        return train_stack(
            fusion=name,
            options=dict(options),
            left=left,
            right=right,
            labels=labels,
            tasks=chosen,
            steps_per_epoch=2,
            num_classes=_CLASSES,
            config=TrainConfig(epochs=2, hidden_dim=_HIDDEN, batch_size=20, dropout=0.2),
        )

    together = train(tasks)
    for task, expected in zip(tasks, together, strict=True):
        (found,) = train([task])
        different = [
            key for key, tensor in found.parameters.items() if not torch.equal(tensor, expected.parameters[key])
        ]
        if different:
            return FusionCheck(
                title, False, f"after 2 epochs {', '.join(different)} of a head depend on its neighbours"
            )
        if not np.array_equal(found.test_outputs, expected.test_outputs):
            return FusionCheck(title, False, "after 2 epochs the test outputs of a head depend on its neighbours")
    return FusionCheck(title, True, "the same bits after 2 epochs with dropout")
