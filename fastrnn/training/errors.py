"""What a training, its data or its files can fail with."""


class DataError(Exception):
    """A dataset or file is missing or damaged; the message is one line: what is wrong, the fix."""


class RunError(Exception):
    """A run's folder or file cannot be used; the message is one line: the reason and the fix."""


class DamagedError(RunError):
    """A file's content is not what was written."""
