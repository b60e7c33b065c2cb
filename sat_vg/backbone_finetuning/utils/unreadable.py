"""Why an image cannot be read, and what can be done about it."""

COPY_AGAIN = "copy or download it again, or remove it"


class Unreadable(Exception):
    """Why a file is no image to train on, and what can be done."""

    def __init__(self, reason: str, remedy: str = COPY_AGAIN) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
