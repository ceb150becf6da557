"""On-policy distillation of language models in JAX."""

import os

__version__ = "0.1.0"

# Or transformers says at every start that without PyTorch it has no models, which nobody asked for.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
