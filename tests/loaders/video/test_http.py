"""Windows over HTTP: one ranged request each, the same bytes as from the disk, and changes are noticed."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import clips
import fsspec
import numpy as np
import pytest

from trocar.loaders.video.decode import DecodeCount, WindowDecoder
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.video import VideoError
from trocar.loaders.video.window import WindowReader


@dataclass
class Site:
    """Files by name, each with its version, and the ranges that were asked for."""

    url: str = ""
    files: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    ranges: list[tuple[int, int]] = field(default_factory=list)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            """Tests say what goes wrong by themselves."""

        def _answer(self, with_body: bool) -> None:
            if self.path[1:] not in site.files:
                self.send_error(404)
                return
            data, version = site.files[self.path[1:]]
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            body = data
            if asked:
                start, stop = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
                body = data[start:stop]
                if with_body:
                    site.ranges.append((start, stop))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            else:
                self.send_response(200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", version)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    fsspec.filesystem("http").clear_instance_cache()  # its session belongs to the event loop of an earlier test
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_windows_over_http_are_those_of_the_file(tmp_path, site, name):
    clips.write_numbered(tmp_path / name, 90, video_id=5, first_number=200, gop=12, b_frames=3)
    site.files[name] = ((tmp_path / name).read_bytes(), '"1"')
    local, remote = probe_video(tmp_path / name), probe_video(f"{site.url}/{name}")
    assert remote[0].frames == 90
    on_disk, over_http = WindowReader(local[0]), WindowReader(remote[0])
    decoder = WindowDecoder(remote[0])
    for first in (0, 7, 30, 61):
        frames = first + 2 * np.arange(8)
        site.ranges.clear()
        window = over_http.window(frames, remote[1])
        assert window.payloads == on_disk.window(frames, local[1]).payloads
        assert [stop - start for start, stop in site.ranges] == [window.bytes_read]
        pictures = [picture.to_ndarray(format="rgb24") for _, picture in decoder.frames(window, DecodeCount())]
        assert [clips.read_number(picture) for picture in pictures] == [(5, 200 + frame) for frame in frames.tolist()]


def test_a_file_that_changed_or_went_is_noticed(tmp_path, site):
    clips.write_numbered(tmp_path / "a.mp4", 30, gop=12)
    data = (tmp_path / "a.mp4").read_bytes()
    site.files["a.mp4"] = (data, '"1"')
    facts, gops = probe_video(f"{site.url}/a.mp4")
    reader = WindowReader(facts)
    site.files["a.mp4"] = (data, '"2"')
    with pytest.raises(VideoError, match=r"a\.mp4: changed since it was indexed"):
        WindowReader(facts)
    del site.files["a.mp4"]
    with pytest.raises(VideoError, match=r"a\.mp4: .*restore the file"):
        reader.window(np.arange(4), gops)
