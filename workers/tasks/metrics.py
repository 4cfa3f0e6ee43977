"""LongBench's metrics, ChouBun's, RULER's and exact match: a prediction and references in, a score from 0 to 1 out.

Knows nothing of prompts, models, or which task uses which metric. The libraries of the extra `benchmarks` are
imported at the first use of a metric that needs them.

Sources: THUDM/LongBench (Bai et al., *LongBench: A Bilingual, Multitask Benchmark for Long Context Understanding*,
arXiv 2308.14508), whose numbers these functions give, oddities included. ChouBun (arXiv 2410.13166): LongBench's QA F1
and ROUGE-L over the words that MeCab finds (`fugashi`, `-Owakati`); punctuation is assumed to be treated as LongBench
treats Chinese. NVIDIA/RULER (arXiv 2404.06654): references found in the prediction.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType

CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗"
    "〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)


def score(metric: str, prediction: str, references: Sequence[str], all_classes: Sequence[str] | None = None) -> float:
    """Score of `prediction` by the metric of that name in `METRICS`, 0 to 1.

    It is the best over `references`, or for the metrics in `MEANS` the mean over them. `all_classes`: the names of all
    classes, which `classification_score` needs. Raises ValueError for an unknown metric, without a reference, and if
    the metric needs a library that is not installed.
    """
    if metric not in METRICS:
        near = difflib.get_close_matches(metric, METRICS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown metric {metric!r}; the nearest is {near!r}")
    if isinstance(references, str) or not references:
        raise ValueError(f"{metric}: references must be a list of one or more texts, not {references!r}")
    scores = [METRICS[metric](prediction, reference, all_classes) for reference in references]
    return sum(scores) / len(scores) if metric in MEANS else max(scores)


def check(metric: str, references: Sequence[str], all_classes: Sequence[str] | None = None) -> None:
    """Raises ValueError, one line, where no prediction could be scored against these references."""
    if metric not in METRICS:
        raise ValueError(f"expected 'metric' to be one of {', '.join(METRICS)}; found {metric!r}")
    if metric in _CHECKED:
        score(metric, "", references, all_classes)


def exact_match(prediction: str, reference: str) -> float:
    """1 if both are the same text apart from space at the ends, else 0."""
    return float(prediction.strip() == reference.strip())


def qa_f1_score(prediction: str, reference: str) -> float:
    """F1 of English words, without case, punctuation and articles (as in SQuAD)."""
    return _f1(_english_words(prediction), _english_words(reference))


def qa_f1_zh_score(prediction: str, reference: str) -> float:
    """F1 of Chinese words as `jieba` cuts them, without case, punctuation and space."""
    return _f1(_chinese_words(prediction), _chinese_words(reference))


def qa_f1_ja_score(prediction: str, reference: str) -> float:
    """F1 of Japanese words as MeCab cuts them, without case, punctuation and space."""
    return _f1(_japanese_words(prediction), _japanese_words(reference))


def rouge_score(prediction: str, reference: str) -> float:
    """ROUGE-L F1 of words between spaces; 0 if either text has no words, or nothing but full stops."""
    rouge = _library("rouge", "rouge_score").Rouge(metrics=["rouge-l"])
    # The library recurses over the words of both texts. LongBench gives 0 where that overflows, which would
    # make a score depend on how deep in the program it is asked for.
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + len(prediction.split()) + len(reference.split()))
    try:
        return rouge.get_scores([prediction], [reference])[0]["rouge-l"]["f"]
    except ValueError:  # the library refuses an empty text
        return 0.0
    finally:
        sys.setrecursionlimit(limit)


def rouge_zh_score(prediction: str, reference: str) -> float:
    """ROUGE-L F1 of Chinese words as `jieba` cuts them."""
    return rouge_score(*(" ".join(_cut(text, "rouge_zh_score")) for text in (prediction, reference)))


def rouge_ja_score(prediction: str, reference: str) -> float:
    """ROUGE-L F1 of Japanese words as MeCab cuts them."""
    return rouge_score(*(" ".join(_cut_japanese(text, "rouge_ja_score")) for text in (prediction, reference)))


def classification_score(prediction: str, reference: str, all_classes: Sequence[str]) -> float:
    """1 / (number of classes that the prediction names) if the right one is among them, else 0."""
    named = [name for name in all_classes if name in prediction]
    # LongBench removes names that are parts of the right one while it iterates, and so skips the name after each one
    # that it removes. Its published numbers depend on that.
    for name in named:
        if name in reference and name != reference:
            named.remove(name)
    return 1 / len(named) if reference in named else 0.0


def retrieval_score(prediction: str, reference: str) -> float:
    """Share of the prediction's numbers that equal the number of the reference, as in "Paragraph 3"."""
    return _share_of_numbers(prediction, _number_after("Paragraph ", reference))


def retrieval_zh_score(prediction: str, reference: str) -> float:
    """Share of the prediction's numbers that equal the number of the reference, as in "段落3"."""
    return _share_of_numbers(prediction, _number_after("段落", reference))


def count_score(prediction: str, reference: str) -> float:
    """Share of the prediction's numbers that equal the reference."""
    return _share_of_numbers(prediction, reference)


def code_sim_score(prediction: str, reference: str) -> float:
    """Similarity, in hundredths, of the prediction's first line of code (no back-tick, `#` or `//` in it).

    LongBench calls `fuzz.ratio` of fuzzywuzzy, which computes this with difflib, or something else if
    python-Levenshtein happens to be installed; the published numbers are difflib's.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return round(100 * difflib.SequenceMatcher(None, line, reference).ratio()) / 100


def string_match(prediction: str, reference: str) -> float:
    """1 if the prediction contains the reference, ignoring case, else 0."""
    return float(reference.lower() in prediction.lower())


def string_match_list(prediction: str, reference: str) -> float:
    """Share of the values which the reference lists, parted by ", ", that the prediction holds, whatever their case.

    RULER's `string_match_all` where the reference is one text: what a model should write, in its order.
    """
    values = reference.lower().split(", ")
    return sum(value in prediction.lower() for value in values) / len(values)


def same_words(prediction: str, reference: str) -> float:
    """Share of the reference's words that the prediction begins with, up to the first that is another one."""
    words = reference.split()
    given = prediction.split()
    same = 0
    while same < min(len(words), len(given)) and words[same] == given[same]:
        same += 1
    return same / len(words) if words else 0.0


def _plain(metric: Callable[[str, str], float]) -> Callable[[str, str, Sequence[str] | None], float]:
    return lambda prediction, reference, all_classes: metric(prediction, reference)


def _classification(prediction: str, reference: str, all_classes: Sequence[str] | None) -> float:
    if all_classes is None:
        raise ValueError("classification_score needs all_classes, the names of all classes")
    return classification_score(prediction, reference, all_classes)


METRICS: dict[str, Callable[[str, str, Sequence[str] | None], float]] = {
    "exact_match": _plain(exact_match),
    "qa_f1_score": _plain(qa_f1_score),
    "qa_f1_zh_score": _plain(qa_f1_zh_score),
    "rouge_score": _plain(rouge_score),
    "rouge_zh_score": _plain(rouge_zh_score),
    "classification_score": _classification,
    "retrieval_score": _plain(retrieval_score),
    "retrieval_zh_score": _plain(retrieval_zh_score),
    "count_score": _plain(count_score),
    "code_sim_score": _plain(code_sim_score),
    "qa_f1_ja_score": _plain(qa_f1_ja_score),
    "rouge_ja_score": _plain(rouge_ja_score),
    "string_match_all": _plain(string_match),
    "string_match_part": _plain(string_match),
    "string_match_list": _plain(string_match_list),
    "same_words": _plain(same_words),
}
_CHECKED = ("classification_score", "retrieval_score", "retrieval_zh_score")
"""Metrics that want more of references than to be texts; none needs a library."""
MEANS = ("string_match_all",)
"""Metrics for which every reference counts, not just the best."""


def _library(name: str, metric: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f'{metric} needs {name}: pip install "namm[benchmarks]"') from error


def _cut(text: str, metric: str) -> list[str]:
    jieba = _library("jieba", metric)
    jieba.setLogLevel(logging.WARNING)  # it announces its dictionary
    return jieba.lcut(text, cut_all=False)


@lru_cache(maxsize=2)
def _mecab(metric: str):
    try:
        return _library("fugashi", metric).Tagger("-Owakati")
    except RuntimeError as error:  # it has no dictionary of its own
        raise ValueError(f'{metric} needs a dictionary of Japanese: pip install "namm[benchmarks]"') from error


def _cut_japanese(text: str, metric: str) -> list[str]:
    return _mecab(metric).parse(text).split()


def _english_words(text: str) -> list[str]:
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _chinese_words(text: str) -> list[str]:
    return _bare(_cut(text, "qa_f1_zh_score"))


def _japanese_words(text: str) -> list[str]:
    return _bare(_cut_japanese(text, "qa_f1_ja_score"))


def _bare(cut: list[str]) -> list[str]:
    """Words without case, punctuation and space; words of which nothing remains are dropped."""
    punctuation = set(string.punctuation + CHINESE_PUNCTUATION)
    words = []
    for word in cut:
        letters = "".join(character for character in word.lower() if character not in punctuation)
        words.append("".join(letters.split()))
    return [word for word in words if word]


def _f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    same = sum((Counter(prediction) & Counter(reference)).values())
    return 2 * same / (len(prediction) + len(reference)) if same else 0.0


def _number_after(mark: str, reference: str) -> str:
    found = re.search(f"{mark}(\\d+)", reference)
    if not found:
        raise ValueError(f'the reference must hold "{mark}" and a number, not {reference!r}')
    return found.group(1)


def _share_of_numbers(prediction: str, number: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return sum(found == number for found in numbers) / len(numbers) if numbers else 0.0
