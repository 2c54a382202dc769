"""torch.nn.GRU: any number of layers, one or both directions, with or without batch_first."""

import functools

from jaxseq.convert.sources import _torch_rnn

config = functools.partial(_torch_rnn.config, "gru")
describe = functools.partial(_torch_rnn.describe, "gru")
entries = functools.partial(_torch_rnn.entries, "gru")
