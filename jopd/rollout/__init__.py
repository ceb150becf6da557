"""How the student writes: one jitted loop of prefill and decode, and near-future windows."""
