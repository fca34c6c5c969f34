"""One thread per process: the tests share their cores with each other."""

import torch

torch.set_num_threads(1)
