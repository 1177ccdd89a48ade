"""An error in one line."""


def first_line(error: BaseException) -> str:
    """What the error says, its first line; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def brief(error: BaseException, limit: int = 200) -> str:
    """The error's type and the first line of what it says, at most `limit` characters of it."""
    name, said = type(error).__name__, first_line(error)
    return name if said == name else f"{name}: {said[:limit]}"
