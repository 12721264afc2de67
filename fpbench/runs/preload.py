"""Import what measuring processes need, once and without the libraries' chatter, before they are forked."""

from fpbench.models.quiet import quiet

with quiet():
    import peft  # noqa: F401

    import fpbench.metrics.lm  # noqa: F401
    import fpbench.runs.worker  # noqa: F401
