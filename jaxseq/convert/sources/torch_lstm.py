"""torch.nn.LSTM: any number of layers, one or both directions, with or without batch_first."""

import functools

from jaxseq.convert.sources import _torch_rnn

config = functools.partial(_torch_rnn.config, "lstm")
describe = functools.partial(_torch_rnn.describe, "lstm")
entries = functools.partial(_torch_rnn.entries, "lstm")
