"""A node of the mesh: serves its services, finds other nodes, calls them. Wiring only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import threading
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, overload

from . import _introspection
from ._arguments import (
    addresses_of,
    check_mesh,
    interfaces_for,
    list_of,
    name_of,
    peers_of,
    pickled_for_processes,
    reachable,
    refuse_duplicates,
    refuse_second_main,
    schema_of_instance,
    use_mdns,
)
from ._bulk_door import BulkDoor
from ._client import Client, Outgoing, Target
from ._clients import DynamicClient, Options, OverLink, TypedCaller
from ._core.balance import make_policy
from ._core.members import Member
from ._core.messages import Hello, Offer
from ._core.peer import State
from ._core.policies import Policy
from ._core.selection import Exactly
from ._dialer import Dialer
from ._hub import Hub
from ._link import Link
from ._map import MapOver, Mapped, OneArgument
from ._platform import Platform, real_platform, usable_cores
from ._record import foresee
from ._scatter import Replies, Scatter
from ._security import Security, chosen, gate_of, permissions_of
from ._security.keys import fingerprint
from ._server import Server
from ._values import load_untyped
from ._version import __version__
from .config import Config
from .discovery import Discovery, Sighting
from .discovery.static import StaticPeers
from .errors import FailedPrecondition, RpcError
from .explanation import Explanation
from .interceptors import Interceptor
from .schema import ServiceSchema, schema_of
from .service import Method, Service, Unary, make_client

__all__ = ["DynamicClient", "Node", "Peer"]

_log = logging.getLogger("zmesh.node")

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=Service)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node, as seen from here at one moment.

    id: its incarnation, in hex. address: of the link in use, else the first that it advertises.
    services: name to version; empty until it was met. state: new, alive, suspect, draining, dead or idle.
    load: calls in flight there, ours and others', by its last report. round_trip: seconds; None until measured.
    key: the public key that it has proven to own; None where there is no link, or one that is not secured.
    """

    name: str
    id: str
    address: str
    services: Mapping[str, str]
    state: str
    load: int
    round_trip: float | None
    capacity: float
    key: str | None = None


@contextlib.contextmanager
def told_to_stop() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and Ctrl-C set, where this is the main thread and the loop can watch signals."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    watched: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, RuntimeError):
                loop.add_signal_handler(number, stopped.set)
                watched.append(number)
    try:
        yield stopped
    finally:
        for number in watched:
            loop.remove_signal_handler(number)


class Node:
    """One participant of the mesh, as an async context manager.

    services: instances of `Service`; none for a pure client, which neither listens nor advertises.
    name: a label for people, which several nodes may share (default: host name and process id).
    mesh: nodes of another mesh are neither seen nor answered (default: ZMESH_MESH, else "default").
    listen: a ZeroMQ address or several (default: ZMESH_LISTEN, else tcp://*:0, any port of every interface).
    peers: addresses of nodes to try besides what discovery finds (default: ZMESH_PEERS, separated by commas).
    discovery: "mdns" or None for no discovery at all (default: ZMESH_DISCOVERY, "mdns" or "none"; else "mdns").
    interfaces: names or addresses of the interfaces for mDNS (default: ZMESH_INTERFACES, else all that are up;
        a node that listens on loopback alone announces itself there alone).
    capacity: a weight for balancing (default: the machine's cores).
    threads: how many plain `def` handlers run at once (default: capacity, rounded up).
    balance: how calls are spread: "least_loaded", "least_request", "peak_ewma", "random", "round_robin", "weighted", or
        an object of one's own, for this node alone (see `zmesh.balance.Policy`).
    security: encrypts every link, and says who may connect; None: neither (default: ZMESH_SECRET_FILE, or
        ZMESH_KEY_FILE and ZMESH_TRUST, and ZMESH_PERMISSIONS; else None). With keys of its own a node has the name
        that they belong to.
    client_interceptors, server_interceptors: functions around each call that this node makes, or serves; the first
        is the outermost (see `zmesh.interceptors`).
    config: the settings that are rarely changed.

    Raises ValueError or TypeError for arguments that make no sense, OSError where `listen` cannot be bound.
    """

    def __init__(
        self,
        *services: Service,
        name: str | None = None,
        mesh: str | None = None,
        listen: str | Iterable[str] | None = None,
        peers: Iterable[str] | None = None,
        discovery: Literal["mdns", "env"] | None = "env",
        interfaces: Iterable[str] | None = None,
        capacity: float | None = None,
        threads: int | None = None,
        balance: str | Policy = "least_loaded",
        security: Security | Literal["env"] | None = "env",
        client_interceptors: Sequence[Interceptor] = (),
        server_interceptors: Sequence[Interceptor] = (),
        config: Config | None = None,
        _platform: Platform | None = None,
    ) -> None:
        self._platform = real_platform() if _platform is None else _platform
        self._config = Config() if config is None else config
        self._services = [(schema_of_instance(service), service) for service in services]
        refuse_duplicates([schema.name for schema, _ in self._services])
        self._pooled = pickled_for_processes(self._services) if self._platform.processes else b""
        self._security = chosen() if security == "env" else security
        self._gate = None if self._security is None else gate_of(self._security)
        self._permissions = permissions_of(self._security, self._gate) if services else None
        self._name = name_of(name, self._gate)
        self._mesh = check_mesh(mesh if mesh is not None else os.environ.get("ZMESH_MESH") or "default")
        self._listen = addresses_of(listen, "ZMESH_LISTEN") or ("tcp://*:0",)
        self._peers = peers_of(peers, "ZMESH_PEERS")
        self._use_mdns = use_mdns(discovery)
        self._interfaces = list_of(interfaces, "ZMESH_INTERFACES") or interfaces_for(self._listen if services else ())
        self._capacity = float(os.cpu_count() or 1) if capacity is None else float(capacity)
        if not 0 < self._capacity < 1e6:
            raise ValueError(f"capacity is a positive number below a million, got {capacity!r}")
        self._threads = max(1, math.ceil(self._capacity)) if threads is None else threads
        if self._threads < 1:
            raise ValueError(f"threads is at least 1, got {threads!r}")
        self._client_interceptors = tuple(client_interceptors)
        self._server_interceptors = tuple(server_interceptors)
        self._policy = make_policy(balance, self._platform.random)
        id = self._platform.new_id()
        self._id = id if self._gate is None else self._gate.identity(id)
        self._hub: Hub | None = None
        self._sources: list[Discovery] = []
        self._exits = contextlib.AsyncExitStack()
        self._addresses: tuple[str, ...] = ()
        self._descriptions: dict[str, _introspection.Description] = {}  # by digest
        self._pid = os.getpid()
        self._draining: asyncio.Task[None] | None = None
        self._closed = False

    # -- life

    async def __aenter__(self) -> Self:
        if self._hub is not None or self._closed:
            raise RuntimeError("a Node is entered once; make another one")
        try:
            await self._start()
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is GeneratorExit:  # nobody drives this coroutine any more: nothing can be awaited
            if self._hub is not None:
                self._hub.close()
        elif not self._closed:
            self._closed = True
            await self._close()  # in the task that entered: what services hold (cancel scopes, tokens) wants that

    async def serve_forever(self) -> None:
        """Serve until SIGTERM or Ctrl-C, then return, so that the `async with` drains and leaves.

        A second signal while the node drains ends the process the ordinary way.
        """
        with told_to_stop() as stopped:
            await stopped.wait()

    async def drain(self) -> None:
        """Leave the mesh as a server: take no new calls, finish those in flight, let every caller go. Bounded by
        `Config.drain_grace`. Leaving the `async with` does this by itself."""
        hub = self._running()
        if self._draining is None:  # its own task: who comes second, or gives up waiting, does not cut it short
            self._draining = asyncio.get_running_loop().create_task(self._drain(hub))
        await asyncio.shield(self._draining)

    async def _drain(self, hub: Hub) -> None:
        withdrawing = asyncio.gather(*(source.withdraw() for source in self._sources))
        await hub.drain(self._config.drain_grace)
        await withdrawing

    # -- calling

    @overload
    def client(self, service: type[S]) -> S: ...
    @overload
    def client(self, service: str) -> DynamicClient: ...
    def client(self, service: type[Service] | str) -> Any:
        """A client for a service: by its class, typed; or by its name, when the class is not at hand.

        Raises TypeError for a class whose annotations cannot be converted, ValueError for an empty name.
        """
        hub = self._running()
        if isinstance(service, str):
            if not service:
                raise ValueError("client() takes a Service class or a service's name")
            return DynamicClient(self, service, Options())
        if not (isinstance(service, type) and issubclass(service, Service)):
            raise TypeError(f"client() takes a Service class or a service's name, got {service!r:.60}")
        schema = schema_of(service)
        return make_client(service, TypedCaller(hub.client, schema, Options()))

    def _client_over(self, service: type[S], link: Link) -> S:
        if not (isinstance(service, type) and issubclass(service, Service)):
            raise TypeError(f"client() of a peer takes a Service class, got {service!r:.60}")
        options = Options(selection=OverLink(link))
        return make_client(service, TypedCaller(self._running().client, schema_of(service), options))

    def scatter(
        self,
        method: Unary[P, R],
        /,
        *,
        to: str | int | Sequence[str] = "all",
        expect: int | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str | bytes] | None = None,
    ) -> Callable[P, Replies[R]]:
        """Call a method on many nodes: `async for reply in node.scatter(Greeter.say_hello)("everyone")`.

        to: "all" who offer it once discovery has settled; "any": the same, until the first success; a number: that
            many distinct nodes with the least load for their capacity (fewer where no more are found); a list of names
            or ids: those nodes, and Unavailable in the reply of one that is not found.
        expect: wait until so many offer it, instead of until discovery has settled, or until `Config.patience` passes.
        timeout: seconds for all of it. metadata: travels with each call.

        Each node gets one ordinary call, which no other one takes over. This node is not among them. Raises TypeError
        for a method that streams, ValueError for a `to` or `expect` that makes no sense.
        """
        hub, random = self._running(), self._platform.random
        return Scatter(hub, method, to, expect, timeout, metadata, self._since, random)

    def map(
        self,
        method: OneArgument[T, R],
        /,
        *,
        ordered: bool = True,
        in_flight: int | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str | bytes] | None = None,
        progress: bool = False,
    ) -> Callable[[Iterable[T] | AsyncIterable[T]], Mapped[R]]:
        """Call a method for each of many items: `async for text in node.map(Greeter.shout)(["a", "b"])`.

        ordered: results come in the order of the items, else as they arrive.
        in_flight: how many calls are under way at most; by default twice the capacity of all nodes that offer it, and
            at least 2, looked at anew as nodes come and go.
        timeout: seconds for each call. metadata: travels with each.
        progress: draw a bar on stderr; ImportError where `rich` is missing.

        Items are taken as they are needed: never more than twice `in_flight` ahead of the results that were given out.
        An error is raised at its item's place, with a note that has the item's index, and ends the map; a call is
        retried as any other is. Raises TypeError for a method that streams, ValueError for a bad `in_flight`.
        """
        return MapOver(self._running(), method, ordered, in_flight, timeout, metadata, progress)

    def explain(
        self,
        method: Method[..., Any] | str,
        /,
        *,
        node: str | None = None,
        key: str | None = None,
        priority: int | None = None,
    ) -> Explanation:
        """Where a call would go now, and why; nothing is sent. For a call that is made: `zmesh.explain`.

        method: `Greeter.say_hello`, or "Greeter.say_hello" without the class, for any version of the service.
        node, key, priority: as for `options` of a client.

        As a first call would, it makes this node look for who offers the service, and says so until somebody is found.
        Where the policy draws lots, the next call may draw others. Raises TypeError for what is no method, ValueError
        for a text that is none.
        """
        client = self._running().client
        options = Options().change({"node": node, "key": key, "priority": priority})
        call = options.outgoing(client, self._target(method), {}, 1.0)
        call.close()  # never to be awaited
        client.want(call.target.service, call.selection is not None)
        return foresee(client, call)

    def _target(self, method: Method[..., Any] | str) -> Target:
        judge = self._running().client.judge
        if isinstance(method, Method):
            schema = schema_of(method.owner)
            return Target.of(schema.methods[method.name], schema.major, judge.budget(schema.name))
        if not isinstance(method, str):
            raise TypeError(f"explain() takes a method of a Service class, like Greeter.say_hello, got {method!r:.60}")
        service, _, name = method.rpartition(".")
        if not service or not name:
            raise ValueError(f"{method!r:.60} is no method: write 'SERVICE.METHOD', like 'Greeter.say_hello'")
        known = [each.methods[name] for each in self._described(service)[0] if name in each.methods]
        idempotent = bool(known) and known[0].idempotent
        return Target(service, None, method, idempotent, False, load_untyped, judge.budget(service))

    def stats(self) -> dict[str, Any]:
        """What the calls of this node met since it started, as plain values.

        peers: by id, of those that are known now: attempts in flight, answered, that failed by the node's doing, raised
            an exception there, were refused, or given up here; how many were retries or hedges; ejections, and what the
            last one was for; the latency of each method in seconds.
        services: calls, and how many retries and hedges their budget has now.
        methods: retries, hedges, second attempts, and errors by code, of those that had any.
        limits: how often somebody broke one, by its name, most of them settings of `Config`; "protocol": links closed
            for what is not the protocol.

        refused_handshakes, refused_calls: of a secured node. refused_peers: of those that were refused lately, by the
            fingerprint of the key or by host: how many of each, from which address, and why the last time.
        refused_others: how many more peers were refused, which are not remembered.

        What a node served, `zmesh describe --stats` tells.
        """
        hub = self._running()
        stats = hub.client.judge.stats() | {"limits": dict(hub.transport.refusals.counts)}
        return stats if hub.watch is None else stats | hub.watch.audit.stats()

    @property
    def peers(self) -> list[Peer]:
        """Every other node that was seen, by name. What a node serves is known once it was met: see `discover`."""
        return sorted((_peer(member) for member in self._running().members), key=lambda peer: (peer.name, peer.id))

    async def discover(self, settle: float = 0.5, timeout: float = 5.0, expect: int = 0) -> list[Peer]:
        """Meet every node of the mesh, whatever it serves, and return the peers.

        Returns as soon as `expect` were met, where that is given, else when nobody new came for `settle` seconds; after
        `timeout` seconds in any case. From now on links are kept to all of them.
        """
        hub = self._running()
        hub.dialer.want_everybody()
        loop = asyncio.get_running_loop()
        end, quiet_since, seen = loop.time() + timeout, loop.time(), -1
        while loop.time() < end:
            met = sum(1 for member in hub.members if member.hello is not None)
            if met != seen:
                seen, quiet_since = met, loop.time()
            if expect and met >= expect:
                break
            if not expect and hub.dialer.settled() and loop.time() - quiet_since >= settle:
                break
            await asyncio.sleep(0.02)
        return self.peers

    @property
    def problems(self) -> list[str]:
        """What stands in the way of nodes that were seen and could not be met, as `address: reason`; and files of the
        trust folder that trust nobody, as `path: reason`."""
        untrusted = [] if self._gate is None else self._gate.problems
        return [*self._running().dialer.problems(), *untrusted]

    @property
    def discovery(self) -> list[str]:
        """Where this node looks for others, and what that lacks here: a line for each source."""
        self._running()
        return [source.describe() for source in self._sources]

    def on_change(self, callback: Callable[[Peer, str], None]) -> None:
        """Call `callback(peer, former_state)` on the loop after each change of a peer's state."""
        self._running().observer = lambda member, before: callback(_peer(member), before.value)

    # -- who this is

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def id(self) -> str:
        """Its incarnation, in hex."""
        return self._id.hex()

    @property
    def security(self) -> str | None:
        """What secures its links, for people; None where nothing does."""
        return None if self._gate is None else self._gate.describe()

    @property
    def fingerprint(self) -> str | None:
        """Of its public key, as `zmesh keys list` shows it; None where it is not secured."""
        return None if self._gate is None else fingerprint(self._gate.public)

    @property
    def mesh(self) -> str:
        """The mesh that it belongs to."""
        return self._mesh

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others reach it; empty for a pure client."""
        return self._addresses

    @property
    def services(self) -> tuple[ServiceSchema, ...]:
        """What it serves."""
        return tuple(schema for schema, _ in self._services)

    def __repr__(self) -> str:
        names = ", ".join(schema.name for schema, _ in self._services) or "no services"
        return f"<zmesh.Node {self._name} ({names}) in mesh {self._mesh}>"

    # -- inside

    def _running(self) -> Hub:
        if os.getpid() != self._pid:
            raise FailedPrecondition(
                "this Node was made in the parent process and does not work in a forked child: make one in the child",
                may_have_run=False,
            )
        if self._hub is None:
            raise RuntimeError("a Node works inside `async with`")
        return self._hub

    async def _start(self) -> None:
        platform, config = self._platform, self._config
        refuse_second_main()
        for _, service in self._services:
            if hasattr(type(service), "__aenter__"):
                await self._exits.enter_async_context(service)  # type: ignore[arg-type]
        transport = platform.transport(config, self._gate)
        jitter = self._platform.random.random
        me, gate, file = self._identity(()), self._gate, self._permissions
        hub = Hub(config=config, identity=me, transport=transport, jitter=jitter, gate=gate, permissions=file)
        if config.bulk:
            hub.bulk = BulkDoor(transport, config, hub.identity, platform.new_id)
        try:
            if self._services:
                self._bind(hub)
            self._wire(hub)
        except BaseException:
            transport.close()
            raise
        self._hub = hub
        self._since = asyncio.get_running_loop().time()
        try:
            await self._look_around(hub)
        except BaseException:
            hub.close()
            self._hub = None
            await asyncio.gather(*(source.close() for source in self._sources), return_exceptions=True)
            raise

    async def _look_around(self, hub: Hub) -> None:
        """Start the sources of discovery; tell them about this node."""
        if self._peers:
            self._sources.append(StaticPeers(self._peers))
        if self._use_mdns:
            self._sources.append(self._platform.mdns(self._interfaces))
        for source in self._sources:
            await source.start(self._found, hub.dialer.lost)
        if self._services:
            me = Sighting("self", self._addresses, self._id, self._name, self._mesh, self.fingerprint)
            for source in self._sources:
                await source.advertise(me)

    def _bind(self, hub: Hub) -> None:
        bound = [hub.transport.listen(address, hub.accept) for address in self._listen]
        self._addresses = tuple(found for address in bound for found in reachable(address))
        if self._config.ipc and self._platform.host.abstract_sockets:
            ipc = f"ipc://@zmesh-{self._id.hex()}"
            try:
                bound.append(hub.transport.listen(ipc, hub.accept))
                self._addresses += (ipc,)
            except OSError as error:
                _log.info("no ipc for callers on this host: %s", error)
        if hub.bulk is not None:
            hub.bulk.listen([*self._listen, *(each for each in self._addresses if each.startswith("ipc://@zmesh-"))])
        hub.identity = self._identity(self._addresses)

    def _wire(self, hub: Hub) -> None:
        platform, config = self._platform, self._config
        client = Client(
            config=config,
            members=hub.members,
            policy=self._policy,
            deadlines=hub.deadlines,
            want=lambda service, everybody: hub.dialer.want(service, everybody),
            describe=self._describe,
            random=platform.random,
            stepper=hub.stepper,
            interceptors=self._client_interceptors,
        )
        dialer = Dialer(
            owner=hub,
            id=self._id,
            config=config,
            host=platform.host,
            transport=hub.transport,
            members=hub.members,
            random=platform.random,
            ready=client.resume,
            gate=self._gate,
        )
        server: Server | None = None
        if self._services:
            processes, pool = config.processes or usable_cores(), None
            if self._pooled:
                from ._pool import ProcessPool  # and multiprocessing

                pool = ProcessPool(self._pooled, platform.executor(processes))
            introspection = _introspection.Introspection(self.services, self._info, hub.stats)
            server = Server(
                config=config,
                services=[*self._services, (schema_of(_introspection.Introspection), introspection)],
                threads=self._threads,
                executor=platform.executor(self._threads),
                processes=processes,
                pool=pool,
                deadlines=hub.deadlines,
                catch_up=hub.catch_up,
                node=self,
                name=self._name,
                stepper=hub.stepper,
                interceptors=self._server_interceptors,
                watch=hub.watch,
            )
        hub.start(client, dialer, server)

    def _identity(self, addresses: tuple[str, ...]) -> Hello:
        return Hello(
            id=self._id,
            name=self._name,
            mesh=self._mesh,
            host=self._platform.host.identity,
            addresses=addresses,
            capacity=self._capacity,
            services=tuple(Offer(schema.name, schema.version, schema.digest) for schema, _ in self._services),
            max_message=self._config.max_message,
            max_calls=self._config.max_calls,
            max_items=self._config.stream_items,
            max_item_bytes=self._config.stream_bytes,
            software=f"zmesh-python/{__version__}",
        )

    def _found(self, sighting: Sighting) -> None:
        if sighting.mesh is None or sighting.mesh == self._mesh:
            self._running().dialer.found(sighting)

    def _describe(self, service: str) -> str:
        """What was seen and what was looked at, for the error that nobody offers a service."""
        hub = self._running()
        members = [member for member in hub.members if member.state is not State.DEAD]
        names = ", ".join(member.name for member in members[:5]) + (", ..." if len(members) > 5 else "")
        offered = sorted({offer.name for member in members if member.hello for offer in member.hello.services})
        seen = "saw no node"
        if members:
            count = "1 node" if len(members) == 1 else f"{len(members)} nodes"
            seen = f"saw {count} ({names}), offering {', '.join(offered) or 'nothing'}"
        others = [o.version for m in members if m.hello for o in m.hello.services if o.name == service]
        if others:
            seen += f"; {service!r} is there in version {', '.join(sorted(set(others)))}"
        looked = "; ".join(source.describe() for source in self._sources) or "off"
        problems = hub.dialer.problems()
        trouble = f"; {'; '.join(problems[:3])}" if problems else ""
        return f"{seen}; discovery: {looked}{trouble} (run 'zmesh doctor')"

    async def _close(self) -> None:
        hub = self._hub
        if hub is None:
            return
        try:
            await self.drain()
        finally:
            if self._draining is not None:  # still under way only where leaving itself was cancelled
                self._draining.cancel()
            try:
                hub.close()
                await asyncio.gather(*(source.close() for source in self._sources), return_exceptions=True)
                await hub.closed()
            finally:
                await self._exits.aclose()

    def _info(self) -> dict[str, Any]:
        hub = self._running()
        return {
            "name": self._name,
            "id": self.id,
            "mesh": self._mesh,
            "software": f"zmesh-python/{__version__}",
            "state": "DRAINING" if hub.server is not None and hub.server.draining else "SERVING",
            "addresses": list(self._addresses),
            "capacity": self._capacity,
            "services": {schema.name: schema.version for schema in self.services},
            "uptime": asyncio.get_running_loop().time() - self._since,
        }

    async def _ask_each(self, service: str, method: str, timeout: float | None) -> dict[str, Any]:
        """What the built-in service of each node that offers `service` answers, by the node's id; an RpcError where one
        does not."""
        client = self._running().client
        target = Target(service, None, f"{_introspection.BUILT_IN}.{method}", True, False, load_untyped)

        async def ask(member: Member[Link]) -> Any:
            call = Outgoing(client, target, client.timeout(timeout), None, {})
            call.selection, call.special = Exactly(member.id, member.name), True
            try:
                return await call
            except RpcError as error:
                return error

        members = [m for m in self._running().members.offering(service) if m.state is not State.DEAD]
        answers = await asyncio.gather(*map(ask, members))
        return {member.id.hex(): answer for member, answer in zip(members, answers, strict=True)}

    def _described(self, service: str) -> tuple[list[_introspection.Description], list[Member[Link]]]:
        """What is known of a service from those who offer it now, and of whom it is not known yet."""
        known: dict[str, _introspection.Description] = {}
        unknown: list[Member[Link]] = []
        for member in self._running().members.offering(service):
            for offer in member.hello.services if member.hello is not None else ():
                if offer.name == service and offer.digest in self._descriptions:
                    known[offer.digest] = self._descriptions[offer.digest]
                elif offer.name == service:
                    unknown.append(member)
        return list(known.values()), unknown

    async def _describe_service(self, service: str, timeout: float | None) -> _introspection.Description:
        """A description of a service, from a node whose digest is not known yet, if there is one."""
        client = self._running().client
        path = f"{_introspection.BUILT_IN}.describe"
        target = Target(service, None, path, True, False, _introspection.parse)
        call = Outgoing(client, target, client.timeout(timeout), None, {"service": service})
        _, unknown = self._described(service)
        call.avoid = [m.id for m in self._running().members.offering(service) if unknown and m not in unknown]
        description: _introspection.Description = await call
        assert call.link is not None
        for offer in call.link.remote.services if call.link.remote is not None else ():
            if offer.name == service:
                self._descriptions[offer.digest] = description
        return description


def _peer(member: Member[Link]) -> Peer:
    link = member.link
    address = link.channel.remote if link is not None and link.channel is not None else ""
    return Peer(
        name=member.name,
        id=member.id.hex(),
        address=address or (member.addresses[0] if member.addresses else ""),
        services={offer.name: offer.version for offer in member.hello.services} if member.hello else {},
        state=member.state.value,
        load=member.others + member.in_flight,
        round_trip=member.round_trip,
        capacity=member.capacity,
        key=link.key if link is not None else None,
    )
