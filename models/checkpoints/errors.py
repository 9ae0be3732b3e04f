"""The one error that reading or writing a checkpoint raises."""


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message says what was found, what is supported and what to
    do.
    """
