"""The calling half of the hello example: knows no address, only the service."""

import asyncio

from greeter import Greeter

import zmesh


async def main() -> None:
    async with zmesh.Node() as node:  # no services: a pure client
        greeter = node.client(Greeter)  # typed: an editor and mypy know say_hello's signature
        print(await greeter.say_hello("World"))
        print(await greeter.shout("so loud"))

        by_name = node.client("Greeter")  # without the class
        call = by_name.say_hello(name="nobody in particular")
        print(await call, f"(said by {call.node})")


if __name__ == "__main__":
    asyncio.run(main())
