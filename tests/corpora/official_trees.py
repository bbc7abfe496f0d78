"""Small imitations of the official corpus folders, built from ../shared/facts/corpora.md; shared by the tests of this folder."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import soundfile

_counter = count()

LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 12345\n"
)


def wav(
    path: Path, *, rate_hz: int = 16000, frames: int | None = None, channels: int = 1, subtype: str = "PCM_16"
) -> Path:
    """A short recording that differs from every other one in content and, unless ``frames`` is given, in length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = next(_counter)
    noise = np.random.default_rng(number).uniform(-0.5, 0.5, (frames or 400 + 7 * (number % 4000), channels))
    # In memory first: libsndfile's many small writes to a busy disk are slow (8 ms a recording against 0.5 ms).
    buffer = io.BytesIO()
    soundfile.write(buffer, noise.astype(np.float32), rate_hz, subtype=subtype, format="WAV")
    path.write_bytes(buffer.getvalue())
    return path


def text(path: Path, content: str, *, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
    return path


def emodb(root: Path) -> Path:
    names = ["03a01Fa", "03a01Nc", "08a02Wb", "16b10Td", "16b10Lb", "11a05Ea", "09b01Aa"]
    for name in names:
        wav(root / "wav" / f"{name}.wav")
    pad = "\xa0" * 5
    lines = ["Nr.\tSatz\terkannt\tnatuerlich"]
    lines += [f"{i}\xa0\xa0\t{name}.wav\t{95 - i},50{pad}\t{60 + i},00{pad}" for i, name in enumerate(names, start=1)]
    text(root / "erkennung.txt", "\n".join(lines) + "\n", encoding="latin-1")
    return root


def cremad(root: Path) -> Path:
    for name in ("1001_DFA_ANG_XX", "1001_IEO_HAP_LO", "1002_TIE_NEU_XX", "1040_ITH_SAD_X", "1076_MTI_SAD_XX"):
        wav(root / "AudioWAV" / f"{name}.wav")
    text(
        root / "VideoDemographics.csv",
        '"ActorID","Age","Sex","Race","Ethnicity"\n1001,51,"Male","Caucasian","Not Hispanic"\n'
        '1002,21,"Female","Caucasian","Not Hispanic"\n1040,42,"Male","Caucasian","Not Hispanic"\n'
        '1076,25,"Female","Caucasian","Not Hispanic"\n',
    )
    text(
        root / "processedResults" / "summaryTable.csv",
        '"","FileName","VoiceVote","VoiceLevel","FaceVote","FaceLevel","MultiModalVote","MultiModalLevel"\n'
        '"1","1001_DFA_ANG_XX","A:D","37.2:58.6","A","45.5","A","44.2"\n"2","1001_IEO_HAP_LO","N","71","H","57","H","57"\n'
        '"3","1040_ITH_SAD_XX","S","50","S","50","S","50"\n',
    )
    text(
        root / "processedResults" / "tabulatedVotes.csv",
        '"","A","D","F","H","N","S","fileName","numResponses","agreement","emoVote"\n'
        '"100001",5,5,0,0,1,1,"1001_DFA_ANG_XX",12,0.416666666666667,"A:D"\n'
        '"100002",0,0,0,3,6,0,"1001_IEO_HAP_LO",9,0.666666666666667,"N"\n'
        '"100003",0,0,0,0,2,8,"1040_ITH_SAD_XX",10,0.8,"S"\n'
        '"200001",9,0,0,0,0,0,"1001_DFA_ANG_XX",9,1,"A"\n'  # seen, not heard
        '"300002",0,0,0,9,0,0,"1001_IEO_HAP_LO",9,1,"H"\n',
    )
    return root


def iemocap(root: Path) -> Path:
    turns = {
        "Ses0{n}F_impro01_F000": ("neu", "2.5000, 3.0000, 1.5000", "Excuse me."),
        "Ses0{n}F_impro01_M003": ("exc", "4.0000, 3.5000, 2.0000", "Yeah."),
        "Ses0{n}M_script01_1b_F012": ("xxx", "3.0000, 2.5000, 3.5000", "No, [LAUGHTER] really?"),
        "Ses0{n}M_script01_1b_M001": ("ang", "1.5000, 4.5000, 4.0000", "Where's the paper?"),
    }
    for number in range(1, 6):
        session = root / f"Session{number}"
        for dialogue in (f"Ses0{number}F_impro01", f"Ses0{number}M_script01_1b"):
            here = {t.format(n=number): v for t, v in turns.items() if t.format(n=number).startswith(dialogue)}
            labels = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
            spoken = []
            for i, (turn, (label, numbers, words)) in enumerate(here.items()):
                wav(session / "sentences" / "wav" / dialogue / f"{turn}.wav")
                labels += [
                    f"[{6.2901 + i:.4f} - {8.2357 + i:.4f}]\t{turn}\t{label}\t[{numbers}]",
                    "C-E1:\tNeutral;\t()",
                    "C-E2:\tFrustration; Anger;\t(mixed; hard to tell)",
                    "C-E4:\tNeutral state;\t()",
                    "C-F1:\tExcited;\t()",
                    "A-E3:\tval 3; act 2; dom  2;\t()",
                    "A-E4:\tval 2; act ; dom  1;\t(mad)",
                    "A-F1:\tval 5; act 5; dom  5;\t()",
                    "",
                ]
                spoken.append(f"{turn} [{6.2901 + i:08.4f}-{8.2357 + i:08.4f}]: {words}")
            text(session / "dialog" / "EmoEvaluation" / f"{dialogue}.txt", "\n".join(labels))
            # The release carries macOS twins of its text files, which hold no text.
            (session / "dialog" / "EmoEvaluation" / f"._{dialogue}.txt").write_bytes(b"\x00\x05\x16\x07\x00\x02")
            text(session / "dialog" / "transcriptions" / f"{dialogue}.txt", "\n".join([*spoken, "M: (not a turn)", ""]))
    return root


def msp_podcast(root: Path, *, table: str = "labels_consensus.csv", development: str = "Development") -> Path:
    rows = [
        ("MSP-PODCAST_0001_0008.wav", "N", "2.2", "4.0", "2.6", "127", "Male", "Train"),
        ("MSP-PODCAST_0001_0019.wav", "X", "4.4", "3.2", "4.6", "127", "Male", "Train"),
        ("MSP-PODCAST_0002_0059.wav", "H", "5.0", "6.0", "5.0", "Unknown", "Unknown", "Train"),
        ("MSP-PODCAST_0003_0271.wav", "C", "4.0", "2.0", "5.5", "8", "Female", development),
        ("MSP-PODCAST_0006_0029.wav", "O", "4.0", "3.0", "4.0", "9", "Female", "Test1"),
        ("MSP-PODCAST_0007_0001.wav", "U", "6.0", "5.0", "4.0", "Unknown", "Female", "Test2"),
    ]
    for name, *_ in rows:
        wav(root / "Audios" / name)
    wav(root / "Audios" / "MSP-PODCAST_5000_0001.wav")  # Test3: no label
    header = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"
    text(root / "Labels" / table, "\n".join([header, *(",".join(row) for row in rows), ""]))
    answers = [
        (
            "MSP-PODCAST_0001_0008.wav",
            "WORKER00000001; Neutral; Neutral,Concerned; A:2.000000; V:4.000000; D:3.000000;",
        ),
        (
            "MSP-PODCAST_0001_0008.wav",
            "WORKER00000002; Other-curious, maybe; Concerned; A:3.000000; V:4.000000; D:2.000000;",
        ),
        ("MSP-PODCAST_0001_0008.wav", "WORKER00000007; Neutral; ; A:1.000000; V:4.000000; D:3.000000;"),
        ("MSP-PODCAST_0002_0059.wav", "WORKER00000001; Happy; Happy; A:5.000000; V:6.000000; D:5.000000;"),
    ]
    lines = [f'{name},"{detail}"' for name, detail in answers]
    text(root / "Labels" / "labels_detailed.csv", "\n".join(["FileName,EmoDetail", *lines, ""]))
    text(root / "Transcripts" / "MSP-PODCAST_0001_0008.txt", "So, what happened?\n")
    text(root / "readme.txt", "MSP-PODCAST Database\nRelease 1.10 (March 2022)\n")
    return root


def ravdess(root: Path) -> Path:
    for actor in ("01", "02", "07"):
        for emotion in ("01", "05", "08"):
            wav(root / f"Actor_{actor}" / f"03-01-{emotion}-01-01-01-{actor}.wav", rate_hz=48000)
    wav(root / "Actor_01" / "03-01-06-02-02-02-01.wav", rate_hz=48000, channels=2)  # five of the release are stereo
    first = root / "Actor_07" / "03-01-05-01-01-01-07.wav"
    (root / "Actor_07" / "03-01-05-01-01-02-07.wav").write_bytes(first.read_bytes())  # the byte-identical pair
    return root


def savee(root: Path) -> Path:
    for speaker in ("DC", "JE", "JK", "KL"):
        for name in ("a01", "d02", "f03", "h04", "n30", "sa05", "su06"):
            wav(root / "AudioData" / speaker / f"{name}.wav", rate_hz=44100)
    text(root / "AudioData" / "Info.txt", "Surrey\n")
    return root


def nemo(root: Path) -> Path:
    lines = ["file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage"]
    for name, emotion, speaker, sex in (
        ("EB0_neutral_13", "neutral", "EB0", "female"),
        ("EB0_surprised_64", "surprised", "EB0", "female"),
        ("WR0_anger_2", "anger", "WR0", "male"),
    ):
        wav(root / "samples" / f"{name}.wav", rate_hz=24000)
        lines.append(
            f"{name}.wav\t{emotion}\tUcho wykrywa dźwięki.\tucho wykrywa dźwięki\t        {speaker}\t{sex} \t 27"
        )
    text(root / "data.tsv", "\n".join(lines) + "\n")
    return root


def emotale(root: Path) -> Path:
    lines = ["file,a1_A,a1_V,a1_D,a1_cat,a2_A,a2_V,a2_D,a2_cat,a3_A,a3_V,a3_D,a3_cat,gt_emotion"]
    for name in ("DK_001_A_1", "DK_001_B_2", "EN_001_H_3", "DK_008_N_4", "EN_014_S_5"):
        wav(root / "wav" / f"{name}.wav", rate_hz=48000, channels=2)
        lines.append(f"{name}.wav,4.0,1.5,4.5,A,4.0,2.5,5.0,A,5.0,2.0,4.0,B,A")
    text(root / "annotations.csv", "\n".join(lines) + "\n")
    return root


def tess(root: Path) -> Path:
    for folder, names in {
        "OAF_angry": ("OAF_back_angry", "OAF_bar_angry"),
        "OAF_neutral": ("OA_bite_neutral",),
        "OAF_Pleasant_surprise": ("OAF_back_ps",),
        "YAF_Sad": ("YAF_back_sad", "YAF_merge_sad"),
    }.items():
        for name in names:
            wav(root / folder / f"{name}.wav", rate_hz=24414)
    return root


def meld(root: Path) -> Path:
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
    folders = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
    for split, folder in folders.items():
        rows = [
            '1,"Oh my God, he’s lost it.",Phoebe,sadness,negative,0,0,4,7,"00:20:57,256","00:21:00,049"',
            '2,What?,Monica,surprise,negative,0,1,4,7,"00:21:01,927","00:21:03,261"',
            '3,Hey!,All,joy,positive,1,0,4,4,"0:12:44,074","0:12:45,189"',
        ]
        text(root / f"{split}_sent_emo.csv", "\n".join([header, *rows, ""]))
        for clip in ("dia0_utt0", "dia0_utt1", "dia1_utt0"):
            wav(root / folder / f"{clip}.wav")
            (root / folder / f"{clip}.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(40))
    return root


TREES: dict[str, Callable[[Path], Path]] = {
    "cremad": cremad,
    "emodb": emodb,
    "emotale": emotale,
    "iemocap": iemocap,
    "meld": meld,
    "msp-podcast": msp_podcast,
    "nemo": nemo,
    "ravdess": ravdess,
    "savee": savee,
    "tess": tess,
}
