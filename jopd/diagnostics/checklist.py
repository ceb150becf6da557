"""The least that a paper on on-policy distillation should tell, after the survey
(arXiv:2606.22793): its six variables, which name a method, and four groups of facts beside what
was run; and how fast it was, which the survey doesn't ask for.
"""

VARIABLES = ("state", "support", "credit", "routing", "gates", "regularisation")
# Group -> its items, by the key that `facts` holds them under.
CHECKLIST: dict[str, tuple[str, ...]] = {
    "run": ("preset", "method", "command", "seed", "versions", "device", "mesh", "seconds"),
    "state": (
        "prompts",
        "rollouts_per_prompt",
        "sampling",
        "truncation_rate",
        "off_policy_share",
        "policy_age",
        "student_init",
        "cold_start",
    ),
    "feedback": (
        "teacher",
        "self_or_external",
        "teacher_update",
        "views",
        "signal",
        "k",
        "temperature",
        "precision",
        "tokenizer_match",
        "masked_specials",
    ),
    "update": (
        "route",
        "divergence",
        "support",
        "credit",
        "stop_gradients",
        "gates",
        "clips",
        "routing",
        "aggregation",
        "regularisers",
        "optimizer",
    ),
    "resource": ("tokens_generated", "teacher_tokens", "device_hours", "seeds", "grade"),
    "speed": (
        "device",
        "peak",
        "model_flops_utilisation",
        "model_teraflops_per_second",
        "tokens_per_second",
        "median_step_seconds",
        "peak_memory_bytes",
        "seconds",
        "time_share",
        "bound_by",
    ),
}
TITLES = {
    "run": "What was run",
    "state": "State: who wrote what was graded",
    "feedback": "Feedback: what the teacher said",
    "update": "Update: how the student moved",
    "resource": "Resource and evidence",
    "speed": "Speed: medians over the steps, and what the time went into",
}
