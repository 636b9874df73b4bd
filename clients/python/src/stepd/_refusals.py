"""Merges the errors and warnings of several calls into those of one call."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence

from ._error_table import NonFiniteGradient

#: A server names at most this many tensors in an error or a warning.
_NAMED_TENSORS = 8

#: The list of tensors in a server's sentence: "a" (1 value), "b" (2 values) and 3 more
#: tensors. Names are JSON strings.
_LISTED = r'"(?:[^"\\]|\\.)*" \(\d+ values?\)'
_LISTING = re.compile(
    rf"(?P<head>.*?)(?P<list>{_LISTED}(?:, {_LISTED})*)"
    r"(?: and (?P<more>\d+) more tensors)?(?P<tail>.*)",
    re.DOTALL,
)


def joined_sentences(sentences: Iterable[str]) -> list[str]:
    """Remove duplicates and sort by text, as the server does for one call.

    Sentences that differ only in their tensors become one sentence.
    """
    listings: dict[tuple[str, str], list[str]] = {}
    more: dict[tuple[str, str], int] = {}
    for sentence in sentences:
        found = _LISTING.fullmatch(sentence)
        kind = (found["head"], found["tail"]) if found else (sentence, "")
        listed = listings.setdefault(kind, [])
        if found:
            listed += re.findall(_LISTED, found["list"])
            more[kind] = more.get(kind, 0) + int(found["more"] or 0)
    joined = []
    for (head, tail), listed in listings.items():
        listed = _summed(listed)
        rest = more.get((head, tail), 0) + len(listed) - _NAMED_TENSORS
        text = ", ".join(listed[:_NAMED_TENSORS])
        joined.append(
            f"{head}{text}{f' and {rest} more tensors' if rest > 0 else ''}{tail}"
        )
    return sorted(joined)


def _summed(listed: Iterable[str]) -> list[str]:
    """Return the entries in order of their names, and the slices of a tensor as one."""
    counts: dict[str, int] = {}
    for entry in listed:
        text, _, count = entry.rpartition(" (")
        counts[text] = counts.get(text, 0) + int(count.partition(" ")[0])
    ordered = sorted(counts.items(), key=lambda one: json.loads(one[0]).encode())
    return [
        f"{text} ({count} {'value' if count == 1 else 'values'})"
        for text, count in ordered
    ]


def joined_refusal(refusals: Sequence[NonFiniteGradient]) -> NonFiniteGradient:
    """Return one error that names the tensors of all the refused calls.

    A call may be refused because of another call's gradients. Its error names no
    tensors, and counts only if no error names any.
    """
    refusals = [error for error in refusals if error.tensors] or refusals[:1]
    first = refusals[0]
    tensors = itertools.chain.from_iterable(error.tensors for error in refusals)
    texts = {
        "detail": [str(error) for error in refusals],
        "found": [error.found or "" for error in refusals],
    }
    return NonFiniteGradient(
        {
            **first.problem(),
            "tensors": sorted(set(tensors), key=str.encode)[:_NAMED_TENSORS],
            # The server truncates a long text in each call, so the first call's text is
            # used.
            **{member: joined_sentences(each)[0] for member, each in texts.items()},
        }
    )
