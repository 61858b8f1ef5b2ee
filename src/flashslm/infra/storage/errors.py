"""What can go wrong with the object store; these names need no client of it."""


class StoreError(RuntimeError):
    """Base of every failure of the object store."""


class ObjectMissing(StoreError):
    """An object or bucket is not there."""


class ObjectCorrupt(StoreError):
    """Stored bytes are not those their digest promises."""


class PreconditionFailed(StoreError):
    """A conditional put lost: the object exists, or changed since its etag was read."""


class StoreUnavailable(StoreError):
    """The server did not answer, or failed, after all retries; `status` is that of its last answer, or 0."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status
