"""A nanopatch model as TransformerLens' HookedTransformer, for tests and scripts that compare the two.

It needs `pip install torch "transformer_lens<4"`.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))  # where the writers of other layouts are

from writers import transformer_lens

import nanopatch


def hooked_transformer(model, **options):
    """The model on the CPU, in its own dtype, without gradients. options: of HookedTransformerConfig."""
    import torch
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=model.n_layer,
        d_model=model.d_model,
        n_heads=model.n_head,
        d_head=model.d_head,
        d_mlp=model.config.n_inner,
        n_ctx=model.config.n_positions,
        d_vocab=model.n_vocab,
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
        dtype=getattr(torch, str(model.dtype)),
        **options,
    )
    hooked = HookedTransformer(config)
    weights = transformer_lens(nanopatch.named_weights(model), model.n_head)
    weights.setdefault("unembed.W_U", model.lm_head.T)
    weights.setdefault("unembed.b_U", np.zeros(model.n_vocab, model.dtype))
    state = {name: torch.tensor(np.ascontiguousarray(array)) for name, array in weights.items()}
    hooked.load_state_dict(hooked.state_dict() | state)
    return hooked.eval().requires_grad_(False)
