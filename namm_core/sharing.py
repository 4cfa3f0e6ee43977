"""The code that travels with a saved NAMM, and how files get into a folder: all of them, or none.

Beside configuration and weights stands `custom_generate`, transformers' convention for code that comes with weights:
`model.generate(..., custom_generate=FOLDER, trust_remote_code=True)` then works where this package is not installed,
since the folder carries the modules of `namm_core` that a memory is made of. Knows nothing of runs, tasks or the Hub.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib
import json
import os
import shutil
import uuid
from pathlib import Path

from namm_core.config import FEATURES, SCORERS

PACKAGE = "namm_core"
ENTRANCES = ("namm_core.with_memory",)
"""Where `custom_generate` starts; the modules of this package that these import come along."""
REQUIREMENTS = "torch>=2.6\ntransformers>=5.20,<5.40\nsafetensors>=0.4\nnumpy>=1.26\n"
NOTE = "# A copy of {name}.py of the package namm (Apache-2.0), so that this folder needs no other.\n"
CARRIED = """
# This copy carries the plug-ins that its memory is made of, and no others.
_CARRIED = {carried!r}


def modules(package: str) -> list[str]:
    return list(_CARRIED[package])


def _imported(package: str, name: str) -> ModuleType:
    return importlib.import_module(f".{{_CARRIED[package][name]}}", __package__)
"""
"""Appended to the copy of `namm_core.plugins`: replaces its search for files."""
GENERATE = '''\
"""`model.generate(..., custom_generate=FOLDER, trust_remote_code=True)` with this NAMM as the model's memory.

All arguments of `generate` are passed on to it; a memory that takes a budget wants one beside them, such as
`budget=0.2`. To continue a conversation, pass the cache of an answer
(`return_dict_in_generate=True`) with the whole text so far.
"""

# transformers fetches the files that are named in this form, and no others.
{imports}
from .weights import CONFIG, TENSORS
from .with_memory import from_text, generate_with

_NAMM = from_text(CONFIG, TENSORS)


def generate(model, *arguments, **settings):
    """See `transformers.GenerationMixin.generate`; the model's own attention is set back at the end."""
    return generate_with(_NAMM, model, *arguments, **settings)
'''


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Writes files (by path below `folder`, which is made when missing), each whole or not at all.

    A new folder appears with all of them at once. In one that exists, each file is replaced in one step and files of
    other names stay as they are.
    """
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    made.mkdir()
    try:
        for name, content in files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_bytes(content)
        if not folder.exists():
            made.rename(folder)
            return
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).replace(folder / name)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def custom_generate(config: dict, tensors: dict[str, bytes]) -> dict[str, bytes]:
    """Files of the `custom_generate` folder; config: plain values, tensors: float32 vectors as bytes, by name."""
    plugins = {SCORERS: [config["scorer"]], FEATURES: list(config["features"])}
    carried = {package: {name: _flat(f"{package}.{name}") for name in names} for package, names in plugins.items()}
    named = [f"{package}.{name}" for package, names in plugins.items() for name in names]
    modules = _closure((*ENTRANCES, *named))
    sources = {_flat(name): _relative(name, text) for name, text in modules.items()}
    sources["plugins"] += CARRIED.format(carried=carried)
    digest = hashlib.sha256("".join(sources[name] for name in sorted(sources)).encode()).hexdigest()[:12]
    # Attention functions are registered by name: a copy must not take the place of another version's.
    registered = sources["attention_function"].replace('NAME = "namm"', f'NAME = "namm-{digest}"')
    assert registered != sources["attention_function"]
    sources["attention_function"] = registered
    imports = "\n".join(f"from .{name} import __name__ as _{name}" for name in sorted(sources))
    sources["generate"] = GENERATE.format(imports=imports)
    sources["weights"] = _weights(config, tensors)
    files = {f"{name}.py": text.encode() for name, text in sources.items()}
    return {**files, "requirements.txt": REQUIREMENTS.encode()}


def _weights(config: dict, tensors: dict[str, bytes]) -> str:
    """The module that holds the numbers: transformers hands `generate` no path to read them from."""
    lines = ['"""The numbers of config.json and model.safetensors: float32, little-endian, in base64."""\n']
    lines.append(f"CONFIG = {json.dumps(json.dumps(config))}")
    lines.append("TENSORS = {")
    for name, content in tensors.items():
        text = base64.b64encode(content).decode()
        lines.append(f"    {name!r}: (")
        lines += [f"        {text[i : i + 100]!r}" for i in range(0, len(text), 100)]
        lines.append("    ),")
    return "\n".join([*lines, "}", ""])


def _closure(entrances: tuple[str, ...]) -> dict[str, str]:
    """Source of the entrances and of all modules of this package that they import, by dotted name."""
    found: dict[str, str] = {}
    waiting = list(entrances)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _file(name).read_text("utf-8")
            waiting += [module for _, meant in _imports(found[name]) for module, _ in meant]
    return found


def _imports(source: str) -> list[tuple[ast.ImportFrom, list[tuple[str, str | None]]]]:
    """Each import from this package, and for each of its names (module meant, name in it; None: the module itself)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            meant: list[tuple[str, str | None]] = []
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                meant.append((module, None) if _file(module).is_file() else (node.module, alias.name))
            found.append((node, meant))
    return found


def _relative(name: str, source: str) -> str:
    """A module's source with imports as they are among files of one folder."""
    lines = source.splitlines()
    for node, meant in sorted(_imports(source), key=lambda found: -found[0].lineno):
        fresh = []
        for alias, (module, inner) in zip(node.names, meant, strict=True):
            origin, imported = (".", _flat(module)) if inner is None else (f".{_flat(module)}", inner)
            called = alias.asname or alias.name
            fresh.append(f"from {origin} import {imported}" + (f" as {called}" if called != imported else ""))
        lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + line for line in fresh]
    return NOTE.format(name=name.replace(".", "/")) + "\n".join(lines) + "\n"


def _flat(name: str) -> str:
    return name.removeprefix(f"{PACKAGE}.").replace(".", "_")


def _file(name: str) -> Path:
    package, _, plugin = name.rpartition(".")
    if package in (SCORERS, FEATURES):  # which may lie in a folder outside of this package
        found = [Path(folder, f"{plugin}.py") for folder in importlib.import_module(package).__path__]
        return next((file for file in found if file.is_file()), found[0])
    path = Path(__file__).parent.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
