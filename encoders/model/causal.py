"""Attention from left to right, as in BERT's "LTR & No NSP" (Devlin et al., 2019, §5.1)."""

from encoders.model.parts import Attend


class CausalAttend(Attend):
    """`Attend` in which a token sees itself and the earlier tokens of its example: other masks, the same parameters."""

    causal = True
