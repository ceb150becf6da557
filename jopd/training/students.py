"""A run's student on its way out: a Hugging Face folder, its adapters as PEFT's, and their model
cards.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jopd import config as configs
from jopd.models.adapters import CONFIG, save_adapter
from jopd.models.load import save
from jopd.training.card import adapter_card, model_card
from jopd.training.setup import Run
from jopd.training.state import TrainState


def write_student(run: Run, state: TrainState, student: Path, adapter: Path) -> None:
    """Writes the student, its adapters merged, and where it has adapters these too. What is spread
    over several processes is gathered by all of them, and written by the first.
    """
    params = run.program.student_params(state, run.fixed)
    save(
        student,
        run.student.graph,
        params,
        run.student.architecture,
        run.student.tokenizer,
        stop_tokens=run.student.stop_tokens,
    )
    if (lora := run.config.student.lora).rank:
        save_adapter(adapter, params, lora, run.student.origin)


def write_cards(
    run: Run, evaluations: Sequence[Mapping[str, Any]], student: Path, adapter: Path
) -> None:
    """Writes the model cards of what `write_student` has written.

    Args:
      evaluations: the run's, up to that student's.
    """
    config = configs.to_dict(run.config)
    card = model_card(config, source=run.config.objective.source, evaluations=evaluations)
    (student / "README.md").write_text(card, encoding="utf-8")
    if run.config.student.lora.rank:
        written = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
        (adapter / "README.md").write_text(adapter_card(config, written), encoding="utf-8")
