"""What differs between two settings is named with both values, however deep it stands."""

from __future__ import annotations

from trocar.loaders.corpus.changed_settings import changed_settings


def test_each_value_that_differs_is_named_with_both() -> None:
    was = {"encoder": "a" * 64, "clips": {"stride": 2, "fps": None}, "seed": 0, "gone": "x"}
    now = {"encoder": "b" * 64, "clips": {"stride": 4, "fps": None}, "seed": 0, "new": [1, 2]}
    assert changed_settings(was, was) == []
    assert changed_settings(was, now) == [
        "another encoder",
        "clips.stride was 2, is 4",
        'gone was "x", is not set',
        "new was not set, is [1, 2]",
    ]
    assert changed_settings({"encoder": "a" * 64}, {"encoder": None}) == [f'encoder was "{"a" * 64}", is not set']
