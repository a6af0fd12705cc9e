"""What the handler of the first page depends on."""


class UserService:
    def __init__(self) -> None:
        self.done: list[object] = []

    async def do_smth_with_the_user(self, user: object) -> None:
        self.done.append(user)


_service = UserService()


async def get_user_service() -> UserService:
    return _service
