"""Fork servers that tests share: a start costs three seconds of CPU time, a job milliseconds."""

from collections.abc import Iterator

from gradbench.runner.fork_server import ForkServer, MallocProfile


class LentServer:
    """A fork server as its borrower sees it: closing gives it back, loaded, to the next one."""

    def __init__(self, server: ForkServer) -> None:
        self._server, self._lent = server, True

    def run(self, function, *arguments, limit_s: float) -> Iterator:
        return self._server.run(function, *arguments, limit_s=limit_s)

    def preload(self, modules) -> None:
        self._server.preload(modules)

    @property
    def alive(self) -> bool:
        return self._lent and self._server.alive

    def close(self) -> None:
        self._lent = False

    def end(self) -> None:
        """End the process itself, as a crash would."""
        self._server.close()


class SharedServers:
    """One real fork server of each kind, started when it is first asked for."""

    def __init__(self) -> None:
        self._loaded: dict[MallocProfile, ForkServer] = {}

    def __call__(self, kind: MallocProfile) -> LentServer:
        server = self._loaded.get(kind)
        if server is None or not server.alive:
            server = self._loaded[kind] = ForkServer(kind)
        return LentServer(server)

    def close(self) -> None:
        for server in self._loaded.values():
            server.close()
