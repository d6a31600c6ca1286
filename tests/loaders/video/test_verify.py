"""Videos whose flags, times or bytes are not what they seem: the true picture, or refused with the reason."""

from __future__ import annotations

import shutil
import struct
import subprocess
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import clips
import formats
import numpy as np
import pytest

from trocar.engine.curate.corpus_report import corpus_report
from trocar.loaders.corpus.corpus import Corpus, CorpusError
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.video import verify
from trocar.loaders.video.decode import DecodeCount, WindowDecoder
from trocar.loaders.video.picture_type import intra_check
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.verify import verify_pictures
from trocar.loaders.video.video import VideoError, VideoFacts
from trocar.loaders.video.window import WindowReader


def check_every_picture(path: Path) -> VideoFacts:
    """Every frame that the index has, alone and in random order, is plain decoding's; returns the facts."""
    facts, gops = probe_video(path)
    expected = formats.plain_digests(facts)
    found = formats.in_random_order(facts, gops, seed=0)
    assert {pts: digest for pts, digest in found if expected.get(pts) != digest} == {}
    assert len({pts for pts, _ in found}) == facts.frames
    return facts


@pytest.mark.parametrize("codec", ["flv", "msmpeg4", "mpeg4", "wmv1"])
def test_an_avi_that_lost_its_index(tmp_path, codec):
    """As a recorder without power leaves it: FFmpeg then takes every packet for a keyframe."""
    clips.write_numbered(tmp_path / "whole.avi", 60, codec=codec, gop=12)
    data = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(data[: data.index(b"idx1") * 85 // 100])
    facts = check_every_picture(tmp_path / "a.avi")
    _, gops = probe_video(tmp_path / "a.avi")
    assert 24 < facts.frames < 60
    kept = gops.first_frame[gops.clean].tolist()
    assert kept == [0, 12, 24, 36, 48][: len(kept)]
    assert len(kept) > 2
    assert "truncated" in facts.health
    assert codec == "mpeg4" or "flagged as keyframes, but predicted from others" in facts.health


@pytest.mark.parametrize(("codec", "b_frames"), [("libx264", 2), ("libx265", 2), ("mpeg4", 0), ("mpeg2video", 2)])
def test_an_mp4_without_its_table_of_keyframes(tmp_path, codec, b_frames):
    """Without `stss` every sample counts as a keyframe (ISO/IEC 14496-12, 8.6.2)."""
    clips.write_numbered(tmp_path / "whole.mp4", 60, codec=codec, gop=12, b_frames=b_frames)
    facts, gops = probe_video(tmp_path / "whole.mp4")
    (tmp_path / "a.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes().replace(b"stss", b"free"))
    without = check_every_picture(tmp_path / "a.mp4")
    assert without.frames == facts.frames == 60
    if codec in ("libx265", "mpeg4"):  # of the other two FFmpeg itself looks into the packets
        assert without.health == "flagged as keyframes, but predicted from others: 55 packets"
    assert probe_video(tmp_path / "a.mp4")[1].first_frame.tolist() == gops.first_frame.tolist()


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_keyframe_flags_of_newer_codecs_are_checked(tmp_path, codec):
    clips.write_numbered(tmp_path / "whole.mkv", 48, codec=codec, gop=12)
    facts, gops = probe_video(tmp_path / "whole.mkv")
    clips.remux(
        tmp_path / "whole.mkv", tmp_path / "a.mkv", change=lambda _, packet: setattr(packet, "is_keyframe", True)
    )
    assert check_every_picture(tmp_path / "a.mkv").frames == facts.frames
    assert probe_video(tmp_path / "a.mkv")[1].first_frame.tolist() == gops.first_frame.tolist() == [0, 12, 24, 36]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_keyframes_of_av1_by_their_own_headers(tmp_path, name):
    options = {"preset": "12", "svtav1-params": "lp=1:keyint=12"}
    clips.write_numbered(tmp_path / name, 48, codec="libsvtav1", gop=12, options=options)
    with av.open(str(tmp_path / name)) as container:
        stream = container.streams.video[0]
        is_key = intra_check("av1", stream.codec_context.extradata or b"")
        assert is_key is not None
        told = [(packet.is_keyframe, is_key(memoryview(packet))) for packet in container.demux(stream) if packet.size]
    assert [flagged for flagged, _ in told] == [found for _, found in told]
    assert sum(found for _, found in told) == 4


def test_av1_as_encoders_make_it(tmp_path):
    """libdav1d learns when it is opened what it may skip; begun at an unwanted picture it returned no other."""
    options = {"preset": "10", "crf": "35", "svtav1-params": "lp=1"}
    clips.write_numbered(tmp_path / "a.mp4", 150, codec="libsvtav1", gop=150, options=options)
    assert check_every_picture(tmp_path / "a.mp4").frames == 150


def test_the_first_gop_of_a_program_stream(tmp_path):
    clips.write_numbered(tmp_path / "a.mpg", 60, codec="mpeg2video", gop=12, b_frames=2)
    facts, gops = probe_video(tmp_path / "a.mpg")
    with closing(WindowReader(facts)) as reader, closing(WindowDecoder(facts)) as decoder:
        for number in (30, 5, 0, 11, 59):
            ((_, frame),) = decoder.frames(reader.window(np.array([number]), gops), DecodeCount())
            assert clips.read_number(frame.to_ndarray(format="rgb24"))[1] == number


def test_mpeg2_in_an_avi_without_b_frames(tmp_path):
    clips.write_numbered(tmp_path / "a.avi", 40, codec="mpeg2video", gop=1)
    assert check_every_picture(tmp_path / "a.avi").health == "ok"


def test_recordings_that_share_timestamps(tmp_path):
    """Two recordings, one after the other, whose last and first pictures claim the same moments: those are left out, no more."""
    clips.write_numbered(tmp_path / "a.ts", 50, gop=20, b_frames=2)
    clips.write_numbered(tmp_path / "b.ts", 50, gop=12, b_frames=2, first_number=50, first_tick=48)
    with open(tmp_path / "a.ts", "ab") as file:
        file.write((tmp_path / "b.ts").read_bytes())
    facts = check_every_picture(tmp_path / "a.ts")
    assert 93 <= facts.frames < 98
    assert "repeated timestamps, not counted as frames" in facts.health


@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_sound_that_is_longer_than_the_pictures_is_no_damage(tmp_path, name):
    with av.open(str(tmp_path / name), "w") as container:
        stream, sound = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=8000, layout="mono")
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(clips.number_picture(0, number, 96, 64), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for second in range(8):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts, silence.time_base = 8000, 8000 * second, Fraction(1, 8000)
            container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    assert probe_video(tmp_path / name)[0].health == "ok"
    if name == "a.mkv":  # a copy that broke off
        clips.write_numbered(tmp_path / "long.mkv", 500, gop=12, audio=True)
        data = (tmp_path / "long.mkv").read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        assert "truncated" in probe_video(tmp_path / name)[0].health


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "h264"), ("libx265", "hevc")])
def test_a_stream_without_timestamps(tmp_path, codec, suffix):
    """A remux guesses its times, and wrong; re-encoding, which the refusal advises, does not."""
    path = tmp_path / f"stream.{suffix}"
    clips.write_numbered(path, 60, codec=codec, gop=30, b_frames=3)
    with pytest.raises(
        VideoError, match=r"a remux would guess it wrong; re-encode it, e\.g\. ffmpeg -i IN -c:v libx264 OUT\.mp4"
    ):
        probe_video(path)
    for name in ("remuxed.mp4", "remuxed.mkv"):
        with av.open(str(path)) as source, av.open(str(tmp_path / name), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for index, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                packet.pts, packet.dts, packet.duration = index, index, 1
                target.mux(packet)
        with pytest.raises(VideoError, match=r"its pictures come in another order than their timestamps.*re-encode"):
            probe_video(tmp_path / name)
    fixed = tmp_path / "fixed.mp4"
    if shutil.which("ffmpeg"):
        subprocess.run(["ffmpeg", "-v", "error", "-i", str(path), "-c:v", "libx264", str(fixed)], check=True)
    else:  # what the command does
        with av.open(str(path)) as source:
            pictures = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
        clips.write_pictures(fixed, pictures)
    facts, gops = probe_video(fixed)
    assert (facts.frames, facts.health) == (60, "ok")
    with closing(WindowReader(facts)) as reader, closing(WindowDecoder(facts)) as decoder:
        shown = decoder.frames(reader.window(np.arange(60), gops), DecodeCount())
        assert [clips.read_number(frame.to_ndarray(format="rgb24"))[1] for _, frame in shown] == list(range(60))


def overwrite_slices(path: Path, target: Path) -> None:
    """The payloads of an MP4's packets behind their NAL headers made noise, as encryption leaves them."""
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(0)
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            at, end = packet.pos or 0, (packet.pos or 0) + packet.size
            while packet.size and at < end:
                (length,) = struct.unpack(">I", data[at : at + 4])
                if data[at + 4] & 31 in (1, 5):
                    data[at + 12 : at + 4 + length] = rng.bytes(max(length - 8, 0))
                at += 4 + length
    target.write_bytes(data)


def test_encrypted_pictures_are_refused(tmp_path):
    clips.write_numbered(tmp_path / "clear.mp4", 48, gop=12)
    overwrite_slices(tmp_path / "clear.mp4", tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=r"no picture of it decodes, as in encrypted files .*decrypt it"):
        probe_video(tmp_path / "a.mp4", content_box=False)
    with pytest.raises(CorpusError, match="none of 1 files can be used"):
        index_corpus([tmp_path / "a.mp4"], tmp_path / "corpus", progress=False)


def test_rare_clean_starts_are_said_with_the_way_out(tmp_path):
    options = {"x264-params": "intra-refresh=1:keyint=25:bframes=0"}
    clips.write_numbered(tmp_path / "refresh.mp4", 450, width=64, height=48, options=options)
    clips.write_numbered(tmp_path / "usual.mp4", 450, width=64, height=48, gop=250)
    index_corpus([tmp_path], tmp_path / "corpus", workers=1, progress=False)
    corpus = Corpus.open(tmp_path / "corpus")
    health = [corpus.video(row).facts.health for row in range(2)]
    assert health == [
        "rare clean starts: 225 packets are decoded before a random frame; convert it with `trocar pack`",
        "ok",
    ]
    report = corpus_report(corpus)
    assert f"`trocar pack {tmp_path / 'corpus'} --out PROXIES`" in report
    assert "refresh.mp4" in report
    assert "usual.mp4" not in report


def test_verify_quarantines_what_differs(tmp_path, monkeypatch):
    """Were a keyframe flag believed that is not true, the comparison would find it."""
    clips.write_numbered(tmp_path / "a.mov", 26, codec="rpza", pix_fmt="rgb555le")
    facts, gops = probe_video(tmp_path / "a.mov")
    assert gops.clean.tolist() == [True] + [False] * 25
    assert verify_pictures(facts, gops, everywhere=True) == ""
    monkeypatch.setattr("trocar.loaders.video.packets.DecodingProof.clean_starts", lambda self: [True] * 26)
    with pytest.raises(VideoError, match=r"frame \d+, .* is another picture than plain decoding from the beginning"):
        probe_video(tmp_path / "a.mov")
    probe_video(tmp_path / "a.mov", verify=False)


def test_verify_is_for_rare_kinds_unless_asked_for(tmp_path, monkeypatch):
    compared: list[tuple[str, bool]] = []

    def compare(facts: VideoFacts, gops: Any, everywhere: bool) -> str:
        compared.append((Path(facts.path).name, everywhere))
        return ""

    monkeypatch.setattr("trocar.loaders.video.probe.verify_pictures", compare)
    (tmp_path / "videos").mkdir()
    clips.write_numbered(tmp_path / "videos" / "usual.mp4", 24)
    assert formats.write(tmp_path / "videos" / "rare.avi", "cinepak", "rgb24")
    for option, expected in [
        (None, [("rare.avi", False)]),
        (True, [("rare.avi", True), ("usual.mp4", True)]),
        (True, []),  # known already
        (False, []),
    ]:
        compared.clear()
        index_corpus([tmp_path / "videos"], tmp_path / "corpus", workers=1, progress=False, verify=option)
        assert compared == expected, option


def test_pictures_beyond_the_first_thousand_are_compared_when_asked_for(tmp_path, monkeypatch):
    clips.write_numbered(tmp_path / "a.mp4", 60, gop=12)
    facts, gops = probe_video(tmp_path / "a.mp4")
    monkeypatch.setattr(verify, "FRAMES_FROM_THE_START", 5)
    asked: list[int] = []
    window = WindowReader.window

    def remember(self: WindowReader, frames: Any, gops: Any) -> Any:
        asked.extend(frames.tolist())
        return window(self, frames, gops)

    monkeypatch.setattr(WindowReader, "window", remember)
    verify_pictures(facts, gops, everywhere=False)
    assert max(asked) < 5
    verify_pictures(facts, gops, everywhere=True)
    assert max(asked) > 5
