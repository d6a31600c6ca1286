"""The commands of the loaders: index, screen and pack."""

from __future__ import annotations

import argparse
import os

from .options import COUNT, FROM_ZERO, QUALITY, Commands, folder
from .video.error import UsageError


def add_commands(commands: Commands) -> None:
    index = commands.add("index", task="corpus", text="probe videos once and write the corpus tables")
    index.add_argument("sources", nargs="+", metavar="DIR|FILE|CSV|GLOB")
    index.add_argument(
        "--out", required=True, type=folder, metavar="CORPUS", help="folder of the tables; videos in it stay"
    )
    index.add_argument("--workers", type=COUNT, help="probing processes (default: one per core)")
    index.add_argument("--no-content-box", action="store_true", help="do not look for it; crops may hold black border")
    index.add_argument("--checksum", action="store_true", help="a CRC-32 for every GOP, so that damage shows when read")
    index.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        help="compare random pictures of every video with plain decoding, and refuse videos where they differ "
        "(default: near the beginning of rare kinds of video alone)",
    )
    index.add_argument(
        "--track", type=FROM_ZERO, metavar="N", help="video track of every file, from 0 (default: the largest pictures)"
    )
    index.add_argument("--replace", action="store_true", help="leave out what these sources do not name (default: add)")
    index.set_defaults(run=run_index)

    screen = commands.add(
        "screen",
        task="corpus",
        text="find shots, and what no model should learn from, and write a table of spans beside the index",
    )
    screen.add_argument("corpus", metavar="CORPUS", help="folder that `trocar index` wrote, of originals or proxies")
    screen.add_argument("--workers", type=COUNT, help="screening processes (default: one per core)")
    screen.add_argument(
        "--thorough",
        action="store_true",
        help="look at every keyframe and at every place where a cut may be (default: 2 in 10 s)",
    )
    screen.add_argument(
        "--model", default="", metavar="FILE", help="TorchScript or ONNX that tells bodies (default: a classical score)"
    )
    screen.add_argument("--head", default="", metavar="NPZ", help="linear head, where --model is an encoder")
    screen.add_argument(
        "--shots-model",
        default="",
        metavar="FILE",
        help="TorchScript or ONNX of TransNet V2's shape that finds shots, for which every frame is decoded",
    )
    screen.set_defaults(run=run_screen)

    pack = commands.add(
        "pack", task="corpus", text="make small proxies of a corpus, from which training reads at full speed"
    )
    pack.add_argument("corpus", metavar="CORPUS", help="folder that `trocar index` wrote")
    pack.add_argument(
        "--out", required=True, type=folder, metavar="PACKED", help="folder of the proxies and their tables"
    )
    pack.add_argument("--short-side", type=COUNT, metavar="PIXELS", help="of a proxy's shorter side (default: 256)")
    pack.add_argument(
        "--side-multiple",
        type=COUNT,
        metavar="PIXELS",
        help="both sides are multiples of it (default: 16; proxies that are there may have any)",
    )
    pack.add_argument("--stride", type=COUNT, metavar="FRAMES", help="every how many frames one is kept (default: 4)")
    pack.add_argument("--gop", type=COUNT, metavar="FRAMES", help="from keyframe to keyframe (default: 8)")
    pack.add_argument("--codec", help="h264, hevc, vp9 or mjpeg (default: h264)")
    pack.add_argument("--quality", type=QUALITY, help="of the encoder, lower is better (default: the codec's)")
    pack.add_argument("--workers", type=COUNT, help="packing processes (default: one per core)")
    pack.add_argument("--screen", action="store_true", help="black in place of what `trocar screen` found out of body")
    pack.add_argument("--replace", action="store_true", help="make proxies of other settings anew (default: refuse)")
    pack.add_argument(
        "--pseudonyms",
        metavar="FILE",
        help="name originals, subjects and centres by pseudonyms, whose table is FILE, outside of PACKED",
    )
    pack.set_defaults(run=run_pack)


def run_index(options: argparse.Namespace) -> int:
    from .corpus.sources import check_sources

    check_sources(options.sources)
    from .corpus.index import index_corpus

    summary = index_corpus(
        options.sources,
        options.out,
        workers=options.workers,
        content_box=not options.no_content_box,
        checksum=options.checksum,
        verify=options.verify,
        replace=options.replace,
        track=options.track,
    )
    print("\n".join(summary.lines()))
    return 0


def run_screen(options: argparse.Namespace) -> int:
    from .corpus.folder import corpus_folder, existing_file

    corpus_folder(options.corpus)
    for path in filter(None, (options.model, options.head, options.shots_model)):
        if not os.path.isdir(path):  # which is refused with what to do
            existing_file(path)
    from .screen.screen import screen_corpus
    from .screen.video_screen import ScreenSettings

    settings = ScreenSettings(
        thorough=options.thorough, model=options.model, head=options.head, shots_model=options.shots_model
    )
    print("\n".join(screen_corpus(options.corpus, settings, workers=options.workers).lines()))
    return 0


def run_pack(options: argparse.Namespace) -> int:
    from .corpus.folder import corpus_folder

    corpus_folder(options.corpus)
    from .corpus.corpus import Corpus
    from .pack.pack import pack_corpus
    from .pack.pseudonyms import Names, Pseudonyms
    from .pack.settings import PackSettings

    given = {
        name: getattr(options, name) for name in ("short_side", "side_multiple", "stride", "gop", "codec", "quality")
    }
    try:
        settings = PackSettings(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise UsageError(str(error)) from error
    corpus = Corpus.open(options.corpus)
    names = Names() if options.pseudonyms is None else Pseudonyms(options.pseudonyms, corpus, options.out)
    more = {"workers": options.workers, "replace": options.replace, "names": names}
    told = [] if options.pseudonyms is None else [f"pseudonyms: the table is {options.pseudonyms}"]
    if not options.screen:
        summary = pack_corpus(options.corpus, options.out, settings, **more)
        print("\n".join([*summary.lines(), *told]), flush=True)
        return 0
    from .screen.proxies import hidden_frames, write_proxies_screen

    hidden, left_out = hidden_frames(corpus)
    summary = pack_corpus(options.corpus, options.out, settings, hidden=hidden, **more)
    write_proxies_screen(corpus, summary.path, names)
    print("\n".join([*summary.lines(), *told, *left_out]), flush=True)
    return 0
