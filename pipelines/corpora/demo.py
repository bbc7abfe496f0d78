"""The ``demo`` corpus: 720 synthetic utterances, made on the spot; everything can be tried without a download.

It sounds like a vowel synthesiser and is nothing else: no score on it says how well an encoder does on human
speech. It exists so that commands, stores, folds and tables can be run and tested end to end on a signal
whose structure is known, because it was put in here.

**What is in it.** 10 speakers (5 female, 5 male) x 6 emotions x 4 sentences x 3 takes. The id
``s01_anger_t3_k2`` reads: speaker 01, anger, third of the four sentences this speaker says in anger, second
take; takes 1, 2, 3 are the sessions 1, 2, 3 (each with its own small offset of the recording level). Audio is
16-bit mono at 16 kHz.

**Voice.** A source-filter synthesiser (Fant 1960): trigonometric glottal pulses (Rosenberg 1971) with jitter,
shimmer, spectral tilt and breath noise, through a cascade of formant resonators (Klatt 1980) whose targets
are the vowel means of Peterson & Barney (1952), scaled by each speaker's tract length. Consonants are crude:
noise bands, gaps and murmurs.

**Emotion in the voice** follows the correlates reviewed by Murray & Arnott (1993), Banse & Scherer (1996),
Scherer (2003) and Juslin & Laukka (2003): see ``_EXPRESSIONS``. Speakers differ in everything a classifier
could lean on (base pitch, tract length, tempo, voice quality, recording level) and in how strongly and in
which way they express.

**Activation is in the voice.** Every utterance has an activation: that of its emotion, scaled by the
speaker's expressiveness and the intensity of the take, plus a part of its own that is independent of the
emotion. All of it shows in pitch, range, tempo, level, tilt and pulse shape. The arousal label is what five
simulated raters make of it: whole steps from 1 to 5, each rater with a bias and with chance, averaged. What each of them
answered stands in ``arousal_ratings`` … (:mod:`pipelines.corpora.raters`).

**Valence is in the words.** Of 30 sentences, 10 are worded positively, 10 neutrally, 10 negatively. Each
speaker draws four different ones per emotion, their wording with the probabilities of
``_WORDING_GIVEN_EMOTION`` (happiness: mostly positive; neutral: mostly neutral; the other four: mostly
negative), so every sentence occurs under several emotions and no sentence gives its emotion away. The valence
label is 3 + 0.85 x wording (-1, 0, 1) + 0.60 x emotion (-1, 0, 1), as heard by the raters: a listener to the
words alone gets most of it, a listener to the voice alone only what the emotion gives away. Dominance mixes
activation and emotion.

**Votes.** The raters also name an emotion each (``emotion_votes``): the one whose place in activation, valence and
dominance is nearest to what they heard, voice and words, with chance. As in acted corpora, the label ``emotion`` is what
was meant, not what was heard.

**Promises.** An utterance depends on the seed and its id only, through its own random generator, so order and
parallelism do not matter, and every call on one machine gives the same bytes. ``DEMO_VERSION`` changes when
the audio or the labels change. Only the standard library and numpy are used.

Sources: Fant, *Acoustic Theory of Speech Production*, 1960. Rosenberg, JASA 49, 1971. Klatt, JASA 67, 1980.
Klatt & Klatt, JASA 87, 1990. Peterson & Barney, JASA 24, 1952. Delattre, Liberman & Cooper, JASA 27, 1955.
Tartter, Perception & Psychophysics 27, 1980. Traunmüller & Eriksson, JASA 107, 2000. Murray & Arnott, JASA
93, 1993. Banse & Scherer, J. Personality and Social Psychology 70, 1996. Scherer, Speech Communication 40,
2003. Juslin & Laukka, Psychological Bulletin 129, 2003. Russell & Mehrabian, J. Research in Personality 11,
1977. The sizes of all effects are this module's.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.raters import RATINGS, VOTES, format_ratings, format_votes, one_vote_each
from pipelines.errors import DataRootError, ManifestError, StorageError, unknown_name

__all__ = [
    "DEMO_COLUMNS",
    "DEMO_EMOTIONS",
    "DEMO_SAMPLE_RATE_HZ",
    "DEMO_VERSION",
    "demo_utterance_ids",
    "generate_demo",
    "read_demo",
    "synthesise_utterance",
]

DEMO_VERSION = "2"
"""Version of the generated corpus; changes whenever its audio or labels change."""

DEMO_SAMPLE_RATE_HZ = 16000
"""Sampling rate of every recording."""

DEMO_EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "neutral")
"""The emotion labels."""

DEMO_COLUMNS = (
    "utterance_id",
    "path",
    "speaker",
    "sex",
    "language",
    "session",
    "emotion",
    "arousal",
    "valence",
    "dominance",
    "transcript",
    "duration_s",
    VOTES,
    *RATINGS.values(),
)
"""Columns of ``demo.csv``; the dimensions are on a scale from 1 to 5."""

_SENTENCES_PER_CELL = 4  # per speaker and emotion
_TAKES = 3
_NUM_RATERS = 5
_NUMERIC_COLUMNS = ("arousal", "valence", "dominance", "duration_s")
_WAV_HEADER_BYTES = 44
_STRAY_AGE_S = 3600.0

Samples = NDArray[np.float64]


# ----------------------------------------------------------------------------------------------------------
# Who speaks


@dataclass(frozen=True, kw_only=True)
class _Speaker:
    """One synthetic speaker; all values are those of the speaker's neutral voice."""

    sex: str
    f0_hz: float
    """Mean pitch."""
    tract: float
    """Formant frequencies relative to the mean of the speaker's sex (above 1: a shorter vocal tract)."""
    rate: float
    """Tempo relative to the durations of ``_segments``."""
    range_factor: float
    """Size of the pitch movements."""
    level_dbfs: float
    """Recording level: root mean square of the spoken part."""
    floor_dbfs: float
    """Root mean square of the recording noise."""
    tilt_db: float
    """Attenuation of the glottal source at 3 kHz (the TL of Klatt & Klatt 1990)."""
    breath_db: float
    """Breath noise relative to the glottal pulses, at the source."""
    open_quotient: float
    """Share of the glottal cycle in which the glottis is open."""
    jitter: float
    """Standard deviation of the relative period length."""
    expressiveness: float
    """Factor on every expression of emotion and activation."""


_SPEAKERS: dict[str, _Speaker] = {
    "s01": _Speaker(
        sex="female", f0_hz=196, tract=1.00, rate=1.00, range_factor=1.00, level_dbfs=-34.0, floor_dbfs=-77,
        tilt_db=7.5, breath_db=-27, open_quotient=0.60, jitter=0.006, expressiveness=1.00,
    ),
    "s02": _Speaker(
        sex="male", f0_hz=112, tract=1.00, rate=1.03, range_factor=0.90, level_dbfs=-36.0, floor_dbfs=-75,
        tilt_db=7.0, breath_db=-30, open_quotient=0.55, jitter=0.008, expressiveness=1.05,
    ),
    "s03": _Speaker(
        sex="female", f0_hz=228, tract=1.05, rate=1.10, range_factor=1.25, level_dbfs=-32.0, floor_dbfs=-71,
        tilt_db=6.0, breath_db=-29, open_quotient=0.57, jitter=0.005, expressiveness=1.25,
    ),
    "s04": _Speaker(
        sex="male", f0_hz=94, tract=0.94, rate=0.95, range_factor=0.75, level_dbfs=-33.0, floor_dbfs=-79,
        tilt_db=8.0, breath_db=-32, open_quotient=0.50, jitter=0.012, expressiveness=0.85,
    ),
    "s05": _Speaker(
        sex="female", f0_hz=178, tract=0.95, rate=0.96, range_factor=0.80, level_dbfs=-37.0, floor_dbfs=-75,
        tilt_db=9.5, breath_db=-22, open_quotient=0.66, jitter=0.009, expressiveness=0.95,
    ),
    "s06": _Speaker(
        sex="male", f0_hz=138, tract=1.06, rate=1.12, range_factor=1.20, level_dbfs=-35.0, floor_dbfs=-69,
        tilt_db=5.5, breath_db=-28, open_quotient=0.58, jitter=0.006, expressiveness=1.20,
    ),
    "s07": _Speaker(
        sex="female", f0_hz=212, tract=1.02, rate=0.97, range_factor=0.90, level_dbfs=-35.5, floor_dbfs=-67,
        tilt_db=7.0, breath_db=-24, open_quotient=0.62, jitter=0.007, expressiveness=0.95,
    ),
    "s08": _Speaker(
        sex="male", f0_hz=122, tract=0.97, rate=1.06, range_factor=1.05, level_dbfs=-31.5, floor_dbfs=-73,
        tilt_db=6.5, breath_db=-26, open_quotient=0.60, jitter=0.010, expressiveness=1.10,
    ),
    "s09": _Speaker(
        sex="female", f0_hz=246, tract=1.07, rate=1.05, range_factor=1.10, level_dbfs=-34.5, floor_dbfs=-81,
        tilt_db=8.5, breath_db=-25, open_quotient=0.63, jitter=0.005, expressiveness=1.00,
    ),
    "s10": _Speaker(
        sex="male", f0_hz=104, tract=1.02, rate=0.98, range_factor=0.95, level_dbfs=-37.5, floor_dbfs=-76,
        tilt_db=7.5, breath_db=-23, open_quotient=0.64, jitter=0.008, expressiveness=0.95,
    ),
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------
# What an emotion does to the voice


@dataclass(frozen=True, kw_only=True)
class _Expression:
    """What an emotion changes, at full intensity in a speaker of expressiveness 1; neutral is all zeros.

    The signs of valence and dominance are those of Russell & Mehrabian (1977).
    """

    activation: float = 0.0
    valence: float = 0.0
    dominance: float = 0.0
    pitch_st: float = 0.0
    """Pitch level, semitones."""
    range_log: float = 0.0
    """Log factor on pitch movements."""
    rate_log: float = 0.0
    """Log factor on tempo."""
    level_db: float = 0.0
    tilt_db: float = 0.0
    breath_db: float = 0.0
    open_quotient: float = 0.0
    jitter_log: float = 0.0
    tremor_st: float = 0.0
    """Slow shaking of the pitch (fear)."""
    formant_log: float = 0.0
    """Log factor on formants: smiling shortens the tract (Tartter 1980)."""
    final_st: float = 0.0
    """Pitch movement on the last syllable, added to the usual final fall."""


_EXPRESSIONS: dict[str, _Expression] = {
    # Loud, high, wide, fast, with energy at high frequencies and abrupt pulses.
    "anger": _Expression(
        activation=1.0, valence=-1.0, dominance=1.0, pitch_st=2.8, range_log=0.40, rate_log=0.10, level_db=6.5,
        tilt_db=-4.5, breath_db=-2.0, open_quotient=-0.10, jitter_log=0.35, final_st=-1.5,
    ),
    # The least consistent one in the literature; slow, low, pressed and rough in Murray & Arnott (1993).
    "disgust": _Expression(
        activation=-0.1, valence=-1.0, dominance=0.3, pitch_st=-2.4, range_log=0.15, rate_log=-0.15, level_db=-0.5,
        tilt_db=-1.0, breath_db=-1.0, open_quotient=-0.07, jitter_log=0.70, final_st=-1.5,
    ),
    # High, fast, narrow, irregular and breathy; level slightly raised (Scherer 2003, panic).
    "fear": _Expression(
        activation=0.7, valence=-1.0, dominance=-1.0, pitch_st=4.4, range_log=-0.35, rate_log=0.18, level_db=2.0,
        tilt_db=0.5, breath_db=4.0, open_quotient=0.03, jitter_log=0.60, tremor_st=0.35, final_st=3.0,
    ),
    # High, wide, fairly loud, regular, rising contours, formants raised by smiling.
    "happiness": _Expression(
        activation=0.7, valence=1.0, dominance=0.4, pitch_st=3.4, range_log=0.45, rate_log=0.07, level_db=3.2,
        tilt_db=-1.5, breath_db=0.5, open_quotient=-0.01, jitter_log=-0.25, formant_log=0.035, final_st=2.5,
    ),
    # Soft, low, narrow, slow, dull and breathy, falling.
    "sadness": _Expression(
        activation=-1.0, valence=-1.0, dominance=-0.7, pitch_st=-1.6, range_log=-0.42, rate_log=-0.17, level_db=-5.0,
        tilt_db=6.0, breath_db=3.5, open_quotient=0.07, jitter_log=0.15, final_st=-0.5,
    ),
    "neutral": _Expression(),
}  # fmt: skip

# Activation that is independent of the emotion, per unit: higher, wider, faster, louder, brighter, as arousal is in all of
# the reviews (Scherer 2003) and, but for the tempo, as raised vocal effort is (Traunmüller & Eriksson 2000).
_EFFORT = _Expression(
    pitch_st=1.8, range_log=0.15, rate_log=0.06, level_db=3.2, tilt_db=-2.2, breath_db=-1.0, open_quotient=-0.03
)

# Standard deviations. "Manner" is drawn once per speaker and emotion (people express the same emotion differently),
# "take" for every utterance.
_MANNER_SD = {
    "pitch_st": 0.7, "range_log": 0.10, "rate_log": 0.035, "level_db": 1.0, "tilt_db": 1.0, "breath_db": 1.2,
    "open_quotient": 0.02, "jitter_log": 0.20, "final_st": 1.0,
}  # fmt: skip
_TAKE_SD = {
    "pitch_st": 0.5, "range_log": 0.10, "rate_log": 0.030, "level_db": 0.8, "tilt_db": 0.8, "breath_db": 1.0,
    "open_quotient": 0.015, "jitter_log": 0.15, "final_st": 0.8,
}  # fmt: skip
_FREE_ACTIVATION_SD = 0.30
# How far a rater's impression is off, in activation, valence and dominance of ``_EXPRESSIONS``; how much of the valence
# heard is that of the words; how much nearer the emotion meant is than its place says, as more than three numbers is heard.
_VOTE_SD = (0.60, 0.90, 0.70)
_VOTE_WORDING = 0.45
_VOTE_MEANT = 0.6
_SESSION_LEVEL_SD_DB = 0.7


# ----------------------------------------------------------------------------------------------------------
# What is said


@dataclass(frozen=True)
class _Sentence:
    wording: int
    """-1 negative, 0 neutral, 1 positive."""
    text: str
    phones: str
    """ARPAbet; the digit on a vowel is its stress."""


_SENTENCES = tuple(
    _Sentence(wording, text, phones)
    for wording, said in {
        1: (
            ("We won the final game.", "W IY0 W AH1 N DH AH0 F AY1 N AH0 L G EY1 M"),
            ("Your garden looks so lovely.", "Y ER0 G AA1 R D AH0 N L UH1 K S S OW0 L AH1 V L IY0"),
            ("The doctors say she is well.", "DH AH0 D AA1 K T ER0 Z S EY1 SH IY0 IH0 Z W EH1 L"),
            ("I got the job I wanted.", "AY0 G AA1 T DH AH0 JH AA1 B AY0 W AA1 N T AH0 D"),
            ("They loved your little song.", "DH EY0 L AH1 V D Y ER0 L IH1 T AH0 L S AO1 NG"),
            ("Our holiday begins today.", "AW0 R HH AA1 L AH0 D EY0 B IH0 G IH1 N Z T AH0 D EY1"),
            ("My brother is coming home.", "M AY0 B R AH1 DH ER0 IH0 Z K AH1 M IH0 NG HH OW1 M"),
            ("This cake tastes wonderful.", "DH IH0 S K EY1 K T EY1 S T S W AH1 N D ER0 F AH0 L"),
            ("The baby laughed all morning.", "DH AH0 B EY1 B IY0 L AE1 F T AO0 L M AO1 R N IH0 NG"),
            ("You gave me a perfect gift.", "Y UW0 G EY1 V M IY0 AH0 P ER1 F IH0 K T G IH1 F T"),
        ),
        0: (
            ("The bus leaves at eleven.", "DH AH0 B AH1 S L IY1 V Z AE0 T IH0 L EH1 V AH0 N"),
            ("The keys are on the table.", "DH AH0 K IY1 Z AA0 R AA0 N DH AH0 T EY1 B AH0 L"),
            ("He reads the daily paper.", "HH IY0 R IY1 D Z DH AH0 D EY1 L IY0 P EY1 P ER0"),
            ("There are seven chairs in here.", "DH EH0 R AA0 R S EH1 V AH0 N CH EH1 R Z IH0 N HH IH1 R"),
            ("The window faces the street.", "DH AH0 W IH1 N D OW0 F EY1 S AH0 Z DH AH0 S T R IY1 T"),
            ("She puts the box on the shelf.", "SH IY0 P UH1 T S DH AH0 B AA1 K S AA0 N DH AH0 SH EH1 L F"),
            ("The meeting is on Monday.", "DH AH0 M IY1 T IH0 NG IH0 Z AA0 N M AH1 N D EY0"),
            ("I walk along the river.", "AY0 W AO1 K AH0 L AO1 NG DH AH0 R IH1 V ER0"),
            ("We need some paper and tape.", "W IY0 N IY1 D S AH0 M P EY1 P ER0 AH0 N D T EY1 P"),
            ("The door is painted yellow.", "DH AH0 D AO1 R IH0 Z P EY1 N T AH0 D Y EH1 L OW0"),
        ),
        -1: (
            ("We lost the house in the fire.", "W IY0 L AO1 S T DH AH0 HH AW1 S IH0 N DH AH0 F AY1 ER0"),
            ("The milk has gone bad again.", "DH AH0 M IH1 L K HH AE0 Z G AO1 N B AE1 D AH0 G EH1 N"),
            ("He broke my mother's old ring.", "HH IY0 B R OW1 K M AY0 M AH1 DH ER0 Z OW1 L D R IH1 NG"),
            ("They will never forgive us.", "DH EY0 W IH0 L N EH1 V ER0 F ER0 G IH1 V AH0 S"),
            ("My dog was hit by a car.", "M AY0 D AO1 G W AH0 Z HH IH1 T B AY0 AH0 K AA1 R"),
            ("The wound is getting much worse.", "DH AH0 W UW1 N D IH0 Z G EH1 T IH0 NG M AH1 CH W ER1 S"),
            ("You ruined my only coat.", "Y UW0 R UW1 AH0 N D M AY0 OW1 N L IY0 K OW1 T"),
            ("Nobody came to help me.", "N OW1 B AA0 D IY0 K EY1 M T UW0 HH EH1 L P M IY0"),
            ("I failed the exam again.", "AY0 F EY1 L D DH AH0 IH0 G Z AE1 M AH0 G EH1 N"),
            ("She died alone in the night.", "SH IY0 D AY1 D AH0 L OW1 N IH0 N DH AH0 N AY1 T"),
        ),
    }.items()
    for text, phones in said
)

# Probabilities of (negative, neutral, positive) wording.
_WORDING_GIVEN_EMOTION = {
    "anger": (0.60, 0.25, 0.15),
    "disgust": (0.60, 0.25, 0.15),
    "fear": (0.60, 0.25, 0.15),
    "happiness": (0.15, 0.25, 0.60),
    "sadness": (0.60, 0.25, 0.15),
    "neutral": (0.20, 0.60, 0.20),
}

# Means of the first three formants in Hz, (male), (female): Peterson & Barney (1952), table II.
_VOWELS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "IY": ((270, 2290, 3010), (310, 2790, 3310)),
    "IH": ((390, 1990, 2550), (430, 2480, 3070)),
    "EH": ((530, 1840, 2480), (610, 2330, 2990)),
    "AE": ((660, 1720, 2410), (860, 2050, 2850)),
    "AA": ((730, 1090, 2440), (850, 1220, 2810)),
    "AO": ((570, 840, 2410), (590, 920, 2710)),
    "UH": ((440, 1020, 2240), (470, 1160, 2680)),
    "UW": ((300, 870, 2240), (370, 950, 2670)),
    "AH": ((640, 1190, 2390), (760, 1400, 2780)),
    "ER": ((490, 1350, 1690), (500, 1640, 1960)),
}
_DIPHTHONGS = {"AY": ("AA", "IH"), "EY": ("EH", "IY"), "OW": ("AO", "UH"), "AW": ("AA", "UH")}
# For what Peterson & Barney do not list; close to the mean ratio of their table.
_FEMALE_FORMANT_RATIO = 1.17
_SCHWA = (500.0, 1500.0, 2500.0)  # a uniform tube of 17.5 cm
_UPPER_FORMANTS_HZ = (3500.0, 4500.0, 5500.0, 6500.0)  # the same tube
_BANDWIDTHS_HZ = (70.0, 95.0, 140.0, 220.0, 300.0, 400.0, 500.0)

# Where the formants of a consonant point to (male, Hz): loci in the sense of Delattre, Liberman & Cooper (1955).
_PLACES = {
    "labial": (300.0, 1000.0, 2200.0),
    "dental": (300.0, 1300.0, 2500.0),
    "alveolar": (300.0, 1750.0, 2600.0),
    "palatal": (300.0, 1950.0, 2550.0),
    "velar": (300.0, 1700.0, 2150.0),
}
_STOPS = {  # place, voiced, centre and width of the burst in Hz
    "P": ("labial", False, 1000.0, 900.0),
    "B": ("labial", True, 900.0, 900.0),
    "T": ("alveolar", False, 4500.0, 1500.0),
    "D": ("alveolar", True, 4200.0, 1500.0),
    "K": ("velar", False, 2200.0, 700.0),
    "G": ("velar", True, 2000.0, 700.0),
    "CH": ("palatal", False, 3300.0, 1000.0),
    "JH": ("palatal", True, 3200.0, 1000.0),
}
_FRICATIVES = {  # place, voiced, centre and width of the noise in Hz, its gain relative to a vowel
    "F": ("labial", False, 5000.0, 2500.0, 0.07),
    "V": ("labial", True, 5000.0, 2500.0, 0.05),
    "TH": ("dental", False, 5500.0, 2500.0, 0.06),
    "DH": ("dental", True, 5500.0, 2500.0, 0.04),
    "S": ("alveolar", False, 6000.0, 1100.0, 0.25),
    "Z": ("alveolar", True, 6000.0, 1100.0, 0.16),
    "SH": ("palatal", False, 3600.0, 1000.0, 0.27),
}
_SONORANTS = {  # formants (male, Hz; near the targets of Klatt 1980) and gain relative to a vowel
    "M": ((350.0, 1200.0, 2150.0), 0.35),
    "N": ((350.0, 1450.0, 2450.0), 0.35),
    "NG": ((350.0, 1750.0, 2200.0), 0.35),
    "L": ((330.0, 1050.0, 2800.0), 0.55),
    "R": ((330.0, 1060.0, 1400.0), 0.55),
    "W": ((300.0, 620.0, 2150.0), 0.50),
    "Y": ((270.0, 2080.0, 2950.0), 0.50),
}


# ----------------------------------------------------------------------------------------------------------
# The corpus


def demo_utterance_ids() -> list[str]:
    """Ids of all utterances in the order of ``demo.csv``: by speaker, emotion, sentence, take."""
    return [
        f"{speaker}_{emotion}_t{text}_k{take}"
        for speaker in _SPEAKERS
        for emotion in DEMO_EMOTIONS
        for text in range(1, _SENTENCES_PER_CELL + 1)
        for take in range(1, _TAKES + 1)
    ]


def generate_demo(root: Path, *, seed: int = 0, progress: Callable[[int, int], None] | None = None) -> None:
    """Write the corpus below ``root``: ``wav/<utterance_id>.wav``, then ``demo.csv``, then the marker ``VERSION``.

    A complete corpus of the same version and seed is left as it is. Anything else (nothing there, an interrupted
    generation, recordings missing or cut, another version or seed) is generated anew, and the marker, written last,
    says that it is complete. Every file appears under its name only when it is whole.

    Args:
        root: folder to write to; created if missing.
        seed: another seed gives another corpus of the same design.
        progress: called as ``progress(done, total)`` after every utterance; not called when nothing is to be done.

    Raises:
        StorageError: no space, no permission, a read-only disk, or ``root`` is not a folder.
    """
    root = Path(root)
    if _is_complete(root, seed):
        return
    ids = demo_utterance_ids()
    with _explained(root):
        (root / "wav").mkdir(parents=True, exist_ok=True)
        (root / "VERSION").unlink(missing_ok=True)
    rows = []
    for done, utterance_id in enumerate(ids, start=1):
        samples, row = synthesise_utterance(utterance_id, seed=seed)
        with _explained(root):
            _write_whole(root / str(row["path"]), _wav_bytes(samples))
        rows.append(row)
        if progress is not None:
            progress(done, len(ids))
    with _explained(root):
        _write_whole(root / "demo.csv", _csv_bytes(rows))
        _write_whole(root / "VERSION", _marker(seed).encode())
        _sweep_strays(root)


def read_demo(root: Path) -> list[dict[str, object]]:
    """Rows of a generated corpus, one dict per utterance with the keys ``DEMO_COLUMNS``.

    ``arousal``, ``valence``, ``dominance`` and ``duration_s`` are floats, everything else is text; ``path`` is relative
    to ``root``.

    Raises:
        DataRootError: there is no complete demo corpus below ``root``.
        ManifestError: ``demo.csv`` was changed so that its columns or numbers cannot be read.
    """
    root = Path(root)
    table = root / "demo.csv"
    if not table.is_file() or not (root / "VERSION").is_file():
        lacking = "demo.csv" if not table.is_file() else "the marker VERSION"
        raise DataRootError(
            f"No complete demo corpus in {root}: {lacking} is missing. It was never generated there, or the generation "
            f"was interrupted. Make it with: hyfuse corpora prepare demo --root {root}"
        )
    try:
        header, *lines = csv.reader(table.read_text(encoding="utf-8").splitlines())
    except (UnicodeDecodeError, csv.Error, ValueError):
        raise ManifestError(_changed_table(table, "it is empty or no CSV text in UTF-8")) from None
    if tuple(header) != DEMO_COLUMNS:
        raise ManifestError(_changed_table(table, f"its columns are {', '.join(header)}"))
    rows: list[dict[str, object]] = []
    for number, line in enumerate(lines, start=2):
        if len(line) != len(DEMO_COLUMNS):
            raise ManifestError(_changed_table(table, f"line {number} has {len(line)} values"))
        row: dict[str, object] = dict(zip(DEMO_COLUMNS, line, strict=True))
        for column in _NUMERIC_COLUMNS:
            try:
                row[column] = float(str(row[column]))
            except ValueError:
                message = f"line {number} has {column} = {row[column]!r}, which is no number"
                raise ManifestError(_changed_table(table, message)) from None
        rows.append(row)
    return rows


def synthesise_utterance(utterance_id: str, *, seed: int = 0) -> tuple[NDArray[np.int16], dict[str, object]]:
    """One utterance of the corpus of ``seed``, exactly as ``generate_demo`` writes it.

    Returns:
        The samples [samples] as 16-bit integers at ``DEMO_SAMPLE_RATE_HZ``, and the row of ``demo.csv``.

    Raises:
        UnknownNameError: the demo corpus has no such utterance.
    """
    if utterance_id not in _known_ids():
        raise unknown_name(
            "demo utterance",
            utterance_id,
            ["s01_anger_t1_k1", "s10_neutral_t4_k3"],
            hint="Ids are sNN_EMOTION_tTEXT_kTAKE with NN 01-10, TEXT 1-4, TAKE 1-3; those named are the first and last.",
        )
    speaker_id, emotion, text, take = utterance_id.split("_")
    speaker, expression = _SPEAKERS[speaker_id], _EXPRESSIONS[emotion]
    sentence = _sentences_of(seed, speaker_id, emotion)[int(text[1:]) - 1]
    rng = _rng(seed, utterance_id)

    # Intensity of the take (the emotion's own activation, more or less of it) and the activation that is free of it.
    strength = speaker.expressiveness * rng.uniform(0.70, 1.30)
    free = speaker.expressiveness * rng.normal(0.0, _FREE_ACTIVATION_SD)
    activation = strength * expression.activation + free
    change = _change(seed, speaker_id, emotion, strength=strength, free=free, rng=rng)
    session_level_db = _rng(seed, speaker_id, take).normal(0.0, _SESSION_LEVEL_SD_DB)
    samples = _render(sentence, speaker, change, gain_db=session_level_db, rng=rng)

    ratings = _rate(
        {
            "arousal": 3.0 + 1.25 * activation,
            "valence": 3.0 + 0.85 * sentence.wording + 0.60 * expression.valence,
            "dominance": 3.0 + 0.60 * activation + 0.60 * expression.dominance,
        },
        seed=seed,
        rng=rng,
    )
    heard = (
        activation,
        (1.0 - _VOTE_WORDING) * strength * expression.valence + _VOTE_WORDING * sentence.wording,
        strength * expression.dominance,
    )
    row: dict[str, object] = {
        "utterance_id": utterance_id,
        "path": f"wav/{utterance_id}.wav",
        "speaker": speaker_id,
        "sex": speaker.sex,
        "language": "en",
        "session": take[1:],
        "emotion": emotion,
        **{dimension: round(float(np.mean(answers)), 2) for dimension, answers in ratings.items()},
        "transcript": sentence.text,
        "duration_s": round(len(samples) / DEMO_SAMPLE_RATE_HZ, 3),
        VOTES: _vote(heard, emotion, rng=_rng(seed, utterance_id, "votes")),
        **{RATINGS[dimension]: format_ratings(answers) for dimension, answers in ratings.items()},
    }
    return samples, row


@cache
def _known_ids() -> frozenset[str]:
    return frozenset(demo_utterance_ids())


def _rng(seed: int, *key: str) -> np.random.Generator:
    """Random generator that depends on the seed and the key only (not on Python's salted ``hash``)."""
    digest = hashlib.sha256("|".join(["hyfuse demo", str(int(seed)), *key]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _sentences_of(seed: int, speaker_id: str, emotion: str) -> list[_Sentence]:
    """The four different sentences that a speaker says in an emotion; the wording is drawn first, then the sentence."""
    rng = _rng(seed, speaker_id, emotion, "sentences")
    chosen: list[_Sentence] = []
    for wording in rng.choice((-1, 0, 1), size=_SENTENCES_PER_CELL, p=_WORDING_GIVEN_EMOTION[emotion]):
        rest = [sentence for sentence in _SENTENCES if sentence.wording == wording and sentence not in chosen]
        chosen.append(rest[rng.integers(len(rest))])
    return chosen


def _change(
    seed: int, speaker_id: str, emotion: str, *, strength: float, free: float, rng: np.random.Generator
) -> dict[str, float]:
    """What this utterance changes in the speaker's neutral voice, in the units of ``_Expression``.

    The emotion's profile times its strength, plus vocal effort, plus the speaker's manner in this emotion, plus chance.
    """
    manner = _rng(seed, speaker_id, emotion, "manner")
    change = {}
    for name in (*_TAKE_SD, "tremor_st", "formant_log"):
        put_in = strength * getattr(_EXPRESSIONS[emotion], name) + free * getattr(_EFFORT, name)
        by_speaker = manner.normal(0.0, _MANNER_SD.get(name, 0.0))
        by_chance = rng.normal(0.0, _TAKE_SD.get(name, 0.0))
        change[name] = put_in + by_speaker + by_chance
    return change


def _rate(heard: dict[str, float], *, seed: int, rng: np.random.Generator) -> dict[str, list[float]]:
    """Answers of the raters: each has a bias of their own and answers in whole steps from 1 to 5, with chance."""
    ratings = {}
    for dimension, value in heard.items():
        bias = _rng(seed, "raters", dimension).normal(0.0, 0.25, _NUM_RATERS)
        answers = np.clip(np.rint(value + bias + rng.normal(0.0, 0.6, _NUM_RATERS)), 1, 5)
        ratings[dimension] = answers.tolist()
    return ratings


def _vote(heard: tuple[float, float, float], meant: str, *, rng: np.random.Generator) -> str:
    """What the raters name, given the activation, valence and dominance to be heard and the emotion meant."""
    places = np.array([[e.activation, e.valence, e.dominance] for e in _EXPRESSIONS.values()])
    impressions = np.array(heard) + rng.normal(0.0, _VOTE_SD, (_NUM_RATERS, 3))
    distances = (((impressions[:, None] - places) / _VOTE_SD) ** 2).sum(axis=-1)  # [raters, emotions]
    distances[:, list(_EXPRESSIONS).index(meant)] -= 2.0 * _VOTE_MEANT
    names = list(_EXPRESSIONS)
    return format_votes(one_vote_each([names[choice]] for choice in distances.argmin(axis=1)))


# ----------------------------------------------------------------------------------------------------------
# The synthesiser

_STEP = 32  # samples between two points of a control track (2 ms)
_HOP = 160  # samples between two settings of the filter (10 ms)
_FFT = 960  # leaves 40 ms for the resonators to ring out, by when the narrowest is 76 dB down


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """A stretch of steady control values."""

    duration_s: float
    targets: tuple[tuple[float, float, float], ...] = ()
    """Formants in Hz for points spread evenly over the segment; none: pass through."""
    voice: float = 0.0
    """Gain of the glottal pulses."""
    breath: float = 0.0
    """Gain of breath noise that passes the vocal tract."""
    hiss: float = 0.0
    """Gain of noise made at a constriction, around ``hiss_hz`` with spread ``hiss_width_hz``."""
    hiss_hz: float = 4000.0
    hiss_width_hz: float = 1500.0
    stress: int = -1
    """-1: not a vowel; 0, 1: stress of a vowel."""


def _segments(sentence: _Sentence, sex: str) -> list[_Segment]:
    """The sentence as segments at normal tempo; the last vowel is lengthened and softer, as at the end of a phrase."""
    phones = sentence.phones.split()
    last_vowel = max(index for index, phone in enumerate(phones) if phone[-1].isdigit())
    scale = _FEMALE_FORMANT_RATIO if sex == "female" else 1.0
    segments: list[_Segment] = []
    for index, phone in enumerate(phones):
        if phone[-1].isdigit():
            segments.append(_vowel(phone[:-1], int(phone[-1]), sex=sex, final=index == last_vowel))
        elif phone == "HH":
            segments.append(_Segment(duration_s=0.055, breath=0.12))
        elif phone in _SONORANTS:
            formants, gain = _SONORANTS[phone]
            segments.append(_Segment(duration_s=0.065, targets=(_scaled(formants, scale),), voice=gain))
        elif phone in _FRICATIVES:
            place, voiced, hiss_hz, width_hz, gain = _FRICATIVES[phone]
            segments.append(
                _Segment(
                    duration_s=0.060 if voiced else 0.090,
                    targets=(_scaled(_PLACES[place], scale),),
                    voice=0.25 if voiced else 0.0,
                    hiss=gain,
                    hiss_hz=hiss_hz,
                    hiss_width_hz=width_hz,
                )
            )
        else:
            place, voiced, hiss_hz, width_hz = _STOPS[phone]
            locus = (_scaled(_PLACES[place], scale),)
            burst_s = 0.055 if place == "palatal" else 0.012 if voiced else 0.025
            segments.append(_Segment(duration_s=0.050, targets=locus, voice=0.08 if voiced else 0.0))
            segments.append(
                _Segment(
                    duration_s=burst_s,
                    targets=locus,
                    voice=0.2 if voiced else 0.0,
                    breath=0.0 if voiced else 0.06,
                    hiss=0.15 if voiced else 0.22,
                    hiss_hz=hiss_hz,
                    hiss_width_hz=width_hz,
                )
            )
    return segments


def _vowel(name: str, stress: int, *, sex: str, final: bool) -> _Segment:
    column = 1 if sex == "female" else 0
    if name == "AH" and stress == 0:
        schwa = _scaled(_SCHWA, _FEMALE_FORMANT_RATIO if sex == "female" else 1.0)
        targets: tuple[tuple[float, float, float], ...] = (schwa, schwa)
    else:
        start, end = _DIPHTHONGS.get(name, (name, name))
        targets = (_VOWELS[start][column], _VOWELS[end][column])
    duration_s = 0.120 if stress else 0.070
    duration_s += (0.028 if name in _DIPHTHONGS else 0.0) + (0.055 if final else 0.0)
    gain = (1.0 if stress else 0.75) * (0.8 if final else 1.0)
    return _Segment(duration_s=duration_s, targets=targets, voice=gain, stress=stress)


def _scaled(formants: tuple[float, float, float], scale: float) -> tuple[float, float, float]:
    return formants[0] * scale, formants[1] * scale, formants[2] * scale


def _render(
    sentence: _Sentence, speaker: _Speaker, change: dict[str, float], *, gain_db: float, rng: np.random.Generator
) -> NDArray[np.int16]:
    """The recording [samples] of a sentence in a voice."""
    rate = speaker.rate * np.exp(change["rate_log"])
    segments = _segments(sentence, speaker.sex)
    lengths_s = np.array([segment.duration_s for segment in segments]) / rate
    lengths_s *= np.exp(rng.normal(0.0, 0.06, len(segments)))
    lead_s, tail_s = rng.uniform(0.06, 0.12), rng.uniform(0.08, 0.14)
    edges_s = lead_s + np.concatenate([[0.0], np.cumsum(lengths_s)])
    num_hops = int(np.ceil((edges_s[-1] + tail_s) * DEMO_SAMPLE_RATE_HZ / _HOP))
    num_samples = num_hops * _HOP
    grid_s = np.arange(num_hops * _HOP // _STEP + 1) * _STEP / DEMO_SAMPLE_RATE_HZ  # control points

    pitch_hz = _pitch_track(grid_s, segments, edges_s, speaker, change, rng)
    which = np.searchsorted(edges_s, grid_s, side="right") - 1  # segment of each control point
    inside = (which >= 0) & (which < len(segments))
    which = np.clip(which, 0, len(segments) - 1)

    def gain(name: str) -> Samples:
        steps = np.array([getattr(segment, name) for segment in segments])[which] * inside
        return _to_samples(_smooth(steps, 7), num_samples)

    pulses, is_open = _glottal_source(pitch_hz, num_samples, speaker, change, rng)
    voice_gain = gain("voice")
    breath_db = speaker.breath_db + change["breath_db"]
    breath = 10.0 ** (breath_db / 20.0) * voice_gain * (0.4 + 0.6 * is_open) + gain("breath")
    noise = rng.standard_normal((2, num_samples))

    # Vocal tract: [hops, bins] responses; hop h is centred on sample h * _HOP.
    scale = speaker.tract * float(np.exp(change["formant_log"]))
    centres_s = grid_s[:: _HOP // _STEP]
    tract = _tract_response(centres_s, segments, edges_s, speaker.sex, scale)
    tilt_db = float(np.clip(speaker.tilt_db + change["tilt_db"], 0.5, 24.0))
    source = _spectra(pulses * voice_gain) * _tilt_response(tilt_db) + _spectra(noise[0] * breath)
    spoken = _overlap_add(source * tract, num_samples)
    spoken /= _rms(spoken[voice_gain > 0.5])
    hiss = _overlap_add(_spectra(noise[1] * gain("hiss")) * _hiss_response(segments, which), num_samples)

    mixed = spoken + hiss
    first, last = int(edges_s[0] * DEMO_SAMPLE_RATE_HZ), int(edges_s[-1] * DEMO_SAMPLE_RATE_HZ)
    level_db = speaker.level_dbfs + change["level_db"] + gain_db
    mixed *= 10.0 ** (level_db / 20.0) / _rms(mixed[first:last])
    mixed += rng.standard_normal(num_samples) * 10.0 ** (speaker.floor_dbfs / 20.0)
    mixed *= min(1.0, 0.95 / float(np.abs(mixed).max()))  # a recording never clips
    return np.rint(mixed * 32767.0).astype(np.int16)


def _pitch_track(
    grid_s: Samples,
    segments: list[_Segment],
    edges_s: Samples,
    speaker: _Speaker,
    change: dict[str, float],
    rng: np.random.Generator,
) -> Samples:
    """Pitch in Hz at the control points: declination, accents on stressed vowels, a final movement, drift."""
    start_s, end_s = edges_s[0], edges_s[-1]
    place = np.clip((grid_s - start_s) / (end_s - start_s), 0.0, 1.0)
    contour_st = 1.3 - 2.6 * place
    stressed = [index for index, segment in enumerate(segments) if segment.stress == 1]
    for index in stressed:
        middle_s = 0.5 * (edges_s[index] + edges_s[index + 1])
        height_st = (3.2 if index == stressed[-1] else 2.2) * np.exp(rng.normal(0.0, 0.2))
        contour_st += height_st * np.exp(-0.5 * ((grid_s - middle_s) / 0.065) ** 2)
    final = np.clip((grid_s - (end_s - 0.22)) / 0.22, 0.0, 1.0)
    movement_st = -2.0 + change["final_st"]
    knots_s = np.arange(0.0, grid_s[-1] + 0.1, 0.1)
    drift_st = 0.25 * np.interp(grid_s, knots_s, rng.standard_normal(len(knots_s)))
    tremor_st = change["tremor_st"] * np.sin(2.0 * np.pi * (rng.uniform(7.0, 10.0) * grid_s + rng.uniform()))
    range_factor = speaker.range_factor * np.exp(change["range_log"])
    intonation_st = range_factor * (contour_st + movement_st * final**2)
    total_st = change["pitch_st"] + intonation_st + drift_st + tremor_st
    pitch_hz: Samples = np.clip(speaker.f0_hz * 2.0 ** (total_st / 12.0), 60.0, 600.0)
    return pitch_hz


def _glottal_source(
    pitch_hz: Samples, num_samples: int, speaker: _Speaker, change: dict[str, float], rng: np.random.Generator
) -> tuple[Samples, Samples]:
    """Derivative of the glottal flow, of unit root mean square, and where the glottis is open; [samples] each.

    The flow is Rosenberg's (1971) trigonometric pulse: raised cosine while opening, quarter cosine while
    closing. It is computed at twice the rate and decimated, so that little of what aliases stays in the band.
    """
    rate_hz = 2 * DEMO_SAMPLE_RATE_HZ
    cycles = np.cumsum(_to_samples(pitch_hz, 2 * num_samples)) / rate_hz
    num_cycles = int(cycles[-1]) + 2
    jitter = speaker.jitter * np.exp(change["jitter_log"])
    period_noise = np.clip(rng.normal(0.0, jitter, num_cycles), -0.2, 0.2)
    amplitude = np.clip(1.0 + rng.normal(0.0, 4.0 * jitter, num_cycles), 0.3, 1.7)  # shimmer goes with jitter
    # Moving the cycle boundaries gives each cycle its own length.
    numbers = np.arange(num_cycles)
    bounds = numbers + np.cumsum(period_noise) - period_noise.sum() * numbers / num_cycles
    cycle = np.interp(cycles, bounds, numbers)
    number = cycle.astype(np.int64)
    phase = cycle - number

    open_quotient = float(np.clip(speaker.open_quotient + change["open_quotient"], 0.35, 0.85))
    opening = 0.68 * open_quotient
    closing = open_quotient - opening
    flow = np.where(
        phase < opening,
        0.5 - 0.5 * np.cos(np.pi * phase / opening),
        np.cos(0.5 * np.pi * np.minimum((phase - opening) / closing, 1.0)),
    )
    flow *= amplitude[number]
    flow = np.convolve(flow, _half_band(), mode="same")[::2]
    pulses = np.diff(flow, prepend=flow[0])
    return pulses / _rms(pulses), (phase[::2] < open_quotient).astype(np.float64)


@cache
def _half_band() -> Samples:
    """Low-pass at half of the band for the decimation by two (windowed sinc, 31 taps)."""
    taps = np.arange(-15, 16)
    low_pass = np.sinc(0.48 * taps) * np.hamming(31)
    taps_sum_to_one: Samples = low_pass / low_pass.sum()
    return taps_sum_to_one


def _tract_response(
    centres_s: Samples, segments: list[_Segment], edges_s: Samples, sex: str, scale: float
) -> NDArray[np.complex128]:
    """Frequency response of the vocal tract at each hop, [hops, bins]: resonators in cascade (Klatt 1980)."""
    knots_s, knots_hz = [], []
    for segment, start_s, end_s in zip(segments, edges_s[:-1], edges_s[1:], strict=True):
        for position, target in enumerate(segment.targets):
            # One target sits in the middle; two leave the outer 30 % for the transitions.
            share = 0.5 if len(segment.targets) == 1 else 0.3 + 0.4 * position
            knots_s.append(start_s + share * (end_s - start_s))
            knots_hz.append(target)
    tracks_hz = scale * np.array(knots_hz)  # [knots, 3]
    denominator = np.ones((1, _FFT // 2 + 1), dtype=np.complex128)
    upper = _FEMALE_FORMANT_RATIO if sex == "female" else 1.0
    for formant_hz, bandwidth_hz in zip(_UPPER_FORMANTS_HZ, _BANDWIDTHS_HZ[3:], strict=True):
        if scale * upper * formant_hz < 0.47 * DEMO_SAMPLE_RATE_HZ:
            denominator = denominator * _resonator(np.array([scale * upper * formant_hz]), bandwidth_hz)
    for number in range(3):
        track_hz = np.interp(centres_s, knots_s, tracks_hz[:, number])
        denominator = denominator * _resonator(track_hz, _BANDWIDTHS_HZ[number])
    return 1.0 / denominator


def _resonator(formant_hz: Samples, bandwidth_hz: float) -> NDArray[np.complex128]:
    """Denominator of a digital resonator of unit gain at 0 Hz, [hops, bins] (Klatt 1980)."""
    z1, z2 = _unit_circle()
    radius = np.exp(-np.pi * bandwidth_hz / DEMO_SAMPLE_RATE_HZ)
    b = 2.0 * radius * np.cos(2.0 * np.pi * formant_hz / DEMO_SAMPLE_RATE_HZ)[:, None]
    c = -(radius**2)
    denominator: NDArray[np.complex128] = (1.0 - b * z1 - c * z2) / (1.0 - b - c)
    return denominator


@cache
def _unit_circle() -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    z1 = np.exp(-2j * np.pi * np.arange(_FFT // 2 + 1) / _FFT)
    return z1, z1 * z1


def _tilt_response(tilt_db: float) -> NDArray[np.complex128]:
    """One-pole low-pass [bins] that attenuates 3 kHz by ``tilt_db`` (the TL of Klatt & Klatt 1990)."""
    # |H|^2 = (1 - p)^2 / (1 - 2 p cos w + p^2) = g at w = 3 kHz is quadratic in the pole p.
    g = 10.0 ** (-tilt_db / 10.0)
    cosine = np.cos(2.0 * np.pi * 3000.0 / DEMO_SAMPLE_RATE_HZ)
    half = (1.0 - g * cosine) / (1.0 - g)
    pole = half - np.sqrt(half**2 - 1.0)
    response: NDArray[np.complex128] = (1.0 - pole) / (1.0 - pole * _unit_circle()[0])
    return response


def _hiss_response(segments: list[_Segment], which: NDArray[np.int64]) -> Samples:
    """Spectral envelope of frication noise at each hop, [hops, bins]: a Gaussian band of unit noise gain."""
    hops = which[:: _HOP // _STEP]
    bins_hz = np.arange(_FFT // 2 + 1) * DEMO_SAMPLE_RATE_HZ / _FFT
    bands = np.zeros((len(segments), len(bins_hz)))
    neighbour: Samples | None = None
    for index, segment in enumerate(segments):
        if segment.hiss > 0.0:
            neighbour = np.exp(-0.5 * ((bins_hz - segment.hiss_hz) / segment.hiss_width_hz) ** 2)
            neighbour /= np.sqrt(np.mean(neighbour**2))
        if neighbour is not None:
            bands[index] = neighbour  # the noise fades out in its own colour
    for index in range(len(segments) - 2, -1, -1):
        if not bands[index].any() or (segments[index].hiss == 0.0 and segments[index + 1].hiss > 0.0):
            bands[index] = bands[index + 1]  # and fades in in its own colour
    return bands[hops]


def _spectra(samples: Samples) -> NDArray[np.complex128]:
    """Spectra [hops, bins] of windows of two hops; they sum to one, so the unfiltered sum is the signal."""
    padded = np.concatenate([np.zeros(_HOP), samples, np.zeros(_HOP)])
    window = np.hanning(2 * _HOP + 1)[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(padded, 2 * _HOP)[::_HOP] * window
    return np.fft.rfft(frames, _FFT, axis=1)


def _overlap_add(spectra: NDArray[np.complex128], num_samples: int) -> Samples:
    """Signal [num_samples] of filtered spectra; every window's response rings on into the following hops."""
    frames = np.fft.irfft(spectra, _FFT, axis=1)
    num_hops, num_parts = len(frames), _FFT // _HOP
    out = np.zeros((num_hops + num_parts - 1, _HOP))
    for part in range(num_parts):
        out[part : part + num_hops] += frames[:, part * _HOP : (part + 1) * _HOP]
    return out.reshape(-1)[_HOP : _HOP + num_samples]


def _to_samples(track: Samples, num_samples: int) -> Samples:
    """A control track, whose ends are the ends of the signal, at every sample."""
    points = np.linspace(0.0, num_samples, len(track))
    return np.interp(np.arange(num_samples), points, track)


def _smooth(track: Samples, width: int) -> Samples:
    window = np.hanning(width + 2)[1:-1]
    return np.convolve(track, window / window.sum(), mode="same")


def _rms(samples: Samples) -> float:
    return float(np.sqrt(np.mean(samples**2)))


# ----------------------------------------------------------------------------------------------------------
# Files


def _marker(seed: int) -> str:
    return f"demo {DEMO_VERSION} seed {int(seed)}\n"


def _is_complete(root: Path, seed: int) -> bool:
    """Whether ``root`` holds all of this version and seed: marker, table, and recordings at full length."""
    try:
        if (root / "VERSION").read_text(encoding="utf-8") != _marker(seed):
            return False
        rows = read_demo(root)
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(root / "wav")}
    except (OSError, UnicodeDecodeError, ManifestError):
        return False
    if [row["utterance_id"] for row in rows] != demo_utterance_ids():
        return False
    return all(
        sizes.get(f"{row['utterance_id']}.wav")
        == _WAV_HEADER_BYTES + 2 * round(float(str(row["duration_s"])) * DEMO_SAMPLE_RATE_HZ)
        for row in rows
    )


def _wav_bytes(samples: NDArray[np.int16]) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(DEMO_SAMPLE_RATE_HZ)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def _csv_bytes(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, DEMO_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        numbers = {name: f"{row[name]:.1f}" for name in ("arousal", "valence", "dominance")}
        writer.writerow({**row, **numbers, "duration_s": f"{row['duration_s']:.3f}"})
    return text.getvalue().encode("utf-8")


def _write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name of this process, then rename, so that nobody ever sees half a file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sweep_strays(root: Path) -> None:
    """Remove what a killed generation left; young files may belong to another process that is at work now."""
    for folder in (root, root / "wav"):
        for stray in folder.glob("*.tmp"):
            with suppress(FileNotFoundError):  # renamed meanwhile by the process it belongs to
                if time.time() - stray.stat().st_mtime > _STRAY_AGE_S:
                    stray.unlink()


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    """What the disk refuses, in the words of a ``StorageError``."""
    try:
        yield
    except OSError as error:
        raise _storage_error(root, error) from error


def _storage_error(root: Path, error: OSError) -> StorageError:
    where = error.filename or root
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "The disk or quota is full; the demo corpus needs about 40 MB. Free some space"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "This user may not write there, or the disk is read-only. Check owner and mode of the folder"
    elif isinstance(error, FileExistsError | NotADirectoryError):
        advice = "A file is where a folder must be. Move it away"
    else:
        advice = "Check the disk"
    return StorageError(
        f"The demo corpus could not be written: {where}: {reason}. {advice}, or choose another folder: "
        f"hyfuse corpora prepare demo --root DIR"
    )


def _changed_table(table: Path, what: str) -> str:
    return (
        f"{table} is not the table of the demo corpus: {what}; expected the columns {', '.join(DEMO_COLUMNS)}. "
        f"It was probably edited. Delete it and make it again with: "
        f"hyfuse corpora prepare demo --root {table.parent}"
    )
