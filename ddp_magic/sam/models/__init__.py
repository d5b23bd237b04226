"""SAM models: one interface to the families, prompts in, masks out; what is trained of them."""
