"""grpc.aio. What the compiler would generate is put together here: the same classes, the same calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ..clients import TEXT, Awaiting
from ..worker import ready, run

_FIELD = descriptor_pb2.FieldDescriptorProto
INTEGER, STRING, BYTES = _FIELD.TYPE_INT64, _FIELD.TYPE_STRING, _FIELD.TYPE_BYTES
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]  # of 4 MiB


def _messages() -> list[Any]:
    file = descriptor_pb2.FileDescriptorProto(name="echo.proto", package="bench", syntax="proto3")
    fields = {
        "Message": {"name": STRING, "n": INTEGER, "data": STRING},
        "Count": {"n": INTEGER},
        "Item": {"i": INTEGER, "s": STRING},
        "Value": {"data": BYTES},
    }
    for name, types in fields.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(types.items(), 1):
            message.field.add(name=field, number=number, type=kind, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName(f"bench.{name}")) for name in fields]


Message, Count, Item, Value = _messages()


async def _echo(request: Any, context: Any) -> Any:
    return Message(name=request.name, n=request.n, data=request.data)


async def _items(request: Any, context: Any) -> AsyncIterator[Any]:
    for index in range(request.n):
        yield Item(i=index, s=TEXT)


async def _size(request: Any, context: Any) -> Any:
    return Count(n=len(request.data))


async def _back(request: Any, context: Any) -> Any:
    return Value(data=request.data)


async def _serve() -> None:
    server = grpc.aio.server(options=UNLIMITED)
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(
            _echo, request_deserializer=Message.FromString, response_serializer=Message.SerializeToString
        ),
        "Items": grpc.unary_stream_rpc_method_handler(
            _items, request_deserializer=Count.FromString, response_serializer=Item.SerializeToString
        ),
        "Size": grpc.unary_unary_rpc_method_handler(
            _size, request_deserializer=Value.FromString, response_serializer=Count.SerializeToString
        ),
        "Back": grpc.unary_unary_rpc_method_handler(
            _back, request_deserializer=Value.FromString, response_serializer=Value.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready(f"127.0.0.1:{port}")
    await server.wait_for_termination()


def serve(variant: str, beside: Sequence[str]) -> None:
    run(_serve())


class Client(Awaiting):
    async def open(self, addresses: Sequence[str]) -> None:
        self._channels = [grpc.aio.insecure_channel(address, UNLIMITED) for address in addresses]
        self._echoes = [
            channel.unary_unary(
                "/bench.Echo/Echo",
                request_serializer=Message.SerializeToString,
                response_deserializer=Message.FromString,
            )
            for channel in self._channels
        ]
        self._items = self._channels[0].unary_stream(
            "/bench.Echo/Items", request_serializer=Count.SerializeToString, response_deserializer=Item.FromString
        )
        self._size, self._back = (
            self._channels[0].unary_unary(
                path, request_serializer=Value.SerializeToString, response_deserializer=answer.FromString
            )
            for path, answer in (("/bench.Echo/Size", Count), ("/bench.Echo/Back", Value))
        )
        await self.echo(self.make(0))

    def make(self, number: int) -> Any:
        return Message(**super().make(number))

    def item(self, number: int) -> Any:
        return Item(**super().item(number))

    async def echo(self, argument: Any) -> Any:
        return await self._echoes[0](argument)

    def _echo_of(self, server: int, argument: Any) -> Any:
        return self._echoes[server](argument)

    async def size(self, value: bytes) -> int:
        size: int = (await self._size(Value(data=value))).n
        return size

    async def back(self, value: bytes) -> Any:
        return (await self._back(Value(data=value))).data

    def items(self, count: int) -> AsyncIterator[Any]:
        found: AsyncIterator[Any] = aiter(self._items(Count(n=count)))
        return found
