"""What a report counts at boundaries, against cases worked by hand."""

from __future__ import annotations

import numpy as np

from trocar.judge.workflow.frame_metrics import VideoResult
from trocar.judge.workflow.report_pictures import boundaries, boundary_table, transitions


def _video(name: str, truth: list[int], predicted: list[int]) -> VideoResult:
    return VideoResult(name, name, np.array(truth), np.eye(3)[predicted])


def test_boundaries_and_transitions_by_hand() -> None:
    early = _video("early", [0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1, 0, 1])
    late = _video("late", [0, 0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1])
    assert [(b.frame, b.before, b.after, b.error_frames) for b in boundaries(early)] == [(3, 0, 1, -1), (6, 1, 2, None)]
    table = boundary_table([early, late], ("look", "cut", "close"), 1.0)
    assert table.rows == [
        ("cut", "2", "0", "1 s", "+0 s"),  # a frame early and a frame late
        ("close", "1", "1", "", ""),
        ("changes predicted beyond the true ones", "1", "", "", ""),
    ]
    quarters = boundary_table([early], ("look", "cut", "close"), 4.0)
    assert quarters.rows[0] == ("cut", "1", "0", "0 s", "+0 s")  # no "-0 s"
    assert transitions([early.truth, late.truth], 3).tolist() == [[0, 2, 0], [0, 0, 1], [0, 0, 0]]
