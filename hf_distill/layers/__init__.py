"""Hidden states and attentions of chosen layers: recorded while models run, and compared."""

from hf_distill.layers.callback import TeacherRecorderCallback
from hf_distill.layers.distillation import IntermediateDistillation
from hf_distill.layers.projections import PROJECTIONS_FILE

__all__ = ["PROJECTIONS_FILE", "IntermediateDistillation", "TeacherRecorderCallback"]
