"""Small copies of the benchmarks in their original layout, and what their tables have to be, written by hand.

`FIXTURES[name](root)` writes the files below `root` and returns the rows: (path below root, start, end, label, subject, centre,
source, split). Videos are of numbered frames, so that a wrong second shows a wrong number.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from clips import number_picture, write_numbered
from openpyxl import Workbook
from PIL import Image

Row = tuple[str, float | None, float | None, str, str, str, str, str]
WIDTH, HEIGHT = 96, 96


def video(path: Path, seconds: float, *, fps: int = 25) -> None:
    """A video of numbered frames; its id is made of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = "mpeg4" if path.suffix == ".avi" else "libx264"
    number = sum(path.name.encode()) % 256
    write_numbered(
        path, round(seconds * fps), video_id=number, width=WIDTH, height=HEIGHT, fps=fps, gop=12, codec=codec
    )


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def frame_lines(labels: Sequence[tuple[int, str]], *, first: int = 0, separator: str = "\t") -> list[str]:
    """One line for each frame: its number and its label; labels as (how many frames, label)."""
    names = [label for count, label in labels for _ in range(count)]
    return [f"{first + place}{separator}{label}" for place, label in enumerate(names)]


def cholec80(root: Path) -> list[Row]:
    phases = {
        "video01": [(50, "Preparation"), (50, "CalotTriangleDissection")],
        "video02": [(25, "Preparation"), (75, "ClippingCutting")],
        "video40": [(25, "CalotTriangleDissection"), (75, "ClippingCutting")],
        "video41": [(25, "CalotTriangleDissection"), (50, "ClippingCutting"), (25, "CalotTriangleDissection")],
    }
    for name, labels in phases.items():
        video(root / f"videos/{name}.mp4", 4)
        text(root / f"phase_annotations/{name}-phase.txt", "Frame\tPhase", *frame_lines(labels))
        text(
            root / f"tool_annotations/{name}-tool.txt",
            "Frame\tGrasper\tBipolar\tHook\tScissors\tClipper\tIrrigator\tSpecimenBag",
            "0\t1\t0\t0\t0\t0\t0\t0",
        )
        text(root / f"videos/{name}-timestamp.txt", "Frame\tPhase", "00:00:00.00\tPreparation")
    return [
        ("videos/video01.mp4", 0.0, 2.0, "Preparation", "video01", "", "Cholec80", "train"),
        ("videos/video01.mp4", 2.0, 4.0, "CalotTriangleDissection", "video01", "", "Cholec80", "train"),
        ("videos/video02.mp4", 0.0, 1.0, "Preparation", "video02", "", "Cholec80", "train"),
        ("videos/video02.mp4", 1.0, 4.0, "ClippingCutting", "video02", "", "Cholec80", "train"),
        ("videos/video40.mp4", 0.0, 1.0, "CalotTriangleDissection", "video40", "", "Cholec80", "train"),
        ("videos/video40.mp4", 1.0, 4.0, "ClippingCutting", "video40", "", "Cholec80", "train"),
        ("videos/video41.mp4", 0.0, 1.0, "CalotTriangleDissection", "video41", "", "Cholec80", "test"),
        ("videos/video41.mp4", 1.0, 3.0, "ClippingCutting", "video41", "", "Cholec80", "test"),
        ("videos/video41.mp4", 3.0, 4.0, "CalotTriangleDissection", "video41", "", "Cholec80", "test"),
    ]


def cholec80_tools(root: Path) -> list[Row]:
    """One row for every 25 frames; several tools at once, or none; the third video's labels end a second before it."""
    cholec80(root)
    rows = {"video01": ("1000000", "1010000"), "video02": ("0000000",) * 4, "video40": ("1000000", "1010000", "1010000"),
            "video41": ("0010000", "0010000", "0000000", "1000000")}  # fmt: skip
    for name, shown in rows.items():
        lines = ["\t".join([str(25 * second), *flags]) for second, flags in enumerate(shown)]
        header = "Frame\tGrasper\tBipolar\tHook\tScissors\tClipper\tIrrigator\tSpecimenBag"
        text(root / f"tool_annotations/{name}-tool.txt", header, *lines)
    last = ("", "Cholec80")
    return [
        ("videos/video01.mp4", 0.0, 1.0, "Grasper", "video01", *last, "train"),
        ("videos/video01.mp4", 1.0, 2.0, "Grasper|Hook", "video01", *last, "train"),
        ("videos/video02.mp4", 0.0, 4.0, "", "video02", *last, "train"),
        ("videos/video40.mp4", 0.0, 1.0, "Grasper", "video40", *last, "train"),
        ("videos/video40.mp4", 1.0, 3.0, "Grasper|Hook", "video40", *last, "train"),
        ("videos/video41.mp4", 0.0, 2.0, "Hook", "video41", *last, "test"),
        ("videos/video41.mp4", 2.0, 3.0, "", "video41", *last, "test"),
        ("videos/video41.mp4", 3.0, 4.0, "Grasper", "video41", *last, "test"),
    ]


def m2cai16(root: Path) -> list[Row]:
    """Sidecars, which are no annotations, and test videos whose names begin otherwise."""
    phases = {
        "train_dataset/workflow_video_01": [(50, "TrocarPlacement"), (25, "Preparation")],
        "train_dataset/workflow_video_02": [(50, "TrocarPlacement"), (25, "Preparation")],
        "train_dataset/workflow_video_10": [(75, "Preparation")],
        "test_dataset/test_workflow_video_01": [(25, "TrocarPlacement"), (50, "Preparation")],
    }
    for name, labels in phases.items():
        video(root / f"{name}.mp4", 3)
        text(root / f"{name}.txt", "Frame\tPhase", *frame_lines(labels))
        text(root / f"{name}_timestamp.txt", "Frame\tPhase", "00:00:00.00\tTrocarPlacement")
        text(root / f"{name}_pred.txt", "Frame\tPhase", "0\tTrocarPlacement")
    train, test = "train_dataset/workflow_video_", "test_dataset/test_workflow_video_01.mp4"
    return [
        (f"{train}01.mp4", 0.0, 2.0, "TrocarPlacement", "workflow_video_01", "", "M2CAI16", "train"),
        (f"{train}01.mp4", 2.0, 3.0, "Preparation", "workflow_video_01", "", "M2CAI16", "train"),
        (f"{train}02.mp4", 0.0, 2.0, "TrocarPlacement", "workflow_video_02", "", "M2CAI16", "train"),
        (f"{train}02.mp4", 2.0, 3.0, "Preparation", "workflow_video_02", "", "M2CAI16", "train"),
        (f"{train}10.mp4", 0.0, 3.0, "Preparation", "workflow_video_10", "", "M2CAI16", "train"),
        (test, 0.0, 1.0, "TrocarPlacement", "test_workflow_video_01", "", "M2CAI16", "test"),
        (test, 1.0, 3.0, "Preparation", "test_workflow_video_01", "", "M2CAI16", "test"),
    ]


def autolaparo(root: Path) -> list[Row]:
    """Phases count from 1, and so do the rows, of which there is one a second."""
    for name, phases in {"01": "1127", "02": "1112", "11": "2221", "15": "7712"}.items():
        video(root / f"videos/{name}.mp4", 4)
        rows = [f"{second}  {phase}" for second, phase in enumerate(phases, start=1)]
        text(root / f"labels/label_{name}.txt", "Frame  Phase", *rows)
    first, ligament = "Preparation", "Dividing Ligament and Peritoneum"
    return [
        ("videos/01.mp4", 0.0, 2.0, first, "01", "", "AutoLaparo", "train"),
        ("videos/01.mp4", 2.0, 3.0, ligament, "01", "", "AutoLaparo", "train"),
        ("videos/01.mp4", 3.0, 4.0, "Washing", "01", "", "AutoLaparo", "train"),
        ("videos/02.mp4", 0.0, 3.0, first, "02", "", "AutoLaparo", "train"),
        ("videos/02.mp4", 3.0, 4.0, ligament, "02", "", "AutoLaparo", "train"),
        ("videos/11.mp4", 0.0, 3.0, ligament, "11", "", "AutoLaparo", "val"),
        ("videos/11.mp4", 3.0, 4.0, first, "11", "", "AutoLaparo", "val"),
        ("videos/15.mp4", 0.0, 2.0, "Washing", "15", "", "AutoLaparo", "test"),
        ("videos/15.mp4", 2.0, 3.0, first, "15", "", "AutoLaparo", "test"),
        ("videos/15.mp4", 3.0, 4.0, ligament, "15", "", "AutoLaparo", "test"),
    ]


def multibypass140(root: Path) -> list[Row]:
    """Milliseconds, and spans out of the body inside a phase. The folds are pickled; one of them would run a command."""
    centres = {
        "bern": ("BernBypass70", {"BBP01": "train", "BBP02": "train", "BBP03": "val", "BBP04": "test"}),
        "strasbourg": ("StrasBypass70", {"SBP01": "train", "SBP02": "test"}),
    }
    for centre, (name, splits) in centres.items():
        labels = root / f"labels/{centre}"
        for patient, split in splits.items():
            video(root / f"datasets/MultiBypass140/{name}/videos/{patient}.mp4", 4)
            phases = [
                {"start": 0, "end": 1320, "label_name": "preparation", "label_id": 0},
                {"start": 1320, "end": 4000, "label_name": "gastric_pouch_creation", "label_id": 1},
                {"start": 2000, "end": 3000, "label_name": "out_of_body", "label_id": 12},
                {"start": 3200, "end": 3400, "label_name": "severe_index", "label_id": 13},
            ]
            steps = [
                {"start": 0, "end": 2500, "label_name": "null_step", "label_id": 0},
                {"start": 2500, "end": 4000, "label_name": "trocar_placement", "label_id": 1},
            ]
            path = labels / f"labels_by70/{patient}.mp4.json"
            text(path, json.dumps({"phases": phases, "steps": steps}))
            frames = [{"Frame_id": f"{patient}_00000001", "Original_frame_id": 1, "Phase_gt": 0, "Step_gt": 0}]
            stem = "1fps_100_0" if split == "train" else "1fps_0"
            pickled = labels / f"labels_by70_splits/labels/{split}/{stem}.pickle"
            pickled.parent.mkdir(parents=True, exist_ok=True)
            known = pickle.loads(pickled.read_bytes()) if pickled.exists() else {}  # noqa: S301
            pickled.write_bytes(pickle.dumps({**known, patient: frames}))
    rows: list[Row] = []
    for patient, centre, split in [
        ("BBP01", "bern", "train"),
        ("BBP02", "bern", "train"),
        ("BBP03", "bern", "val"),
        ("BBP04", "bern", "test"),
        ("SBP01", "strasbourg", "train"),
        ("SBP02", "strasbourg", "test"),
    ]:
        name = "BernBypass70" if centre == "bern" else "StrasBypass70"
        path, last = f"datasets/MultiBypass140/{name}/videos/{patient}.mp4", (centre, f"MultiBypass140/{name}", split)
        rows += [
            (path, 0.0, 1.32, "preparation", patient, *last),
            (path, 1.32, 2.0, "gastric_pouch_creation", patient, *last),
            (path, 3.0, 4.0, "gastric_pouch_creation", patient, *last),
        ]
    return rows


def multibypass140_steps(root: Path) -> list[Row]:
    """Steps end where they like; the second out of the body lies in both."""
    table: list[Row] = []
    for path, start, *_, patient, centre, source, split in multibypass140(root):
        if start == 0.0:
            last = (patient, centre, source, split)
            table.append((path, 0.0, 2.0, "null_step", *last))
            table.append((path, 3.0, 4.0, "trocar_placement", *last))
    return table


def cataract101(root: Path) -> list[Row]:
    """Semicolons; only starts; nothing before the first one; rows out of order."""
    for case in (269, 270, 300, 301, 302):
        video(root / f"videos/case_{case}.mp4", 4)
    text(
        root / "videos.csv",
        "VideoID;Frames;FPS;Surgeon;Experience",
        *(f"{case};100;25;{case % 4 + 1};1" for case in (269, 270, 300, 301, 302)),
    )
    starts = dict.fromkeys((270, 300, 301, 302), "{0};25;1 {0};50;2") | {269: "{0};75;1 {0};10;1 {0};35;2"}
    rows = [row for case, pattern in sorted(starts.items()) for row in pattern.format(case).split()]
    text(root / "annotations.csv", "VideoID;FrameNo;Phase", *rows)
    text(root / "phases.csv", "Phase;Meaning", *(f"{number};Meaning {number}" for number in range(1, 11)))
    incision, viscous = "Incision", "Viscous agent injection"
    table: list[Row] = [
        ("videos/case_269.mp4", 0.4, 1.4, incision, "case_269", "", "Cataract-101", ""),
        ("videos/case_269.mp4", 1.4, 3.0, viscous, "case_269", "", "Cataract-101", ""),
        ("videos/case_269.mp4", 3.0, 4.0, incision, "case_269", "", "Cataract-101", ""),
    ]
    for case in (270, 300, 301, 302):
        table.append((f"videos/case_{case}.mp4", 1.0, 2.0, incision, f"case_{case}", "", "Cataract-101", ""))
        table.append((f"videos/case_{case}.mp4", 2.0, 4.0, viscous, f"case_{case}", "", "Cataract-101", ""))
    return table


def cataract1k(root: Path) -> list[Row]:
    """Frame rates that are wrong (240 instead of 60), a row without length, and the older name of a table."""
    header = "caseId,comment,frame,endFrame,sec,endSec"
    for case in (4687, 4863, 5063, 5100, 5200):
        video(root / f"videos/case_{case}.mp4", 3, fps=60)
        rate, name = (240, "_annotations") if case == 4863 else (60, "_annotations_phases")
        rows = [
            f"{case},Incision,0,{rate},0.0,1.0",
            f"{case},Viscoelastic,{rate},{rate},1.0,1.0",
            f'{case},"Irrigation/Aspiration",{rate * 3 // 2},{rate * 5 // 2},1.5,2.5',
        ]
        text(root / f"annotations/case_{case}/case_{case}{name}.csv", header, *rows)
        text(root / f"annotations/case_{case}/case_{case}_video.csv", "a,b,c,d,fps", f"0,0,0,0,{rate}")
    table: list[Row] = []
    for case in ("case_4687", "case_4863", "case_5063", "case_5100", "case_5200"):
        table.append((f"videos/{case}.mp4", 0.0, 1.0, "Incision", case, "", "Cataract-1K", ""))
        table.append((f"videos/{case}.mp4", 1.5, 2.5, "Irrigation/Aspiration", case, "", "Cataract-1K", ""))
    return table


def cat21(root: Path) -> list[Row]:
    """Names with the part behind them, frames from 1 or from 0, with a header or without, seconds without a label."""
    labels = [(25, "not_initialized"), (25, "Incision"), (50, "Rhexis")]
    video(root / "case_01_training.mp4", 4)
    text(root / "case_01_training.csv", *frame_lines(labels, separator=","))
    video(root / "case_02_training.mp4", 4)
    text(root / "case_02_training.csv", "Frame,Phase", *frame_lines(labels, first=1, separator=","))
    video(root / "case_18_validation.mp4", 4, fps=50)
    text(root / "case_18_validation.csv", *frame_lines([(100, "Rhexis"), (100, "Incision")], first=1, separator=","))
    return [
        ("case_01_training.mp4", 1.0, 2.0, "Incision", "case_01", "", "cat-21", "train"),
        ("case_01_training.mp4", 2.0, 4.0, "Rhexis", "case_01", "", "cat-21", "train"),
        ("case_02_training.mp4", 1.0, 2.0, "Incision", "case_02", "", "cat-21", "train"),
        ("case_02_training.mp4", 2.0, 4.0, "Rhexis", "case_02", "", "cat-21", "train"),
        ("case_18_validation.mp4", 0.0, 2.0, "Rhexis", "case_18", "", "cat-21", "test"),
        ("case_18_validation.mp4", 2.0, 4.0, "Incision", "case_18", "", "cat-21", "test"),
    ]


def picture_folder(parent: Path, names: Sequence[str]) -> None:
    parent.mkdir(parents=True, exist_ok=True)
    identity = sum(parent.name.encode()) % 256
    for number, name in enumerate(names):
        picture = number_picture(identity, number, WIDTH, HEIGHT)
        Image.fromarray(np.ascontiguousarray(picture)).save(parent / name, quality=95)


def cholect50(root: Path) -> list[Row]:
    """Folders of pictures; several triplets in one picture, the same one twice, and none (-1)."""
    names = {"17": "grasper,retract,gallbladder", "60": "hook,dissect,gallbladder"}
    rest = [0, 1.0, -1, -1, -1, -1, 2, 8, 1.0, -1, -1, -1, -1, 1]
    frames: dict[str, list[Any]] = {
        "0": [[-1, *rest]],
        "1": [[17, *rest]],
        "2": [[60, *rest], [17, *rest], [17, *rest]],
        "3": [[60, *rest], [17, *rest]],
        "4": [[60, *rest]],
    }
    for name in ("VID01", "VID02", "VID05", "VID92"):
        picture_folder(root / "videos" / name, [f"{number:06d}.png" for number in range(5)])
        tree = {"video": name, "fps": 1, "categories": {"triplet": names}, "annotations": frames}
        text(root / f"labels/{name}.json", json.dumps(tree))
    text(root / "label_mapping.txt", "# IVT, I, V, T", "17,0,1,0")
    retract, dissect = names["17"], names["60"]
    table: list[Row] = []
    for name, split in [("VID01", "train"), ("VID02", "train"), ("VID05", "val"), ("VID92", "test")]:
        table += [
            (f"videos/{name}", 0.0, 1.0, "", name, "", "CholecT50", split),
            (f"videos/{name}", 1.0, 2.0, retract, name, "", "CholecT50", split),
            (f"videos/{name}", 2.0, 4.0, f"{retract}|{dissect}", name, "", "CholecT50", split),
            (f"videos/{name}", 4.0, 5.0, dissect, name, "", "CholecT50", split),
        ]
    return table


def cholect45(root: Path) -> list[Row]:
    """Folders of pictures; 0 or 1 for each of 100 triplets, in order of their numbers; of three videos the folds say nothing."""
    names = ["grasper,retract,gallbladder", "hook,dissect,gallbladder", *(f"hook,verb{n},target" for n in range(98))]
    text(root / "dict/triplet.txt", *(f"{place}:{name}" for place, name in enumerate(names)))
    shown = [(), (0,), (0, 1), (0, 1), (1,)]
    rows = [
        ",".join(map(str, (frame, *(int(triplet in there) for triplet in range(100)))))
        for frame, there in enumerate(shown)
    ]
    table: list[Row] = []
    for name in ("VID01", "VID02", "VID79"):
        picture_folder(root / "data" / name, [f"{number:06d}.png" for number in range(5)])
        text(root / f"triplet/{name}.txt", *rows)
        pieces = [(0, 1, ""), (1, 2, names[0]), (2, 4, f"{names[0]}|{names[1]}"), (4, 5, names[1])]
        table += [(f"data/{name}", float(a), float(b), label, name, "", "CholecT45", "") for a, b, label in pieces]
    return table


def endoscapes(root: Path) -> list[Row]:
    """All videos' pictures in one folder a split; a judged picture, then two without a label; shares of three surgeons."""
    third, table = 1 / 3, []
    judged: list[tuple[list[float], str]] = [
        ([third, 0.0, third], ""), ([1.0, 2 * third, 0.0], "C1|C2"), ([2 * third, third, 1.0], "C1|C3"),
    ]  # fmt: skip
    for split, names in {"train": ("2", "10"), "val": ("121",), "test": ("162",)}.items():
        images = []
        for name in names:
            pictures = [f"{name}_{975 + 25 * second}.jpg" for second in range(9)]  # 1000 before 975 by letters
            picture_folder(root / split, pictures)
            for second, picture in enumerate(pictures):
                shares, label = judged[second // 3]
                images.append({"file_name": picture, "ds": shares, "video_id": int(name), "id": len(images)})
                images[-1]["is_ds_keyframe"] = second % 3 == 0
                if second % 3 == 0:
                    place = (f"{split}/{name}_*.jpg", float(second), second + 1.0)
                    table.append((*place, label, name, "", "Endoscapes", split))
        for file, kept in {
            "annotation_ds_coco.json": [image for image in images if image["is_ds_keyframe"]],
            "annotation_coco_vid.json": images,
        }.items():
            text(root / split / file, json.dumps({"images": kept[::-1], "annotations": [], "categories": []}))
    return table


def sar_rarp50(root: Path) -> list[Row]:
    """Inclusive ends, an operation in two folders, and one folder with the table of every sixth frame alone."""
    for name in ("train1/video_01", "train1/video_11_1", "train1/video_11_2", "train2/video_20", "test/video_41"):
        video(root / name / "video_left.avi", 2, fps=60)
        text(root / name / "action_continues.txt", "0 59 0", "60 119 3")
        text(root / name / "action_discrete.txt", "0,0", "6,0")
        (root / name / "segmentation").mkdir()
    (root / "train2/video_20/action_continues.txt").unlink()
    text(
        root / "train2/video_20/action_discrete.txt",
        *(f"{frame},{3 if frame < 90 else 0}" for frame in range(0, 120, 6)),
    )
    other, push = "other", "pushing the needle through the tissue"
    return [
        ("train1/video_01/video_left.avi", 0.0, 1.0, other, "video_01", "", "SAR-RARP50/train1", "train"),
        ("train1/video_01/video_left.avi", 1.0, 2.0, push, "video_01", "", "SAR-RARP50/train1", "train"),
        ("train1/video_11_1/video_left.avi", 0.0, 1.0, other, "video_11", "", "SAR-RARP50/train1", "train"),
        ("train1/video_11_1/video_left.avi", 1.0, 2.0, push, "video_11", "", "SAR-RARP50/train1", "train"),
        ("train1/video_11_2/video_left.avi", 0.0, 1.0, other, "video_11", "", "SAR-RARP50/train1", "train"),
        ("train1/video_11_2/video_left.avi", 1.0, 2.0, push, "video_11", "", "SAR-RARP50/train1", "train"),
        ("train2/video_20/video_left.avi", 0.0, 1.5, push, "video_20", "", "SAR-RARP50/train2", "train"),
        ("train2/video_20/video_left.avi", 1.5, 2.0, other, "video_20", "", "SAR-RARP50/train2", "train"),
        ("test/video_41/video_left.avi", 0.0, 1.0, other, "video_41", "", "SAR-RARP50/test", "test"),
        ("test/video_41/video_left.avi", 1.0, 2.0, push, "video_41", "", "SAR-RARP50/test", "test"),
    ]


def jigsaws(root: Path) -> list[Row]:
    """Two cameras, inclusive ends, blanks at the end of a line, and a video without a transcription."""
    for task in ("Suturing", "Needle_Passing", "Knot_Tying"):
        users = "BCDE" if task == "Suturing" else "B"
        for user in users:
            for camera in (1, 2):
                video(root / f"{task}/video/{task}_{user}001_capture{camera}.avi", 3, fps=30)
            text(root / f"{task}/transcriptions/{task}_{user}001.txt", "15 44 G1 ", "45 89 G11 ")
            text(root / f"{task}/kinematics/AllGestures/{task}_{user}001.txt", "0.0 0.1")
        text(root / f"{task}/meta_file_{task}.txt", f"{task}_B001 E 30 4 5 5 5 5 6")
        text(root / f"{task}/readme.txt", "")
    video(root / "Needle_Passing/video/Needle_Passing_I002_capture1.avi", 1, fps=30)
    table: list[Row] = []
    for task, user in [*(("Suturing", user) for user in "BCDE"), ("Needle_Passing", "B"), ("Knot_Tying", "B")]:
        for camera in (1, 2):
            path, source = f"{task}/video/{task}_{user}001_capture{camera}.avi", f"JIGSAWS/{task}"
            table.append((path, 0.5, 1.5, "G1", user, "", source, ""))
            table.append((path, 1.5, 3.0, "G11", user, "", source, ""))
    return table


def aixsuture(root: Path) -> list[Row]:
    """Three investigators for each video, whose average decides; a name and its reverse are one student."""
    book = Workbook()
    sheet = book.active
    assert sheet is not None
    items = [f"ITEM {number}" for number in range(8)]
    sheet.append(["INVESTIGATOR", "STUDENT", "GROUP", "TIME", "VIDEO", "SUTURES", *items, "GLOBA_RATING_SCORE"])
    ratings = {
        ("1", "PRE", "D94Z"): (8, 15, 23),  # average 15.33
        ("1", "POST", "Z49D"): (15, 16, 17),  # 16
        ("2", "PRE", "A11B"): (24, 24, 24),
        ("2", "POST", "B11A"): (23, 23, 25),  # 23.67
        ("3", "PRE", "C22D"): (10, 10, 10),
        ("4", "PRE", "E33F"): (30, 40, 38),
        ("5", "PRE", "G44H"): (9, 9, 9),
        ("5", "POST", "H44G"): (20, 20, 20),
        ("6", "PRE", "I55J"): (33, 33, 33),
    }
    for investigator in range(3):
        for (student, time, name), scores in ratings.items():
            score = scores[investigator]
            sheet.append(["ABC"[investigator], int(student), "A", time, name, 5, *[score // 8] * 8, score])
    root.mkdir(parents=True, exist_ok=True)
    book.save(root / "OSATS.xlsx")
    for _, _, name in ratings:
        video(root / f"{name}.mp4", 2)
    return [
        ("D94Z.mp4", None, None, "novice", "1", "", "AIxSuture", ""),
        ("Z49D.mp4", None, None, "intermediate", "1", "", "AIxSuture", ""),
        ("A11B.mp4", None, None, "proficient", "2", "", "AIxSuture", ""),
        ("B11A.mp4", None, None, "intermediate", "2", "", "AIxSuture", ""),
        ("C22D.mp4", None, None, "novice", "3", "", "AIxSuture", ""),
        ("E33F.mp4", None, None, "proficient", "4", "", "AIxSuture", ""),
        ("G44H.mp4", None, None, "novice", "5", "", "AIxSuture", ""),
        ("H44G.mp4", None, None, "intermediate", "5", "", "AIxSuture", ""),
        ("I55J.mp4", None, None, "proficient", "6", "", "AIxSuture", ""),
    ]


def hyperkvasir(root: Path) -> list[Row]:
    """Spaces in names, the same finding in both tracts, and findings that are no class."""
    lower, upper = "labeled-videos/lower-gi-tract/", "labeled-videos/upper-gi-tract/"
    names = [
        f"{lower}pathological-findings/polyps/Polypp 5.avi",
        f"{lower}pathological-findings/polyps/3e9c.avi",
        f"{lower}pathological-findings/polyps/77ab.avi",
        f"{upper}anatomical-landmarks/z-line/0a1b.avi",
        f"{upper}anatomical-landmarks/z-line/5d5d.avi",
        f"{upper}pathological-findings/polyps/9f00.avi",
        f"{upper}anatomical-landmarks/retroflex-stomach/1234.avi",
    ]
    for name in names:
        video(root / name, 2)
    text(root / "labeled-videos/video-labels.csv", "Video file,Finding", "3e9c,Polyps")
    return [
        (names[1], None, None, "lower-polyps", "3e9c", "", "HyperKvasir/lower-gi-tract", ""),
        (names[2], None, None, "lower-polyps", "77ab", "", "HyperKvasir/lower-gi-tract", ""),
        (names[0], None, None, "lower-polyps", "Polypp 5", "", "HyperKvasir/lower-gi-tract", ""),
        (names[3], None, None, "upper-z-line", "0a1b", "", "HyperKvasir/upper-gi-tract", ""),
        (names[4], None, None, "upper-z-line", "5d5d", "", "HyperKvasir/upper-gi-tract", ""),
        (names[5], None, None, "upper-polyps", "9f00", "", "HyperKvasir/upper-gi-tract", ""),
    ]


def kvasir_capsule(root: Path) -> list[Row]:
    """A row for each box, gaps between frames, class names with spaces, and a video that is in both official splits."""
    header = "filename;video_id;frame_number;finding_category;finding_class;x1;y1;x2;y2;x3;y3;x4;y4"
    labels = {
        "04a78ef0": [("Ileocecal valve", range(30)), ("Polyp", range(40, 70))],
        "131368cc": [("Ileocecal valve", range(30, 60))],
        "2fc3db47": [("Polyp", range(30)), ("Ileocecal valve", range(30, 60))],
        "3ab4a06c": [("Polyp", range(60, 90))],
    }
    splits: dict[int, list[str]] = {0: [], 1: []}
    rows = []
    for name, runs in labels.items():
        video(root / f"labelled_videos/{name}.mp4", 3, fps=30)
        for label, frames in runs:
            for frame in frames:
                picture = f"{name}_{frame}.jpg"
                rows += [f"{picture};{name};{frame};Anatomy;{label};1;1;2;1;2;2;1;2"] * (2 if label == "Polyp" else 1)
                is_first = name == "131368cc" or (name == "04a78ef0" and frame < 20) or (name == "2fc3db47")
                splits[0 if is_first else 1].append(f"{picture},{label}")
    text(root / "metadata.csv", header, *rows)
    for number, split in splits.items():
        text(root / f"official_splits/split_{number}.csv", "filename,label", *split)
    valve, polyp, source = "Ileocecal valve", "Polyp", "Kvasir-Capsule"
    return [
        ("labelled_videos/04a78ef0.mp4", 0.0, 20 / 30, valve, "04a78ef0", "", source, "train"),
        ("labelled_videos/04a78ef0.mp4", 20 / 30, 1.0, valve, "04a78ef0", "", source, "test"),
        ("labelled_videos/04a78ef0.mp4", 40 / 30, 70 / 30, polyp, "04a78ef0", "", source, "test"),
        ("labelled_videos/131368cc.mp4", 1.0, 2.0, valve, "131368cc", "", source, "train"),
        ("labelled_videos/2fc3db47.mp4", 0.0, 1.0, polyp, "2fc3db47", "", source, "train"),
        ("labelled_videos/2fc3db47.mp4", 1.0, 2.0, valve, "2fc3db47", "", source, "train"),
        ("labelled_videos/3ab4a06c.mp4", 2.0, 3.0, polyp, "3ab4a06c", "", source, "test"),
    ]


def lapgyn(root: Path) -> list[Row]:
    """Clips that do not show the event lie beside those that do, and are no class."""
    table: list[Row] = []
    for event in ("AbdominalAccess", "Bleeding", "Coag-Transection", "NeedlePassing"):
        for part, cases in (("Train", (1, 2)), ("Test", (7,))):
            for case in cases:
                for label in (event, "Rest"):
                    video(root / f"{event}/{part}/{label}/case_{case}_{event}_{10 * case}.mp4", 1)
                path = f"{event}/{part}/{event}/case_{case}_{event}_{10 * case}.mp4"
                split, source = part.lower(), f"LapGyn events/{event}"
                table.append((path, None, None, event, f"case_{case}", "", source, split))
    return table


def ldpolypvideo(root: Path) -> list[Row]:
    """Pictures, numbered without leading zeros; several polyps; another folder without annotations beside them."""
    counts = [0] * 8 + [1] * 8 + [2] * 4 + [0] * 5
    for part, names in (("TrainValid", "1 2 10"), ("Test", "101")):
        for name in names.split():
            picture_folder(root / part / "Images" / name, [f"{number}.jpg" for number in range(1, 26)])
            for number, count in enumerate(counts, start=1):
                text(root / part / "Annotations" / name / f"{number}.txt", str(count), *["10 10 50 50"] * count)
    (root / "videos_without_boxes").mkdir()
    table: list[Row] = []
    for part, name, split in [("TrainValid", n, "train") for n in ("1", "2", "10")] + [("Test", "101", "test")]:
        path, source = f"{part}/Images/{name}", f"LDPolypVideo/{part}"
        table += [
            (path, 0.0, 0.32, "no_polyp", name, "", source, split),
            (path, 0.32, 0.8, "polyp", name, "", source, split),
            (path, 0.8, 1.0, "no_polyp", name, "", source, split),
        ]
    return table


def colonoscopic(root: Path) -> list[Row]:
    """Each lesion in two lights; a name without a number; names with a space."""
    table: list[Row] = []
    for label, numbers in (
        ("Adenoma", ("(2)", "(36)")),
        ("Hyperplasic", ("(1)", "(2)", "")),
        ("Serrated", (" (1)", " (2)")),
    ):
        for light in ("NBI", "WL"):
            for number in numbers:
                video(root / label / f"{light}{number}.mp4", 1)
                lesion = f"{label} {number.strip(' ()') or 0}"
                table.append(
                    (f"{label}/{light}{number}.mp4", None, None, label, lesion, "", f"Colonoscopic/{light}", "")
                )
    order = ["Adenoma/NBI(2)", "Adenoma/NBI(36)", "Adenoma/WL(2)", "Adenoma/WL(36)"]
    assert [row[0] for row in table[:4]] == [f"{name}.mp4" for name in order]
    return table


def surgicalactions160(root: Path) -> list[Row]:
    table: list[Row] = []
    for folder, label in (("01_abdominal_access", "abdominal_access"), ("02_injection", "injection")):
        for number in ("01", "02", "03", "04", "05"):
            path = f"{folder}/{folder[:2]}_{number}.mp4"
            video(root / path, 1)
            table.append((path, None, None, label, f"{folder[:2]}_{number}", "", "SurgicalActions160", ""))
    text(root / "README.txt", "SurgicalActions160")
    return table


def pitvis(root: Path) -> list[Row]:
    """Steps count from 1 to 14, of which 11, 13 and -1 are no class."""
    steps = {"01": (-1, 1, 1, 14), "02": (14, 11, 1, 13), "03": (1, 14, 14, 14), "04": (1, 1, 14, 14)}
    for name, numbers in steps.items():
        video(root / f"video_{name}.mp4", 4)
        rows = [f"{int(name)},{second},{step},2,-1" for second, step in enumerate(numbers)]
        text(root / f"annotations_{name}.csv", "int_video,int_time,int_step,int_instrument1,int_instrument2", *rows)
    text(root / "map_steps.csv", "int_step,str_step", "-1,out_of_patient", "1,nasal_corridor_creation")
    first, last = "nasal_corridor_creation", "debris_clearance"
    return [
        ("video_01.mp4", 1.0, 3.0, first, "video_01", "", "PitVis", "train"),
        ("video_01.mp4", 3.0, 4.0, last, "video_01", "", "PitVis", "train"),
        ("video_02.mp4", 0.0, 1.0, last, "video_02", "", "PitVis", "test"),
        ("video_02.mp4", 2.0, 3.0, first, "video_02", "", "PitVis", "test"),
        ("video_03.mp4", 0.0, 1.0, first, "video_03", "", "PitVis", "train"),
        ("video_03.mp4", 1.0, 4.0, last, "video_03", "", "PitVis", "train"),
        ("video_04.mp4", 0.0, 2.0, first, "video_04", "", "PitVis", "train"),
        ("video_04.mp4", 2.0, 4.0, last, "video_04", "", "PitVis", "train"),
    ]


# Settings of a protocol that is done in seconds.
SMALL = [
    "segments=2",
    "crops=1",
    "epochs=2",
    "train_views=1",
    "learning_rates=[1e-3]",
    "weight_decays=[0.1]",
    "batch=8",
]
FIXTURES: dict[str, Callable[[Path], list[Row]]] = {
    "aixsuture": aixsuture,
    "autolaparo": autolaparo,
    "cat21": cat21,
    "cataract101": cataract101,
    "cataract1k": cataract1k,
    "cholec80": cholec80,
    "cholec80_tools": cholec80_tools,
    "cholect45": cholect45,
    "cholect50": cholect50,
    "colonoscopic": colonoscopic,
    "endoscapes": endoscapes,
    "hyperkvasir": hyperkvasir,
    "jigsaws": jigsaws,
    "kvasir_capsule": kvasir_capsule,
    "lapgyn": lapgyn,
    "ldpolypvideo": ldpolypvideo,
    "m2cai16": m2cai16,
    "multibypass140": multibypass140,
    "multibypass140_steps": multibypass140_steps,
    "pitvis": pitvis,
    "sar_rarp50": sar_rarp50,
    "surgicalactions160": surgicalactions160,
}
