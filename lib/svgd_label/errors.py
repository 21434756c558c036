"""The one error that is meant for people: a sentence that names what is wrong and what to do."""


class UserError(ValueError):
    """Something the user can mend; its text is shown to them as it stands."""
