"""CPU time per second of audio of every condition, on real recordings; a program, not a test.

    OMP_NUM_THREADS=1 python -m tests.audio.condition_cost emodb ../shared/corpora/emodb ../shared/noise

prints, for encoders of 16 and of 24 kHz, the CPU time of decoding alone and of each condition on top of it, in milliseconds per
second of audio; and the time that preparing the condition takes. Every third utterance is used, twice; the first round, which reads
noise recordings for the first time, is counted apart.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pipelines.audio.conditions import parse_condition, prepare_condition
from pipelines.audio.decode import decode
from pipelines.corpora.prepare import prepare

CONDITIONS = ("white@5dB", "pink@5dB", "noise:esc10@5dB", "babble@5dB", "reverb:0.6s", "telephone",
              "reverb:0.6s+noise:esc10@5dB+telephone")  # fmt: skip


def main(corpus: str, data_root: Path, noise_dir: Path) -> None:
    manifest = prepare(corpus, data_root).manifest
    names, paths = manifest.utterance_ids[::3], manifest.audio_paths()[::3]
    for rate_hz in (16000, 24000):
        started = time.process_time()
        clips = [decode(path, rate_hz).samples for path in paths]
        seconds = sum(len(samples) for samples in clips) / rate_hz
        print(
            f"{rate_hz} Hz, {seconds:.0f} s of audio; decoding {1e3 * (time.process_time() - started) / seconds:.2f} ms/s"
        )
        for text in CONDITIONS:
            started = time.process_time()
            distortion = prepare_condition(parse_condition(text), manifest=manifest, noise_dirs=[noise_dir])
            took = [time.process_time() - started]
            for _ in range(2):
                started = time.process_time()
                for name, samples in zip(names, clips, strict=True):
                    distortion.apply(samples, rate_hz, name)
                took.append(time.process_time() - started)
            first, again = (1e3 * value / seconds for value in took[1:])
            print(f"  {text:38} {again:5.2f} ms/s (first round {first:5.2f}), prepared in {took[0]:.2f} s")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
