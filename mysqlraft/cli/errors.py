"""How a verb fails: one line for the user, and an exit status."""

EXIT_NO = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130


class CommandError(Exception):
    """What went wrong and what to do, in one line; ``status`` is the exit status."""

    def __init__(self, message: str, status: int = EXIT_NO) -> None:
        super().__init__(message)
        self.status = status
