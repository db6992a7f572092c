class InputError(ValueError):
    """What was asked for cannot be done with what was given.

    The message is one line: what, where, and what to do. The `basicsr` command prints it and exits with code 2.
    """
