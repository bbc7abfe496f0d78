"""Does an encoder keep the promises of ``base.py``? The checks of ``hyfuse models check``, for any encoder, whoever wrote it.

Every check runs the encoder on made-up clips (buzzes, noise, silence; token ids for an encoder of texts) and looks at what comes
out. Relative errors are the largest absolute difference over the largest absolute value of one clip's frames. Of quantised
representations of codecs (``quantized``, ``semantic``) one frame in two hundred may differ, since of two code vectors that are
equally near either may win. "The same" means the same bits on a CPU, and that tolerance on a GPU.

Not checked: whether the numbers are right. That needs the library in which the model was published (``tests/encoders``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipelines.encoders.base import Encoder
from pipelines.encoders.catalogue import load_encoder
from pipelines.errors import HyfuseError

__all__ = ["TOLERANCE", "Check", "check_encoder", "made_up_clips"]

TOLERANCE = 1e-5
"""Relative error that a batch may cause, in float32."""

_QUANTISED = ("quantized", "semantic")
_FRAME_SLACK = 4  # frames that an encoder may lose or add at the ends of a clip
_LONG = 40  # hops of the clip whose frames are counted

Frames = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Check:
    """One promise.

    Attributes:
        name: what was checked.
        kept: whether the promise holds.
        worst: the largest relative error; NaN where there is none to measure.
        allowed: what it may be; NaN likewise.
        found: what was seen, or what is wrong.
    """

    name: str
    kept: bool
    worst: float = float("nan")
    allowed: float = float("nan")
    found: str = ""


def made_up_clips(encoder: Encoder) -> list[Tensor]:
    """Clips that find what breaks encoders: shortest lengths, odd remainders, equal lengths, a long one, silence at the end."""
    if encoder.spec.takes_text:
        return [_tokens(encoder, count, seed=count + index) for index, count in enumerate((2, 3, 7, 7, 40, 128))]
    shortest, hop, rate = encoder.min_samples, encoder.spec.hop_samples or 160, encoder.spec.sample_rate_hz
    lengths = [1, shortest - 1, shortest, shortest + 1, 7 * hop, 9 * hop + 1, 12 * hop - 1, rate, rate, 2 * rate + 1]
    clips = [_buzz(max(1, samples), rate, seed=seed) for seed, samples in enumerate(lengths)]
    clips.append(torch.cat([clips[7], torch.zeros(rate // 4 + 1)]))
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(3)).tolist()
    return [clips[index] for index in order]


def check_encoder(
    name: str,
    *,
    weights: str = "pretrained",
    weights_dir: Path | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Check]:
    """Check every promise of an encoder, one after the other.

    Args:
        name: as for ``load_encoder``.
        weights: ``pretrained`` or ``random``.
        weights_dir: looked in first.
        device: where it runs.

    Yields:
        A check, as soon as it is done. After the first that makes the others meaningless (it cannot encode a clip alone), no more.

    Raises:
        HyfuseError: it cannot be loaded; see ``load_encoder``.
    """

    def load() -> Encoder:
        return load_encoder(name, weights=weights, weights_dir=weights_dir, device=device)

    encoder = load()
    clips = made_up_clips(encoder)
    alone: Frames = []

    def encode_alone() -> Check:
        kept = [clip.clone() for clip in clips]
        alone.extend(encoder.encode([clip])[0] for clip in clips)
        wrong = next(filter(None, map(lambda clip, found: _shape(encoder, clip, found), clips, alone)), "")
        changed = sum(not torch.equal(clip, before) for clip, before in zip(clips, kept, strict=True))
        if changed and not wrong:
            wrong = f"{changed} of {len(clips)} clips were changed by encoding them; work on copies"
        dims = f"{len(encoder.spec.representations)} × [T, {encoder.spec.dim}] float32, {len(clips)} clips"
        return Check("shapes and types", not wrong, found=wrong or dims)

    first = _guarded("shapes and types", encode_alone)
    yield first
    if len(alone) < len(clips):
        return
    yield _guarded("number of frames", lambda: _count(encoder, clips, alone))
    yield _guarded("finite numbers", lambda: _finite(encoder, clips, alone))
    yield _guarded("alone = in a batch", lambda: _batched(encoder, clips, alone))
    yield _guarded("same twice", lambda: _twice(encoder, clips, alone))
    if encoder.device.type == "cpu":
        yield _guarded("same with other threads", lambda: _threads(encoder, clips, alone))
    yield _guarded("same when loaded again", lambda: _reloaded(load, encoder, clips, alone))


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """What a check found; where the encoder raises, that."""
    try:
        return check()
    except HyfuseError as mistake:
        return Check(name, False, found=str(mistake))
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        return Check(name, False, found=f"raised {type(error).__name__}{': ' if said else ''}{said}")


def _buzz(samples: int, rate_hz: int, *, seed: int) -> Tensor:
    """Something voiced with pauses and noise, at the level of speech; float32 [samples]."""
    time = torch.arange(samples, dtype=torch.float64) / rate_hz
    phase = 2 * torch.pi * (130 + 10 * seed) * time + 4 * torch.sin(2 * torch.pi * 1.3 * time)
    voiced = sum(torch.sin(harmonic * phase) / harmonic for harmonic in range(1, 9))
    envelope = torch.sin(2 * torch.pi * 2.1 * time + seed).clamp_min(0.0)
    noise = torch.randn(samples, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (0.1 * envelope * (voiced + 0.3 * noise) + 0.001 * noise).float()


def _tokens(encoder: Encoder, count: int, *, seed: int) -> Tensor:
    """Token ids of a made-up text, as the encoder's own tokenizer gives them."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    drawn = torch.randint(0, 26, (count, 5), generator=torch.Generator().manual_seed(seed)).tolist()
    ids: Tensor = encoder.tokenize(" ".join("".join(letters[index] for index in word) for word in drawn))  # type: ignore[attr-defined]
    return ids


def _shape(encoder: Encoder, clip: Tensor, found: dict[str, Tensor]) -> str:
    """What is wrong with the form of one clip's result; empty if nothing."""
    spec = encoder.spec
    if list(found) != list(spec.representations):
        return f"representations {', '.join(found)}; the catalogue entry names {', '.join(spec.representations)}"
    for name, frames in found.items():
        if frames.ndim != 2 or frames.shape[1] != spec.dim or not len(frames) or frames.dtype != torch.float32:
            return f"{name} of {len(clip)} samples is {frames.dtype} {list(frames.shape)}; expected torch.float32 [T, {spec.dim}]"
    return ""


def _count(encoder: Encoder, clips: Sequence[Tensor], alone: Frames) -> Check:
    name, spec = "number of frames", encoder.spec
    for clip, found in zip(clips, alone, strict=True):
        for representation, frames in found.items():
            if len(frames) != (told := encoder.num_frames(len(clip))):
                return Check(
                    name, False, found=f"num_frames({len(clip)}) = {told}, but {representation} has {len(frames)}"
                )
    if not spec.hop_samples:
        many = next((len(clip) for clip in clips if encoder.num_frames(len(clip)) != 1), 0)
        return Check(
            name, not many, found=f"num_frames({many}) is not 1, but hop_samples is 0" if many else "1 per recording"
        )
    # Windows of long recordings are cut by the hop: frame t must belong to sample t · hop.
    for hops in (_LONG, 100 * _LONG):
        told = encoder.num_frames(hops * spec.hop_samples)
        if abs(told - hops) > _FRAME_SLACK:
            return Check(
                name,
                False,
                found=f"{hops} hops of {spec.hop_samples} samples give {told} frames; expected {hops}, give or take {_FRAME_SLACK}",
            )
    return Check(
        name, True, found=f"as num_frames says; one per {spec.hop_samples} {'token' if spec.takes_text else 'samples'}"
    )


def _finite(encoder: Encoder, clips: Sequence[Tensor], alone: Frames) -> Check:
    extremes: dict[str, Tensor] = {}
    if not encoder.spec.takes_text:
        rate = encoder.spec.sample_rate_hz
        square = torch.ones(rate)
        square[rate // 200 :: rate // 100] = -1.0
        extremes = {
            "silence": torch.zeros(rate),
            "one step of 16 bits": torch.full((rate,), 2**-15),
            "full scale": square,
        }
    found = {f"{len(clip)} samples": result for clip, result in zip(clips, alone, strict=True)}
    found |= {what: encoder.encode([clip])[0] for what, clip in extremes.items()}
    for what, result in found.items():
        for representation, frames in result.items():
            if not bool(torch.isfinite(frames).all()):
                return Check("finite numbers", False, found=f"{representation} of {what} holds NaN or infinity")
    also = f", {', '.join(extremes)}" if extremes else ""
    return Check("finite numbers", True, found=f"{len(clips)} clips{also}")


def _batched(encoder: Encoder, clips: Sequence[Tensor], alone: Frames) -> Check:
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(11)).tolist()
    permuted = encoder.encode([clips[index] for index in order])
    ways = {
        "one ragged batch": encoder.encode(clips),
        "the same in another order": [permuted[order.index(index)] for index in range(len(clips))],
    }
    return _compared("alone = in a batch", encoder, clips, alone, ways, TOLERANCE)


def _same(encoder: Encoder) -> float:
    """How much a repetition may differ."""
    return 0.0 if encoder.device.type == "cpu" else TOLERANCE


def _twice(encoder: Encoder, clips: Sequence[Tensor], alone: Frames) -> Check:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() + 1)  # an encoder that draws random numbers draws others now
        again = {"again": [encoder.encode([clip])[0] for clip in clips]}
    return _compared("same twice", encoder, clips, alone, again, _same(encoder))


def _threads(encoder: Encoder, clips: Sequence[Tensor], alone: Frames) -> Check:
    """As extraction does it on a CPU: batches of one thread each, several at a time."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = [encoder.encode([clip])[0] for clip in clips]
        with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            many = list(pool.map(lambda clip: encoder.encode([clip])[0], clips))
    finally:
        torch.set_num_threads(threads)
    exact = _compared("same with other threads", encoder, clips, one, {"four threads side by side": many}, 0.0)
    if not exact.kept:
        return exact
    how = f"one thread and {threads}" if threads > 1 else "one thread"
    return _compared("same with other threads", encoder, clips, alone, {f"{how}; four side by side": one}, TOLERANCE)


def _reloaded(load: Callable[[], Encoder], encoder: Encoder, clips: Sequence[Tensor], alone: Frames) -> Check:
    other = load()
    if other.weights.digest != encoder.weights.digest:
        return Check("same when loaded again", False, found="loaded twice, its weights have two digests")
    some = [max(range(len(clips)), key=lambda index: len(clips[index])), len(clips) - 1]
    again = {"loaded twice": [other.encode([clips[index]])[0] for index in some]}
    chosen, before = [clips[index] for index in some], [alone[index] for index in some]
    return _compared("same when loaded again", encoder, chosen, before, again, _same(encoder))


def _compared(
    name: str, encoder: Encoder, clips: Sequence[Tensor], expected: Frames, ways: dict[str, Frames], allowed: float
) -> Check:
    """Worst relative error of several ways to get the same."""
    worst, where = 0.0, ""
    off = total = 0
    for how, found in ways.items():
        for clip, result, reference in zip(clips, found, expected, strict=True):
            for representation in encoder.spec.representations:
                ours, theirs = result[representation], reference[representation]
                if ours.shape != theirs.shape:
                    what = (
                        f"{representation} of {len(clip)} samples: {list(ours.shape)} instead of {list(theirs.shape)}"
                    )
                    return Check(name, False, found=f"{how}: {what}")
                difference, size = (ours - theirs).abs(), theirs.abs().max().clamp_min(1e-30)
                if allowed and encoder.spec.family == "CBR" and representation in _QUANTISED:
                    off += int((difference.amax(1) > allowed * size).sum())
                    total += len(ours)
                    continue
                error = float(difference.max() / size)
                if not error <= worst:  # NaN is worse than anything
                    worst, where = error, f"{how}: {representation} of {len(clip)} samples"
    kept = worst <= allowed and off <= total // 200
    if off > total // 200:
        where = f"{off} of {total} quantised frames differ"
    return Check(name, kept, worst, allowed, (f"{where} " if not kept else ", ".join(ways)).strip())
