"""Until the trainer is rewritten."""

from hf_distill.layers.recording import pop_losses

taken_losses = pop_losses
