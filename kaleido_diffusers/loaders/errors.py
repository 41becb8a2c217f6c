"""What goes wrong with files of weights."""

__all__ = ["CheckpointError"]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, is refused, or does not fit. One line, with the names of the tensors."""
