"""The two exceptions whose messages are meant for the person who ran the command."""


class UserError(Exception):
    """A mistake in a flag, a config, a path or a data set.

    The message names the key, its value, what was expected and what to do. Entry points print it as one line and exit with code 2.
    """


class Preempted(Exception):
    """The run was told to stop, has saved its state and goes on when the same command is started again.

    Entry points print the message and exit with `CODE`, 75: EX_TEMPFAIL of sysexits.h, "try again later", which no crash, no signal
    (128 + n) and no UserError gives. A scheduler may requeue on it.
    """

    CODE = 75
