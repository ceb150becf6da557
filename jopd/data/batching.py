"""Batches: rendered prompts as arrays of fixed width, a pure function of (seed, step).

A context is padded on the left and a reference on the right, so in every view the completion's
first token stands in the column after the context's last: completions are aligned whatever the
lengths. Each view has one width for the whole run, hence one compilation.

All prompts are rendered at once (a fraction of a millisecond each): the widths must be known, and
what does not fit is reported before the first step. Of several processes each renders a share of
them for that, and holds the texts of that share and of the rows that it feeds.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict

import grain
import numpy as np
from jaxtyping import Bool, Int32
from transformers import PreTrainedTokenizerBase

from jopd.data.example import Example
from jopd.data.views import ViewConfig, render, render_reference, shown

WIDTH_MULTIPLE = 16

Ids = Sequence[int] | Int32[np.ndarray, "_"]


class Context(TypedDict):
    """Prompts of one view, padded on the left: [N, P], the width P being the view's own."""

    tokens: Int32[np.ndarray, "n _"]
    valid: Bool[np.ndarray, "n _"]


class Reference(TypedDict):
    """Reference completions with their stop token, padded on the right: [N, T]."""

    tokens: Int32[np.ndarray, "n t"]
    mask: Bool[np.ndarray, "n t"]


class Batch(TypedDict):
    """One row a prompt. `rows` are ids that occur once in a run; they key the random numbers of the
    completions.
    """

    rows: Int32[np.ndarray, " n"]
    contexts: dict[str, Context]
    reference: NotRequired[Reference]


def left_pad(sequences: Sequence[Ids], width: int, pad_id: int) -> Context:
    """Sequences of at most `width` ids, ending in the last column."""
    tokens, valid = _pad(sequences, width, pad_id, left=True)
    return Context(tokens=tokens, valid=valid)


def right_pad(sequences: Sequence[Ids], width: int, pad_id: int) -> Reference:
    """Sequences of at most `width` ids, beginning in the first column."""
    tokens, mask = _pad(sequences, width, pad_id, left=False)
    return Reference(tokens=tokens, mask=mask)


def _pad(sequences: Sequence[Ids], width: int, pad_id: int, *, left: bool):
    tokens = np.full((len(sequences), width), pad_id, np.int32)
    written = np.zeros((len(sequences), width), bool)
    for i, ids in enumerate(sequences):
        if len(ids) > width:
            raise ValueError(
                f"width={width} is too small for a sequence of {len(ids)} tokens: widen it, "
                "nothing is cut"
            )
        place = slice(width - len(ids), width) if left else slice(len(ids))
        tokens[i, place], written[i, place] = ids, True
    return tokens, written


def _alone(count: int, compute: Callable[[range], np.ndarray]) -> np.ndarray:
    return compute(range(count))


def _rendered(
    names: list[str],
    example: Example,
    *,
    tokenizer: PreTrainedTokenizerBase,
    config: ViewConfig,
    references: bool,
) -> list[np.ndarray]:
    """The ids of an example's context in each of the views, then of its reference."""
    contexts = [render(example, view, tokenizer, config) for view in names]
    reference = render_reference(example, tokenizer, config) if references else []
    return [np.asarray(ids, np.int32) for ids in (*contexts, reference)]


def _digest(example: Example, rendered: list[np.ndarray]) -> bytes:
    digest = hashlib.blake2b(repr(example).encode(), digest_size=8)
    for ids in rendered:
        digest.update(len(ids).to_bytes(4, "big") + ids.tobytes())
    return digest.digest()


class Batches:
    """`batches[step]` is the batch of that step; nothing is remembered between two calls.

    With a seed the examples come shuffled, each once a pass, in another order each pass, for ever.
    Without one they come in their order, for an
    evaluation: `len(batches)` batches, the last of them filled up with examples that came before,
      which `examples_at` leaves out.

    Attributes:
      examples: those that fit, in the order of the source.
      widths: view to the width of its contexts: the longest one, rounded up to a multiple of 16.
      fingerprint: of the examples and of all that readers see of them, in their order: others would
        be another run.
      dropped: what was too long ("student prompt", "reference", ...) to the number of examples;
        each counts once.
      report: how many examples are used and dropped and why, in one line.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        views: Sequence[str],
        *,
        prompts_per_step: int,
        max_prompt_tokens: int,
        pad_id: int,
        config: ViewConfig = ViewConfig(),
        seed: int | None = None,
        references: bool = False,
        max_completion_tokens: int = 0,
        fed: Sequence[int] | None = None,
        pooled: Callable[[int, Callable[[range], np.ndarray]], np.ndarray] = _alone,
    ):
        """Renders every example.

        Args:
          views: the readers' views; "student" is always among them.
          max_prompt_tokens: examples with a longer prompt in any view are dropped.
          pad_id: what stands in unused columns.
          seed: of the shuffle; None: no shuffle.
          references: whether batches carry the solutions as completions; a solution longer than
            `max_completion_tokens`, its stop token included, has its example dropped.
          max_completion_tokens: the width of the references.
          fed: the rows of a batch that this process feeds, where there are several; the others are
            left empty, and their texts are not held.
          pooled: computes rows of numbers, a share of them on each process.

        Raises:
          ValueError: nothing is left; or an example can't be rendered (`jopd.data.views`).
        """
        for name, value in (
            ("prompts_per_step", prompts_per_step),
            ("max_prompt_tokens", max_prompt_tokens),
        ):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.prompts_per_step, self.pad_id, self.seed = prompts_per_step, pad_id, seed
        self.max_completion_tokens, self._has_references = max_completion_tokens, references
        self._fed = fed

        # Views that show the same are rendered once, under the name of the first of them.
        first: dict = {}
        self._rendered_as = {
            view: first.setdefault(shown(view), view) for view in dict.fromkeys(("student", *views))
        }
        names = list(first.values())
        examples = self._all = list(examples)  # a generated one is made anew at each look
        self._render = functools.partial(
            _rendered, names, tokenizer=tokenizer, config=config, references=references
        )
        # By place in `examples`: what this process has rendered.
        self._held: dict[int, list[np.ndarray]] = {}
        limits = {f"{name} prompt": max_prompt_tokens for name in names} | {
            "reference": max_completion_tokens
        }

        def measure(indices: Sequence[int]) -> np.ndarray:
            """Of each example the length of each text, and a digest of 64 bits."""
            sizes = np.zeros((len(indices), len(limits) + 2), np.uint32)
            for row, index in enumerate(indices):
                ids = self._held[index] = self._render(examples[index])
                sizes[row, :-2] = [len(part) for part in ids]
                sizes[row, -2:] = np.frombuffer(_digest(examples[index], ids), np.uint32)
            return sizes

        measured = pooled(len(examples), measure)
        lengths, digests = measured[:, :-2].astype(int), measured[:, -2:]
        dropped, longest, kept = Counter(), Counter(), []
        for index, sizes in enumerate(lengths):
            by_name = dict(zip(limits, sizes.tolist(), strict=True))
            over = next((what for what, size in by_name.items() if size > limits[what]), None)
            if over is None:
                kept.append(index)
                continue
            dropped[over] += 1
            longest[over] = max(longest[over], by_name[over])
            self._held.pop(index, None)
        self._kept, self.examples = kept, [examples[index] for index in kept]
        self.fingerprint = hashlib.blake2b(digests[kept].tobytes(), digest_size=8).hexdigest()

        self.dropped = dict(dropped)
        setting = {
            what: "max_completion_tokens" if what == "reference" else "max_prompt_tokens"
            for what in limits
        }
        self.report = f"{len(self.examples)} of {len(examples)} examples fit" + "".join(
            f"; {count} dropped: {what} longer than {setting[what]}={limits[what]} (up to "
            f"{longest[what]})"
            for what, count in dropped.items()
        )
        if not self.examples:
            what = (
                f"{self.report}: raise the limit"
                if dropped
                else "examples is empty: nothing to make batches of"
            )
            raise ValueError(what)
        longest_kept = dict(zip(names, lengths[kept].max(axis=0).tolist(), strict=False))
        self.widths = {
            view: -(-longest_kept[name] // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
            for view, name in self._rendered_as.items()
        }
        self._names = names
        self._order: Any = None
        if seed is not None:
            # Random access to an endless shuffled sequence, so the data position of a run is its
            # step and nothing else.
            self._order = (
                grain.MapDataset.source(range(len(self.examples))).seed(seed).shuffle().repeat()
            )

    def __len__(self) -> int:
        """The batches that one pass takes."""
        return -(-len(self.examples) // self.prompts_per_step)

    def __getitem__(self, step: int) -> Batch:
        indices = self._indices(step)
        fed = range(len(indices)) if self._fed is None else set(self._fed)
        texts = [self._ids(i) if row in fed else None for row, i in enumerate(indices)]
        of = lambda name: [() if it is None else it[name] for it in texts]
        contexts = {
            view: left_pad(of(name), self.widths[view], self.pad_id)
            for view, name in self._rendered_as.items()
        }
        first = step * self.prompts_per_step
        batch = Batch(
            rows=np.arange(first, first + self.prompts_per_step, dtype=np.int32), contexts=contexts
        )
        if self._has_references:
            width = self.max_completion_tokens
            batch["reference"] = right_pad(of("reference"), width, self.pad_id)
        return batch

    def reference(self, index: int) -> np.ndarray:
        """The reference completion of one of `examples`, its stop token included."""
        return self._ids(index)["reference"]

    def _ids(self, index: int) -> dict[str, np.ndarray]:
        """What was rendered of one of `examples`, or is now, on a process that has not yet."""
        place = self._kept[index]
        if place not in self._held:
            self._held[place] = self._render(self._all[place])
        return dict(zip([*self._names, "reference"], self._held[place], strict=True))

    def examples_at(self, step: int) -> list[Example]:
        """The examples of a batch's rows; of a filled-up last batch only of its real rows, which
        come first.
        """
        real = (
            self.prompts_per_step
            if self._order is not None
            else len(self.examples) - step * self.prompts_per_step
        )
        return [self.examples[i] for i in self._indices(step)[:real]]

    def _indices(self, step: int) -> list[int]:
        if step < 0 or (self._order is None and step >= len(self)):
            raise IndexError(f"step {step} is outside the {len(self)} batches")
        places = range(step * self.prompts_per_step, (step + 1) * self.prompts_per_step)
        return [
            place % len(self.examples) if self._order is None else int(self._order[place])
            for place in places
        ]
