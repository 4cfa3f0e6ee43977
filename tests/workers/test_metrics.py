"""The metrics: LongBench's recorded scores, the best over references, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from workers.tasks.metrics import METRICS, score

LONGBENCH = (
    "qa_f1_score",
    "qa_f1_zh_score",
    "rouge_score",
    "rouge_zh_score",
    "classification_score",
    "retrieval_score",
    "retrieval_zh_score",
    "count_score",
    "code_sim_score",
)
OTHERS = (
    "qa_f1_ja_score",
    "rouge_ja_score",
    "same_words",
    "string_match_all",
    "string_match_list",
    "string_match_part",
)


@pytest.fixture(scope="module")
def recorded(golden):
    return json.loads((golden / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture
def libraries():
    for name in ("rouge", "jieba", "fugashi"):
        pytest.importorskip(name, reason=f'{name} is not installed: pip install "namm[benchmarks]"')


def test_every_recorded_metric_is_here(recorded):
    assert set(recorded["metrics"]) == set(LONGBENCH) == set(METRICS) - {"exact_match", *OTHERS}


@pytest.mark.parametrize("metric", LONGBENCH)
def test_recorded_pairs(metric, recorded, libraries):
    pairs = recorded["metrics"][metric]
    assert len(pairs) >= 15
    for pair in pairs:
        ours = score(metric, pair["prediction"], [pair["reference"]], recorded["all_classes"])
        assert ours == pytest.approx(pair["score"], abs=1e-6), pair


def test_best_over_recorded_references(recorded):
    """The tasks' own scores; only those whose predictions LongBench does not cut before it scores them."""
    tasks = recorded["task_level"]
    for name in ("narrativeqa/plain", "narrativeqa/multiline"):
        task = tasks[name]
        ours = [score("qa_f1_score", *pair) for pair in zip(task["predictions"], task["references"], strict=True)]
        assert ours == pytest.approx(task["per_sample"], abs=1e-6)


def test_exact_match():
    assert score("exact_match", " seven\n", ["six", "seven"]) == 1.0
    assert score("exact_match", "Seven", ["seven"]) == 0.0


def test_a_class_behind_a_removed_one_is_skipped():
    """LongBench's fault, and so its number: "b" goes, "c" behind it is not looked at and stays."""
    assert score("classification_score", "a b c", ["b c"], ["b", "c", "b c"]) == pytest.approx(1 / 2)


def test_long_texts_do_not_overflow(libraries):
    text = " ".join(f"w{i % 40}" for i in range(900))
    limit = sys.getrecursionlimit()
    assert score("rouge_score", text, [text]) == pytest.approx(1.0, abs=1e-6)
    assert sys.getrecursionlimit() == limit


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_nothing_said_scores_nothing(metric, libraries):
    reference = {"retrieval_score": "Paragraph 3", "retrieval_zh_score": "段落3"}.get(metric, "seven")
    assert score(metric, "", [reference], ["seven"]) == 0.0


def test_unknown_metric_names_the_nearest():
    with pytest.raises(ValueError, match="'qa_f1_score'"):
        score("qa_f1", "a", ["a"])


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="references"):
        score("exact_match", "a", [])
    with pytest.raises(ValueError, match="references"):
        score("exact_match", "a", "abc")
    with pytest.raises(ValueError, match="all_classes"):
        score("classification_score", "a", ["a"])
    with pytest.raises(ValueError, match="Paragraph"):
        score("retrieval_score", "3", ["3"])


@pytest.mark.parametrize(("metric", "library"), [("rouge_score", "rouge"), ("qa_f1_zh_score", "jieba")])
def test_a_missing_library_names_its_extra(metric, library):
    """In a process that sees no installed packages: the module itself needs none of them."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})\n"
        "from workers.tasks.metrics import score\n"
        "assert score('qa_f1_score', 'a cat', ['cat']) == 1\n"
        "try:\n"
        f"    score({metric!r}, 'a', ['a'])\n"
        "except ValueError as error:\n"
        "    print(error)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f'{metric} needs {library}: pip install "namm[benchmarks]"'


def test_japanese_words_are_mecabs(libraries):
    """By hand from its cut of both: 東京 / に / あり / ます against 東京 / です."""
    assert score("qa_f1_ja_score", "東京にあります。", ["東京です"]) == pytest.approx(2 / 6)
    assert score("qa_f1_ja_score", "「東京」 です", ["大阪", "東京です。"]) == 1.0
    assert score("rouge_ja_score", "日本の首都は東京", ["日本の首都は東京"]) == pytest.approx(1.0, abs=1e-6)
    # 日本 の 首都 against 首都 の 日本: one word in order, of three
    assert score("rouge_ja_score", "日本の首都", ["首都の日本"]) == pytest.approx(1 / 3, abs=1e-6)


def test_ruler_counts_the_references_that_are_found():
    assert score("string_match_all", "They are 12 and 34.", ["12", "34", "56", "X"]) == pytest.approx(1 / 2)
    assert score("string_match_part", "PARIS, I think", ["Rome", "Paris"]) == 1.0
    assert score("string_match_part", "Athens", ["Rome", "Paris"]) == 0.0
    assert score("string_match_list", "71, and 12", ["12, 71, 5, 8"]) == 0.5
    assert score("same_words", "the old  house burnt", ["the old house fell down"]) == 3 / 5


def test_a_list_is_scored_by_the_share_of_its_values():
    assert score("string_match_list", "They are 12, 34 and Rome.", ["12, rome, 56, 34"]) == 0.75
    assert score("string_match_list", "7421938.", ["7421938"]) == 1
    assert score("string_match_list", "", ["7421938"]) == 0


def test_a_copy_is_scored_up_to_its_first_other_word():
    assert score("same_words", " used for  conditional\nexecution: if", ["used for conditional execution:"]) == 1
    assert score("same_words", "used for repeated execution:", ["used for conditional execution:"]) == 0.5
    assert score("same_words", "used for", ["used for conditional execution:"]) == 0.5
    assert score("same_words", "", ["used"]) == 0
    assert score("same_words", "a b", ["c d e f", "a b"]) == 1
