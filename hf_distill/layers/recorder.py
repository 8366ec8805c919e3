from hf_distill.layers.recording import taken_losses as taken_losses
