"""The one training loop: any loss, one process or many, interrupted and resumed without a trace.

Every random number of step *s* on process *r* comes from a generator seeded by (seed, s, r), so a
run that was killed and resumed draws the same batches and the same noise as one that was not.
Checkpoints are safetensors files: nothing is ever unpickled.
"""

from emlab.training.loop import Loss, TrainingResult, train
from emlab.training.state import Evaluate, TrainingConfig

__all__ = ["Evaluate", "Loss", "TrainingConfig", "TrainingResult", "train"]
