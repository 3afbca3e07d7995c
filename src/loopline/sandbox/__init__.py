"""Untrusted code in killable processes with limits on time, memory, output and system calls.

Use `SandboxPool` of `runner.py`. Not covered: a container or a virtual machine around it. On Linux a worker may only
compute (system calls are allowed by a short list); elsewhere resource limits and Python's audit events remain.
"""
