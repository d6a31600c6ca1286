"""What a reading thread keeps open from span to span, and that it makes no difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import clips
import numpy as np
import pytest

from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.decode.batch import LoaderCount
from trocar.loaders.decode.recipe import Recipe
from trocar.loaders.decode.span import Cut, SpanReader
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.video.decode import decoder_key

WHOLE = CropRecipe((1, 1), (4 / 3, 4 / 3), 0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three alike, as proxies are; one of another size; one whose container puts parameter sets into packets."""
    folder = tmp_path_factory.mktemp("span")
    for row in range(3):
        clips.write_numbered(folder / f"{row}.mp4", 60, video_id=row, gop=10)
    clips.write_numbered(folder / "3.mp4", 60, video_id=3, gop=10, width=160, height=120)
    clips.write_numbered(folder / "4.ts", 60, video_id=4, gop=10)
    index_corpus([folder], folder / "index", workers=1, content_box=False, progress=False)
    return Corpus.open(folder / "index")


def cuts(reader: SpanReader, draws: range) -> list[Cut]:
    return [reader.cut(reader.recipe.clips(draw, (0,), 0), LoaderCount()) for draw in draws]


def test_videos_alike_share_a_decoder(corpus: Corpus) -> None:
    sampler = Sampler(corpus.frames, num_frames=4, stride=2, seed=7)
    reader = SpanReader(Recipe(corpus, sampler, WHOLE, 96))
    output = np.zeros((1, 4, 96, 96, 3), np.uint8)
    seen = set()
    for draw in range(40):
        result = reader.read(draw, (0,), output)
        (clip,) = result.clips
        seen.add(Path(corpus.video_path(clip.video)).stem)
        numbers = [clips.read_number(picture) for picture in output[0]]
        assert numbers == [(int(Path(corpus.video_path(clip.video)).stem), frame) for frame in clip.frames]
        assert not result.count.failures
    assert len(seen) == 5
    assert len(reader._decoders._opened) == 3
    assert len(reader._resizers) == 1
    reader.close()


def test_parameter_sets_among_packets_have_a_decoder_of_their_own(corpus: Corpus) -> None:
    reader = SpanReader(Recipe(corpus, Sampler(corpus.frames, num_frames=4, stride=2, seed=7), WHOLE, 96))
    by_name = {Path(cut.window.video.path).name: cut.window for cut in cuts(reader, range(40))}
    reader.close()
    keys = {name: decoder_key(window) for name, window in by_name.items()}
    assert keys["0.mp4"] == keys["1.mp4"] == keys["2.mp4"]
    assert len(set(keys.values())) == 3
    window = by_name["0.mp4"]
    sets = bytes([0, 0, 0, 4, 0x67, 1, 2, 3])  # a sequence parameter set's head
    for first in (sets + bytes(window.payloads[0]), b"no slices"):
        doctored = replace(window, payloads=[memoryview(first), *window.payloads[1:]])
        assert decoder_key(doctored) == (window.video.path, window.video.stream_index)
