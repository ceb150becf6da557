"""On-policy distillation of language models in JAX."""
