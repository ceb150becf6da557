"""Floating-point operations of a model's passes, from its own formula: the products of matrices,
attention over the columns that the mask allows, so half of a square.
"""

from jopd.models.settings import Architecture


def layers(a: Architecture) -> int:
    """Parameters of the matrices of all layers."""
    attention = a.width * a.head_dim * (2 * a.heads + 2 * a.kv_heads)
    return a.layers * (attention + 3 * a.width * a.mlp_width)


def head(a: Architecture) -> int:
    """Parameters of the output head."""
    return a.width * a.vocabulary_size


def attention(a: Architecture, squares: int | float) -> float:
    """Operations of the attention of a forward pass, scores and sums, over rows whose lengths
    squared sum to `squares`; that of the n-th token on is a difference of two squares.
    """
    return 2.0 * a.layers * a.heads * a.head_dim * squares


def reading(a: Architecture, columns: int, before: int = 0) -> float:
    """Operations of a forward pass over `columns` tokens that follow `before` others, without the
    head.
    """
    squares = (before + columns) ** 2 - before**2
    return 2 * layers(a) * columns + attention(a, squares)
