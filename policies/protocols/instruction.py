"""What a model is told to do: the task's instruction and the tools its world offers.

Rule: the instruction stands as it is; what follows is only what the task declares. Tool servers
are listed, never started or called by us.
"""

import shlex

from headrace.types import McpServer, Task


def instruction_of(task: Task) -> str:
    """The instruction, and a list of the task's MCP servers if it has any."""
    servers = task.environment.mcp_servers
    if not servers:
        return task.instruction
    lines = "\n".join(f"- {_line(server)}" for server in servers)
    said = "MCP servers that can be reached from the shell:"
    return f"{task.instruction.rstrip()}\n\n{said}\n{lines}"


def _line(server: McpServer) -> str:
    if server.transport == "stdio":
        words = [server.command or "", *server.args]
        return f"{server.name} (stdio): {shlex.join(words)}"
    return f"{server.name} ({server.transport}): {server.url}"
