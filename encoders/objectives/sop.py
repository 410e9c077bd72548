"""Sentence-order prediction (ALBERT §3.1): two consecutive segments, in order or swapped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class SentenceOrder:
    """Label 1: swapped, as in the released code."""

    name: ClassVar[str] = "sop"
    label: ClassVar[str] = "sentence_order"
