"""Hello: two programs that find each other.

    python examples/hello.py

starts examples/hello/greeter.py and examples/hello/client.py, which you can also start by hand, in two terminals or on
two machines of one LAN.
"""

from _local import Processes

with Processes() as processes:
    processes.start("hello/greeter.py")
    client = processes.start("hello/client.py")  # in whichever order: a call waits for a node that offers the service
    status = client.wait(10)
raise SystemExit(status)
