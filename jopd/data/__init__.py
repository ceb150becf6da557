"""Data: an `Example` from a source, rendered to token ids for each reader (a view), batched by
(seed, step). Host code, NumPy only.
"""
