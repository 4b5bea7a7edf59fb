"""What one must know of a model before using it, beside every exported model: MODEL_CARD.md, and the same as JSON."""

from nnunet_partial.inference.model_card.facts import JSON, Trained, make_card
from nnunet_partial.inference.model_card.text import MARKDOWN, in_words

__all__ = ["JSON", "MARKDOWN", "Trained", "in_words", "make_card"]
