"""Features taken from media, and the parts that take them.

Face tracking (`face`) and the mouth's eight channels (`mouth`), pictures of frames (`frames`), a
language model's hidden states (`lmm*`), a VQ-VAE's codes (`reconstruction`).
"""
