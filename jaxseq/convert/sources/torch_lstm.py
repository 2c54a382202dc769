"""torch.nn.LSTM: any number of layers, one or both ways, batch first or not (ours always is)."""

import functools

from jaxseq.convert.sources import _torch_rnn

config = functools.partial(_torch_rnn.config, "lstm")
describe = functools.partial(_torch_rnn.describe, "lstm")
entries = functools.partial(_torch_rnn.entries, "lstm")
