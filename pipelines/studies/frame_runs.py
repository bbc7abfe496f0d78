"""Models on frames in a run folder: what is to be trained, the processes that do it, and finished parts on disk.

A part is one model (system, fold, seed): ``parts/<key>-<fold>-<seed>.npz``, written under a temporary name and renamed. Its key is
the digest of everything that its numbers depend on, so after a change of settings, data or code nothing old is taken over.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import multiprocessing
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import pipelines
from pipelines.errors import WorkerError
from pipelines.files import write_atomically
from pipelines.training.frame_data import FrameFile
from pipelines.training.frame_trainer import FrameConfig, FrameResult, FrameSystem, train_frames
from pipelines.training.grid import start_worker
from pipelines.training.trainer import HeadTask

__all__ = [
    "FrameRecord",
    "FrameWork",
    "described_key",
    "frame_code_digest",
    "load_part",
    "number",
    "run_frame_work",
    "run_in_processes",
    "save_part",
]

_CODE = ("fusion/frames", "fusion/stacked.py", "training/ctc.py", "training/frame_data.py", "training/frame_trainer.py")

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FrameWork:
    """One model to be trained; cheap to send to another process.

    Attributes:
        system: what is fused how.
        files: stream to its frames.
        truth: int64 [n] classes or float32 [n, K] values.
        transcripts: n texts that CTC learns.
        task: fold, seed, rows.
        num_outputs: C or K.
        config: how to train.
        device: where.
    """

    system: FrameSystem
    files: Mapping[str, FrameFile]
    truth: NDArray[Any] = field(repr=False)
    transcripts: tuple[str, ...] = field(repr=False)
    task: HeadTask
    num_outputs: int
    config: FrameConfig
    device: str


@dataclass(frozen=True)
class FrameRecord:
    """One finished model, as read back from a run.

    Attributes:
        row: what is known of it, JSON values; ``metrics`` and names are added by the study.
        test: int64 [m], positions of the test utterances.
        outputs: float32 [m, C] probabilities or [m, K] values.
        shuffled: stream to the same with that stream permuted among the test rows.
        hypotheses: m texts; empty without CTC.
    """

    row: Mapping[str, Any]
    test: NDArray[np.int64]
    outputs: NDArray[np.float32]
    shuffled: Mapping[str, NDArray[np.float32]]
    hypotheses: tuple[str, ...]


@cache
def frame_code_digest() -> str:
    """sha256 over the source of what trains models on frames: other code, other results."""
    digest = hashlib.sha256()
    root = Path(pipelines.__file__).parent
    for place in _CODE:
        for path in sorted((root / place).glob("*.py")) if (root / place).is_dir() else [root / place]:
            digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def described_key(description: Mapping[str, Any]) -> str:
    """sha256 of a description: the same key, the same numbers."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def number(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return round(float(value), 6) if math.isfinite(value) else None


def run_frame_work(work: FrameWork) -> FrameResult:
    """Train one model."""
    return train_frames(
        system=work.system,
        files=work.files,
        truth=work.truth,
        transcripts=work.transcripts,
        task=work.task,
        num_outputs=work.num_outputs,
        config=work.config,
        device=work.device,
    )


def run_in_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int
) -> Iterator[tuple[int, Result]]:
    """Call a function on every task, in processes of one thread each, and yield (position, result) as they finish.

    Args:
        function: of the top level of a module.
        tasks: what to do.
        workers: processes; 1 works in this one.

    Raises:
        WorkerError: a process died.
        HyfuseError: what the function raises.
    """
    if workers <= 1 or len(tasks) <= 1:
        yield from ((position, function(task)) for position, task in enumerate(tasks))
        return
    # "spawn": a forked process would inherit torch's thread pools in an undefined state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=start_worker)
    try:
        running = {pool.submit(function, task): position for position, task in enumerate(tasks)}
        for future in as_completed(running):
            yield running[future], future.result()
    except BrokenProcessPool as error:
        raise WorkerError(
            "A training process died; the usual cause is memory. What was finished is kept: run the same command again with fewer"
            " --workers."
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _part(run_dir: Path, key: str, fold: str, seed: int) -> Path:
    plain = "".join(letter if letter.isalnum() else "-" for letter in fold)
    return run_dir / "parts" / f"{key[:20]}-{plain}-{seed}.npz"


def save_part(
    run_dir: Path,
    key: str,
    *,
    task: HeadTask,
    row: Mapping[str, Any],
    outputs: NDArray[np.float32],
    shuffled: Mapping[str, NDArray[np.float32]],
    hypotheses: Sequence[str],
    arrays: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Keep a finished model.

    Args:
        run_dir: the run.
        key: of its description.
        task: what it answers.
        row: what is known of it.
        outputs: float32 [m, C] or [m, K].
        shuffled: stream to the same.
        hypotheses: m texts, or none.
        arrays: whatever else belongs to it, by names with ``extra_`` in front.
    """
    head = {**row, "key": key, "fold": task.fold, "seed": task.seed}
    content: dict[str, NDArray[Any]] = {
        "row": np.frombuffer(json.dumps(head).encode(), dtype=np.uint8),
        "hypotheses": np.frombuffer(json.dumps(list(hypotheses)).encode(), dtype=np.uint8),
        "test": task.test,
        "outputs": outputs,
        **{f"shuffled_{name}": one for name, one in shuffled.items()},
        **(arrays or {}),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **content)  # type: ignore[arg-type]
    write_atomically(_part(run_dir, key, task.fold, task.seed), buffer.getvalue(), option="--runs-dir")


def load_part(run_dir: Path, key: str, fold: str, seed: int) -> tuple[FrameRecord, dict[str, NDArray[Any]]] | None:
    """A finished model and its extra arrays; None if there is none, and a damaged part counts as not there."""
    path = _part(run_dir, key, fold, seed)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            row = json.loads(arrays["row"].tobytes().decode())
            if (row["key"], row["fold"], row["seed"]) != (key, fold, seed):
                return None
            record = FrameRecord(
                row=row,
                test=arrays["test"],
                outputs=arrays["outputs"],
                shuffled={
                    name.removeprefix("shuffled_"): arrays[name]
                    for name in arrays.files
                    if name.startswith("shuffled_")
                },
                hypotheses=tuple(json.loads(arrays["hypotheses"].tobytes().decode())),
            )
            return record, {name: arrays[name] for name in arrays.files if name.startswith("extra_")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        path.unlink(missing_ok=True)
        return None
