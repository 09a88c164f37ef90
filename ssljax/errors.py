"""The one exception whose message is meant for the person who ran the command."""


class UserError(Exception):
    """A mistake in a flag, a config, a path or a data set.

    The message names the key, its value, what was expected and what to do. Entry points print it as one line and exit with code 2.
    """
