"""What the user got wrong, said in one line."""


class UserError(ValueError):
    """Bad input: the message says what is wrong and how to mend it. The command line prints it and exits with status 2."""
