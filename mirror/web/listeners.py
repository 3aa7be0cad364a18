"""The sockets that readers connect to, whoever bound them, and which process accepts from which.

They may be there before this process: systemd bound them (socket activation), or the process that
this one takes over from. Then connections wait in them while nobody accepts, and none is refused.
What is there has to be what the configuration says: an address that is open to more people than
the configuration knows of would be open to them unnoticed.

Workers each get sockets of their own (SO_REUSEPORT), among which the kernel shares connections out.
What waits in one whose worker has died is accepted by the next, a second later; where that one dies
soon as well, the socket is given up, with what waits in it: the other workers are there for all who
come. What was inherited is shared where there is too little of it.
"""

import socket
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from mirror.config import ListenAddress
from mirror.errors import LocalError
from mirror.web.listening import (
    bind,
    bind_unix_socket,
    bound_socket,
    cannot_listen,
    places_of,
)

logger = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Inherited:
    """Sockets that were bound before this process.

    Attributes:
        sockets: They, of any kind.
        by_manager: systemd bound them, by a unit that has to say what the configuration says.
    """

    sockets: Sequence[socket.socket] = ()
    by_manager: bool = False


@dataclass(slots=True)
class _Place:
    """One address.

    Attributes:
        sockets: That were inherited, or that keep the address for the workers' own.
        is_inherited: Which of the two.
        slots: What each worker accepts from, by its number.
    """

    sockets: list[socket.socket]
    is_inherited: bool
    by_manager: bool
    slots: dict[int, list[socket.socket]] = field(default_factory=dict)

    def of(self, number: int, count: int) -> list[socket.socket]:
        """Return what a worker accepts from."""
        if number not in self.slots:
            if self.is_inherited:
                there = len(self.sockets)
                turns = (k for k in range(max(there, count)) if k % count == number - 1)
                self.slots[number] = [self.sockets[k % there] for k in turns]
            else:
                self.slots[number] = [_like(self.sockets[0])]
        return self.slots[number]

    def ended(self, number: int) -> None:
        """Give up what only a worker that has died accepted from, and take the address anew."""
        others = {id(one) for n, slot in self.slots.items() if n != number for one in slot}
        own = self.slots.get(number, [])
        if self.by_manager or any(id(one) in others or not _is_shared(one) for one in own):
            return
        self.slots[number] = [_like(one) for one in own]
        for one in own:
            one.close()


class Listeners:
    """All of them.

    Attributes:
        address: Where readers connect to; with the port that the system chose.
        unix: A Unix socket, where one is configured.
        handed_over: Another process accepts from them now: nothing is removed at the end.
        by_manager: systemd bound what was inherited, by this process or the one before it.
        is_certain: They are this process's for good: until then, the one that it inherited them
            from may go on with them.
    """

    def __init__(
        self, address: ListenAddress, places: list[_Place], unix: socket.socket | None
    ) -> None:
        self.address = address
        self.unix = unix
        self.handed_over = False
        self.by_manager = False
        self.is_certain = True
        self._places = places

    @classmethod
    async def open(
        cls,
        stack: AsyncExitStack,
        address: ListenAddress,
        unix_socket: Path | None,
        inherited: Inherited,
        *,
        workers: int,
        is_certain: bool = True,
    ) -> "Listeners":
        """Take what was inherited, and bind what is missing; nothing is accepted yet.

        Args:
            stack: Closes them.
            address: The configured one.
            unix_socket: The same.
            inherited: What is there.
            workers: How many processes will accept.
            is_certain: See the attribute.

        Raises:
            LocalError: An address is not to be had, or something else was inherited.
        """
        left = list(inherited.sockets)
        for one in left:
            stack.callback(one.close)
        unix = _take_unix(left, unix_socket)
        places: list[_Place] = []
        wanted = await places_of(address)
        for family, place in wanted:
            port = places[0].sockets[0].getsockname()[1] if places else address.port
            found = [one for one in left if _is_at(one, family, place[0], port)]
            left = [one for one in left if one not in found]
            if found:
                _check_v6_only(found, address)
                places.append(_Place(found, is_inherited=True, by_manager=inherited.by_manager))
        _check_left(left, inherited, address, unix_socket)
        if places and len(places) < len(wanted):
            logger.warning("address_without_listener", address=str(address), listeners=len(places))
        if not places:
            bound = await bind(address)
            for one in bound:
                stack.enter_context(one)
                if workers > 1:
                    # Only now: before, it would let us share the port with another service of
                    # this user. It is never listened on, so that it gets no connection.
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            places = [_Place([one], is_inherited=workers == 1, by_manager=False) for one in bound]
        port = places[0].sockets[0].getsockname()[1]
        listeners = cls(ListenAddress(address.host, port), places, unix)
        listeners.is_certain, listeners.by_manager = is_certain, inherited.by_manager
        stack.callback(listeners._close)
        if unix is None and unix_socket is not None:
            listeners.unix = stack.enter_context(bind_unix_socket(unix_socket))
        if unix_socket is not None and not inherited.by_manager:
            stack.callback(listeners._remove, unix_socket)
        return listeners

    def of(self, number: int = 1, count: int = 1) -> list[socket.socket]:
        """Return the TCP sockets that one of `count` processes accepts from.

        Raises:
            LocalError: One can't be bound.
        """
        try:
            return [one for place in self._places for one in place.of(number, count)]
        except OSError as error:
            raise cannot_listen(self.address, error) from error

    def ended(self, number: int) -> None:
        """Take note that the process of that number has died, and is not replaced at once."""
        for place in self._places:
            try:
                place.ended(number)
            except OSError as error:
                logger.warning("listener_kept", worker=number, error=str(error))

    @property
    def all(self) -> list[socket.socket]:
        """All that are accepted from, each once."""
        there = {
            id(one): one for place in self._places for slot in place.slots.values() for one in slot
        }
        return [*there.values(), *([self.unix] if self.unix is not None else [])]

    def _close(self) -> None:
        for one in self.all:
            one.close()

    def _remove(self, path: Path) -> None:
        if self.is_certain and not self.handed_over:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _take_unix(left: list[socket.socket], path: Path | None) -> socket.socket | None:
    for one in left:
        if one.family == socket.AF_UNIX and path is not None and one.getsockname() == str(path):
            left.remove(one)
            return one
    return None


def _is_at(one: socket.socket, family: int, host: str, port: int) -> bool:
    if one.family != family:
        return False
    there = one.getsockname()
    return there[0] == host and port in (0, there[1])


def _check_v6_only(found: Iterable[socket.socket], address: ListenAddress) -> None:
    for one in found:
        if one.family == socket.AF_INET6 and not one.getsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
        ):
            raise LocalError(
                f"the socket at {address} takes IPv4 too; put BindIPv6Only=ipv6-only into the"
                " socket unit, and a ListenStream= for each address"
            )


def _check_left(
    left: Sequence[socket.socket],
    inherited: Inherited,
    address: ListenAddress,
    unix_socket: Path | None,
) -> None:
    if left and inherited.by_manager:
        raise LocalError(
            f"the socket unit listens on {', '.join(map(_name, left))}, but the configuration has"
            f" server.listen: {address} and server.unix_socket: {unix_socket or 'none'}; make"
            " them the same"
        )
    for one in left:
        logger.info("listener_not_taken_over", address=_name(one))
        one.close()


def _name(one: socket.socket) -> str:
    name: Any = one.getsockname()
    return str(name) if one.family == socket.AF_UNIX else str(ListenAddress(*name[:2]))


def _is_shared(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def _like(one: socket.socket) -> socket.socket:
    return bound_socket(socket.AddressFamily(one.family), one.getsockname(), is_shared=True)
