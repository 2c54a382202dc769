"""Benchmarks, each a command: `jaxseq bench ops|train|prefill|decode|data`.

    ops       the forms of every op, forward and in training; writes the table that the form "auto" reads
    models    whole models: a training step, reading a prompt, decoding a token, beside their counterparts in other libraries
    programs  the calls that are timed
    timing    rounds in turns, and ratios within a round
    peers     other libraries, one file each

Everything that is compared is timed in turns in one run, so that other load on the machine slows all of it alike.
"""
