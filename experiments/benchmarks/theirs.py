"""One measurement of what people would use instead, in a process of its own: prints a line of JSON.

    python experiments/benchmarks/theirs.py PART FOLDER [name=value ...]

PART is one of the functions below; FOLDER holds the model as transformers reads it. Student and
teacher are the same model. The settings are those that make the other side fastest: no gradient
checkpointing where it fits, no logging, no checkpoints; float32 on a CPU, bfloat16 on a GPU.
"""

import contextlib
import json
import resource
import statistics
import sys
import tempfile
import time

import torch
import transformers
from datasets import Dataset
from turns import alone

GPU = torch.cuda.is_available()
DTYPE = torch.bfloat16 if GPU else torch.float32


def machine(folder: str) -> dict:
    """Products of square matrices."""
    del folder
    square = torch.randn(8192 if GPU else 3072, 8192 if GPU else 3072, dtype=DTYPE)
    square = square.cuda() if GPU else square
    seconds = [seconds_of(lambda: square @ square) for _ in range(6)]
    return {"flops": 2 * len(square) ** 3 / statistics.median(seconds[1:])}


def seconds_of(call) -> float:
    start = time.perf_counter()
    call()
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def decode(folder: str, rows: int = 8, prompt: int = 32, new: int = 128) -> dict:
    """`new` tokens after a prompt, in each row, by transformers' `generate`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE)
    model = model.cuda() if GPU else model
    tokens = torch.randint(0, model.config.vocab_size, (rows, prompt), device=model.device)
    lengths = {"max_new_tokens": new, "min_new_tokens": new}
    write = lambda: model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=True, top_k=0, **lengths
    )
    with torch.inference_mode():
        write()
        with alone():
            seconds = statistics.median([seconds_of(write) for _ in range(2)])
    return {"seconds": seconds, "tokens_per_second": rows * new / seconds}


class Clock(transformers.TrainerCallback):
    """How long each step took."""

    def __init__(self):
        self.seconds = []
        self.turn = contextlib.ExitStack()

    def on_step_begin(self, *args, **kwargs):
        if self.seconds:
            self.turn.enter_context(alone())
        self.began = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        if GPU:
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.began)
        self.turn.close()


def trained(trainer) -> dict:
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return {"seconds": statistics.median(clock.seconds[1:]), "first": clock.seconds[0]}


def arguments(rows: int, steps: int, part: int) -> dict:
    """What the two trainers have in common; `part` rows at a time go through the models."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": part or rows,
        "gradient_accumulation_steps": rows // (part or rows),
        "max_steps": steps + 1,
        "bf16": GPU,
        "use_cpu": not GPU,
        "gradient_checkpointing": bool(part),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "temperature": 1.0,
        "beta": 1.0,  # the reverse KL
        "model_init_kwargs": {"dtype": "float32"},
        "teacher_model_init_kwargs": {"dtype": "bfloat16" if GPU else "float32"},
    }


def distillation(
    folder: str, prompts: str, rows: int = 8, new: int = 128, steps: int = 2, part: int = 0
) -> dict:
    """Whole steps of TRL's DistillationTrainer; `prompts` is a file of JSON lines."""
    from trl import DistillationConfig, DistillationTrainer

    config = DistillationConfig(
        **arguments(rows, steps, part),
        max_completion_length=new,
        generation_kwargs={"min_new_tokens": new},
    )
    return trained(
        DistillationTrainer(
            model=folder, teacher_model=folder, args=config, train_dataset=questions(prompts)
        )
    )


def gkd(
    folder: str, prompts: str, rows: int = 8, new: int = 128, steps: int = 2, part: int = 0
) -> dict:
    """Whole steps of TRL's GKDTrainer, all of them on the student's own completions."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    config = GKDConfig(**arguments(rows, steps, part), lmbda=1.0, max_new_tokens=new)
    answer = [{"role": "assistant", "content": "I am."}]
    data = questions(prompts).map(
        lambda row: {"messages": row["prompt"] + answer}, remove_columns=["prompt"]
    )
    trainer = GKDTrainer(
        model=folder,
        teacher_model=folder,
        args=config,
        train_dataset=data,
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
    )
    trainer.generation_config.min_new_tokens = new
    return trained(trainer)


def questions(file: str) -> Dataset:
    with open(file, encoding="utf-8") as lines:
        texts = [json.loads(line)["prompt"] for line in lines]
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in texts]})


def peak_bytes() -> int:
    """Of the device, or on a CPU of the process."""
    if GPU:
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


PARTS = {part.__name__: part for part in (machine, decode, distillation, gkd)}

if __name__ == "__main__":
    part, folder, *rest = sys.argv[1:]
    values = dict(text.split("=") for text in rest)
    transformers.set_seed(0)
    found = PARTS[part](
        folder, **{name: int(x) if x.isdigit() else x for name, x in values.items()}
    )
    print(json.dumps(found | {"peak_bytes": peak_bytes()}))
