"""Benchmarks, each a command: `jaxseq bench ops|train|prefill|decode|data`.

    ops       the forms of every op, forward and in training; writes the table that the form "auto" reads
    models    whole models: a training step, prefill, decoding a token; and the same models in other libraries
    programs  the calls that are timed
    timing    rounds of calls in turns (A B C A B C …), and ratios within a round
    peers     other libraries, one file each

Calls that are compared are timed in turns in one run, so that other load on the machine slows all of them alike.
"""
