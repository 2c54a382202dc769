"""A comparison that takes seconds."""

from jaxseq.compare.presets import PRESETS

TINY = PRESETS["quick"]._replace(
    name="tiny", parameters=40_000, tokens=512, batch=4, length=32, evaluations=2, evaluation_tokens=1500, rounds=1,
    speed_tokens=32, speed_lengths=(32,), memory_lengths=(32,), decode_contexts=(32, 64), prefill_lengths=(32,),
    decode_steps=4, sample_tokens=8, state_contexts=(128, 32768),
)  # fmt: skip
