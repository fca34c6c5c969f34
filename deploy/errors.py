"""The one error of the files that run on a device, where nothing but numpy may be present."""


class DeployError(Exception):
    """A refusal told in one line, with the exit code that a command ends with."""

    def __init__(self, message: str, exit_code: int) -> None:
        # What a file holds ends up in messages, and must neither break the line nor steer a screen.
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))
        self.exit_code = exit_code
