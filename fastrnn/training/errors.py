"""What a training or its files can fail with."""


class RunError(Exception):
    """A run's folder or file cannot be used; the message is one line: the reason and the fix."""


class DamagedError(RunError):
    """A file's content is not what was written."""
