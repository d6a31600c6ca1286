"""`trocar view`: pictures of a run and of a tree."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...loaders.options import COUNT, Commands


def add_commands(commands: Commands) -> None:
    recon = commands.views.add_parser("recon", help="original, masked and reconstructed clips")
    recon.add_argument("run_dir", type=Path, metavar="RUN")
    recon.add_argument("--corpus", help="take the clips from another corpus")
    recon.add_argument("--clips", type=COUNT, default=4, help="rows of the picture (default: 4)")
    recon.add_argument("--out", type=Path, metavar="PNG", help="default: RUN/reconstruction.png")
    recon.set_defaults(run=run_view_recon)
    curve = commands.views.add_parser("curve", help="loss and speed over the steps")
    curve.add_argument("run_dir", type=Path, metavar="RUN")
    curve.add_argument("--out", type=Path, metavar="PNG", help="default: RUN/curve.png")
    curve.set_defaults(run=run_view_curve)

    tree = commands.views.add_parser("tree", help="the clusters of a tree with their exemplars")
    tree.add_argument("tree", type=Path, metavar="TREE", help="folder that `trocar cluster` wrote")
    tree.add_argument("--corpus", metavar="CORPUS", help="show exemplars and sources")
    tree.add_argument(
        "--most", type=COUNT, help="clusters shown of every one above (default: all on a page, 4 in a picture)"
    )
    tree.add_argument("--out", type=Path, metavar="FILE", help="a .html or .png file (default: TREE/tree.html)")
    tree.set_defaults(run=run_view_tree)


def run_view_recon(options: argparse.Namespace) -> int:
    from ...loaders.corpus.folder import corpus_folder
    from ..inputs.folders import run_with_checkpoint

    run_with_checkpoint(options.run_dir)
    if options.corpus:
        corpus_folder(options.corpus)
    from .run import view_reconstruction

    print(view_reconstruction(options.run_dir, options.out, clips=options.clips, corpus=options.corpus))
    return 0


def run_view_curve(options: argparse.Namespace) -> int:
    from ..inputs.folders import run_with_metrics

    run_with_metrics(options.run_dir)
    from .run import view_curve

    print(view_curve(options.run_dir, options.out))
    return 0


def run_view_tree(options: argparse.Namespace) -> int:
    from ...loaders.corpus.folder import corpus_folder, tree_file

    tree_file(options.tree)
    if options.corpus is not None:
        corpus_folder(options.corpus)
    from ...loaders.corpus.corpus import Corpus

    corpus = None if options.corpus is None else Corpus.open(options.corpus)
    from .tree import view_tree

    print("\n".join(view_tree(options.tree, corpus, options.out or options.tree / "tree.html", options.most)))
    return 0
