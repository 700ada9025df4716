"""Whatever happens to a job, every photo is in its output exactly once, with the right row."""

import os

import hypothesis
from histories import Histories
from hypothesis.stateful import run_state_machine_as_test

# Shrinking takes minutes; HISTORY_SHRINK=1 asks for the shortest history that fails.
PHASES = list(hypothesis.Phase) if "HISTORY_SHRINK" in os.environ else [hypothesis.Phase.generate]
STEPS = int(os.environ.get("HISTORY_STEPS", "1500"))


def test_every_photo_once_whatever_happens():
    settings = hypothesis.settings(
        max_examples=max(1, STEPS // 25),
        stateful_step_count=25,
        deadline=None,
        derandomize="HISTORY_STEPS" not in os.environ,
        database=None,
        phases=PHASES,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(Histories, settings=settings)
