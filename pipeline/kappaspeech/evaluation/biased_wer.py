"""WER of hot words and of all other words, and how many of those that were said were written.

B-WER and U-WER as contextual biasing is measured since Le et al. 2021 (arXiv:2104.02194): a reference's word counts to the one or
the other by whether it is in the list, and so does a word that was inserted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kappaspeech.evaluation.wer import Hypothesis, normalise


def measure_biased(hypotheses: Sequence[Hypothesis], hot_words: Sequence[str]) -> dict[str, Any]:
    """B-WER, U-WER and the recall of hot words, pooled over all utterances, as JSON; null for a rate without a reference word.

    Words are compared as WER compares them, normalised by language; of a phrase each word is hot.
    """
    import jiwer

    errors, words = {True: 0, False: 0}, {True: 0, False: 0}
    num_found = 0
    lists: dict[str, set[str]] = {}
    for item in hypotheses:
        if item.language not in lists:
            lists[item.language] = {word for hot in hot_words for word in normalise(hot, item.language).split()}
        hot = lists[item.language]
        reference, written = (normalise(text, item.language).split() for text in (item.reference, item.hypothesis))
        for word in reference:
            words[word in hot] += 1
        if not reference:
            # jiwer refuses an empty reference
            for word in written:
                errors[word in hot] += 1
            continue
        for chunk in jiwer.process_words(" ".join(reference), " ".join(written)).alignments[0]:
            said = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            if chunk.type == "equal":
                num_found += sum(word in hot for word in said)
                continue
            for word in said if chunk.type != "insert" else written[chunk.hyp_start_idx : chunk.hyp_end_idx]:
                errors[word in hot] += 1
    return {
        "num_hot_words": len(hot_words),
        "num_said": words[True],
        "num_found": num_found,
        "recall": num_found / words[True] if words[True] else None,
        "biased_wer": errors[True] / words[True] if words[True] else None,
        "unbiased_wer": errors[False] / words[False] if words[False] else None,
    }
