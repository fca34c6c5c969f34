"""The one error of the files that run on a device, where nothing but numpy may be present."""


class DeployError(Exception):
    """A refusal told in one line, with the exit code that a command ends with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
