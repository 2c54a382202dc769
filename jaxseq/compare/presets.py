"""Budgets of a comparison. All its architectures get the same number of parameters and the same rows in the same order."""

from typing import NamedTuple

CONTEXTS = tuple(2**n for n in range(7, 16))  # 128 … 32768


class Preset(NamedTuple):
    """A budget, and the sizes at which costs are measured.

    Widths are multiples of 8, so not every number of parameters can be reached. The numbers here were chosen so that the
    architectures of this package can reach them in a sound shape.
    """

    name: str
    parameters: int | None  # None: each config keeps its size
    tokens: int  # of training; rounded to whole steps
    batch: int  # rows per step
    length: int  # tokens per row
    evaluations: int  # during the run, the last one at its end
    evaluation_tokens: int  # validation tokens of each evaluation, over all documents
    speed_tokens: int  # tokens per step in the speed measurement, at every length; at least one row
    speed_lengths: tuple[int, ...]
    memory_lengths: tuple[int, ...]
    decode_contexts: tuple[int, ...]
    prefill_lengths: tuple[int, ...]
    rounds: int  # timings, of which the median is taken
    decode_steps: int = 16  # tokens per timing
    sample_tokens: int = 160
    state_contexts: tuple[int, ...] = CONTEXTS

    @property
    def steps(self) -> int:
        return max(1, round(self.tokens / (self.batch * self.length)))

    @property
    def energy_contexts(self) -> tuple[int, ...]:
        """The longest context at which decoding is timed."""
        return self.decode_contexts[-1:]


PRESETS = {
    preset.name: preset
    for preset in (
        # With so few tokens, many small steps work best: with eight rows of 256 tokens per step, a Transformer of this size
        # is no better than an order-1 Markov model after 250k tokens; with two rows of 128 per step, it beats order 2.
        Preset(
            "quick", parameters=164_000, tokens=250_000, batch=2, length=128, evaluations=4, evaluation_tokens=72_000,
            speed_tokens=256, speed_lengths=(256, 2048), memory_lengths=(256, 2048, 8192), decode_contexts=(128, 2048, 32768),
            prefill_lengths=(256, 2048), rounds=5,
        ),
        Preset(
            "standard", parameters=475_000, tokens=800_000, batch=4, length=256, evaluations=5, evaluation_tokens=132_000,
            speed_tokens=4096, speed_lengths=(256, 1024, 4096),
            memory_lengths=(256, 512, 1024, 2048, 4096, 8192), decode_contexts=CONTEXTS, prefill_lengths=(256, 1024, 4096),
            rounds=5,
        ),
    )
}  # fmt: skip
