"""One rule a cause: ``judge(facts)`` gives a Finding or None; the module's docstring is what ``explain CODE`` prints.

A confidence of 0.9 or more means that a replay or a scan proved it. Rules see `Facts` only, never a tensor.
"""
