"""Writes its share of a toy store, as a process of its own that can be killed: ``python -m tests.store.writer_process …``."""

from __future__ import annotations

import argparse
import sys
import time

from pipelines.locations import as_location
from pipelines.store.embeddings import FrameSpec, StoreWriter, attach_writer
from tests.store.stores import IDS, block_result, make_provenance, open_toy, with_frames

FRAMES = FrameSpec(("first", "second"), "float16")


def toy_ids(count: int) -> list[str]:
    return [f"utt{number:05d}" for number in range(count)]


def write(writer: StoreWriter, blocks: list[int], failed: set[int], pause_s: float = 0.0) -> None:
    for block in blocks:
        rows = writer.rows_of(block)
        writer.write_block(block, with_frames(block_result(rows, failed=failed), rows, writer.store.frame_spec))
        time.sleep(pause_s)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--ids", type=int, default=None)
    parser.add_argument("--shard", type=lambda text: tuple(map(int, text.split("/"))), default=None)
    parser.add_argument("--frames", action="store_true")
    parser.add_argument("--attach", nargs="*", type=int, default=None)
    parser.add_argument("--retry-failed", action="store_true")
    parser.add_argument("--failed", nargs="*", type=int, default=[])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--hold", action="store_true")
    options = parser.parse_args()
    location = as_location(options.path)
    if options.attach is not None:
        print("open", flush=True)
        write(attach_writer(location), options.attach, set(options.failed), options.pause)
        return
    with open_toy(
        location,
        provenance=make_provenance(device=options.device),
        utterance_ids=IDS if options.ids is None else toy_ids(options.ids),
        frames=FRAMES if options.frames else None,
        shard=options.shard,
        retry_failed=options.retry_failed,
    ) as writer:
        print("open", flush=True)
        if options.hold:
            sys.stdin.read()
        write(writer, writer.blocks_to_do(), set(options.failed), options.pause)
        print("done", flush=True)


if __name__ == "__main__":
    main()
