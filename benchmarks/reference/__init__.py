"""The published loops, stated again: plain, slow and right, to measure ours against.

Written from what the papers and the descriptions of their code say, with nothing made faster and
nothing made slower. Nothing here is used by the product. `tests/test_benchmark_reference.py` holds
masks, losses, gradients and scores against ours: a fast wrong answer counts for nothing.
"""
