"""Scoring: mathematics, words, letters, code."""

from kvcomm.tasks.scoring.choice import score_choice
from kvcomm.tasks.scoring.math import MathScorer
from kvcomm.tasks.scoring.qa import score_qa
from kvcomm.tasks.scoring.score import Score

__all__ = ["MathScorer", "Score", "score_choice", "score_qa"]
