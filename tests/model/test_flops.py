import numpy as np

from encoders.families import albert, bert
from encoders.model.flops import forward_flops, masked_token_head_flops


def test_a_token_of_bert_base_costs_two_operations_a_weight_and_attention():
    # 85 M weights in the matrices of 12 layers: 4 H² + 2 H F each; attention over 512 tokens, 4 L H a layer.
    size = np.array([512])
    assert forward_flops(bert.BASE, size) == 512 * (2 * 84_934_656 + 12 * 4 * 512 * 768)
    shared = forward_flops(albert.BASE, size)  # sharing saves parameters and no work
    assert shared == forward_flops(bert.BASE, size) + 512 * 2 * 128 * 768


def test_a_predicted_token_costs_a_dense_layer_and_the_word_table():
    found = masked_token_head_flops(albert.BASE, np.array([1, 3]))
    assert found.tolist() == [2 * (768 * 128 + 128 * 30_000), 6 * (768 * 128 + 128 * 30_000)]
