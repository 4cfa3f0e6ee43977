"""The figures of `namm inspect` counted by hand, its pictures, and its page in a real browser."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.image import imread

from namm_core import Namm, NammConfig
from orchestrator.cli import main
from orchestrator.inspection import figures as inspection
from orchestrator.inspection import page
from orchestrator.inspection import pictures as inspection_pictures
from tests.orchestrator.browser import Page
from workers.inspection import Sensitivity
from workers.reading import Reading
from workers.unit import SampleRef

STRANGE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def readings() -> list[Reading]:
    """2 layers of 2 heads; prompts of 4 and 2 tokens."""
    held = np.array([[[1, 1, 0, 1], [1, 0, 0, 1]], [[0, 0, 0, 1], [0, 0, 0, 1]]], bool)
    tokens, kinds = ["A", " fact", STRANGE, "\nwhy?"], ["filler", "facts", "filler", "question"]
    first = Reading(SampleRef("<b>task", "heldout", 0), tokens, kinds, np.array([0, 1, 0, 1], bool), held, 3)
    short = Reading(
        SampleRef("other", "heldout", 4), ["B", "C"], ["filler"] * 2, np.zeros(2, bool), np.ones((2, 2, 2), bool), 2
    )
    return [first, short]


@pytest.fixture(scope="module")
def found(readings) -> dict:
    layers = np.stack([np.arange(25.0), np.arange(25.0) + 2])
    return inspection.summarise(readings, Sensitivity(layers, 7), NammConfig())


def test_the_figures(found):
    assert found["kept"] == pytest.approx((7 / 16 + 1) / 2)
    assert found["kept_by_head"] == [[(3 / 4 + 1) / 2, (2 / 4 + 1) / 2], [(1 / 4 + 1) / 2] * 2]
    ages = found["kept_by_age"]
    assert ages["edges"] == [0, 1, 2, 3, 4] and ages["tokens"] == [2, 2, 1, 1]
    assert ages["layers"] == [[1, 0.5, 0.5, 1], [1, 0.5, 0, 0]] and ages["mean"] == [1, 0.5, 0.25, 0.5]
    kinds = found["kept_by_kind"]
    assert list(kinds) == ["facts", "filler", "question", "relevant to the answer"]
    assert kinds["facts"] == {"tokens": 1, "kept": 0.25, "judged_tokens": 1, "judged": 0.25}
    assert kinds["filler"] == {"tokens": 4, "kept": 2.5 / 4, "judged_tokens": 4, "judged": 2.5 / 4}
    assert kinds["question"] == {"tokens": 1, "kept": 1.0, "judged_tokens": 0, "judged": None}
    assert kinds["relevant to the answer"]["kept"] == 0.625
    sensitivity = found["sensitivity"]
    assert sensitivity["mean"] == [i + 1 for i in range(25)] and sensitivity["tokens"] == 7
    assert sensitivity["features"][0] == "sine of age, period 6" and sensitivity["features"][8] == "frequency 0"
    json.dumps(found, allow_nan=False)


def test_the_pictures_show_the_figures(found, tmp_path):
    paths = inspection_pictures.draw(found, tmp_path)
    assert [path.name for path in paths.values()] == ["heads.png", "ages.png", "kinds.png", "sensitivity.png"]
    for path in paths.values():
        image = imread(path)[..., :3]
        assert image.shape[1] > 400
        for side in (image[:4], image[-4:], image[:, :4], image[:, -4:]):  # nothing runs off the page
            assert (side == 1).all()
    ages = imread(paths["Kept fraction by token age"])[..., :3]
    assert ((ages < 0.02).all(-1)).sum() > 300  # the mean of layers, black
    viridis = imread(paths["Kept fraction by layer and head"])[..., :3]
    for value in np.unique(found["kept_by_head"]):  # each cell's colour is there
        shade = np.array(colormaps["viridis"](value)[:3])
        assert (np.abs(viridis - shade).max(-1) < 2 / 255).sum() > 2_000


@pytest.fixture(scope="module")
def written(found, readings, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    text = page.render('A "run" <i>', found, readings, inspection_pictures.draw(found, folder))
    (folder / "page.html").write_text(text)
    return folder / "page.html"


def test_the_page_needs_nothing_from_elsewhere(written):
    text = written.read_text()
    assert "://" not in text and "<i>" not in text and "<img src=x" not in text
    assert text.count('src="data:image/png;base64,') == 4 and "{{" not in text


@pytest.fixture(scope="module")
def shown(written, chromium) -> Page:
    chromium.open(written.as_uri())
    return chromium


SHARES = "[...document.querySelectorAll('#text span')].map((s) => s.style.getPropertyValue('--share'))"
COLOURS = "[...document.querySelectorAll('#text span')].map((s) => getComputedStyle(s).backgroundColor)"
DETAIL = "document.getElementById('detail').textContent"


def test_the_page_shades_tokens_in_a_browser(shown):
    assert shown.run("document.querySelector('h1').textContent") == 'A "run" <i>'
    spans = "[...document.querySelectorAll('#text span')]"
    assert shown.run(f"{spans}.map((s) => s.textContent)") == ["A", " fact", STRANGE, "↵\nwhy?"]
    assert shown.run(SHARES) == ["0.5", "0.5", "0", "1"]
    colours = shown.run(COLOURS)
    assert colours[0] == colours[1] and len(set(colours)) == 3
    assert shown.run(f"{spans}.map((s) => s.className)") == ["", "relevant fact", "gone", "relevant late"]
    assert shown.run("[...document.images].every((i) => i.naturalWidth > 400)")


def test_choosing_a_layer_or_a_prompt_shades_anew(shown):
    shown.run("document.getElementById('layer').focus()")
    shown.press("ArrowDown")
    assert shown.run("document.getElementById('layer').value") == "0"
    assert shown.run(SHARES) == ["1", "0.5", "0", "1"]
    assert shown.run("document.getElementById('scale-text').textContent") == "held by 0 to 2 heads of layer 0"
    shown.run("document.getElementById('prompt').focus()")
    shown.press("ArrowDown")
    assert shown.run(SHARES) == ["1", "1"]
    shown.run("for (const id of ['prompt', 'layer']) { const b = document.getElementById(id); b.selectedIndex = 0; "
              "b.dispatchEvent(new Event('change')) }")  # fmt: skip
    assert shown.run(SHARES) == ["0.5", "0.5", "0", "1"]


def test_a_token_says_what_holds_it_to_mouse_and_keys(shown):
    shown.run("scrollTo(0, 0)")
    shown.point("document.querySelectorAll('#text span')[1]")
    assert shown.run(DETAIL) == (
        '" fact" at position 1 (facts): held by 1 of 2 layers; heads: layer 0: 1/2, layer 1: 0/2'
    )
    shown.run("document.getElementById('layer').focus()")
    shown.press("Tab")
    assert shown.run("document.activeElement.id") == "text"
    shown.press("ArrowRight")
    assert shown.run(DETAIL).startswith(json.dumps(STRANGE) + " at position 2 (filler): held by 0 of 2 layers")
    shown.press("End")
    assert shown.run(DETAIL).startswith('"\\nwhy?" at position 3 (question, not judged yet): held by 2 of 2 layers')
    shown.press("Home")
    assert shown.run("document.querySelector('.chosen').textContent") == "A"


def test_it_can_be_read_in_light_and_dark_and_asks_nobody(shown, tmp_path):
    """Contrast of text on every shade, by the WCAG's formula: at least 4.5."""
    for scheme in ("light", "dark"):
        shown.scheme(scheme)
        pairs = shown.run(
            "[...document.querySelectorAll('#text span, p, h1, h2, label, select, .sample')].map((e) => { let b = e; "
            "const none = 'rgba(0, 0, 0, 0)'; while (getComputedStyle(b).backgroundColor === none) b = b.parentElement;"
            " return [getComputedStyle(e).color, getComputedStyle(b).backgroundColor] })"
        )
        assert min(contrast(*pair) for pair in pairs) >= 4.5
        shown.picture(tmp_path / f"{scheme}.png")
        assert (imread(tmp_path / f"{scheme}.png")[..., :3].mean() < 0.5) == (scheme == "dark")
        assert shown.run("document.documentElement.scrollWidth <= innerWidth")
    assert [url for url in shown.requests if not url.startswith(("file://", "data:"))] == [] and shown.errors == []


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """Of `rgb(r, g, b)`, or `color(srgb r g b)`."""
    numbers = colour[colour.index("(") + 1 : -1].replace("srgb", "").replace(",", " ").split()
    channels = np.array([float(number) for number in numbers[:3]]) / (1 if colour.startswith("color") else 255)
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_the_command_from_end_to_end(job_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    memory = Namm(NammConfig(update_interval=64), torch.randn(4172, generator=torch.Generator().manual_seed(0)) * 0.05)
    memory.save_pretrained("somewhere/namm")
    assert main(["inspect", "somewhere/namm", "--config", job_file(), "--samples", "2", "--out", "seen"]) == 0
    printed = capsys.readouterr().out
    assert {f.name for f in (tmp_path / "seen").iterdir()} == {
        "heads.png", "ages.png", "kinds.png", "sensitivity.png", "inspection.json", "inspection.html"
    }  # fmt: skip
    found = json.loads((tmp_path / "seen" / "inspection.json").read_text())
    assert f"kept {found['kept']:.3f} of the KV cache over 2 prompts" in printed
    assert [s["task"] for s in found["samples"]] == ["residence", "topic"] and found["samples"][0]["tokens"] == 264
    assert len(found["sensitivity"]["mean"]) == 25
    assert main(["inspect", "somewhere/namm", "--config", job_file(), "--samples", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_a_memory_that_is_given_its_size(job_file, tmp_path, monkeypatch, capsys):
    """At the size that is asked for, else at the job's; a feature is shown by its name."""
    monkeypatch.chdir(tmp_path)
    features = ("key_similarity", "bands", "age")
    config = NammConfig(update_interval=32, scorer="linear", features=features, selection="budget", over="layer")
    Namm(config, torch.linspace(-1.0, 1.0, 13)).save_pretrained("namm")
    asked = ["inspect", "namm", "--config", job_file(), "--samples", "1", "--json"]
    for more, kept in (("--size", "0.6"), 0.6), ((), 0.3):
        assert main([*asked, *more]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["kept"] == pytest.approx(kept, abs=0.03)  # the tokens behind the last update
    names = found["sensitivity"]["features"]
    assert names[:5] == ["key similarity", "bands, 1 of 3", "bands, 2 of 3", "bands, 3 of 3", "sine of age, period 6"]
    assert found["sensitivity"]["mean"] == pytest.approx(np.abs(np.linspace(-1.0, 1.0, 13))[:-1], abs=1e-6)
    assert imread("inspection/sensitivity.png").shape[1] > 400
    Namm(NammConfig(update_interval=32)).save_pretrained("other")
    assert main(["inspect", "other", "--config", job_file(), "--size", "0.3"]) == 2
    assert "decides itself how much it keeps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere"], "no run and no saved NAMM 'nowhere'"),
        (["empty"], "holds no memory yet"),
        (["alone"], "give --config"),
        (["alone", "--samples", "0"], "--samples must be at least 1"),
    ],
)
def test_what_is_missing_is_one_line(tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    os.mkdir("empty")
    Namm().save_pretrained("alone")
    assert main(["inspect", *arguments]) == 2
    assert reason in (error := capsys.readouterr().err) and error.count("\n") == 1
