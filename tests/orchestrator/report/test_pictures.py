"""The pictures, read back as pixels: what they must show is there, and nothing runs off the page."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.image import imread

from orchestrator.report.pictures import (
    BLUE,
    COLUMNS,
    DPI,
    GREEN,
    MAX_LINES,
    VERMILION,
    fitness_curve,
    kept_heatmap,
    prompt_picture,
    wrap_tokens,
)


def generation(number, **extra):
    row = {
        "generation": number,
        "fitness_mean": 0.9 + 0.01 * number,
        "fitness_best": 1.1,
        "fitness_std": 0.05,
    }
    return row | {"kept": 0.5, "sigma": 0.065, "kept_layers": [1.0, 0.0]} | extra


def pixels(path):
    return np.round(imread(path)[..., :3] * 255).astype(int)


def count(image, color):
    if isinstance(color, str):
        color = tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))
    return int((np.abs(image - np.array(color)).max(axis=-1) <= 1).sum())


@pytest.mark.parametrize("length", [1, 3, 40])
def test_fitness_curve_with_and_without_validation(tmp_path, length):
    plain, validated = tmp_path / "plain.png", tmp_path / "validated.png"
    fitness_curve([generation(i) for i in range(length)], plain)
    score = [{"validation_score": 0.8 if i == 0 else None, "validation_full": 0.7} for i in range(length)]
    fitness_curve([generation(i, **score[i]) for i in range(length)], validated)
    assert count(pixels(plain), BLUE) > 20
    assert count(pixels(plain), GREEN) == 0 and count(pixels(validated), GREEN) > 20
    assert pixels(validated).shape[0] > pixels(plain).shape[0]


def test_heatmap_shows_each_layer_and_leaves_gaps_grey(tmp_path):
    rows = [generation(i) for i in range(100)]  # too many cells for numbers in them
    rows[50]["kept_layers"] = None
    kept_heatmap(rows, tmp_path / "heat.png")
    image = pixels(tmp_path / "heat.png")
    one, zero = (np.round(np.array(colormaps["viridis"](x)[:3]) * 255).astype(int) for x in (1.0, 0.0))
    where = [np.argwhere(np.abs(image - color).max(axis=-1) <= 1) for color in (one, zero)]
    assert min(map(len, where)) > 10_000
    assert where[0][:, 0].mean() > where[1][:, 0].mean()  # layer 0, all kept, is the lower one
    assert count(image, (0xC8, 0xC8, 0xC8)) > 500


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match="no generation"):
        fitness_curve([], tmp_path / "a.png")
    with pytest.raises(ValueError, match="kept_layers"):
        kept_heatmap([generation(0, kept_layers=None)], tmp_path / "b.png")
    with pytest.raises(ValueError, match="one for each token"):
        prompt_picture(["a", "b"], np.ones(3), [], tmp_path / "c.png", "title")
    assert not list(tmp_path.iterdir())


def drawn(tmp_path, tokens, held, relevant=()):
    prompt_picture(tokens, np.asarray(held, dtype=float), list(relevant), tmp_path / "prompt.png", "a prompt")
    return pixels(tmp_path / "prompt.png")


def test_held_tokens_are_shaded_and_relevant_ones_framed(tmp_path):
    tokens = ["The"] + [" word"] * 40
    top = int(1.1 * DPI)  # below the heading and its legend
    forgotten, held = (drawn(tmp_path, tokens, [share] * 41)[top:] for share in (0, 1))
    shade = np.unique(held.reshape(-1, 3), axis=0, return_counts=True)
    fill = shade[0][np.argsort(shade[1])[-2]]  # the commonest colour but for the white of the page
    assert count(held, tuple(fill)) > 10_000 and count(forgotten, tuple(fill)) == 0
    assert forgotten.min() > held.min() + 50  # forgotten text is pale
    framed = drawn(tmp_path, tokens, [1] * 41, relevant=[3, 4, 30])[top:]
    assert count(held, VERMILION) == 0 and count(framed, VERMILION) > 200


def test_text_stays_within_its_boxes_and_the_page(tmp_path):
    """Agg rounds each character to whole pixels: a line of 112 would run 4 characters past its box."""
    image = drawn(tmp_path, ["m" * COLUMNS, "\n", "$x_2$ \\frac{", "\n\n", "\t日本", "end"], [1] * 6)
    margin = int(0.2 * DPI)
    assert (image[:, -margin:] == 255).all() and (image[:, :margin] == 255).all()


def test_a_long_prompt_is_cut(tmp_path):
    tokens = ["word", "\n"] * (MAX_LINES + 50)
    image = drawn(tmp_path, tokens, np.zeros(len(tokens)))
    assert abs(image.shape[0] - (0.2 * MAX_LINES + 1.3) * DPI) < 2


token = st.one_of(
    st.sampled_from([" the", " cat", "ten", ".", "\n", "\n\n", "  ", " [12]", "\r\n", "\t", "", "x" * 130]),
    st.text(alphabet="ab \n", max_size=60),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(token, max_size=60))
def test_wrapped_text_is_complete_ordered_and_never_overlaps(tokens):
    pieces = list(wrap_tokens(tokens))
    end = (0, 0)
    for _, line, column, text in pieces:
        assert (line, column) >= end and text
        assert column + len(text.removesuffix("↵")) <= COLUMNS
        end = (line, column + len(text))
    for index, text in enumerate(tokens):
        shown = "".join(piece[3] for piece in pieces if piece[0] == index)
        expected = text.replace("\r\n", "\n").replace("\n", "↵").replace("\t", "    ")
        assert shown.replace(" ", "") == expected.replace(" ", "")
    assert [piece[0] for piece in pieces] == sorted(piece[0] for piece in pieces)


def test_words_of_several_tokens_are_not_torn():
    tokens = ["a" * (COLUMNS - 8), " car", "pen", "ter", "."]
    assert [(line, column, text) for _, line, column, text in wrap_tokens(tokens)][1:] == [
        (1, 0, "car"),
        (1, 3, "pen"),
        (1, 6, "ter"),
        (1, 9, "."),
    ]
