"""Several hosts on this machine: network namespaces with addresses of their own, on one switch."""

import subprocess
from collections.abc import Sequence


def ip(*words: object) -> str:
    return subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True).stdout


class Hosts:
    """Hosts 1 to `count` at 10.99.0.1 and so on; `with Hosts(3, "name") as hosts:`. Needs root."""

    def __init__(self, count: int, name: str) -> None:
        self._switch = f"{name}0"
        self.names = [f"{name}{number}" for number in range(1, count + 1)]

    def __enter__(self) -> "Hosts":
        ip("netns", "add", self._switch)
        self._in(self._switch, "link", "add", "name", "switch", "type", "bridge")
        self._in(self._switch, "link", "set", "switch", "up")
        for number, host in enumerate(self.names, start=1):
            ip("netns", "add", host)
            self._in(
                self._switch, "link", "add", "name", f"port{number}", "type", "veth", "peer", "name", host
            )
            self._in(self._switch, "link", "set", host, "netns", host)
            self._in(self._switch, "link", "set", f"port{number}", "master", "switch", "up")
            self._in(host, "addr", "add", f"{self.address(number)}/24", "dev", host)
            for link in (host, "lo"):
                self._in(host, "link", "set", link, "up")
        return self

    def __exit__(self, *exception: object) -> None:
        for host in self.names:
            for pid in self.processes(host):
                subprocess.run(["kill", "-9", pid], check=False)
        for host in (*self.names, self._switch):
            subprocess.run(["ip", "netns", "del", host], check=False)

    @staticmethod
    def address(number: int) -> str:
        return f"10.99.0.{number}"

    def call(self, number: int, command: Sequence[object]) -> list[str]:
        """The command line that runs a command on a host."""
        return ["ip", "netns", "exec", self.names[number - 1], *map(str, command)]

    def processes(self, host: str) -> list[str]:
        return subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True).stdout.split()

    def cut(self, number: int) -> None:
        """Pull the host's plug out of the switch."""
        self._in(self._switch, "link", "set", f"port{number}", "down")

    @staticmethod
    def _in(namespace: str, *words: object) -> None:
        ip("-n", namespace, *words)
