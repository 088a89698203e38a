"""What dense models have beyond rotary attention and a gated MLP behind RMS norms, in words."""

from __future__ import annotations

TRAITS = {
    "bias": "biases on the query, key and value projections",
    "output_bias": "a bias on the attention's output projection",
    "mlp_bias": "biases in the MLP",
    "head_dim": "heads of another size than hidden_size / num_attention_heads",
    "rope_scaling": "scaled rotary frequencies",
    "partial_rotary": "heads of which only a part is rotated",
    "no_rope_layers": "layers without rotary embedding",
    "window": "sliding-window attention in all layers",
    "mixed_window": "sliding-window attention in some of the layers only",
    "qk_norm": "a norm for each query and key head",
    "qk_norm_after_rope": "a norm for each query and key head after the rotary embedding",
    "qk_norm_full": "a norm over whole query and key projections",
    "post_norm": "norms after attention and MLP instead of before them",
    "sandwich_norm": "norms before and after both attention and MLP",
    "layer_norm": "layer norms instead of RMS norms",
    "no_norm_weights": "norms without weights",
    "softcap": "soft-capped attention scores and logits",
    "ungated": "an MLP without a gate projection",
    "multipliers": "multipliers on embeddings, attention, residuals and logits",
    "scaled_embedding": "scaled embeddings and norms that multiply by one plus their weight",
    "cohere2_block": "attention and MLP side by side behind one layer norm, with rotary sliding layers",
    "mla": "latent attention (MLA)",
    "mla_yarn": "latent attention (MLA) with DeepSeek-V3's scaling",
    "short_conv": "short convolutions in place of some attention layers",
    "linear_attention": "gated linear attention in most layers",
    "mamba": "Mamba layers",
    "gemma4_block": "Gemma 4's block, in which the MLP may run beside experts",
    "state_space": "state-space layers and no attention",
    "learned_positions": "no rotary embedding",
}
"""What a family may have, by the name used in family files."""
