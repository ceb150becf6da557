"""The student writes: prefill, then one token a step for all rows, in one jitted program.

A prompt's samples share its prefill. Each step takes the model's own log-probabilities (the numbers
that the trainer will see), cuts them if asked to, adds Gumbel noise and takes the best token, which
draws exactly from the cut distribution. The noise of a row depends on the key, the row's id and the
position in its completion only, so a row's tokens depend neither on the batch that it is drawn in
nor on the mesh. The loop ends when every row has ended; long answers go on in narrower batches as
rows end, so that nobody waits for the longest.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from jopd.models.sharding import constrain, for_decoding, of_shards, ways
from jopd.models.transformer import Cache, Transformer, project
from jopd.rollout.settings import Decoding, Sampling
from jopd.rollout.truncation import truncate


class Rollout(NamedTuple):
    """What the student wrote, right-padded.

    Attributes:
      tokens: the completion, its stop token included; `pad_id` after the end.
      mask: True on written tokens.
      logp: behaviour log-probability of each token: at the sampling temperature (greedy: at 1) and
        before truncation; 0 outside the mask.
      stopped: why a row ended: 0 the length limit, else 1 + the index of the stop token.
    """

    tokens: Int[Array, "b t"]
    mask: Bool[Array, "b t"]
    logp: Float[Array, "b t"]
    stopped: Int[Array, " b"]


def sample(
    model: Transformer,
    tokens: Int[Array, "n p"],
    valid: Bool[Array, "n p"],
    rows: Int[Array, " b"],
    key: PRNGKeyArray,
    *,
    decoding: Decoding,
    samples: int,
    gathered: bool = True,
) -> Rollout:
    """Draws `samples` completions of each prompt. Pure; everything after `key` is static under
    `jit`.

    Args:
      tokens, valid: left-padded prompts.
      rows: an id for each completion, of which its randomness is made; prompt i's are `rows[i *
        samples : (i + 1) * samples]`, and so are the rows of the result.
      key: of the default (threefry) kind: others give different bits in different batches.
      gathered: whether each device holds all of the model while it writes, but for what the tensor
        axis splits; else layers are gathered for every token, slower and in less memory.

    Raises:
      ValueError: ids that don't fit the rows, or a vocabulary larger than the model's, before
        anything is traced.
    """
    batch = tokens.shape[0] * samples
    if rows.shape != (batch,):
        raise ValueError(
            f"rows has shape {rows.shape}, but {tokens.shape[0]} prompts x samples={samples} make "
            f"{batch} rows: give each an id"
        )
    if not 0 < decoding.vocabulary <= model.architecture.vocabulary_size:
        raise ValueError(
            f"vocabulary={decoding.vocabulary} must lie in 1..{model.architecture.vocabulary_size},"
            " the rows of the embedding"
        )

    model = in_compute_dtype(model)
    model = for_decoding(model) if gathered else model
    prompt, cache = model.extend(tokens, valid, model.empty_cache(*tokens.shape))
    return decode(
        model,
        jnp.repeat(prompt[:, -1], samples, axis=0),
        widen(cache, samples, decoding.max_new_tokens - 1),
        rows,
        key,
        decoding,
    )


def decode(
    model: Transformer,
    hidden: Float[Array, "b d"],
    cache: Cache,
    rows: Int[Array, " b"],
    key: PRNGKeyArray,
    decoding: Decoding,
) -> Rollout:
    """The completions that follow a prefill; what is not named here is as for `sample`.

    Args:
      hidden: the final hidden states that predict each row's first token.
      cache: what the rows have read, with room for all new tokens but the last, which is never
        read.
    """
    batch, length = len(rows), decoding.max_new_tokens
    blocks = None
    if layers_apart():
        blocks, cache = model.one_by_one(cache)

    def write(state: State, hidden: Float[Array, "b d"]) -> State:
        """Draws each row's next token and writes it down; a row that has ended writes padding."""
        t, running = state.written, state.stopped == 0
        # Without the barrier XLA hoists the transpose of a tied head out of the loop: a second
        # embedding in memory.
        head = jax.lax.optimization_barrier(model).head()
        keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, t)
        token, logp = draw(project(hidden, head)[:, : decoding.vocabulary], keys, decoding.sampling)
        stopped = state.stopped
        for code, stop in enumerate(decoding.stop_tokens, start=1):
            stopped = jnp.where((stopped == 0) & (token == stop), code, stopped)
        put = lambda whole, column: jax.lax.dynamic_update_slice_in_dim(
            whole, column[:, None], t, axis=1
        )
        return State(
            written=t + 1,
            keys=state.keys,
            cache=state.cache,
            tokens=put(state.tokens, jnp.where(running, token, decoding.pad_id)),
            mask=put(state.mask, running),
            logp=put(state.logp, jnp.where(running, logp, 0)),
            stopped=stopped,
        )

    def step(state: State) -> State:
        last = jax.lax.dynamic_slice_in_dim(state.tokens, state.written - 1, 1, axis=1)
        hidden, cache = model.extend(last, state.stopped[:, None] == 0, state.cache, blocks)
        return write(state._replace(cache=cache), hidden[:, 0])

    state = State(
        written=jnp.zeros((), jnp.int32),
        keys=jax.vmap(jax.random.fold_in, (None, 0))(key, rows),
        cache=cache,
        tokens=jnp.full((batch, length), decoding.pad_id, jnp.int32),
        mask=jnp.zeros((batch, length), bool),
        logp=jnp.zeros((batch, length), jnp.float32),
        stopped=jnp.zeros(batch, jnp.int32),
    )
    shards = ways(batch, "batch")

    def finish(state: State, narrower: tuple[int, ...]) -> State:
        """Writes until all rows have ended: in this width while more of a shard's rows are left
        than the next one has room for, then with those that are left.
        """
        room, *rest = narrower or (0,)
        left = lambda state: jnp.max(jnp.sum((state.stopped == 0).reshape(shards, -1), axis=1))
        wide = lambda state: (state.written < length) & (left(state) > room)
        state = jax.lax.while_loop(wide, step, state)
        if not room:
            return state
        part, places = running(state, shards, room)
        return returned(state, finish(part, tuple(rest)), places)

    state = finish(write(state, hidden), widths(batch // shards, length))
    return Rollout(state.tokens, state.mask, state.logp, state.stopped)


def layers_apart() -> bool:
    """Whether a token is written layer by layer in a program as long as the model is deep, and not
    in a scan over the layers, which on a GPU copies each one's weights and cache out of their stack
    before it reads them.
    """
    return jax.default_backend() == "gpu"


def widths(rows: int, length: int) -> tuple[int, ...]:
    """The narrower batches that a shard of so many rows goes on in as they end: each five eighths
    of the one before, down to a sixteenth.

    At answers of lognormal length (median 200, sigma .7, limit 1,024) a quarter of the work is for
    rows that have ended, with 256 rows on one shard, and a third on eight; without it three
    quarters. Each width is a program to compile, so that shorter answers have fewer: halves, down
    to eight rows, where it is the weights that a token costs; the shortest, and few rows, none.
    """
    if length < 128:
        return ()
    many = length >= 512
    narrower, width = [], rows
    while width > max(rows // 16, 2 if many else 8):
        width = -(-width * 5 // 8) if many else -(-width // 2)
        narrower.append(width)
    return tuple(narrower)


def running(state: "State", shards: int, width: int) -> "tuple[State, Int[Array, 's w']]":
    """The first `width` rows of each shard, those that have not ended before the others, and their
    places in the shard.
    """
    ended = (state.stopped != 0).reshape(shards, -1)
    places = jnp.argsort(ended, axis=1, stable=True)[:, :width]
    take = lambda x, axis=0: of_shards(x, shards, axis, lambda rows, i: rows[i], places)
    cache = state.cache
    part = state._replace(
        cache=cache._replace(
            keys=jax.tree.map(lambda x: take(x, 1), cache.keys),
            values=jax.tree.map(lambda x: take(x, 1), cache.values),
            valid=take(cache.valid),
        ),
        keys=take(state.keys),
        tokens=take(state.tokens),
        mask=take(state.mask),
        logp=take(state.logp),
        stopped=take(state.stopped),
    )
    return part, places


def returned(state: "State", part: "State", places: Int[Array, "s w"]) -> "State":
    """The state with what was written of a part of it."""
    shards, width = places.shape

    def put(whole, of_part):
        of_part = of_part.reshape(shards, width, *of_part.shape[1:])
        return of_shards(
            whole, shards, 0, lambda rows, i, part: rows.at[i].set(part), places, of_part
        )

    return state._replace(
        written=part.written,
        tokens=put(state.tokens, part.tokens),
        mask=put(state.mask, part.mask),
        logp=put(state.logp, part.logp),
        stopped=put(state.stopped, part.stopped),
    )


class State(NamedTuple):
    """The decode loop's carry: a rollout in the making. `written`: how many of its columns are;
    `keys`: of each row's noise.
    """

    written: Int[Array, ""]
    keys: Key[Array, " b"]
    cache: Cache
    tokens: Int[Array, "b t"]
    mask: Bool[Array, "b t"]
    logp: Float[Array, "b t"]
    stopped: Int[Array, " b"]


def draw(
    logits: Float[Array, "b v"], keys: Key[Array, " b"], sampling: Sampling
) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
    """One token a row and its log-probability before truncation, from float32 logits and one key a
    row.
    """
    # Divided as distances from the best logit: a small temperature would round the best away.
    distance = logits - jnp.max(logits, axis=-1, keepdims=True)
    temperature = max(sampling.temperature, jnp.finfo(logits.dtype).tiny)
    logp = score = jax.nn.log_softmax(distance / (temperature if sampling.temperature else 1.0))
    if sampling.temperature > 0:
        # The best of log-probability + Gumbel noise is a draw from the softmax. "high": plain
        # float32 noise ends near 16, and tokens of a probability below 1e-7, of which a large
        # vocabulary has many, would never be drawn.
        noise = jax.vmap(
            lambda key: jax.random.gumbel(key, logp.shape[1:], logp.dtype, mode="high")
        )(keys)
        score = (
            truncate(logp, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p) + noise
        )
    # argmax in two plain reductions, which XLA's CPU backend vectorises: three times faster.
    ids = jnp.arange(logp.shape[1], dtype=jnp.int32)[None]
    best = score == jnp.max(score, axis=-1, keepdims=True)
    token = jnp.min(jnp.where(best, ids, logp.shape[1] - 1), axis=-1)
    # Compare and sum, not gather: a sharded vocabulary stays where it is.
    return token, jnp.sum(jnp.where(ids == token[:, None], logp, 0), axis=-1)


def widen(cache: Cache, samples: int, slots: int) -> Cache:
    """Each row `samples` times, side by side, with `slots` more empty slots."""
    kv = lambda x: constrain(
        jnp.pad(jnp.repeat(x, samples, axis=1), [(0, 0)] * 3 + [(0, slots), (0, 0)]),
        None,
        "batch",
        "heads",
        None,
        None,
    )
    valid = jnp.pad(jnp.repeat(cache.valid, samples, axis=0), [(0, 0), (0, slots)])
    return Cache(kv(cache.keys), kv(cache.values), valid, cache.length)


def in_compute_dtype(model: Transformer) -> Transformer:
    """The model with wider parameters cast once, where the forward pass would cast them again at
    every step.
    """
    dtype = jnp.dtype(model.compute.dtype)
    return jax.tree.map(
        lambda w: w.astype(dtype) if w.dtype.itemsize > dtype.itemsize else w, model
    )
