"""The one exception that a user is meant to read."""


class UserError(Exception):
    """A mistake that the user can mend: what is wrong, where, and what to type next.

    The command line prints it without a traceback; libraries may catch it. Invariants of our own are assertions.

    Args:
        what: What is wrong, one sentence.
        where: File, key, recipe path or shard where it was seen.
        hint: What to type or change next.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = ""):
        super().__init__(what, where, hint)
        self.what, self.where, self.hint = what, where, hint

    def __reduce__(self):
        # Exceptions cross process borders (Ray, DataLoader workers); keyword-only arguments need help to be unpickled.
        return _rebuild, (type(self), self.what, self.where, self.hint)

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"  where: {self.where}")
        if self.hint:
            parts.append(f"  next:  {self.hint}")
        return "\n".join(parts)


class FullDisk(UserError):
    """No space is left: nothing is wrong with what was asked, and the same may be tried again."""


def _rebuild(cls: type, what: str, where: str, hint: str) -> UserError:
    return cls(what, where=where, hint=hint)
