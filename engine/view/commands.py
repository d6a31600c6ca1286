"""`trocar view`: pictures of a run, of a tree, of a corpus and of a clip."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...loaders.options import COUNT, FILE, PNG, SECONDS, Commands, File
from ...loaders.video.video import is_remote
from ..config.error import ConfigError


def add_commands(commands: Commands) -> None:
    views = commands.views
    recon = views.add_parser("recon", help="original, masked and reconstructed clips; of a JEPA, errors of features")
    _add_run(recon, "reconstruction.png")
    recon.set_defaults(run=run_view_recon)
    features = views.add_parser("features", help="clips, and their features' principal components as colours")
    _add_run(features, "features.png")
    features.set_defaults(run=run_view_features)
    curve = views.add_parser("curve", help="loss and speed over the steps")
    curve.add_argument("run_dir", type=Path, metavar="RUN")
    curve.add_argument("--out", type=PNG, metavar="PNG", help="default: RUN/curve.png")
    _add_json(curve)
    curve.set_defaults(run=run_view_curve)

    neighbours = views.add_parser("neighbours", help="spans of a video, and the nearest ones of the corpus")
    neighbours.add_argument("embeddings", type=Path, metavar="EMBEDDINGS", help="folder that `trocar embed` wrote")
    neighbours.add_argument("corpus", metavar="CORPUS", help="folder that was embedded")
    neighbours.add_argument("video", metavar="VIDEO", help="a file's name, path or id in the corpus")
    neighbours.add_argument("seconds", type=SECONDS, nargs="+", metavar="SECOND", help="of the video; a query each")
    neighbours.add_argument("--nearest", type=COUNT, default=8, help="shown of each query (default: 8)")
    neighbours.add_argument("--same-video", action="store_true", help="show spans of the query's own video too")
    neighbours.add_argument(
        "--out", type=PNG, default=Path("neighbours.png"), metavar="PNG", help="default: neighbours.png"
    )
    _add_json(neighbours)
    neighbours.set_defaults(run=run_view_neighbours)

    clip = views.add_parser("clip", help="the frames of one clip, as a model is handed them")
    clip.add_argument("video", metavar="VIDEO")
    clip.add_argument("second", type=SECONDS, metavar="SECOND", help="of the video, where the clip begins")
    clip.add_argument("--frames", type=COUNT, default=16, help="default: 16")
    clip.add_argument("--stride", type=COUNT, default=4, help="frames from one to the next (default: 4)")
    clip.add_argument("--resolution", type=COUNT, default=224, metavar="PIXELS", help="default: 224")
    clip.add_argument(
        "--out",
        type=File((".png", ".webp", ".gif")),
        default=Path("clip.png"),
        metavar="FILE",
        help="a .png, .webp or .gif (default: clip.png)",
    )
    _add_json(clip)
    clip.set_defaults(run=run_view_clip)

    tree = views.add_parser("tree", help="the clusters of a tree with their exemplars")
    tree.add_argument("tree", type=Path, metavar="TREE", help="folder that `trocar cluster` wrote")
    tree.add_argument("--corpus", metavar="CORPUS", help="show exemplars and sources")
    tree.add_argument(
        "--most", type=COUNT, help="clusters shown of every one above (default: all on a page, 4 in a picture)"
    )
    tree.add_argument(
        "--out", type=File((".html", ".png")), metavar="FILE", help="a .html or .png file (default: TREE/tree.html)"
    )
    _add_json(tree)
    tree.set_defaults(run=run_view_tree)


def _add_run(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN")
    parser.add_argument("--corpus", help="take the clips from another corpus")
    parser.add_argument("--clips", type=COUNT, default=4, help="rows of the picture (default: 4)")
    parser.add_argument("--out", type=PNG, metavar="PNG", help=f"default: RUN/{name}")
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=FILE, metavar="FILE", help="write what the picture shows as numbers, too")


def run_view_recon(options: argparse.Namespace) -> int:
    _check_run(options)
    from .run import view_reconstruction

    more = {"clips": options.clips, "corpus": options.corpus, "numbers": options.json}
    print(view_reconstruction(options.run_dir, options.out, **more))
    return 0


def run_view_features(options: argparse.Namespace) -> int:
    _check_run(options)
    from .features import view_features

    out = options.out or options.run_dir / "features.png"
    print(view_features(options.run_dir, out, clips=options.clips, corpus=options.corpus, numbers=options.json))
    return 0


def _check_run(options: argparse.Namespace) -> None:
    from ...loaders.corpus.folder import corpus_folder
    from ..inputs.folders import run_with_checkpoint

    run_with_checkpoint(options.run_dir)
    if options.corpus:
        corpus_folder(options.corpus)


def run_view_curve(options: argparse.Namespace) -> int:
    from ..inputs.folders import run_with_metrics

    run_with_metrics(options.run_dir)
    from .curve import view_curve

    print(view_curve(options.run_dir, options.out, numbers=options.json))
    return 0


def run_view_neighbours(options: argparse.Namespace) -> int:
    from ...loaders.corpus.folder import corpus_folder, embeddings_folder

    embeddings_folder(options.embeddings)
    corpus_folder(options.corpus)
    from ...loaders.corpus.corpus import Corpus
    from .neighbours import view_neighbours

    lines = view_neighbours(
        options.embeddings,
        Corpus.open(options.corpus),
        [(options.video, second) for second in options.seconds],
        options.out,
        count=options.nearest,
        same_video=options.same_video,
        numbers=options.json,
    )
    print("\n".join(lines))
    return 0


def run_view_clip(options: argparse.Namespace) -> int:
    if not is_remote(options.video) and not Path(options.video).is_file():
        raise ConfigError(f"{options.video}: no such file; name a video")
    from .clip import view_clip

    more = {"frames": options.frames, "stride": options.stride, "resolution": options.resolution}
    print("\n".join(view_clip(options.video, options.second, options.out, **more, numbers=options.json)))
    return 0


def run_view_tree(options: argparse.Namespace) -> int:
    from ...loaders.corpus.folder import corpus_folder, tree_file

    tree_file(options.tree)
    if options.corpus is not None:
        corpus_folder(options.corpus)
    from ...loaders.corpus.corpus import Corpus

    corpus = None if options.corpus is None else Corpus.open(options.corpus)
    from .tree import view_tree

    out = options.out or options.tree / "tree.html"
    print("\n".join(view_tree(options.tree, corpus, out, options.most, options.json)))
    return 0
